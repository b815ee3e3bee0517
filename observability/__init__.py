"""Telemetry: what happened (events) and who is told (observers). Imports nothing from `service`."""
