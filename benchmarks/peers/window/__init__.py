"""FastAPI with the published micro-batching."""
