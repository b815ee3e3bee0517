"""The service without telemetry, to measure what that costs: `python -m benchmarks.silent serve`.

No event is taken, no HTTP request is counted or traced; with `SAFELIGHT_LOG_LEVEL=error` none is logged. `/metrics`
shows zeros.
"""

from typing import Any

from observability.events import Event


class Nothing:
    """Takes the place of whatever watches."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def observe(self, event: Event) -> None:
        """Forget one event."""

    def add(self, *_: object) -> "Nothing":
        """Add nothing."""
        return self

    def instrument(self, app: Any) -> None:
        """Leave `app` as it is."""


def silence() -> None:
    """From now on services are made without telemetry."""
    from service import app

    for name in ("FanOut", "Instrumentator", "instrument"):
        setattr(app, name, Nothing)


if __name__ == "__main__":
    from service.__main__ import main

    silence()
    main()
