"""The command line: `safelight serve` and what else there is to run."""

import asyncio
import logging.config
import sys
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from service.errors import StartupError
from service.settings import PREFIX, Settings, load

EXIT_CANNOT_START = 2
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group(context_settings={"max_content_width": 110})
def main() -> None:
    """Safelight serves diffusion image models and lets you watch each picture develop."""


@contextmanager
def starting() -> Iterator[None]:
    """What prevents a start is told in one line."""
    try:
        yield
    except StartupError as error:
        click.echo(f"safelight: {error.detail}", err=True)
        sys.exit(EXIT_CANNOT_START)


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for every setting; what is not given comes from the environment or the default."""
    for name, field in reversed(Settings.model_fields.items()):
        default = "" if field.default is None else f"; default {field.default}"
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            metavar=_metavar(field.annotation),
            help=f"{field.description} [{PREFIX}{name.upper()}{default}]",
        )(command)
    return command


def _metavar(annotation: Any) -> str:
    """`A|B` for a choice, else the name of the type."""
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        annotation = next(each for each in typing.get_args(annotation) if each is not type(None))
    if typing.get_origin(annotation) is typing.Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    if issubclass(annotation, Enum):
        return "|".join(annotation)
    return {"str": "TEXT", "int": "N", "float": "X", "bool": "true|false", "Path": "FOLDER"}[annotation.__name__]


@main.command()
@setting_options
def serve(**options: str | None) -> None:
    """Serve the generation API.

    Every option can also be given as the environment variable in brackets; the option wins.
    """
    with starting():
        settings = load(**{name: value for name, value in options.items() if value is not None})
        from service.app import Service  # late: the engine process imports this module too
        from service.server import serve as serve_until_stopped

        serve_until_stopped(settings, Service, "Safelight")


@main.command()
@setting_options
def worker(**options: str | None) -> None:
    """Make pictures for a fleet: take jobs from the queue of SAFELIGHT_QUEUE_URL.

    Jobs, cache and pictures are where the API has them: give both the same SAFELIGHT_DATABASE_URL and
    SAFELIGHT_STORAGE_URL, or, on one machine, the same SAFELIGHT_DATA_DIR. Health and metrics are on
    SAFELIGHT_METRICS_PORT, or on a free port. With SAFELIGHT_DEVICES it keeps a process for each GPU, on ports that
    count up, and starts one that dies or hangs again.
    """
    with starting():
        given = {name: value for name, value in options.items() if value is not None}
        settings = load(**given)
        from observability import logs
        from service.scaling import local
        from service.server import serve as serve_until_stopped
        from service.worker import Worker

        local.tie_to_parent()
        if settings.devices is not None:
            logging.config.dictConfig(logs.config(settings.log_level, settings.log_format))
            asyncio.run(local.keep(settings, settings.devices.split(",")))
            return
        ports = {"port": settings.metrics_port or 0, "metrics_port": None}
        serve_until_stopped(settings.model_copy(update=ports), Worker, "A Safelight worker")


@main.group()
def jobs() -> None:
    """Look at the jobs of a running service, end them, ask for them again."""


url_option = click.option(
    "--url", default="http://127.0.0.1:8000", envvar=f"{PREFIX}URL", show_default=True, help="Address of the service."
)


def operate(action: str, **options: Any) -> None:
    """Do it, and exit with its status."""
    from service.operate import main as do

    sys.exit(do(action, **options))


@jobs.command("list")
@url_option
@click.option("--status", multiple=True, help="Only jobs in this state; may be given several times.")
@click.option("--reason", multiple=True, help="Only jobs that ended for this reason, as dead_letter.")
@click.option("--limit", default=50, type=click.IntRange(1), show_default=True, help="Jobs at most.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
def list_jobs(**options: Any) -> None:
    """Jobs, newest first."""
    operate("list", **options)


@jobs.command("show")
@url_option
@click.argument("job_id")
def show_job(**options: Any) -> None:
    """All that is known of one job, as JSON."""
    operate("show", **options)


@jobs.command("cancel")
@url_option
@click.argument("job_ids", nargs=-1, required=True)
def cancel_jobs(**options: Any) -> None:
    """End jobs that have not ended. Exits with status 1 if one could not be."""
    operate("cancel", **options)


@jobs.command("retry")
@url_option
@click.option("--dead-letters", is_flag=True, help="All that were given up after several workers had failed.")
@click.argument("job_ids", nargs=-1)
def retry_jobs(**options: Any) -> None:
    """Ask again for jobs that ended without pictures, as new jobs. However often it is done, each is made once more."""
    operate("retry", **options)


@main.command(context_settings={"show_default": True})
@click.option("--url", default="http://127.0.0.1:8000", help="Address of the service.")
@click.option("--interval", default=60.0, type=click.FloatRange(0.1), help="Seconds between pictures.")
@click.option("--timeout", default=30.0, type=click.FloatRange(1.0, 3600.0), help="Seconds that one may take.")
@click.option("--steps", default=8, type=click.IntRange(1, 100), help="Denoising steps of one.")
@click.option(
    "--colour/--no-colour", default=True, help="Check the background: only the embedded model paints what was asked."
)
@click.option("--token", envvar=f"{PREFIX}PROBE_TOKEN", help=f"Secret that the service knows. [{PREFIX}PROBE_TOKEN]")
@click.option("--host", default="127.0.0.1", help="Address to serve metrics on.")
@click.option("--metrics-port", default=8001, type=click.IntRange(0, 65535), help="Port for metrics.")
@click.option("--once", is_flag=True, help="Ask for one picture; exit with status 1 if it is not right. No metrics.")
def probe(**options: Any) -> None:
    """Ask a running service for a cheap picture now and then, look at it, and serve metrics of what was seen."""
    from service.probe import watch

    sys.exit(watch(**options))


inbox_option = partial(click.option, show_envvar=True)


@main.command(context_settings={"show_default": True, "auto_envvar_prefix": f"{PREFIX}INBOX"})
@inbox_option("--host", default="127.0.0.1", help="Address to listen on.")
@inbox_option("--port", default=8002, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@inbox_option("--data-dir", default="data/inbox", type=FOLDER, help="Folder for the alerts.")
@inbox_option(
    "--runbooks",
    default=Path(__file__).parents[1] / "docs" / "runbooks",
    show_default="docs/runbooks beside the program",
    type=FOLDER,
    help="Folder of runbooks, one AlertName.md each.",
)
@inbox_option(
    "--watchdog-timeout",
    default=300.0,
    type=click.FloatRange(0.1),
    help="Seconds without the alert Watchdog, which always fires, until it is missing.",
)
@inbox_option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the bearer token that Alertmanager must send; without one, everybody may post.",
)
@inbox_option(
    "--on-missing-command",
    help="Program with arguments to run once the watchdog is missing, and again when it is back; there is no shell. "
    "SAFELIGHT_WATCHDOG_STATE tells it: missing or ok.",
)
@inbox_option("--on-missing-url", help="URL to post the same to as JSON.")
@inbox_option(
    "--retention-days", default=30.0, type=click.FloatRange(0, min_open=True), help="Days that alerts are kept."
)
def inbox(**options: Any) -> None:
    """Take alerts from Alertmanager, show them with their runbooks, and notice when it is heard of no more."""
    with starting():
        from service.inbox import serve as serve_inbox

        serve_inbox(**options)


@main.command(context_settings={"show_default": True})
@click.argument("kind", type=click.Choice(["gpu", "containers", "host"]))
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option("--port", default=9400, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
def simulate(**options: Any) -> None:
    """Serve metrics of a GPU, of containers or of a host that is not there, to try dashboards and alerts with.

    PUT /faults takes values by the names of series, as {"DCGM_FI_DEV_GPU_TEMP_CELSIUS": 95}; DELETE /faults ends them.
    """
    from service.simulated import simulate as serve_simulated

    sys.exit(serve_simulated(**options))


@main.command()
@click.option("--only", multiple=True, metavar="ALERT", help="Drill only these alerts; may be given several times.")
@click.option("--core", is_flag=True, help="Only the quick ones that cover each kind of cause.")
@click.option("--real-time", is_flag=True, help="Rules as shipped, for hours; otherwise 60 times faster.")
@click.option("--list", "is_list", is_flag=True, help="Only tell what there is to drill.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="File for the results.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="File for a table of them.")
@click.option("--folder", type=FOLDER, help="Where the stack keeps its files and logs; a temporary one if not given.")
def gameday(**options: Any) -> None:
    """Make alerts fire: start a stack here, bring about the cause of each alert, and see it told and resolved.

    Needs Debian's prometheus and prometheus-alertmanager. Exits with status 1 unless exactly the alerts that should be
    were told, in time, and resolved.
    """
    from service.gameday import drill

    sys.exit(drill(**options))


@main.command(context_settings={"show_default": True})
@click.option("--peak", default=34.0, type=click.FloatRange(0, min_open=True), help="Requests a second at the peak.")
@click.option("--base", default=1.0, type=click.FloatRange(0), help="Requests a second before and after.")
@click.option("--workers", default="2:50", help="Workers, least and most.")
@click.option("--schedule", help="Least workers by hours of the day, as 8-20=4.")
@click.option(
    "--model",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    show_default="an assumed A10G",
    help="File with what GET /model of a running service answers: its measured step times are taken.",
)
@click.option("--steps", default=20, type=click.IntRange(1, 100), help="Denoising steps of a picture.")
@click.option("--timeout", default=300.0, type=click.FloatRange(1), help="Seconds after which a request expires.")
@click.option("--queue-limit", default=500, type=click.IntRange(1), help="Requests that may wait.")
@click.option("--prompts", default=20_000, type=click.IntRange(1), help="Different prompts that are asked for.")
@click.option("--zipf", default=1.0, type=click.FloatRange(0), help="How much some prompts are asked for more often.")
@click.option("--spot-share", default=0.7, type=click.FloatRange(0, 1), help="Share of workers on spot machines.")
@click.option(
    "--on-demand-price", default=1.0, type=click.FloatRange(0), help="Dollars an hour of a machine that stays."
)
@click.option("--spot-price", default=0.4, type=click.FloatRange(0), help="Dollars an hour of a spot machine.")
@click.option("--interruptions", default=0.05, type=click.FloatRange(0), help="Of a spot machine in an hour.")
@click.option("--seed", default=0, help="Another day.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="File for a picture of the day (PNG, SVG)."
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="File for the figures.")
@click.option(
    "--measured",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Results of benchmarks.suite: tell instead how many such machines a steady rate takes.",
)
@click.option(
    "--rate", default=34.0, type=click.FloatRange(0, min_open=True), help="With --measured: requests a second."
)
@click.option("--p99", default=5.0, type=click.FloatRange(0, min_open=True), help="With --measured: seconds for 99 %.")
@click.option(
    "--gpu-price", default=1.0, type=click.FloatRange(0), help="With --measured: dollars an hour of a machine."
)
def plan(measured: Path | None, rate: float, p99: float, gpu_price: float, **options: Any) -> None:
    """Simulate a launch: how many workers it would take, how long users would wait, what it would cost.

    The policy is the one that scales a fleet. Needs SimPy: pip install 'safelight[plan]'.
    """
    _refuse_useless(measured is not None)
    with starting():
        try:
            from service.scaling.plan import plan as simulate_launch
            from service.scaling.sizing import size
        except ImportError as error:
            raise StartupError(f"plan needs SimPy: pip install 'safelight[plan]' ({error})") from error
        if measured is not None:
            sys.exit(size(file=measured, rate=rate, p99=p99, price=gpu_price, steps=options["steps"]))
        sys.exit(simulate_launch(**options))


def _refuse_useless(is_measured: bool) -> None:
    """Raises `click.UsageError` for options of `plan` that would change nothing."""
    context = click.get_current_context()
    for option in context.command.params:
        is_given = context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
        is_of_measured = option.name in ("rate", "p99", "gpu_price")
        is_useful = option.name in ("measured", "steps") or is_of_measured == is_measured
        if is_given and not is_useful:
            raise click.UsageError(f"{option.opts[0]} goes {'not' if is_measured else 'only'} with --measured.")


if __name__ == "__main__":
    main()
