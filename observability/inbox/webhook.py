"""What Alertmanager posts: version 4 of its webhook, as far as it matters here."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from observability.labels import AlertStatus

WATCHDOG = "Watchdog"  # always fires
MAX_PROBLEMS = 5
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FAR = datetime(9000, 1, 1, tzinfo=UTC)


class Malformed(ValueError):
    """It is no notification; the text says why, without the values."""


class Alert(BaseModel):
    """One alert of a notification. One that still fires ends in the year 1."""

    status: AlertStatus
    labels: dict[str, str]
    annotations: dict[str, str] = Field(default_factory=dict)
    starts_at: Annotated[AwareDatetime, Field(alias="startsAt", ge=EPOCH, lt=FAR)]
    ends_at: Annotated[AwareDatetime | None, Field(alias="endsAt")] = None
    fingerprint: Annotated[str, Field(min_length=1, max_length=64)]
    generator_url: Annotated[str, Field(alias="generatorURL")] = ""

    @property
    def name(self) -> str:
        """Its label `alertname`."""
        return self.labels.get("alertname", "")

    @property
    def ended_at(self) -> float | None:
        """Unix seconds; None while it fires."""
        is_known = self.ends_at is not None and EPOCH < self.ends_at < FAR
        return self.ends_at.timestamp() if is_known and self.ends_at and self.status is AlertStatus.RESOLVED else None


class Notification(BaseModel):
    """Alerts of one group; `status` is resolved when all of them are."""

    version: Literal["4"]
    status: AlertStatus
    alerts: list[Alert]

    @property
    def has_watchdog(self) -> bool:
        """Whether the alert that always fires does."""
        return any(each.name == WATCHDOG and each.status is AlertStatus.FIRING for each in self.alerts)


def parse(body: bytes) -> Notification:
    """The notification in `body`. Raises `Malformed`."""
    try:
        return Notification.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        problems = [f"{'.'.join(str(part)[:64] for part in each['loc']) or 'body'}: {each['msg']}" for each in found]
        more = f"; and {len(problems) - MAX_PROBLEMS} more" if len(problems) > MAX_PROBLEMS else ""
        raise Malformed("; ".join(problems[:MAX_PROBLEMS]) + more) from error
