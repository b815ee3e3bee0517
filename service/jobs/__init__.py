"""Jobs: their record, and the service that leads each to exactly one terminal state."""
