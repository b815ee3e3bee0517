"""The results of a game day as text, JSON and Markdown."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from observability.gameday.drill import Drill
from observability.gameday.run import Result, Row
from observability.generate.timing import SHIPPED, Timing

Results = Sequence[tuple[Drill, Result]]

HEAD = ("alert", "cause", "", "pending", "fires", "told", "at most", "resolved")


def _cells(row: Row) -> tuple[str, ...]:
    times = (row.pending, row.firing, row.notified, row.expected, row.resolved)
    pending, firing, notified, expected, resolved = ("-" if each is None else f"{each:.1f}" for each in times)
    if row.is_muted:
        notified, expected, resolved = "muted", "-", "-"
    kind = "simulated" if row.is_simulated else "real"
    return row.alert, row.what, kind, pending, firing, f"{notified}{' late' if row.is_late else ''}", expected, resolved


def _rows(results: Results) -> Iterator[tuple[str, ...]]:
    for _, result in results:
        yield from map(_cells, result.rows)


def table(results: Results) -> str:
    """One line an alert, in seconds."""
    rows = [HEAD, *_rows(results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *_problems(results)])


def _problems(results: Results) -> list[str]:
    found = [f"{drill.what}: {problem}" for drill, result in results for problem in result.problems]
    alerts = {row.alert for _, result in results for row in result.rows}
    late = sum(len(result.late) for _, result in results)
    return [*found, f"{len(results)} drills of {len(alerts)} alerts, {len(found)} problems, {late} late"]


def to_json(results: Results, timing: Timing) -> str:
    """Everything."""
    drills = [
        {
            "what": drill.what,
            "rows": [{**asdict(row), "is_late": row.is_late} for row in result.rows],
            "beside": result.beside,
            "problems": result.problems,
        }
        for drill, result in results
    ]
    return json.dumps({"factor": timing.factor, "scrape_seconds": timing.scrape, "drills": drills}, indent=1) + "\n"


def to_markdown(results: Results, timing: Timing) -> str:
    """A page with the table."""
    rows = [HEAD, ("---",) * len(HEAD), *_rows(results)]
    beside = [f"- {drill.what}: {', '.join(result.beside)}" for drill, result in results if result.beside]
    how = (
        "The rules as shipped."
        if timing is SHIPPED
        else f"Time ran {timing.factor:g} times faster: windows, `for` and Alertmanager's timers are that much\n"
        f"shorter, with scrapes every {timing.scrape:g} s and no window under five of them; the expressions are those\n"
        "that ship."
    )
    parts = [
        "# Game day",
        "Written by `make gameday`: each alert's cause was brought about in a running stack (the real API with the\n"
        "embedded model, Prometheus, Alertmanager, probe and inbox; for drills of a fleet, an API and two workers\n"
        "with a stand-in for a model, Redis, PostgreSQL and a server with S3's interface); the alert was seen to\n"
        "fire, to be told to the inbox, and to be resolved once its cause was gone; nothing else but what follows.\n"
        f"{how}",
        "Seconds since the cause began; `resolved`, since it ended (below 0: some time before). A simulated cause is\n"
        "a value that a simulated exporter tells; all others happened. `muted` alerts fire, and rightly nobody is\n"
        "told. After each cause many good requests came, so that budgets and rates of errors recovered in minutes;\n"
        "a burn rate over an hour has to outweigh those of the drill before.",
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
        "\n".join(_problems(results)),
    ]
    if beside:
        parts.append("Told too, as what follows from the same cause:\n\n" + "\n".join(beside))
    return "\n\n".join(parts) + "\n"
