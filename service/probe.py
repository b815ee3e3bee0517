"""`safelight probe`: the probe of `observability.probe` as a process with metrics of its own."""

import signal
import sys
import threading

import click

from observability.exposition import Exposition, MetricsServer
from observability.labels import ProbeResult
from observability.metrics import new_registry
from observability.probe import COLOURS, Finding, ProbeMetrics, Target, probe, run


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
    target = Target(url.rstrip("/"), token, timeout, steps, checks_colour=colour)
    if once:
        finding = probe(target, next(iter(COLOURS)))
        _tell(finding)
        return int(finding.result is not ProbeResult.OK)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    registry = new_registry()
    metrics = ProbeMetrics(registry)
    try:
        server = MetricsServer(Exposition(registry), host, metrics_port)
    except OSError as error:
        click.echo(f"safelight: --metrics-port: cannot listen on {host}:{metrics_port}: {error.strerror}", err=True)
        return 2
    click.echo(f"The probe's metrics are on http://{host}:{server.port}/metrics", err=True)
    for finding in run(target, interval, metrics, stopping):
        if finding.result is not ProbeResult.OK:
            _tell(finding)
    server.close()
    return 0


def _tell(finding: Finding) -> None:
    detail = f": {finding.detail}" if finding.detail else ""
    click.echo(f"{finding.result} after {finding.seconds:.2f} s{detail}", file=sys.stderr)
