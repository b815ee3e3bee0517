"""Drills of what watches: Prometheus, Alertmanager, exporters."""

from observability.gameday import causes
from observability.gameday.causes import configured, stopped, together
from observability.gameday.drill import SPLITS, Drill

STACK = (
    Drill("an exporter is down", ("TargetDown",), stopped("node"), within="5m", is_core=True),
    Drill(
        "a rule cannot be evaluated",
        ("PrometheusRuleFailures",),
        configured("prometheus", "rules/gameday.yml", causes.rule("up * on () up")),
        within="4m",
        is_core=True,
    ),
    Drill(
        "a rule file is broken",
        ("PrometheusConfigReloadFailed",),
        configured("prometheus", "rules/gameday.yml", causes.rule("sum("), works=False),
        within="3m",
    ),
    Drill(
        "Alertmanager's configuration is broken",
        ("AlertmanagerConfigReloadFailed",),
        configured("alertmanager", "alertmanager.yml", lambda text: f"{text}\nnonsense: true\n", works=False),
        within="3m",
    ),
    Drill(
        "a receiver cannot be reached",
        ("AlertmanagerNotificationsFailing",),
        together(
            configured("alertmanager", "alertmanager.yml", causes.unreachable("ticket-service")),
            SPLITS,
        ),
        within="4m",
        beside=frozenset({"OutOfMemorySplits"}),
    ),
    Drill(
        "Alertmanager is down",
        ("AlertmanagerUnreachable", "PrometheusNotificationsFailing"),
        stopped("alertmanager"),
        within="4m",
        beside=frozenset({"Watchdog"}),
        told_after=True,
        is_core=True,
    ),
    Drill(
        "Prometheus is down, which the inbox notices",
        ("Watchdog",),
        stopped("prometheus"),
        within="12m",
        # It finds its targets 5 s after its start, five minutes of compressed time; till then there are none.
        beside=frozenset({"ApiDown", "AlertmanagerUnreachable", "GpuMissing"}),
        is_core=True,
    ),
)
