"""The list of alerts, each with its runbook."""

from collections.abc import Iterable

from observability.generate.alert import Alert, Severity

HEAD = """# Runbooks

Written by `make config` from the alerts; the runbooks themselves are written by hand. What severities ask for:
critical, someone now; warning, someone today; info, nobody, it is told beside a more severe alert of the same team;
none, an alert that serves the others.

| alert | severity | team | |
| --- | --- | --- | --- |
"""


def index(alerts: Iterable[Alert]) -> str:
    """The whole file, the most severe first."""
    order = list(Severity)
    rows: dict[str, str] = {}
    for alert in sorted(alerts, key=lambda each: (order.index(each.severity), each.name)):
        team = alert.team or ""
        rows.setdefault(
            alert.name, f"| [{alert.name}]({alert.name}.md) | {alert.severity} | {team} | {alert.summary} |"
        )
    return HEAD + "\n".join(rows.values()) + "\n"
