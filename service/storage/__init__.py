"""Where records and pictures are kept: a SQL database and an fsspec file system."""
