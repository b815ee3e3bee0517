"""A fleet whose processes are killed all the time."""
