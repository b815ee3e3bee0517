"""Alerts about what watches the service: nobody else would tell."""

from observability.generate.alert import Alert, Case, Group, Severity, Team
from observability.slo import Limits

PROMETHEUS = 'job="prometheus", instance="prometheus:9090"'
ALERTMANAGER = 'job="alertmanager", instance="alertmanager:9093"'


def groups(limits: Limits) -> tuple[Group, ...]:
    """All of them."""
    prometheus = (_rules_fail(), _notifications_fail(), _no_alertmanager(), _reload("prometheus"))
    return (
        Group("targets", (_target_down(), _scrape_slow(limits))),
        Group("prometheus", prometheus),
        Group("alertmanager", (_deliveries_fail(), _reload("alertmanager"))),
        Group("meta", (_watchdog(), _info_inhibitor())),
    )


def _target_down() -> Alert:
    up = 'up{job="node", instance="node:9100"}'
    return Alert(
        "TargetDown",
        Severity.WARNING,
        subject="targets",
        dashboard="alerts",
        team=Team.PLATFORM,
        summary="Something that is to be watched does not answer",
        description="{{ $labels.job }} at {{ $labels.instance }} has not answered Prometheus for 3 minutes.",
        expr='up{job!~"api|alertmanager"} == 0',
        hold="3m",
        fires=Case({up: "1x4 0x40"}, at="6m"),
        silent=Case({up: "1x4 0x8 1x40"}, at="6m"),
    )


def _scrape_slow(limits: Limits) -> Alert:
    slow = 'scrape_duration_seconds{job="api", instance="api:8000"}'
    return Alert(
        "ScrapeSlow",
        Severity.INFO,
        subject="scrapes",
        dashboard="alerts",
        team=Team.PLATFORM,
        summary="A scrape takes very long",
        description="A scrape of {{ $labels.job }} at {{ $labels.instance }} takes {{ $value | humanizeDuration }}.",
        expr=f"avg_over_time(scrape_duration_seconds[5m]) > {limits.scrape:g} * <scrape>",
        hold="5m",
        fires=Case({slow: "8x60"}, at="12m"),
        silent=Case({slow: "0.02x60"}, at="12m"),
    )


def _rules_fail() -> Alert:
    failures = f'prometheus_rule_evaluation_failures_total{{{PROMETHEUS}, rule_group="g"}}'
    return Alert(
        "PrometheusRuleFailures",
        Severity.CRITICAL,
        subject="prometheus-rules",
        dashboard="alerts",
        team=Team.PLATFORM,
        summary="Rules cannot be evaluated",
        description=(
            "{{ $labels.rule_group }} failed {{ $value | humanize }} times within 5 minutes: alerts may be silent."
        ),
        expr="round(sum by (instance, rule_group) (increase(prometheus_rule_evaluation_failures_total[5m]))) > 0",
        hold="1m",
        fires=Case({failures: "0x8 0+1x40"}, at="6m"),
        silent=Case({failures: "3x60"}, at="6m"),
    )


def _notifications_fail() -> Alert:
    errors = f'prometheus_notifications_errors_total{{{PROMETHEUS}, alertmanager="http://alertmanager:9093"}}'
    return Alert(
        "PrometheusNotificationsFailing",
        Severity.CRITICAL,
        subject="prometheus-notifications",
        dashboard="alerts",
        team=Team.PLATFORM,
        summary="Prometheus cannot hand alerts to Alertmanager",
        description=(
            "{{ $labels.instance }} failed {{ $value | humanize }} times within 5 minutes to hand alerts over."
        ),
        expr="round(sum by (instance) (increase(prometheus_notifications_errors_total[5m]))) > 0",
        hold="1m",
        keep="5m",
        fires=Case({errors: "0x8 0+1x40"}, at="6m"),
        silent=Case({errors: "3x60"}, at="6m"),
    )


def _no_alertmanager() -> Alert:
    up = f"up{{{ALERTMANAGER}}}"
    return Alert(
        "AlertmanagerUnreachable",
        Severity.CRITICAL,
        subject="alertmanager",
        dashboard="alerts",
        team=Team.PLATFORM,
        summary="Alertmanager is down: nobody is told of anything",
        description="Prometheus has not reached {{ $labels.instance }} for a minute. This is told once it is back.",
        expr='up{job="alertmanager"} == 0 or absent(up{job="alertmanager"})',
        hold="1m",
        keep="5m",
        fires=Case({up: "1x4 0x40"}, at="4m"),
        silent=Case({up: "1x4 0x2 1x40"}, at="4m"),
    )


def _deliveries_fail() -> Alert:
    failed = f'alertmanager_notifications_failed_total{{{ALERTMANAGER}, integration="webhook"}}'
    return Alert(
        "AlertmanagerNotificationsFailing",
        Severity.CRITICAL,
        subject="alertmanager-notifications",
        dashboard="alerts",
        team=Team.PLATFORM,
        summary="Alertmanager cannot deliver",
        description="{{ $value | humanize }} notifications by {{ $labels.integration }} failed within 5 minutes.",
        expr="round(sum by (instance, integration) (increase(alertmanager_notifications_failed_total[5m]))) > 0",
        hold="1m",
        keep="5m",
        fires=Case({failed: "0x8 0+1x40"}, at="6m"),
        silent=Case({failed: "3x60"}, at="6m"),
    )


def _reload(program: str) -> Alert:
    name = program.capitalize()
    labels = {"prometheus": PROMETHEUS, "alertmanager": ALERTMANAGER}[program]
    worked = f"{program}_config_last_reload_successful{{{labels}}}"
    return Alert(
        f"{name}ConfigReloadFailed",
        Severity.WARNING,
        subject=f"{program}-config",
        dashboard="alerts",
        team=Team.PLATFORM,
        summary=f"{name} runs with an old configuration",
        description="{{ $labels.instance }} could not read its new configuration and goes on with the last good one.",
        expr=f"{program}_config_last_reload_successful == 0",
        hold="1m",
        fires=Case({worked: "1x4 0x40"}, at="4m"),
        silent=Case({worked: "1x40"}, at="4m"),
    )


def _watchdog() -> Alert:
    return Alert(
        "Watchdog",
        Severity.NONE,
        subject="watchdog",
        dashboard="alerts",
        team=Team.PLATFORM,
        summary="Alerts get through",
        description="This always fires. When it stops arriving, no other alert can arrive either.",
        expr="vector(1)",
        fires=Case({'up{job="api", instance="api:8000"}': "1x10"}, at="1m"),
        silent=None,
    )


def _info_inhibitor() -> Alert:
    costly = {
        'up{job="api", instance="api:8000"}': "1x120",
        'safelight_gpu_dollars_per_hour{instance="api:8000"}': "2x120",
        'safelight_images_total{instance="api:8000"}': "0+3x120",
    }
    full = {'safelight_queue_depth{instance="api:8000", priority="normal"}': "99x120"}
    return Alert(
        "InfoInhibitor",
        Severity.NONE,
        subject="info",
        dashboard="alerts",
        team=None,
        summary="Alerts for information alone are held back",
        description="An alert of severity info is told only beside a more severe one of the same team.",
        expr=(
            'group by (team) (ALERTS{severity="info", alertstate="firing"})\n'
            'unless on (team) ALERTS{severity=~"warning|critical", alertstate="firing"}'
        ),
        fires=Case(costly, at="90m", every="1m"),
        silent=Case(costly | full, at="90m", every="1m"),
    )
