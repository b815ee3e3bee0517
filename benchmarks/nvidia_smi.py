"""The service's own GPU metrics against `nvidia-smi`, read in turns while the GPU works and while it rests.

A value agrees if nvidia-smi's lies between ours just before and just after, give or take one of its last digit, since
it rounds memory up, and a tenth of it where it changes all the time (power, utilisation, clocks).
"""

import argparse
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pynvml
import torch

from observability.gpu_facts import FACTS

MIB = float(1 << 20)
CHANGING = 0.1


@dataclass(frozen=True, slots=True)
class Pair:
    """A metric of ours, with the value of its label if it has one, and nvidia-smi's field in `unit`."""

    metric: str
    field: str
    unit: float
    label: str | None = None
    changes: bool = False


PAIRS = (
    Pair("gpu_memory_used_bytes", "memory.used", MIB),
    Pair("gpu_memory_reserved_bytes", "memory.reserved", MIB),
    Pair("gpu_memory_total_bytes", "memory.total", MIB),
    Pair("gpu_utilization_ratio", "utilization.gpu", 0.01, changes=True),
    Pair("gpu_memory_busy_ratio", "utilization.memory", 0.01, changes=True),
    Pair("gpu_temperature_celsius", "temperature.gpu", 1.0),
    Pair("gpu_power_watts", "power.draw", 1.0, changes=True),
    Pair("gpu_power_limit_watts", "enforced.power.limit", 1.0),
    Pair("gpu_clock_hertz", "clocks.current.graphics", 1e6, "graphics", changes=True),
    Pair("gpu_clock_hertz", "clocks.current.sm", 1e6, "sm", changes=True),
    Pair("gpu_clock_hertz", "clocks.current.memory", 1e6, "memory"),
    Pair("gpu_ecc_errors", "ecc.errors.corrected.volatile.total", 1.0, "corrected"),
    Pair("gpu_ecc_errors", "ecc.errors.uncorrected.volatile.total", 1.0, "uncorrected"),
    Pair("gpu_pcie_generation", "pcie.link.gen.gpucurrent", 1.0),
    Pair("gpu_pcie_lanes", "pcie.link.width.current", 1.0),
)


def ours(gpu: object) -> Mapping[tuple[str, str | None], float]:
    """Our metrics by name and label."""
    found: dict[tuple[str, str | None], float] = {}
    for fact in FACTS:
        try:
            read = fact.read(gpu)
        except pynvml.NVMLError:
            continue
        if isinstance(read, Mapping):
            found |= {(fact.name, label): value for label, value in read.items()}
        elif read is not None:
            found[fact.name, None] = read
    return found


def theirs() -> list[str]:
    """nvidia-smi's fields, in the order of `PAIRS`."""
    fields = ",".join(each.field for each in PAIRS)
    command = ["nvidia-smi", "--id=0", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return [each.strip() for each in subprocess.check_output(command, text=True).split(",")]


def compare(rounds: int) -> list[str]:
    """A line for each pair: the last values, and in how many rounds they agreed."""
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    agreed = dict.fromkeys(PAIRS, 0)
    last: dict[Pair, tuple[float | None, str]] = {}
    for _ in range(rounds):
        before, said, after = ours(gpu), theirs(), ours(gpu)
        for pair, text in zip(PAIRS, said, strict=True):
            values = [each.get((pair.metric, pair.label)) for each in (before, after)]
            last[pair] = values[1], text
            agreed[pair] += agrees(pair, values, text)
    lines = []
    for pair, (value, text) in last.items():
        name = pair.metric + (f"{{{pair.label}}}" if pair.label else "")
        number = "-" if value is None else f"{value / pair.unit:.2f}"
        lines.append(f"  {name:<34}{number:>12}{text:>12}  {agreed[pair]} of {rounds}  {pair.field}")
    return lines


def agrees(pair: Pair, values: list[float | None], text: str) -> bool:
    """Whether both tell the same, or both nothing."""
    known = [each / pair.unit for each in values if each is not None]
    try:
        said = float(text)
    except ValueError:  # [N/A]
        return not known
    if not known:
        return False
    digits = len(text.partition(".")[2])
    slack = 10.0**-digits + (CHANGING * said if pair.changes else 0.0)
    return min(known) - slack <= said <= max(known) + slack


def loaded(work: Callable[[], list[str]]) -> list[str]:
    """The same while a thread keeps the GPU busy."""
    ended = threading.Event()

    def multiply() -> None:
        square = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
        while not ended.is_set():
            torch.matmul(square, square)
            torch.cuda.synchronize()

    thread = threading.Thread(target=multiply)
    thread.start()
    try:
        ended.wait(3.0)
        return work()
    finally:
        ended.set()
        thread.join()


def main() -> None:
    """Compare and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="readings of each")
    arguments = parser.parse_args()
    pynvml.nvmlInit()
    print(f"{pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))}")
    print(f"  {'metric':<34}{'ours':>12}{'nvidia-smi':>12}  agreed   field")
    print("while it rests", *compare(arguments.rounds), sep="\n")
    print("while it works", *loaded(lambda: compare(arguments.rounds)), sep="\n")


if __name__ == "__main__":
    main()
