"""What a panel is, and the words its queries are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from observability.declared import PREFIX

# Every query of what the service itself tells is of the chosen processes.
CHOSEN = 'job=~"$job", instance=~"$instance"'
GREEN, YELLOW, ORANGE, RED, BLUE = "green", "yellow", "orange", "red", "blue"


class Kind(StrEnum):
    """How a panel looks."""

    LINES = "lines"
    STACK = "stack"
    STAT = "stat"
    HEATMAP = "heatmap"
    TABLE = "table"
    STATES = "states"


@dataclass(frozen=True, slots=True)
class Query:
    """One query and the name of its series."""

    expr: str
    legend: str = ""
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel, `width` of 24 columns wide.

    `steps` are values from which on a colour holds, above `base`. `words` are shown instead of values. `empty` says
    why it may have no data on a healthy machine; without it, it always has some under load.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = Kind.LINES
    width: int = 8
    base: str = GREEN
    steps: tuple[tuple[float, str], ...] = ()
    words: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    most: float | None = None
    no_data: str = "No data"
    empty: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels below one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Rows for one kind of question."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    chooses_instances: bool = True

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All of them."""
        return tuple(panel for row in self.rows for panel in row.panels)


def everywhere(expr: str) -> str:
    """A query as it is sent when all processes are chosen."""
    for word, value in {"$__rate_interval": "1m", "$__range": "1h", "$job": ".+", "$instance": ".+"}.items():
        expr = expr.replace(word, value)
    return expr


def process(name: str) -> str:
    """A standard metric of the API's processes: other programs have it too."""
    return f"({name}{{{CHOSEN}}} and on (instance) {PREFIX}model_ready)"


def metric(name: str, more: str = "") -> str:
    """A metric of the service, of the chosen processes."""
    return f"{PREFIX}{name}{{{CHOSEN}{', ' if more else ''}{more}}}"


def rate(name: str, more: str = "") -> str:
    """The rate of a counter of the service, as fine as the panel shows."""
    return f"rate({metric(name, more)}[$__rate_interval])"


def total(name: str, by: str = "", more: str = "") -> str:
    """That rate over all chosen processes."""
    return f"sum{f' by ({by})' if by else ''} ({rate(name, more)})"


def mean(histogram: str, by: str = "", more: str = "") -> str:
    """The mean of what a histogram of the service saw."""
    return f"{total(f'{histogram}_sum', by, more)} / ({total(f'{histogram}_count', by, more)} > 0)"


def quantile(share: float, histogram: str, by: str = "", more: str = "") -> str:
    """A quantile of what a histogram of the service saw."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, {total(f'{histogram}_bucket', labels, more)})"


def quantiles(histogram: str, more: str = "") -> tuple[Query, ...]:
    """Median, p95 and p99."""
    return tuple(
        Query(quantile(share, histogram, more=more), name, exemplars=share == 0.99)
        for share, name in ((0.5, "median"), (0.95, "p95"), (0.99, "p99"))
    )


def buckets(histogram: str, more: str = "") -> tuple[Query, ...]:
    """For a heatmap."""
    return (Query(total(f"{histogram}_bucket", "le", more), "{{le}}"),)
