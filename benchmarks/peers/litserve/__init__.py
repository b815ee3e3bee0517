"""LitServe: max_batch_size and batch_timeout."""
