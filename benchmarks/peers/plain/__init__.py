"""FastAPI, one request at a time."""
