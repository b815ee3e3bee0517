"""mosec: dynamic batching."""
