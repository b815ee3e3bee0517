"""`safelight probe`: the probe of `observability.probe` as a process with metrics of its own."""

import re
import signal
import sys

import click

from observability.exposition import Exposition, MetricsServer, bracketed
from observability.labels import ProbeResult
from observability.probe import COLOURS, Finding, ProbeMetrics, Target, probe, run
from observability.process import new_registry

TOKEN_PATTERN = re.compile(r"[\x21-\x7e]*")


def watch(
    *,
    url: str,
    interval: float,
    timeout: float,
    steps: int,
    colour: bool,
    token: str | None,
    host: str,
    metrics_port: int,
    once: bool,
) -> int:
    """Probe until told to stop, or once; return the exit status."""
    if token is not None and not TOKEN_PATTERN.fullmatch(token):
        click.echo("safelight: the probe's token must be printable ASCII characters without spaces", err=True)
        return 2
    target = Target(url.rstrip("/"), token or None, timeout, steps, checks_colour=colour)
    if once:
        finding = probe(target, next(iter(COLOURS)))
        _tell(finding)
        return int(finding.result is not ProbeResult.OK)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    registry = new_registry()
    metrics = ProbeMetrics(registry)
    try:
        server = MetricsServer(Exposition(registry), host, metrics_port)
    except OSError as error:
        click.echo(f"safelight: --metrics-port: cannot listen on {host}:{metrics_port}: {error.strerror}", err=True)
        return 2
    click.echo(f"The probe's metrics are on http://{bracketed(host)}:{server.port}/metrics", err=True)
    for finding in run(target, interval, metrics):
        if finding.result is not ProbeResult.OK:
            _tell(finding)
    return 0


def _tell(finding: Finding) -> None:
    detail = f": {finding.detail}" if finding.detail else ""
    click.echo(f"{finding.result} after {finding.seconds:.2f} s{detail}", file=sys.stderr)
