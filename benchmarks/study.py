"""Studies of parameters, each in one run, with the columns of the comparison with peers.

  window   the published study of micro-batching: how long a batch gathers, and how large it may be; 16 closed-loop
           users of Safelight's `window` mode, 20 steps
  order    who of those that wait gets a slot of `continuous`: 16 closed-loop users of mixed traffic, half of whom wait
  memory   the bare pipeline at batch size 1 and 8: the order of weights in memory, and attention by PyTorch's fused
           kernel, step by step, or in slices; a request is a call

The cases take turns, round after round, so that a machine whose speed drifts is as fast for all.
"""

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.bare import ATTENTION, BarePipeline
from benchmarks.harness import service
from benchmarks.peers import report
from benchmarks.peers.catalogue import SAFELIGHT
from benchmarks.peers.load import busy, closed
from benchmarks.peers.pair import Meter, endpoint
from benchmarks.peers.results import Measured
from benchmarks.traffic import MIXES, Request, all_at_once
from observability.labels import Batching
from service.engine import policy

GATHER_MS, SIZES = (250, 500, 1000), (4, 8, 16)
USERS, PICTURES = 16, 64  # a batch of the largest size can be full
CROWD, MIXED_PICTURES = 16, 96
BATCHES, CALLS = (1, 8), 3
ORDERS = ("as loaded", "channels last")  # of weights
ORDERS_OF_SERVICE = tuple(policy.ORDERS)


def window(model: str, rounds: int) -> Iterator[Measured]:
    """Each case in each round."""
    requests = all_at_once(MIXES["uniform"], PICTURES, "study")
    for _, milliseconds, size in product(range(rounds), GATHER_MS, SIZES):
        settings = {"batching": Batching.WINDOW, "batch_window_ms": milliseconds, "max_batch": size}
        yield _served(model, settings, f"{milliseconds} ms, at most {size}", USERS, requests)


def order(model: str, rounds: int) -> Iterator[Measured]:
    """Each case in each round, which has requests of its own."""
    mix = MIXES["mixed"]
    for number in range(rounds):
        requests = all_at_once(mix, MIXED_PICTURES // len(mix.kinds()), f"study {number}")
        for each in ORDERS_OF_SERVICE:
            yield _served(model, {"order": each}, each.replace("_", " "), CROWD, requests)


def _served(model: str, settings: Mapping[str, object], case: str, users: int, requests: Sequence[Request]) -> Measured:
    """By a service of its own, which is warm."""
    with service(model, settings) as target:
        served = endpoint(SAFELIGHT, target)
        closed(users)(served, requests[:users])
        with Meter(target.pid) as meter:
            answers = closed(users)(served, requests)
    return Measured(
        "study",
        case,
        "",
        meter.seconds,
        [each.seconds for each in answers if not each.error],
        dict(Counter(each.error for each in answers if each.error)),
        cpu_seconds=meter.cpu_seconds,
        memory=meter.memory,
        busy=busy(answers, users),
    )


def memory(model: str, rounds: int) -> Iterator[Measured]:
    """Each case in each round, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_memory, args=(model, rounds, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            told = ours.recv()
            with Meter(process.pid or 0) as meter:
                seconds = ours.recv()
            yield Measured(
                "memory", told, "", sum(seconds), seconds, {}, cpu_seconds=meter.cpu_seconds, memory=meter.memory
            )
    except EOFError:  # it is done
        process.join()
    if process.exitcode:
        raise SystemExit(f"the process with the pipeline ended with {process.exitcode}")


def _memory(model: str, rounds: int, connection: "Connection[Any, Any]") -> None:
    """Send the name of each case, and then the seconds of its calls."""
    pipeline = BarePipeline(model)
    for _, weights, attention, batch in product(range(rounds), ORDERS, ATTENTION, BATCHES):
        pipeline.use_channels_last(weights != ORDERS[0])
        pipeline.use_attention(attention)
        pipeline.seconds(batch, batch, 2)
        connection.send(f"weights {weights}, attention {attention}, batch {batch}")
        connection.send([pipeline.seconds(batch, batch, MIXES["uniform"].steps[0]) for _ in range(CALLS)])


STUDIES = {"window": window, "order": order, "memory": memory}


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--model", default="models/tiny", help="diffusers folder")
    parser.add_argument("--rounds", type=int, default=3, help="of all cases, in turns")
    arguments = parser.parse_args()
    rows: dict[str, Measured] = {}
    began = time.monotonic()
    for each in STUDIES[arguments.study](arguments.model, arguments.rounds):
        rows[each.target] = rows[each.target] + each if each.target in rows else each
        print(f"{(time.monotonic() - began) / 60:5.1f} min  {report.line(each)}", file=sys.stderr, flush=True)
    print(report.table(rows.items()))


if __name__ == "__main__":
    main()
