"""The stack in containers: a Docker engine, Safelight's own image, and images of what it needs.

Where no registry of images can be reached, the base is made from Debian's packages, and Debian's Prometheus and
Alertmanager stand in for the official images.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SERVICES = ("api", "probe", "inbox", "prometheus", "alertmanager")
PACKAGES = "ca-certificates,libgomp1,prometheus,prometheus-alertmanager,python3,python3-venv,wget"
BASE = "safelight-test-base"
BASE_PYTHON = (3, 11)
STAND_INS = {
    "prometheus": "install -d -o nobody /prometheus",
    "alertmanager": "install -d -o nobody /alertmanager",
}
STAND_IN = """
FROM {base}
RUN {prepare}
USER nobody
WORKDIR /{name}
ENTRYPOINT ["/usr/bin/{program}"]
"""
START_SECONDS = 60
UP_SECONDS = 300


def run(*command: str, folder: Path = ROOT, text: str | None = None, **environment: str) -> str:
    """What a command prints; a failure shows all of it."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-4000:]}"
    return done.stdout


def answers(environment: Mapping[str, str]) -> bool:
    """Whether there is an engine."""
    return subprocess.run(["docker", "info"], env=environment, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """A Docker engine: one that runs, or one of the tests' own. Where none starts, the tests are skipped."""
    if answers(os.environ):
        yield
        return
    with ExitStack() as stack:
        # Gigabytes, which pytest's own folders would keep for three runs.
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="safelight-docker-", ignore_cleanup_errors=True)))
        host, log = f"unix://{folder}/docker.sock", folder / "log"
        output = stack.enter_context(log.open("w"))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        flags = [f"--{name}={folder}/{name}" for name in ("data-root", "exec-root")]
        process = subprocess.Popen(
            ["dockerd", f"--host={host}", f"--pidfile={folder}/pid", *flags], stdout=output, stderr=output
        )
        stack.callback(end, process)
        patch.setenv("DOCKER_HOST", host)
        deadline = time.monotonic() + START_SECONDS
        while not answers(os.environ):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"no Docker engine starts here:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to, and then no more."""
    process.terminate()
    try:
        process.wait(START_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(frozen=True, slots=True)
class Compose:
    """docker-compose for one project, with an environment of its own."""

    environment: Mapping[str, str]

    def __call__(self, *arguments: str) -> str:
        """Run it."""
        return run("tools/compose", "--project-name", "safelight-test", *arguments, **self.environment)

    def url(self, service: str, port: int) -> str:
        """Where a published port is on this machine."""
        return f"http://{self('port', service, str(port)).split()[-1]}"


def can_pull() -> bool:
    """Whether images can be had."""
    config = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    image = config["services"]["alertmanager"]["image"].split(":-")[1].rstrip("}")
    return subprocess.run(["docker", "pull", "--quiet", image], capture_output=True, check=False).returncode == 0


def make_base(folder: Path) -> None:
    """An image of Debian with the packages that are needed."""
    system, archive = folder / "debian", folder / "debian.tar"
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(system))
    shutil.rmtree(system / "var" / "cache" / "apt")
    with tarfile.open(archive, "w") as tar:
        tar.add(system, ".")
    shutil.rmtree(system)
    run("docker", "import", str(archive), BASE)
    archive.unlink()


@pytest.fixture(scope="session")
def images(engine: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of the compose file that name the images; Safelight's own is built from the repository's Dockerfile."""
    if can_pull():
        run("docker", "build", "--tag", "safelight:test", "--build-arg", "TORCH=cpu", ".")
        return {"SAFELIGHT_IMAGE": "safelight:test"}
    if sys.version_info[:2] != BASE_PYTHON:
        pytest.skip("the wheels of this Python do not fit the Debian that stands in")
    make_base(tmp_path_factory.mktemp("base"))
    named = {"SAFELIGHT_IMAGE": "safelight:test"}
    for name, prepare in STAND_INS.items():
        program = "prometheus" if name == "prometheus" else f"prometheus-{name}"
        text = STAND_IN.format(base=BASE, prepare=prepare, name=name, program=program)
        run("docker", "build", "--tag", f"safelight-test-{name}", "-", text=text)
        named[f"{name.upper()}_IMAGE"] = f"safelight-test-{name}"
    wheels = ROOT / "wheels"
    assert not wheels.exists(), f"{wheels} is somebody's own: move it away for this test"
    try:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels)]
        lock = (ROOT / "requirements.lock").read_text().split()
        tools = [each for each in lock if each.startswith(("pip==", "setuptools==", "torch=="))]
        run(*download, "--no-deps", *tools)
        run(*download, "--find-links", str(wheels), "--constraint", "requirements.lock", ".[postgres,s3]")
        arguments = {"BASE": BASE, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/build"}
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        run("docker", "build", "--tag", "safelight:test", *given, ".")
    finally:
        shutil.rmtree(wheels, ignore_errors=True)
    return named


@pytest.fixture(scope="session")
def compose(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """The stack of what there are images for, up and healthy, on free ports; batches of two do not fit into memory."""
    listed = yaml.safe_load((ROOT / "prometheus" / "targets" / "cpu.yml").read_text())
    targets = tmp_path_factory.mktemp("targets") / "targets.yml"
    targets.write_text(yaml.safe_dump([each for each in listed if each["labels"]["job"] in SERVICES]))
    targets.parent.chmod(0o755)
    started = Compose(
        {
            **images,
            "SAFELIGHT_TARGETS": str(targets),
            "SAFELIGHT_PORT": "0",
            "SAFELIGHT_INBOX_PORT": "0",
            "SAFELIGHT_OTLP_ENDPOINT": "",
            "SAFELIGHT_FAULTS": "oom_above=1",
        }
    )
    try:
        started("up", "--detach", "--no-build", *SERVICES)
        await_health(started)
        yield started
    finally:
        started("down", "--volumes", "--timeout", "5")


def health(compose: Compose) -> dict[str, str]:
    """Of each container."""
    found = {}
    for service in SERVICES:
        container = compose("ps", "--quiet", service).split()
        state = json.loads(run("docker", "inspect", *container))[0]["State"] if container else {}
        found[service] = state.get("Health", {}).get("Status", state.get("Status", "missing"))
    return found


def await_health(compose: Compose) -> None:
    """Wait for all."""
    deadline = time.monotonic() + UP_SECONDS
    while (found := health(compose)) != dict.fromkeys(SERVICES, "healthy"):
        assert time.monotonic() < deadline, f"{found}\n{compose('logs', '--tail=50')}"
        time.sleep(2)
