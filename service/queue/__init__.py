"""The queue of a fleet, on Redis."""
