"""Alerts, and the health of all that watches."""

from observability.generate.dashboards.panel import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Dashboard,
    Kind,
    Panel,
    Query,
    Row,
)
from observability.generate.timing import SHIPPED
from observability.slo import Objectives


def dashboard(found: Objectives) -> Dashboard:
    """For who asks whether silence means that all is well."""
    return Dashboard(
        "alerts",
        "Alerts and stack",
        "Firing alerts; targets, rules, notifications; what telemetry loses and costs.",
        (
            Row("Alerts", _alerts()),
            Row("Targets", _targets(found)),
            Row("Probe", _probe()),
            Row("Prometheus", _prometheus()),
            Row("Alertmanager and inbox", (*_delivery(), *_inbox(), _configuration())),
            Row("Telemetry of the service", _telemetry()),
        ),
        chooses_instances=False,
    )


def _alerts() -> tuple[Panel, ...]:
    return (
        Panel(
            "Firing now",
            "`ALERTS`: all firing alerts. Good: Watchdog alone, which always fires.",
            "short",
            (Query('ALERTS{alertstate="firing"}', "{{alertname}}"),),
            Kind.TABLE,
            width=16,
        ),
        Panel(
            "Watchdog",
            "`ALERTS`: this alert always fires; without it, no other would arrive.",
            "short",
            (Query('count(ALERTS{alertname="Watchdog", alertstate="firing"})', "watchdog"),),
            Kind.STAT,
            base=RED,
            steps=((1, GREEN),),
            words={"1": ("alerts get through", GREEN)},
            no_data="Prometheus evaluates no rules",
        ),
        Panel(
            "Alerts by severity",
            "`ALERTS`: pending and firing.",
            "short",
            (Query("sum by (severity, alertstate) (ALERTS)", "{{severity}}, {{alertstate}}"),),
            Kind.STACK,
            width=24,
        ),
    )


def _targets(found: Objectives) -> tuple[Panel, ...]:
    return (
        Panel(
            "Targets",
            "`up`: each process that Prometheus is to read.",
            "short",
            (Query("up", "{{job}} {{instance}}"),),
            Kind.STATES,
            width=24,
            base=RED,
            steps=((1, GREEN),),
            words={"1": ("up", GREEN), "0": ("down", RED)},
        ),
        Panel(
            "Time of a scrape",
            "`scrape_duration_seconds`: how long Prometheus waits for each.",
            "s",
            (Query("scrape_duration_seconds", "{{job}} {{instance}}"),),
            width=12,
            steps=((found.limits.scrape * SHIPPED.scrape, RED),),
        ),
        Panel(
            "Series in a scrape",
            "`scrape_samples_scraped`: a label with too many values shows here.",
            "short",
            (Query("scrape_samples_scraped", "{{job}} {{instance}}"),),
            width=12,
        ),
    )


def _probe() -> tuple[Panel, ...]:
    return (
        Panel(
            "What the probe found",
            "`safelight_probe_runs_total`: pictures asked for, by what came of them. Good: ok alone.",
            "short",
            (Query("sum by (result) (increase(safelight_probe_runs_total[$__range]))", "{{result}}"),),
            Kind.STAT,
            width=16,
            base=BLUE,
            no_data="No probe",
        ),
        Panel(
            "Last right picture",
            "`safelight_probe_last_success_timestamp_seconds`: how long ago the probe got one.",
            "s",
            (Query("time() - (safelight_probe_last_success_timestamp_seconds > 0)", "{{instance}}"),),
            Kind.STAT,
            steps=((300, RED),),
            no_data="None yet",
        ),
    )


def _prometheus() -> tuple[Panel, ...]:
    return (
        Panel(
            "Time of rules",
            "`prometheus_rule_group_last_duration_seconds`: how long each group takes.",
            "s",
            (Query("topk(5, prometheus_rule_group_last_duration_seconds)", "{{rule_group}}"),),
            steps=((5, YELLOW),),
        ),
        Panel(
            "Rules that fail",
            "`prometheus_rule_evaluation_failures_total`. Good: none.",
            "ops",
            (
                Query(
                    "sum by (rule_group) (rate(prometheus_rule_evaluation_failures_total[$__rate_interval]))",
                    "{{rule_group}}",
                ),
            ),
            Kind.STACK,
            steps=((0.001, RED),),
        ),
        Panel(
            "Series in memory",
            "`prometheus_tsdb_head_series`.",
            "short",
            (Query("prometheus_tsdb_head_series", "{{instance}}"),),
        ),
    )


def _delivery() -> tuple[Panel, ...]:
    return (
        Panel(
            "Alerts handed to Alertmanager",
            "`prometheus_notifications_sent_total`, `prometheus_notifications_errors_total`.",
            "ops",
            (
                Query("sum(rate(prometheus_notifications_sent_total[$__rate_interval]))", "handed over"),
                Query("sum(rate(prometheus_notifications_errors_total[$__rate_interval]))", "failed"),
            ),
        ),
        Panel(
            "Notifications",
            "`alertmanager_notifications_total`, `alertmanager_notifications_failed_total`: by how they are sent.",
            "ops",
            (
                Query(
                    "sum by (integration) (rate(alertmanager_notifications_total[$__rate_interval])) > 0",
                    "{{integration}}",
                ),
                Query(
                    "sum by (integration) (rate(alertmanager_notifications_failed_total[$__rate_interval]))",
                    "{{integration}}, failed",
                ),
            ),
        ),
    )


def _inbox() -> tuple[Panel, ...]:
    return (
        Panel(
            "Alerts in the inbox",
            "`safelight_inbox_alerts_firing`: firing alerts that arrived.",
            "short",
            (Query("safelight_inbox_alerts_firing", "firing"),),
            Kind.STAT,
            width=4,
            steps=((1, ORANGE),),
            no_data="No inbox",
        ),
        Panel(
            "Watchdog at the inbox",
            "`safelight_inbox_watchdog_ok`: whether it still arrives, over the whole way that an alert takes.",
            "short",
            (Query("safelight_inbox_watchdog_ok", "watchdog"),),
            Kind.STAT,
            width=4,
            base=RED,
            steps=((1, GREEN),),
            words={"1": ("arrives", GREEN), "0": ("missing", RED)},
            no_data="No inbox",
        ),
    )


def _configuration() -> Panel:
    return Panel(
        "Configuration as it was last written",
        "`prometheus_config_last_reload_successful`, `alertmanager_config_last_reload_successful`: whether it "
        "could be read.",
        "short",
        (
            Query("prometheus_config_last_reload_successful", "Prometheus"),
            Query("alertmanager_config_last_reload_successful", "Alertmanager"),
        ),
        Kind.STAT,
        width=24,
        base=RED,
        steps=((1, GREEN),),
        words={"1": ("yes", GREEN), "0": ("no", RED)},
    )


def _telemetry() -> tuple[Panel, ...]:
    return (
        Panel(
            "Lost events and spans",
            "`safelight_events_dropped_total`, `safelight_spans_dropped_total`. Good: none; requests are not held up "
            "by it.",
            "ops",
            (
                Query(
                    "sum by (consumer) (rate(safelight_events_dropped_total[$__rate_interval]))", "events, {{consumer}}"
                ),
                Query("sum by (reason) (rate(safelight_spans_dropped_total[$__rate_interval]))", "spans, {{reason}}"),
            ),
            Kind.STACK,
        ),
        Panel(
            "Exported spans",
            "`safelight_spans_exported_total`, `safelight_span_export_errors_total`.",
            "ops",
            (
                Query("sum(rate(safelight_spans_exported_total[$__rate_interval]))", "exported"),
                Query("sum(rate(safelight_span_export_errors_total[$__rate_interval]))", "failed exports"),
            ),
        ),
        Panel(
            "Time to write a scrape",
            "`safelight_scrape_duration_seconds`: within the service; beside a saturated engine it waits for the "
            "processor.",
            "s",
            (
                Query(
                    "histogram_quantile(0.99, sum by (le) "
                    "(rate(safelight_scrape_duration_seconds_bucket[$__rate_interval])))",
                    "p99",
                ),
            ),
            width=4,
            steps=((0.1, YELLOW),),
        ),
        Panel(
            "Series of the service",
            "`safelight_scrape_series`: it does not depend on what is asked.",
            "short",
            (Query("max by (instance) (safelight_scrape_series)", "{{instance}}"),),
            Kind.STAT,
            width=4,
            base=BLUE,
        ),
    )
