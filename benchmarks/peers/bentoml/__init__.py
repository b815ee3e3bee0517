"""BentoML: adaptive batching."""
