"""`safelight simulate`: the exporters of `observability.simulated` as processes."""

import click
import uvicorn

from observability.exposition import bracketed
from observability.simulated import KINDS, Simulation, make_app


def simulate(kind: str, host: str, port: int) -> int:
    """Serve one exporter until told to stop; return the exit status."""
    config = uvicorn.Config(make_app(Simulation(KINDS[kind]())), host=host, port=port, log_level="warning")
    try:
        listener = config.bind_socket()
    except SystemExit:  # uvicorn has logged why
        return 2
    port = listener.getsockname()[1]
    click.echo(f"A simulated exporter ({kind}) is on http://{bracketed(host)}:{port}/metrics", err=True)
    uvicorn.Server(config).run(sockets=[listener])
    return 0
