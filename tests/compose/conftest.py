"""Stacks in containers: a Docker engine, Safelight's own image, and images of what it needs.

Where no registry of images can be reached, the base is made from Debian's packages, and Debian's own programs stand in
for the official images; moto's server stands in for the S3 store.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STAND_INS = Path(__file__).with_name("stand_ins")  # a Dockerfile for each
CORE = ("api", "probe", "inbox", "prometheus", "alertmanager")
FLEET = ("api", "worker", "redis", "postgres", "storage", "redis-exporter", "postgres-exporter", *CORE[2:])
PACKAGES = (
    "ca-certificates,libgomp1,postgresql,prometheus,prometheus-alertmanager,prometheus-postgres-exporter,"
    "prometheus-redis-exporter,python3,python3-venv,redis-server,wget"
)
BASE = "safelight-test-base"
BASE_PYTHON = (3, 11)
S3 = ("moto[s3]", "flask", "flask-cors")
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

    project: str
    services: Sequence[str]
    environment: Mapping[str, str]

    def __call__(self, *arguments: str) -> str:
        """Run it."""
        return run("tools/compose", "--project-name", self.project, *arguments, **self.environment)

    def up(self, *arguments: str) -> None:
        """Start what does not run yet, and wait until all is well."""
        self("up", "--detach", "--no-build", "--no-recreate", *arguments, *self.services)
        deadline = time.monotonic() + UP_SECONDS
        while not self.is_up():
            assert time.monotonic() < deadline, f"{self.health()}\n{self('logs', '--tail=50')}"
            time.sleep(2)

    def url(self, service: str, port: int) -> str:
        """Where a published port is on this machine."""
        return f"http://{self('port', service, str(port)).split()[-1]}"

    def health(self) -> dict[str, list[str]]:
        """Of each container, as its health check finds it; of one without, whether it runs."""
        found = {}
        for service in self.services:
            containers = self("ps", "--quiet", service).split()
            states = [each["State"] for each in json.loads(run("docker", "inspect", *containers))] if containers else []
            found[service] = [state.get("Health", {}).get("Status", state["Status"]) for state in states]
        return found

    def targets(self) -> dict[str, int]:
        """Of each of Prometheus' jobs, how many targets are up. It is not published: asked from within."""
        url = f"http://127.0.0.1:9090/api/v1/query?query={quote('count by (job) (up == 1)')}"
        found = json.loads(self("exec", "-T", "prometheus", "wget", "-q", "-O", "-", url))["data"]["result"]
        return {each["metric"]["job"]: int(each["value"][1]) for each in found}

    def is_up(self) -> bool:
        """Whether all are well."""
        return all(states and set(states) <= {"healthy", "running"} for states in self.health().values())


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
    wheels = ROOT / "wheels"
    assert not wheels.exists(), f"{wheels} is somebody's own: move it away for this test"
    try:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels)]
        lock = (ROOT / "requirements.lock").read_text().split()
        tools = [each for each in lock if each.startswith(("pip==", "setuptools==", "torch=="))]
        run(*download, "--no-deps", *tools)
        run(*download, "--find-links", str(wheels), "--constraint", "requirements.lock", ".[postgres,s3]", *S3)
        arguments = {"BASE": BASE, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/build"}
        given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
        run("docker", "build", "--tag", "safelight:test", *given, ".")
        return {"SAFELIGHT_IMAGE": "safelight:test"} | dict(map(stand_in, STAND_INS.glob("*.dockerfile")))
    finally:
        shutil.rmtree(wheels, ignore_errors=True)


def stand_in(recipe: Path) -> tuple[str, str]:
    """Build one; the variable of the compose files that names its image, and the image."""
    image = f"safelight-test-{recipe.stem}"
    run("docker", "build", "--tag", image, "--file", str(recipe), ".")
    return f"{recipe.stem.upper().replace('-', '_')}_IMAGE", image


@pytest.fixture(scope="module")
def compose(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """The stack of one service; batches of two do not fit into memory."""
    with stack("cpu", CORE, {**images, "SAFELIGHT_FAULTS": "oom_above=1"}, tmp_path_factory) as started:
        yield started


@pytest.fixture(scope="module")
def fleet(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """The stack of an API and two workers."""
    with stack("scale", FLEET, images, tmp_path_factory) as started:
        yield started


@contextmanager
def stack(
    profile: str, services: Sequence[str], environment: Mapping[str, str], folders: pytest.TempPathFactory
) -> Iterator[Compose]:
    """What there are images for of a profile, up and healthy, on free ports."""
    listed = yaml.safe_load((ROOT / "prometheus" / "targets" / f"{profile}.yml").read_text())
    targets = folders.mktemp("targets") / "targets.yml"
    here = [each for each in listed if each["targets"][0].split(":")[0] in services]
    targets.write_text(yaml.safe_dump(here))
    targets.parent.chmod(0o755)
    settings = {
        "PROFILE": profile,
        "SAFELIGHT_TARGETS": str(targets),
        "SAFELIGHT_PORT": "0",
        "SAFELIGHT_INBOX_PORT": "0",
        "SAFELIGHT_OTLP_ENDPOINT": "",
    }
    started = Compose(f"safelight-test-{profile}", services, {**environment, **settings})
    try:
        started.up()
        yield started
    finally:
        started("down", "--volumes", "--timeout", "5")
