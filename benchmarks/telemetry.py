"""What telemetry costs. Exits with status 1 if a bar is missed.

Part `events`: processor time of each consumer for the events of a full batch, against that of a denoising step. Part
`throughput`: a service with all telemetry on, every trace exported, against the same process with all of it switched
off, in turns until the 95 % interval of the ratio is narrow enough; with a collector that takes the traces, one that
refuses them and one that hangs. Part `scrape`: how long scrapes take while the engine is saturated, and how soon the
API answers meanwhile.
"""

import argparse
import json
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.event_cost import part_events
from benchmarks.harness import ClosedLoop, Service, service
from benchmarks.report import Check
from benchmarks.traffic import MIXES, all_at_once

PARTS = ("events", "throughput", "scrape")
BATCH = 8
CLIENTS = 16
PICTURES = 64  # of one turn of one service
SCRAPE_SECONDS = 15.0  # as Prometheus is set
WARM_TURNS = 1
LEAST_TURNS, MOST_TURNS = 10, 300
INTERVAL = 0.02
MIDDLE_BAR, LOW_BAR = 0.99, 0.97
RESAMPLES = 10_000
SCRAPES = 1000
SCRAPE_BAR = 0.02
PAUSE_SECONDS = 0.05
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
REFUSES = "http://127.0.0.1:9"


@contextmanager
def collector() -> Iterator[str]:
    """The address of something that takes traces and forgets them, in a thread of this process."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's naming
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def interval(logs_of_ratios: Sequence[float]) -> tuple[float, float, float]:
    """Middle, lower and upper end of the 95 % interval of a ratio, from logarithms of single ones."""
    values = np.asarray(logs_of_ratios)
    resampled = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.exp(np.percentile(resampled, (2.5, 97.5)))
    return float(np.exp(values.mean())), float(low), float(high)


def part_throughput(model: str) -> tuple[list[Check], dict[str, Any]]:
    """Pictures a second with telemetry over those of the same process without."""
    with ExitStack() as stack:
        hung = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1000))  # takes, and never answers
        collectors = {
            "collector takes": stack.enter_context(collector()),
            "collector refuses": REFUSES,
            "collector hangs": f"http://127.0.0.1:{hung.getsockname()[1]}",
        }
        given = {"slots": f"128x128={BATCH}", "trace_ratio": 1.0, "metrics_port": 0, "log_format": "json"}
        targets = {
            name: stack.enter_context(service(model, {**given, "otlp_endpoint": url}, "benchmarks.switched"))
            for name, url in collectors.items()
        }
        requests = all_at_once(MIXES["uniform"], 1000, "telemetry")
        loops = {name: stack.enter_context(ClosedLoop(each, requests, CLIENTS)) for name, each in targets.items()}
        ratios: dict[str, list[float]] = {name: [] for name in targets}
        found: dict[str, tuple[float, float, float]] = {}
        for turn in range(MOST_TURNS + WARM_TURNS):
            for name, target in targets.items():
                seconds = {
                    is_on: block_seconds(target, loops[name], is_on)
                    for is_on in ((True, False), (False, True))[turn % 2]
                }
                if turn >= WARM_TURNS:
                    ratios[name].append(math.log(seconds[False] / seconds[True]))
            if turn < WARM_TURNS:
                continue
            found = {name: interval(values) for name, values in ratios.items()}
            told = ", ".join(f"{name} {low:.3f} to {high:.3f}" for name, (_, low, high) in found.items())
            print(f"turn {turn - WARM_TURNS + 1}: {told}", file=sys.stderr, flush=True)
            if turn > LEAST_TURNS and all(high - low <= 2 * INTERVAL for _, low, high in found.values()):
                break
    checks = []
    print(
        f"throughput with telemetry over that without, {turn - WARM_TURNS + 1} pairs of {2 * PICTURES} pictures each:"
    )
    for name, (middle, low, high) in found.items():
        print(f"  {name:<20}{middle:.3f}, 95 % interval {low:.3f} to {high:.3f}")
        checks.append(Check(f"throughput with telemetry over that without, middle ({name})", middle, MIDDLE_BAR))
        checks.append(Check(f"the same, lower end ({name})", low, LOW_BAR))
        checks.append(Check(f"the same, half the width ({name})", (high - low) / 2, INTERVAL, most=True))
    return checks, {"log_ratios": ratios}


def block_seconds(target: Service, loop: ClosedLoop, is_on: bool) -> float:
    """Seconds of `PICTURES` pictures with telemetry and scrapes, or without, after as many as the switch affects."""
    os.kill(target.pid, signal.SIGUSR2 if is_on else signal.SIGUSR1)  # it takes it when it thaws
    loop.seconds(CLIENTS)
    is_over = threading.Event()

    def scrape() -> None:
        while not is_over.is_set():
            metrics_of(target).get("/metrics")
            is_over.wait(SCRAPE_SECONDS)

    with ThreadPoolExecutor(1) as pool:
        scraping = pool.submit(scrape) if is_on else None
        seconds = loop.seconds(PICTURES)
        is_over.set()
        if scraping is not None:
            target.thaw()  # the last scrape may be under way
            scraping.result()
            target.freeze()
    return seconds


def metrics_of(target: Service) -> Service:
    """Its port for metrics."""
    match = re.search(r"metrics are on http://([\d.]+):(\d+)", target.log.read_text())
    assert match is not None, "the service tells its metrics port"
    return replace(target, host=match[1], port=int(match[2]))


def part_scrape(model: str) -> tuple[list[Check], dict[str, Any]]:
    """Seconds of scrapes and of health checks while the engine is saturated."""
    requests = all_at_once(MIXES["uniform"], 10 * CLIENTS, "telemetry")
    with (
        service(model, {"slots": f"128x128={BATCH}", "metrics_port": 0}) as target,
        ClosedLoop(target, requests, CLIENTS) as loop,
    ):
        threading.Thread(target=loop.seconds, args=(10**6,), daemon=True).start()  # up to the end
        quiet = timed(target, "/health/live")
        health: list[float] = []
        checking = threading.Thread(target=lambda: health.extend(timed(target, "/health/live")))
        checking.start()
        scrapes = timed(metrics_of(target), "/metrics")
        checking.join()
    kept = {"scrape": scrapes, "health during scrapes": health, "health without": quiet}
    for name, seconds in kept.items():
        numbers = np.percentile(seconds, (50, 95, 99, 100)) * 1e3
        print(f"{name:<24} median, p95, p99, most: " + ", ".join(f"{each:.1f}" for each in numbers) + " ms")
    p99 = float(np.percentile(scrapes, 99))
    return [Check("seconds of a scrape while the engine is saturated, p99", p99, SCRAPE_BAR, most=True)], kept


def timed(target: Service, path: str) -> list[float]:
    """Seconds of `SCRAPES` requests with pauses, over one connection, as Prometheus makes them."""
    seconds = []
    with closing(target.connect()) as connection:
        for _ in range(SCRAPES):
            began = time.perf_counter()
            connection.request("GET", path, headers={"Accept": OPENMETRICS})
            answer = connection.getresponse()
            answer.read()
            seconds.append(time.perf_counter() - began)
            if answer.status != 200:
                raise SystemExit(f"GET {path} was answered {answer.status}")
            time.sleep(PAUSE_SECONDS)
    return seconds


def main() -> None:
    """Parse the command line, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="models/tiny", help="diffusers folder")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--json", type=Path, help="file to write the measurements to")
    arguments = parser.parse_args()
    measure: dict[str, Callable[[str], tuple[list[Check], dict[str, Any]]]] = {
        "events": part_events,
        "throughput": part_throughput,
        "scrape": part_scrape,
    }
    checks: list[Check] = []
    kept: dict[str, Any] = {}
    for part in arguments.parts:
        found, kept[part] = measure[part](arguments.model)
        checks += found
    print()
    for check in checks:
        print(check)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(kept, indent=1) + "\n")
    sys.exit(not all(check.is_met for check in checks))


if __name__ == "__main__":
    main()
