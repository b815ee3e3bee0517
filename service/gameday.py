"""`safelight gameday`: the drills of `observability.gameday`, and what came of them."""

import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from observability.gameday import report, run
from observability.gameday.drill import Drill
from observability.gameday.drills import DRILLS
from observability.gameday.program import CannotStart
from observability.generate.timing import SHIPPED


def drill(
    *,
    only: Sequence[str],
    core: bool,
    real_time: bool,
    is_list: bool,
    json_file: Path | None,
    markdown: Path | None,
    folder: Path | None,
) -> int:
    """Run the drills that were asked for; return the exit status."""
    if unknown := set(only) - {alert for each in DRILLS for alert in _names(each)}:
        click.echo(f"safelight: there is no drill for {', '.join(sorted(unknown))}; --list tells of all", err=True)
        return 2
    chosen = [each for each in DRILLS if (each.is_core or not core) and (not only or set(only) & set(_names(each)))]
    if is_list:
        for each in chosen:
            click.echo(f"{', '.join(_names(each))}: {each.what}{' (simulated)' if each.is_simulated else ''}")
        return 0
    if not chosen:
        click.echo("safelight: no drill is left of this choice; --list tells of all", err=True)
        return 2
    timing = SHIPPED if real_time else run.COMPRESSED
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the stack ends with this process
    with ExitStack() as stack:
        where = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="safelight-gameday-")))
        where.mkdir(parents=True, exist_ok=True)
        try:
            results = run.run(where, timing, chosen, lambda text: click.echo(text, err=True))
        except CannotStart as error:
            click.echo(f"safelight: {error}", err=True)
            return 2
    click.echo(report.table(results))
    if json_file is not None:
        json_file.write_text(report.to_json(results, timing))
    if markdown is not None:
        markdown.write_text(report.to_markdown(results, timing))
    return int(any(result.problems or result.late for _, result in results))


def _names(each: Drill) -> tuple[str, ...]:
    return (*each.alerts, *each.muted)
