"""What Alertmanager posts, as its documentation and its source have it."""

from typing import Any

STARTED = "2026-11-22T10:00:00.123456789Z"
STARTED_SECONDS = 1795341600.123456
ENDED = "2026-11-22T10:05:00Z"
ENDED_SECONDS = 1795341900.0
NEVER = "0001-01-01T00:00:00Z"


def alert(name: str = "QueueFull", status: str = "firing", **changes: Any) -> dict[str, Any]:
    """One alert; `labels` and `annotations` come beside those that it has."""
    labels = {"alertname": name, "severity": "warning", **changes.pop("labels", {})}
    annotations = {"summary": f"{name} is so", "description": "Look at it.", **changes.pop("annotations", {})}
    return {
        "status": status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": STARTED,
        "endsAt": ENDED if status == "resolved" else NEVER,
        "generatorURL": "http://prometheus:9090/graph?g0.expr=up",
        "fingerprint": f"{name:0>16}",
        **changes,
    }


def notification(*alerts: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A notification of these alerts."""
    is_firing = any(each["status"] == "firing" for each in alerts)
    return {
        "version": "4",
        "groupKey": '{}:{alertname="QueueFull"}',
        "truncatedAlerts": 0,
        "status": "firing" if is_firing else "resolved",
        "receiver": "inbox",
        "groupLabels": {"alertname": "QueueFull"},
        "commonLabels": {"alertname": "QueueFull"},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "alerts": list(alerts),
        **changes,
    }
