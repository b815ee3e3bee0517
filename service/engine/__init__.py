"""The engine: a loop in a process of its own that turns tasks into pictures, batch by batch."""
