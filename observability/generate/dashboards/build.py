"""Grafana's classic JSON from dashboards as data."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from observability.generate.dashboards.panel import Dashboard, Kind, Panel, Query

PROMETHEUS = models.DataSourceRef(type_val="prometheus", uid="$datasource")
ANNOTATIONS = {  # what happened, drawn into every panel
    "Alerts": ("red", 'ALERTS{alertstate="firing", severity=~"critical|warning"}', "{{alertname}} {{instance}}"),
    "Restarts": ("blue", 'changes(process_start_time_seconds{job=~"api|worker"}[1m]) > 0', "{{instance}} restarted"),
}
HEIGHTS = {Kind.STAT: 4}
HEIGHT = 8
Builder = Any  # the builders of panels have their methods in common, but no base class that says so


def to_json(dashboard: Dashboard) -> str:
    """The file that Grafana reads."""
    content = json.loads(json.dumps(_dashboard(dashboard).build(), cls=JSONEncoder))
    for annotation in content["annotations"]["list"]:
        annotation["titleFormat"] = ANNOTATIONS[annotation["name"]][2]  # the library knows no such thing
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _dashboard(dashboard: Dashboard) -> grafana.Dashboard:
    built = (
        grafana.Dashboard(f"Safelight / {dashboard.title}")
        .uid(f"safelight-{dashboard.name}")
        .description(dashboard.description)
        .tags(["safelight"])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(_links())
    )
    for variable in _variables(dashboard):
        built.with_variable(variable)
    for name, (colour, expr, _) in ANNOTATIONS.items():
        built.annotation(_annotation(name, colour, expr))
    number = 0
    for row in dashboard.rows:
        built.with_row(grafana.Row(row.title))
        for panel in row.panels:
            number += 1
            built.with_panel(_panel(panel).id(number))
    return built


def _links() -> grafana.DashboardLink:
    return (
        grafana.DashboardLink("Safelight")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags(["safelight"])
        .include_vars(True)
        .keep_time(True)
    )


def _variables(dashboard: Dashboard) -> list[Any]:
    source = grafana.DatasourceVariable("datasource").label("Data source").type("prometheus")
    if not dashboard.chooses_instances:
        return [source]
    ready = "safelight_model_ready"
    return [
        source,
        _choice("job", "Job", f"label_values({ready}, job)"),
        _choice("model", "Model", 'label_values(safelight_model_info{job=~"$job"}, name)'),
        _choice("instance", "Instance", 'label_values(safelight_model_info{job=~"$job", name=~"$model"}, instance)'),
    ]


def _choice(name: str, label: str, query: str) -> grafana.QueryVariable:
    everything = models.VariableOption(selected=True, text=["All"], value=["$__all"])
    return (
        grafana.QueryVariable(name)
        .label(label)
        .datasource(PROMETHEUS)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(everything)
    )


def _annotation(name: str, colour: str, expr: str) -> grafana.AnnotationQuery:
    return grafana.AnnotationQuery().name(name).datasource(PROMETHEUS).enable(True).icon_color(colour).expr(expr)


def _panel(panel: Panel) -> Builder:
    built = KINDS[panel.kind](panel)
    for query in panel.queries:
        built.with_target(_target(query, panel.kind))
    built.title(panel.title).description(panel.description).datasource(PROMETHEUS).unit(panel.unit)
    built.height(HEIGHTS.get(panel.kind, HEIGHT)).span(panel.width).no_value(panel.no_data)
    steps = [models.Threshold(None, panel.base), *(models.Threshold(value, colour) for value, colour in panel.steps)]
    built.thresholds(grafana.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.words:
        built.mappings([_words(panel.words)])
    if panel.most is not None:
        built.max(panel.most)
    return built


def _words(words: Mapping[str, tuple[str, str]]) -> models.ValueMap:
    return models.ValueMap(
        {value: models.ValueMappingResult(text=text, color=colour) for value, (text, colour) in words.items()}
    )


def _target(query: Query, kind: Kind) -> prometheus.Dataquery:
    built = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).datasource(PROMETHEUS)
    if kind is Kind.TABLE:
        return built.instant().format(PromQueryFormat.TABLE)
    if kind is Kind.STAT:
        return built.instant()
    if kind is Kind.HEATMAP:
        return built.range().format(PromQueryFormat.HEATMAP)
    return built.range().exemplar(query.exemplars)


def _lines(panel: Panel) -> timeseries.Panel:
    built = timeseries.Panel().min(0).line_width(1).fill_opacity(10).show_points(common.VisibilityMode.NEVER)
    built.tooltip(VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    built.legend(
        VizLegendOptions()
        .display_mode(common.LegendDisplayMode.LIST)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    if panel.steps:
        built.thresholds_style(GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED))
    return built


def _stack(panel: Panel) -> timeseries.Panel:
    return _lines(panel).fill_opacity(40).stacking(StackingConfig().mode(common.StackingMode.NORMAL))


def _stat(panel: Panel) -> stat.Panel:
    is_several = len(panel.queries) > 1 or "{{" in panel.queries[0].legend
    last = ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    return (
        stat.Panel()
        .reduce_options(last)
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.NONE)
        .text_mode(common.BigValueTextMode.VALUE_AND_NAME if is_several else common.BigValueTextMode.VALUE)
    )


def _heatmap(panel: Panel) -> heatmap.Panel:
    return (
        heatmap.Panel()
        .calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .exemplars_color("rgba(255,0,255,0.7)")
    )


def _table(_panel: Panel) -> table.Panel:
    return table.Panel().show_header(True)


def _states(_panel: Panel) -> statetimeline.Panel:
    return statetimeline.Panel().merge_values(True).show_value(common.VisibilityMode.AUTO)


KINDS: Mapping[Kind, Callable[[Panel], Builder]] = {
    Kind.LINES: _lines,
    Kind.STACK: _stack,
    Kind.STAT: _stat,
    Kind.HEATMAP: _heatmap,
    Kind.TABLE: _table,
    Kind.STATES: _states,
}
