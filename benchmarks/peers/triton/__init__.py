"""Triton, through PyTriton: dynamic batching."""
