"""Dashboards as data: panels that say what they show, and Grafana's JSON made from them."""

from observability.generate.dashboards import alerts, container, engine, fleet, gpu, overview, requests
from observability.generate.dashboards.panel import Dashboard
from observability.slo import Objectives


def every(found: Objectives) -> tuple[Dashboard, ...]:
    """All dashboards, in the order in which an engineer on call opens them."""
    return tuple(each.dashboard(found) for each in (overview, requests, engine, fleet, gpu, container, alerts))
