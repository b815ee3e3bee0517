"""A service under hours' worth of trouble in minutes: does every job end once, and does memory stay?

Drives the real service in `continuous` mode with mixed steps, sizes, guidance, schedulers and priorities, several
pictures a job, clients that hang up or cancel, deadlines that are missed, prompts that fail, steps that run out of
memory, and bursts that overflow the queue. The rate is steered so that the queue is neither empty nor full for long.
Exits with status 1 if a check fails.
"""

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness import Service, service
from benchmarks.visitors import POISON, TERMINAL, Ledger, come, visits

SAMPLE_SECONDS = 5.0
SLOPE_MINUTES = 15.0
SLOPE_BAR = 1.0  # MiB a minute
END_SECONDS = 900.0  # for what is still queued when no more clients come
QUEUE_LIMIT = 30
BUSY, IDLE = 0.7, 0.2  # shares of the queue between which the rate is left as it is
BURST = 0.005  # chance that a client brings a whole queue of others
CLIENTS = 200
MIB = 2.0**20


@dataclass(frozen=True, slots=True)
class Sample:
    """`minutes` after the start: resident memory in MiB, waiting jobs, and the clients' rate per second."""

    minutes: float
    api_mib: float
    engine_mib: float
    queued: float
    rate: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One check."""

    name: str
    is_met: bool
    detail: str

    def __str__(self) -> str:
        """One line."""
        return f"{'ok  ' if self.is_met else 'FAIL'} {self.name}: {self.detail}"


class Soak:
    """Brings clients and samples the service until it is time to stop."""

    def __init__(self, target: Service, seed: int) -> None:
        self.ledger = Ledger()
        self.samples: list[Sample] = []
        self._target = target
        self._model = target.get_json("/model")
        self._seed = seed
        self._rate = 1.0
        self._stop = threading.Event()

    def run(self, minutes: float) -> None:
        """Return when the last client has left."""
        clients = visits(self._model, self._seed)
        source = random.Random(self._seed)
        began = time.monotonic()
        with ThreadPoolExecutor(1) as watch, ThreadPoolExecutor(max_workers=CLIENTS) as pool:
            sampling = watch.submit(self._sample, began)
            came: list[Future[None]] = []
            try:
                while time.monotonic() - began < minutes * 60 and not sampling.done():
                    group = islice(clients, QUEUE_LIMIT if source.random() < BURST else 1)
                    came += [pool.submit(come, self._target, visit, self.ledger) for visit in group]
                    time.sleep(source.expovariate(self._rate))
                for each in came:
                    each.result()
            finally:
                self._stop.set()
            sampling.result()

    def _sample(self, began: float) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            queued = sum(metric(self._target, "safelight_queue_depth").values())
            api, engine = resident(self._target.pid)
            minutes = (time.monotonic() - began) / 60
            self.samples.append(Sample(minutes, api / MIB, engine / MIB, queued, self._rate))
            if queued > BUSY * QUEUE_LIMIT:
                self._rate *= 0.9
            elif queued < IDLE * QUEUE_LIMIT:
                self._rate *= 1.1
            if len(self.samples) % 12 == 0:
                told = f"{minutes:.0f} min: {api / MIB:.0f} + {engine / MIB:.0f} MiB, {queued:.0f} queued"
                print(f"{told}, {self._rate:.2f} clients/s", file=sys.stderr, flush=True)


def metric(target: Service, name: str) -> dict[tuple[str, ...], float]:
    """The samples called `name`, by their labels' values."""
    families = text_string_to_metric_families(target.get("/metrics").decode())
    samples = (sample for family in families for sample in family.samples if sample.name == name)
    return {tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value for sample in samples}


def resident(pid: int) -> tuple[int, int]:
    """Resident bytes of the process and of all its children together."""
    children = [
        int(child) for tasks in Path(f"/proc/{pid}/task").glob("*/children") for child in tasks.read_text().split()
    ]
    return _resident(pid), sum(map(_resident, children))


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def jobs(target: Service, *states: str) -> Iterator[dict[str, Any]]:
    """Every job, or those in `states`, page by page."""
    query = "limit=200" + "".join(f"&status={state}" for state in states)
    cursor = ""
    while True:
        page = target.get_json(f"/jobs?{query}{cursor}")
        yield from page["jobs"]
        if page["next"] is None:
            return
        cursor = f"&cursor={page['next']}"


def wait_for_end(target: Service) -> None:
    """Return when no job is unfinished, or when they have had time enough."""
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline and any(jobs(target, "pending", "processing")):
        time.sleep(1.0)


def endings(target: Service) -> dict[str, tuple[str, float]]:
    """The status and the time of the end of each job."""
    return {each["job_id"]: (each["status"], each["finished_at"]) for each in jobs(target)}


def check(target: Service, ledger: Ledger, samples: Sequence[Sample]) -> list[Finding]:
    """All checks, after the end."""
    first, listed, second = endings(target), list(jobs(target)), endings(target)
    requests = metric(target, "safelight_requests_total")
    ended = Counter[str]()
    for (outcome, _reason, _source), count in requests.items():
        if outcome != "rejected":
            ended[outcome] += int(count)
    by_status = Counter(status for status, _ in second.values())
    unknown = second.keys() - ledger.seen.keys()
    contradicted = [id_ for id_, seen in ledger.seen.items() if seen is not None and second.get(id_, ("",))[0] != seen]
    failed = [each for each in listed if each["status"] == "failed"]
    innocent = [each for each in failed if POISON not in each["parameters"]["prompt"]]
    spared = [each for each in listed if each["status"] == "completed" and POISON in each["parameters"]["prompt"]]
    splits = sum(metric(target, "safelight_oom_splits_total").values())
    restarts = sum(metric(target, "safelight_engine_restarts_total").values())
    grown = slope(samples)
    return [
        Finding("every accepted job is there", ledger.seen.keys() <= second.keys(), f"{len(ledger.seen)} accepted"),
        Finding(
            "the others are those of clients that hung up",
            len(unknown) <= ledger.hung_up,
            f"{len(unknown)} of at most {ledger.hung_up}",
        ),
        Finding("every job has ended", by_status.keys() <= TERMINAL, _counts(by_status)),
        Finding("each ended in exactly one event", ended == by_status, _counts(ended)),
        Finding("no ended job changed between two reads", first == second, f"{len(second)} jobs"),
        Finding("no client was told another end", not contradicted, f"{len(contradicted)} contradicted"),
        Finding(
            "what was to fail failed, nothing else",
            not innocent and not spared and bool(failed),
            f"{len(failed)} failed, {len(innocent)} of them wrongly, {len(spared)} spared",
        ),
        Finding("steps ran out of memory and went on", splits > 0, f"{splits:.0f} splits"),
        Finding("the engine never ended", restarts == 0, f"{restarts:.0f} restarts"),
        Finding("nothing else went wrong", not ledger.surprises, "; ".join(ledger.surprises[:5]) or "no surprises"),
        Finding(
            f"memory grows by at most {SLOPE_BAR:g} MiB a minute", grown <= SLOPE_BAR, f"{grown:+.2f} MiB a minute"
        ),
    ]


def slope(samples: Sequence[Sample]) -> float:
    """Least-squares growth of resident memory in MiB a minute: the last minutes, of a short run the last half."""
    last = samples[-1].minutes
    since = max(last - SLOPE_MINUTES, min(last / 2, 5.0))
    late = [each for each in samples if each.minutes >= since]
    return float(np.polyfit([each.minutes for each in late], [each.api_mib + each.engine_mib for each in late], 1)[0])


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items()))


def tell(target: Service, soak: Soak) -> None:
    """Print what happened, and the memory minute by minute."""
    print("requests by outcome and reason:")
    for (outcome, reason, _source), count in sorted(metric(target, "safelight_requests_total").items()):
        if count:
            print(f"  {outcome:<10} {reason:<18} {count:6.0f}")
    for what in ("oom_splits", "pictures_paused", "pictures_resumed", "images", "steps"):
        print(f"  {what:<29} {sum(metric(target, f'safelight_{what}_total').values()):6.0f}")
    print(f"  answers: {_counts(Counter({str(status): count for status, count in soak.ledger.answers.items()}))}")
    print("minutes   API MiB   engine MiB   queued   clients/s")
    for each in soak.samples[:: max(1, round(60 / SAMPLE_SECONDS))]:
        print(f"{each.minutes:7.1f} {each.api_mib:9.1f} {each.engine_mib:12.1f} {each.queued:8.0f} {each.rate:11.2f}")


def main() -> None:
    """Parse the command line, run, check and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="models/tiny", help="diffusers folder")
    parser.add_argument("--minutes", type=float, default=20.0, help="time during which clients come")
    parser.add_argument("--seed", type=int, default=0, help="seed of the clients")
    parser.add_argument("--slots", default="128x128=6", help="slots by size")
    parser.add_argument("--oom-above", type=int, default=4, help="pictures that fit into memory")
    parser.add_argument("--json", type=Path, help="file to write samples and findings to")
    arguments = parser.parse_args()
    settings = {
        "batching": "continuous",
        "queue_limit": QUEUE_LIMIT,
        "retention_seconds": 7 * 86_400,
        "slots": arguments.slots,
        "faults": f"fail={POISON}&oom_above={arguments.oom_above}",
    }
    with service(arguments.model, settings) as target:
        soak = Soak(target, arguments.seed)
        soak.run(arguments.minutes)
        wait_for_end(target)
        findings = check(target, soak.ledger, soak.samples)
        tell(target, soak)
    print()
    for finding in findings:
        print(finding)
    if arguments.json is not None:
        kept = {"findings": [asdict(each) for each in findings], "samples": [asdict(each) for each in soak.samples]}
        arguments.json.write_text(json.dumps(kept, indent=1) + "\n")
    sys.exit(0 if all(each.is_met for each in findings) else 1)


if __name__ == "__main__":
    main()
