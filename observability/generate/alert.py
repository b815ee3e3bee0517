"""What an alert is, and what proves it: one case in which it fires and one, much like it, in which it does not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """What an alert asks for: someone now, someone today, nobody; `none` is for the alerts that serve the others."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"
    NONE = "none"


class Team(StrEnum):
    """Whose it is."""

    SERVICE = "service"
    PLATFORM = "platform"


@dataclass(frozen=True, slots=True)
class Case:
    """Series as promtool's tests write them, one value every `every`, and the moment to look."""

    series: Mapping[str, str]
    at: str
    every: str = "15s"


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording rule, `level:metric:operations`."""

    record: str
    expr: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alert:
    """An alerting rule with its proof.

    `subject` says what is wrong: of two alerts of one subject, the more severe mutes the other. `hold` is Prometheus'
    `for`, `keep` its `keep_firing_for`. Of an alert without a team, the expression has one.
    """

    name: str
    severity: Severity
    subject: str
    dashboard: str
    summary: str
    description: str
    expr: str
    fires: Case
    silent: Case | None
    team: Team | None = Team.SERVICE
    hold: str = "0s"
    keep: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated together, every `interval` if that is not the usual one."""

    name: str
    rules: tuple[Recording | Alert, ...]
    interval: str | None = None

    @property
    def alerts(self) -> tuple[Alert, ...]:
        """The alerting rules."""
        return tuple(each for each in self.rules if isinstance(each, Alert))
