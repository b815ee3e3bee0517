"""The published experiment's clients."""
