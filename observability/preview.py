"""`python -m observability.preview` draws a dashboard from a live Prometheus: no Grafana, but the same queries, titles,
units and thresholds. For documents, and for whoever changes a panel.
"""

import json
import math
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt  # the back end is chosen first
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from observability import slo
from observability.generate import dashboards
from observability.generate.dashboards.panel import Dashboard, Kind, Panel, Query, Row, everywhere

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
COLUMNS = 24
WIDTH, TITLE, HEADING, HEIGHT = 16.0, 0.5, 0.4, 2.4  # inches
HEIGHTS = {Kind.STAT: 1.3}
POINTS = 240
NOTE = "Drawn by Safelight's own preview from live Prometheus data, time in minutes before; not a picture of Grafana."
COLOURS = {"green": "#3f9b4f", "yellow": "#d9a514", "orange": "#e07b1a", "red": "#d13a3a", "blue": "#3b78de"}
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Source:
    """A Prometheus, and the time that is looked at."""

    def __init__(self, url: str, minutes: float) -> None:
        self._url = url.rstrip("/")
        self.end = time.time()
        self.start = self.end - 60 * minutes

    def instant(self, query: Query) -> list[dict[str, Any]]:
        """Series with one value each."""
        return self._ask("query", {"query": everywhere(query.expr), "time": self.end})

    def over_time(self, query: Query) -> list[dict[str, Any]]:
        """Series with values over the time that is looked at."""
        step = (self.end - self.start) / POINTS
        return self._ask(
            "query_range", {"query": everywhere(query.expr), "start": self.start, "end": self.end, "step": step}
        )

    def _ask(self, path: str, parameters: Mapping[str, object]) -> list[dict[str, Any]]:
        text = urllib.parse.urlencode(parameters)
        with OPENER.open(f"{self._url}/api/v1/{path}?{text}", timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


def _name(legend: str, labels: Mapping[str, str]) -> str:
    for label, value in labels.items():
        legend = legend.replace(f"{{{{{label}}}}}", value)
    return legend


def say(value: float, unit: str) -> str:
    """A number as Grafana would write it, nearly."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{value:.1%}"
    if unit == "dateTimeFromNow":
        return f"{max(0.0, time.time() - value / 1000) / 60:.0f} min ago"
    if unit == "s" and 0 < abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    short = next((f"{value / size:.3g} {letter}" for size, letter in PREFIXES if abs(value) >= size), f"{value:.3g}")
    words = {"s": "s", "bytes": "B", "Bps": "B/s", "reqps": "/s", "ops": "/s", "currencyUSD": "$", "watt": "W"}
    return f"{short} {words.get(unit, '')}".strip()


def draw(dashboard: Dashboard, source: Source) -> Figure:
    """All panels in Grafana's grid of 24 columns."""
    lines: list[Row | list[Panel]] = []
    for row in dashboard.rows:
        lines += [row, *_lines_of(row)]
    heights = [HEADING if isinstance(line, Row) else HEIGHTS.get(line[0].kind, HEIGHT) for line in lines]
    page = Page(WIDTH, TITLE + sum(heights) + HEADING)
    _words(page.axes(0, 0, COLUMNS, TITLE), f"Safelight / {dashboard.title}", 15, "left")
    top = TITLE
    for line, height in zip(lines, heights, strict=True):
        column = 0
        for panel in [] if isinstance(line, Row) else line:
            _panel(page.axes(column, top, panel.width, height), panel, source)
            column += panel.width
        if isinstance(line, Row):
            _words(page.axes(0, top, COLUMNS, height), line.title, 12, "left")
        top += height
    _words(page.axes(0, top, COLUMNS, HEADING), NOTE, 9, "left")
    return page.figure


class Page:
    """Places axes on a figure, in columns and inches from the top."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = plt.figure(figsize=(width, height))
        self._width, self._height = width, height

    def axes(self, column: int, top: float, columns: int, height: float) -> Axes:
        """Room for title and ticks is taken from inside."""
        left, right, above, below = (0.25, 0.1, 0.0, 0.0) if height <= TITLE else (0.62, 0.15, 0.3, 0.3)
        x = column / COLUMNS * self._width + left
        width = columns / COLUMNS * self._width - left - right
        y = self._height - top - height + below
        inside = height - above - below
        return self.figure.add_axes((x / self._width, y / self._height, width / self._width, inside / self._height))


def _lines_of(row: Row) -> list[list[Panel]]:
    lines: list[list[Panel]] = [[]]
    for panel in row.panels:
        if sum(each.width for each in lines[-1]) + panel.width > COLUMNS:
            lines.append([])
        lines[-1].append(panel)
    return lines


def _words(axes: Axes, text: str, size: int, side: str, colour: str = "#333333") -> None:
    axes.axis("off")
    place = 0.0 if side == "left" else 0.5
    _write(axes, place, 0.5, text, ha=side, fontsize=size, color=colour)


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    axes.text(x, y, text, va="center", transform=axes.transAxes, **style)


def _panel(axes: Axes, panel: Panel, source: Source) -> None:
    axes.set_title(panel.title, fontsize=9, loc="left")
    DRAWN[panel.kind](axes, panel, source)


def _stat(axes: Axes, panel: Panel, source: Source) -> None:
    found = [
        (_name(query.legend, each["metric"]), float(each["value"][1]))
        for query in panel.queries
        for each in source.instant(query)
    ]
    if not found:
        _words(axes, panel.no_data, 11, "center", "#888888")
        return
    axes.axis("off")
    size = 15 if len(found) <= 4 else 8
    for place, (name, value) in enumerate(found):
        text, colour = panel.words.get(f"{value:g}", (say(value, panel.unit), _colour(panel, value)))
        middle = (place + 0.5) / len(found)
        _write(axes, middle, 0.6, text, ha="center", fontsize=size, color=COLOURS[colour])
        _write(axes, middle, 0.1, name, ha="center", fontsize=min(7, size - 1), color="#666666")


def _colour(panel: Panel, value: float) -> str:
    return ([panel.base] + [colour for least, colour in panel.steps if value >= least])[-1]


def _lines(axes: Axes, panel: Panel, source: Source) -> None:
    for query in panel.queries:
        for each in source.over_time(query):
            times, values = zip(*((float(at) - source.end, float(value)) for at, value in each["values"]), strict=True)
            axes.plot([at / 60 for at in times], values, linewidth=1, label=_name(query.legend, each["metric"]))
    _finish(axes, panel)


def _stack(axes: Axes, panel: Panel, source: Source) -> None:
    found = [
        (_name(query.legend, each["metric"]), dict(each["values"]))
        for query in panel.queries
        for each in source.over_time(query)
    ]
    found = [pair for pair in found if any(map(float, pair[1].values()))] or found[:1]
    times = sorted({at for _, values in found for at in values})
    if found:
        heights = [[float(values.get(at, 0)) for at in times] for _, values in found]
        places = [(float(at) - source.end) / 60 for at in times]
        axes.stackplot(places, heights, labels=[name for name, _ in found], alpha=0.6)
    _finish(axes, panel)


def _finish(axes: Axes, panel: Panel) -> None:
    if not axes.has_data():
        _words(axes, panel.no_data, 11, "center", "#888888")
        return
    top = axes.dataLim.y1
    axes.set_ylim(min(0.0, axes.dataLim.y0), panel.most or 1.1 * axes.dataLim.y1 or 1.0)
    for value, colour in panel.steps:
        if value <= 1.5 * top:
            axes.axhline(value, color=COLOURS[colour], linestyle="--", linewidth=0.8)
    axes.yaxis.set_major_formatter(lambda value, _place: say(value, panel.unit))
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6, loc="upper left", ncols=2, framealpha=0.6)


def _heatmap(axes: Axes, panel: Panel, source: Source) -> None:
    series = sorted(source.over_time(panel.queries[0]), key=lambda each: float(each["metric"]["le"]))
    if not series:
        _words(axes, panel.no_data, 11, "center", "#888888")
        return
    times = sorted({at for each in series for at, _ in each["values"]})
    upto = [[float(dict(each["values"]).get(at, 0)) for at in times] for each in series]
    rows = [upto[0]] + [[max(0.0, b - a) for a, b in zip(low, high, strict=True)] for low, high in pairwise(upto)]
    axes.imshow(
        rows, aspect="auto", origin="lower", cmap="Oranges", extent=((times[0] - source.end) / 60, 0, 0, len(rows))
    )
    axes.set_yticks([number + 1 for number in range(len(rows))], [each["metric"]["le"] for each in series], fontsize=6)
    axes.tick_params(axis="x", labelsize=7)


def _table(axes: Axes, panel: Panel, source: Source) -> None:
    found = source.instant(panel.queries[0])
    hidden = {"__name__", "job"}
    text = "\n".join(", ".join(f"{k}={v}" for k, v in each["metric"].items() if k not in hidden) for each in found)
    _words(axes, text or panel.no_data, 7, "left")


def _states(axes: Axes, panel: Panel, source: Source) -> None:
    series = [
        (_name(query.legend, each["metric"]), each) for query in panel.queries for each in source.over_time(query)
    ]
    for place, (_, each) in enumerate(series):
        for at, value in each["values"]:
            colour = COLOURS[_colour(panel, float(value))]
            axes.plot([(float(at) - source.end) / 60], [place], marker="s", markersize=4, color=colour)
    if not series:
        _words(axes, panel.no_data, 11, "center", "#888888")
        return
    axes.set_yticks(range(len(series)), [name for name, _ in series], fontsize=7)
    axes.set_ylim(-0.6, len(series) - 0.4)
    axes.tick_params(axis="x", labelsize=7)


DRAWN: Mapping[Kind, Callable[[Axes, Panel, Source], None]] = {
    Kind.LINES: _lines,
    Kind.STACK: _stack,
    Kind.STAT: _stat,
    Kind.HEATMAP: _heatmap,
    Kind.TABLE: _table,
    Kind.STATES: _states,
}


@click.command(context_settings={"show_default": True})
@click.option("--prometheus", "url", default="http://127.0.0.1:9090", help="Address of Prometheus.")
@click.option("--dashboard", "name", default="overview", help="Which one.")
@click.option("--minutes", default=15.0, help="How far to look back.")
@click.option(
    "--out", default="overview.png", type=click.Path(dir_okay=False, path_type=Path), help="Picture to write."
)
def main(url: str, name: str, minutes: float, out: Path) -> None:
    """Draw a dashboard from what a live Prometheus has."""
    known: Sequence[Dashboard] = dashboards.every(slo.load())
    found = next((each for each in known if each.name == name), None)
    if found is None:
        raise click.BadParameter(f"there are {', '.join(each.name for each in known)}", param_hint="--dashboard")
    draw(found, Source(url, minutes)).savefig(out, dpi=80)


if __name__ == "__main__":
    main()
