"""Writes what watches the service: recording rules, alerts with their tests, dashboards, the list of runbooks."""
