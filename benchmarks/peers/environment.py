"""A peer's virtual environment, and its processes while it serves.

PyTorch, diffusers and all else that this environment has is seen from theirs, behind what they install themselves.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import psutil

from benchmarks.peers.catalogue import BATCH, Peer
from benchmarks.peers.load import Endpoint
from benchmarks.peers.pair import family, resume
from benchmarks.traffic import Request

ROOT = Path(__file__).parents[2]
FOLDER = Path("build", "peers")
START_SECONDS = 180.0
TRY_SECONDS = 30.0
STOP_SECONDS = 10.0
ANY = Request(at=0.0, prompt="a red apple on a blue background", seed=0, steps=2, guidance=4.0)


class CannotServe(Exception):
    """Why a peer does not serve."""


class CannotInstall(CannotServe):
    """Why it cannot even be installed."""


def requirements(name: str) -> Path:
    """The versions of a peer's own packages."""
    return ROOT / "benchmarks" / "peers" / name / "requirements.txt"


def prepare(name: str, python: str | None = None) -> Path:
    """The peer's virtual environment, made if it is not there or is of other versions. Raises `CannotInstall`."""
    folder = ROOT / FOLDER / name
    made = folder / "made-from"
    shared = sysconfig.get_path("purelib")
    wanted = hashlib.sha256(f"{requirements(name).read_text()}{shared}{python}".encode()).hexdigest()
    if made.exists() and made.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    _run(python or sys.executable, "-m", "venv", str(folder))
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "shared.pth").write_text(f"{shared}\n")
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    _run(str(folder / "bin" / "python"), *pip, "--requirement", str(requirements(name)))
    made.write_text(wanted)
    return folder


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotInstall(str(error)) from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise CannotInstall(f"{command[0]}: {lines[-1] if lines else f'ended with {done.returncode}'}")


@contextmanager
def serving(
    peer: Peer, model: str, device: str = "cpu", variables: Mapping[str, object] = MappingProxyType({})
) -> Iterator[Endpoint]:
    """The peer, ready, until the block ends; with more environment `variables`. Raises `CannotServe`."""
    folder = prepare(peer.environment, peer.python)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program, *arguments = (each.format(port=port, environment=peer.environment) for each in peer.command)
    with tempfile.TemporaryDirectory(prefix="safelight-peer-", ignore_cleanup_errors=True) as here:
        environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "BENTOML_HOME": here,
            "BENTOML_DO_NOT_TRACK": "true",
            "PYTRITON_HOME": here,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PEER_MODEL": str(Path(model).resolve()),
            "PEER_DEVICE": device,
            "PEER_PORT": str(port),
            "PEER_BATCH": str(BATCH),
            **{name: str(value) for name, value in variables.items()},
        }
        command = [str(folder / "bin" / program), *arguments]
        log = Path(here, "log")
        with log.open("w") as output:
            try:
                process = subprocess.Popen(
                    command, cwd=here, env=environment, stdout=output, stderr=output, start_new_session=True
                )
            except OSError as error:
                raise CannotServe(str(error)) from error
        try:
            endpoint = Endpoint(peer, "127.0.0.1", port, process.pid)
            _await(endpoint, process, log)
            yield endpoint
        finally:
            _end(process)


def _await(endpoint: Endpoint, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it makes a picture."""
    deadline = time.monotonic() + START_SECONDS
    while (answer := endpoint.ask(ANY, patience=TRY_SECONDS)).error:
        lines = log.read_text(errors="replace").strip().splitlines()
        if process.poll() is not None:
            raise CannotServe(f"ended with {process.returncode}: {lines[-1] if lines else ''}")
        if time.monotonic() > deadline:
            raise CannotServe(f"no picture within {START_SECONDS:g} s: {answer.error}; {lines[-1] if lines else ''}")
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    """As a terminal would; who does not listen, and whoever is left of the family, is killed."""
    resume(process.pid)
    left = family(process.pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    for each in {*left, *family(process.pid)}:
        with contextlib.suppress(psutil.Error):
            each.kill()
    process.wait()
