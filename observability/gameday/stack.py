"""The monitoring stack as processes of this machine, without containers: the real Prometheus and Alertmanager, the real
API, probe and inbox; GPU, containers and host simulated. Time may run faster than as shipped.
"""

import contextlib
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from observability import slo
from observability.gameday.program import CannotStart, Program
from observability.gameday.traffic import send
from observability.generate.files import ROOT, prometheus
from observability.generate.timing import SHIPPED, Timing

# By job: what is started, with its port last.
SIMULATED = {"dcgm": "gpu", "cadvisor": "containers", "node": "host"}
JOBS = ("api", "probe", "inbox", "prometheus", "alertmanager", *SIMULATED)
PROBE_TOKEN = "probe-of-the-local-stack"
START_SECONDS = 120.0


class Stack:
    """All programs, their ports and their configuration in `folder`."""

    jobs: tuple[str, ...] = JOBS

    def __init__(
        self, folder: Path, timing: Timing = SHIPPED, profile: str = "demo", settings: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.timing = timing
        self.ports = dict(zip((*self.jobs, "metrics"), _free_ports(len(self.jobs) + 1), strict=True))
        self._profile = profile
        self._settings = dict(settings or {})
        self.programs = self._programs()

    def url(self, job: str, path: str = "") -> str:
        """An address of one of them; `metrics` is the API's port for metrics."""
        return f"http://127.0.0.1:{self.ports[job]}{path}"

    def start(self) -> None:
        """Start all and wait until they work. Raises `CannotStart`."""
        self.configure()
        for program in self.programs.values():
            program.start()
        for name in self.programs:
            self.await_ready(name)

    def stop(self) -> None:
        """End all, the API first, which drains."""
        with contextlib.ExitStack() as all_of_them:
            for program in reversed(self.programs.values()):
                all_of_them.callback(program.stop)

    def await_ready(self, name: str, patience: float = START_SECONDS) -> None:
        """Wait until one of them works. Raises `CannotStart`."""
        program = self.programs[name]
        deadline = time.monotonic() + patience
        while not _answers(program.ready_url):
            gone = program.process is None or program.process.poll() is not None
            if gone or time.monotonic() > deadline:
                end = program.log.read_text(errors="replace")[-2000:] if program.log.exists() else ""
                raise CannotStart(f"{name} {'ended' if gone else 'is not ready'}:\n{end}")
            time.sleep(0.1)

    def configure(self) -> None:
        """Write the committed configuration of Prometheus and Alertmanager, with local addresses and this timing."""
        found = slo.load()
        for path, text in prometheus(found, self.timing):
            target = self.folder / "prometheus" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        shutil.copy(self.folder / "prometheus" / "slo" / f"{self._profile}.yml", self.folder / "prometheus" / "slo.yml")
        _write(self.folder / "prometheus" / "prometheus.yml", self._prometheus())
        _write(self.folder / "prometheus" / "targets.yml", self._targets())
        _write(self.folder / "alertmanager" / "alertmanager.yml", self._alertmanager())
        shutil.copytree(
            ROOT / "alertmanager" / "templates", self.folder / "alertmanager" / "templates", dirs_exist_ok=True
        )

    def _prometheus(self) -> Any:
        config = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
        for each in config["scrape_configs"]:
            each.pop("dns_sd_configs", None)  # names of containers
        if self.timing is not SHIPPED:
            interval = f"{self.timing.scrape * 1000:g}ms"
            config["global"] = {
                "scrape_interval": interval,
                "scrape_timeout": interval,
                "evaluation_interval": interval,
            }
        return config

    def _targets(self) -> Any:
        """As in the profile with a simulated GPU, but for what needs more than a process."""
        listed = yaml.safe_load((ROOT / "prometheus" / "targets" / "demo-gpu.yml").read_text())
        for each in listed:
            job = each["labels"]["job"]
            if job in self.ports:
                each["targets"] = [f"127.0.0.1:{self.ports['metrics' if job == 'api' else job]}"]
        return [each for each in listed if each["labels"]["job"] in self.ports]

    def _alertmanager(self) -> Any:
        config = yaml.safe_load((ROOT / "alertmanager" / "alertmanager.yml").read_text())
        for receiver in config["receivers"]:
            for webhook in receiver.get("webhook_configs", []):
                webhook["url"] = self.url("inbox", "/webhook")
        for route in (config["route"], *config["route"]["routes"]):
            for key in ("group_wait", "group_interval", "repeat_interval"):
                if key in route and route[key] != "0s":
                    route[key] = self.timing.hold(route[key])
        return config

    def _programs(self) -> dict[str, Program]:
        found = {
            "api": self._own(["serve"], "api", "/health/ready", self._api_settings()),
            "probe": self._own(self._probe_arguments(), "probe", "/metrics", {"SAFELIGHT_PROBE_TOKEN": PROBE_TOKEN}),
            "inbox": self._own(self._inbox_arguments(), "inbox", "/health/live"),
        }
        for job, kind in SIMULATED.items():
            found[job] = self._own(["simulate", kind, "--port", str(self.ports[job])], job, "/metrics")
        return found | self._watchers()

    def _watchers(self) -> dict[str, Program]:
        alertmanager = self._foreign(
            "prometheus-alertmanager",
            "alertmanager",
            "--storage.path=alertmanager/data",
            "--cluster.listen-address=",
        )
        prometheus = self._foreign(
            "prometheus",
            "prometheus",
            "--storage.tsdb.path=prometheus/data",
            "--storage.tsdb.retention.time=35d",
            "--enable-feature=exemplar-storage",
            "--web.enable-lifecycle",
            f"--rules.alert.resend-delay={self.timing.hold('1m')}",
            f"--query.lookback-delta={self.timing.hold('5m')}",
        )
        return {"alertmanager": alertmanager, "prometheus": prometheus}

    def _own(self, arguments: list[str], job: str, ready: str, environment: Mapping[str, str] = {}) -> Program:
        return Program(
            [sys.executable, "-m", "service", *arguments],
            self.folder / f"{job}.log",
            self.url(job, ready),
            dict(environment),
        )

    def _foreign(self, program: str, job: str, *arguments: str) -> Program:
        path = shutil.which(program)
        if path is None:
            raise CannotStart(f"there is no {program}; Debian has it in the package of that name")
        folder = f"{self.folder}/"
        placed = [each.replace("path=", f"path={folder}", 1) for each in arguments]
        address = f"--web.listen-address=127.0.0.1:{self.ports[job]}"
        config = f"--config.file={folder}{job}/{job}.yml"
        return Program([path, config, address, *placed], self.folder / f"{job}.log", self.url(job, "/-/ready"))

    def _api_settings(self) -> dict[str, str]:
        settings = {
            "port": str(self.ports["api"]),
            "metrics_port": str(self.ports["metrics"]),
            "data_dir": str(self.folder / "data"),
            "slo_profile": self._profile,
            "probe_token": PROBE_TOKEN,
            **self._settings,
        }
        return {f"SAFELIGHT_{name.upper()}": value for name, value in settings.items()}

    def _probe_arguments(self) -> list[str]:
        interval = max(1.0, 60.0 / self.timing.factor)
        return [
            "probe",
            "--url",
            self.url("api"),
            "--metrics-port",
            str(self.ports["probe"]),
            "--interval",
            f"{interval:g}",
        ]

    def _inbox_arguments(self) -> list[str]:
        return [
            "inbox",
            "--port",
            str(self.ports["inbox"]),
            "--data-dir",
            str(self.folder / "inbox"),
            "--watchdog-timeout",
            f"{max(15.0, 300 / self.timing.factor):g}",  # Prometheus may take 5 s to find Alertmanager again,
        ]


@contextlib.contextmanager
def running(folder: Path, timing: Timing = SHIPPED, make: type[Stack] = Stack, **settings: str) -> Iterator[Stack]:
    """A stack that ends with the block, whatever happens in it."""
    stack = make(folder, timing, settings=settings)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


def until(found: Callable[[], Any], patience: float, what: str) -> Any:
    """What `found` returns once that is something; raises `TimeoutError` that names `what`."""
    deadline = time.monotonic() + patience
    while not (result := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience:g} s: {what}")
        time.sleep(0.1)
    return result


def _answers(url: str) -> bool:
    """Whether somebody does, at an address of HTTP or of TCP alone."""
    if not url.startswith("tcp:"):
        return send(url) is not None
    host, port = url.removeprefix("tcp://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except OSError:
        return False
    return True


def _free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now; all are held until the last is found, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _write(path: Path, config: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
