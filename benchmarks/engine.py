"""How much of a pipeline's own speed the service keeps, and what batching gains.

Measures, in turns within one run so that a noisy machine hurts all alike: diffusers' pipeline called directly at
batch 1, 2, 4 and 8 (a guided picture is two rows of the UNet), and the service under closed-loop clients in
`sequential` and `window` mode, each in a process of its own with the same PyTorch settings. Prints pictures per
second (medians of the rounds) and their ratios.
"""

import argparse
import http.client
import itertools
import json
import multiprocessing
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

BATCHES = (1, 2, 4, 8)
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
SETTLE_SECONDS = 0.5


def prompts(count: int) -> list[str]:
    """`count` prompts that are not all the same."""
    return [f"a pizza on a {COLOURS[n % len(COLOURS)]} background" for n in range(count)]


def raw_process(connection: "Connection[float, tuple[int, int] | None]", model: str, steps: int) -> None:
    """Answer each (batch size, pictures) with the seconds that the bare pipeline takes, up to the PIL images."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the service does
    import torch
    from diffusers import AutoPipelineForText2Image

    pipe = AutoPipelineForText2Image.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    while (order := connection.recv()) is not None:
        batch, pictures = order
        started = time.perf_counter()
        for first in range(0, pictures, batch):
            generators = [torch.Generator("cpu").manual_seed(first + n) for n in range(batch)]
            with torch.inference_mode():
                pipe(prompts(batch), num_inference_steps=steps, guidance_scale=4.0, generator=generators)
        connection.send(time.perf_counter() - started)


@contextmanager
def raw_pipeline(model: str, steps: int) -> Iterator["Connection[tuple[int, int] | None, float]"]:
    """A warm process with the bare pipeline."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=raw_process, args=(theirs, model, steps), daemon=True)
    process.start()
    for batch in BATCHES:
        ours.send((batch, batch))
        ours.recv()
    yield ours
    ours.send(None)
    process.join(10)


@contextmanager
def service(mode: str, model: str) -> Iterator[tuple[str, int]]:
    """The address of a ready service in `mode`."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        environment = {**os.environ, "SAFELIGHT_DATA_DIR": folder, "SAFELIGHT_BATCHING": mode, "SAFELIGHT_PORT": "0"}
        with log.open("w") as stderr:
            command = [sys.executable, "-m", "service", "serve", "--model", model, "--dtype", "float32"]
            process = subprocess.Popen(command, env=environment, stderr=stderr)
        try:
            while not (found := re.search(r"listens on http://([\d.]+):(\d+)", log.read_text())):
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.1)
            address = found[1], int(found[2])
            while status(address) != 200:
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def status(address: tuple[str, int]) -> int:
    """The status of `/health/ready`."""
    connection = http.client.HTTPConnection(*address)
    connection.request("GET", "/health/ready")
    return connection.getresponse().status


def served_seconds(address: tuple[str, int], clients: int, pictures: int, steps: int) -> float:
    """Seconds between the completion of picture number `clients` and the one `pictures` later, while every client
    asks for its next picture as soon as it has got one; so start and end are left out.
    """
    completed: list[float] = []
    enough = threading.Event()
    connections = [http.client.HTTPConnection(*address, timeout=600) for _ in range(clients)]

    def client(number: int) -> None:
        try:
            for picture in itertools.count(number, clients):
                ask(connections[number], picture, steps)
                completed.append(time.perf_counter())
                if len(completed) >= clients + pictures:
                    enough.set()
        except (OSError, http.client.HTTPException):
            if not enough.is_set():
                raise

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    enough.wait()
    for connection in connections:  # the service cancels what nobody waits for
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()
    return completed[clients + pictures - 1] - completed[clients - 1]


def ask(connection: http.client.HTTPConnection, number: int, steps: int) -> None:
    """Wait for one picture."""
    body = {"prompt": prompts(number + 1)[-1], "seed": number, "num_inference_steps": steps, "cache": False}
    headers = {"Content-Type": "application/json", "Accept": "image/png"}
    connection.request("POST", "/generate", json.dumps(body), headers)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise SystemExit(f"the service answered {response.status}: {answer[:500]!r}")


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Pictures per second by case, one value for each round."""
    rates: dict[str, list[float]] = {}

    def note(case: str, pictures: int, seconds: float) -> None:
        rates.setdefault(case, []).append(pictures / seconds)
        print(f"  {case:<12} {pictures / seconds:6.2f} pictures/s", flush=True)
        time.sleep(SETTLE_SECONDS)

    with ExitStack() as stack:
        raw = stack.enter_context(raw_pipeline(arguments.model, arguments.steps))
        services = {mode: stack.enter_context(service(mode, arguments.model)) for mode in ("sequential", "window")}
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}")
            for batch in BATCHES:
                raw.send((batch, arguments.pictures))
                note(f"raw {batch}", arguments.pictures, raw.recv())
            for mode, address in services.items():
                seconds = served_seconds(address, arguments.clients, arguments.pictures, arguments.steps)
                note(mode, arguments.pictures, seconds)
    return rates


def report(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    """Print medians, and the ratios that matter: each taken within a round, of which the median counts."""
    print("\ncase           pictures/s   against raw 1")
    for case, values in rates.items():
        rate, base = statistics.median(values), statistics.median(rates["raw 1"])
        print(f"{case:<12} {rate:12.2f} {rate / base:14.2f}x")

    def ratio(case: str, base: str) -> list[float]:
        return [value / other for value, other in zip(rates[case], rates[base], strict=True)]

    served, raw = ratio("window", "sequential"), ratio("raw 8", "raw 1")
    ratios = {
        "served window / raw pipeline at batch 8 (bar 0.90)": ratio("window", "raw 8"),
        "served sequential / raw pipeline at batch 1": ratio("sequential", "raw 1"),
        "window / sequential": served,
        "raw gain from batch 1 to 8": raw,
        "window over sequential / raw gain (bar 0.85)": [ours / bare for ours, bare in zip(served, raw, strict=True)],
    }
    print("\nmedian  each round")
    for name, values in ratios.items():
        print(f"{statistics.median(values):6.3f}  {name}: {', '.join(f'{value:.2f}' for value in values)}")
    return ratios


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="models/tiny", help="diffusers folder")
    parser.add_argument("--clients", type=int, default=16, help="clients that wait for their pictures")
    parser.add_argument("--pictures", type=int, default=24, help="pictures in each measurement; a multiple of 8")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each case")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a picture")
    parser.add_argument("--json", type=Path, help="file to write rates and ratios to")
    arguments = parser.parse_args()
    rates = measure(arguments)
    ratios = report(rates)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"pictures_per_second": rates, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
