"""Studies of parameters, each in one run, with the columns of the comparison with peers.

  window   the published study of micro-batching: how long a batch gathers, and how large it may be, by the published
           server under the published scenario of eight users, who come in less time and never fill a batch of 16;
           Safelight as it is beside it
  order    who of those that wait gets a slot of `continuous`: 16 closed-loop users of mixed traffic, half of whom wait
  memory   the bare pipeline at batch size 1 and 8: the order of weights in memory, and attention by PyTorch's fused
           kernel, step by step, or in slices; a request is a call, in a process whose memory is its own

The cases take turns, round after round, so that a machine whose speed drifts is as fast for all.
"""

import argparse
import multiprocessing
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.bare import ATTENTION, BarePipeline, BareProcess, bare_process
from benchmarks.harness import service
from benchmarks.peers import published, report
from benchmarks.peers.catalogue import PEERS, SAFELIGHT
from benchmarks.peers.environment import serving
from benchmarks.peers.load import Answer, Looks, busy, closed
from benchmarks.peers.pair import Meter, endpoint
from benchmarks.peers.results import EIGHT_USERS, Measured
from benchmarks.traffic import MIXES, all_at_once
from service.engine import policy

GATHER_MS, SIZES = (250, 500, 1000), (4, 8, 16)
SCENARIO = published.SCENARIOS[EIGHT_USERS].scaled(0.1)
USERS, PICTURES = 16, 96
BATCHES, CALLS = (1, 8), 3
WEIGHTS = ("as loaded", "channels last")
KIB = 1024


def window(model: str, rounds: int) -> Iterator[Measured]:
    """Each case in each round."""
    cases: list[tuple[int, int] | None] = [*product(GATHER_MS, SIZES), None]
    for _, case in product(range(rounds), cases):
        with ExitStack() as stack:
            bare = stack.enter_context(bare_process(model))
            if case is None:
                name, served = SAFELIGHT.title, endpoint(SAFELIGHT, stack.enter_context(service(model, {})))
            else:
                milliseconds, size = case
                name = f"window of {milliseconds} ms, at most {size}"
                variables = {"PEER_WINDOW_S": milliseconds / 1000, "PEER_BATCH": size}
                served = stack.enter_context(serving(PEERS["window"], model, variables=variables))
            closed(USERS)(served, published.REQUESTS[:USERS])  # until it is warm
            with Meter(served.pid) as meter:
                answers, looks, seconds = published.run(served, SCENARIO)
            found = _measured(name, answers, looks, bare, meter, seconds)
        yield found


def order(model: str, rounds: int) -> Iterator[Measured]:
    """Each case in each round, which has requests of its own."""
    mix = MIXES["mixed"]
    for number in range(rounds):
        requests = all_at_once(mix, PICTURES // len(mix.kinds()), f"study {number}")
        for each in policy.ORDERS:
            with bare_process(model) as bare, service(model, {"order": each}) as target:
                served = endpoint(SAFELIGHT, target)
                closed(USERS)(served, requests[:USERS])
                with Meter(target.pid) as meter:
                    answers = closed(USERS)(served, requests)
                looks, counted = Looks.at(answers), busy(answers, USERS)
                found = _measured(each.replace("_", " "), answers, looks, bare, meter, meter.seconds, counted)
            yield found


def _measured(
    case: str,
    answers: Sequence[Answer],
    looks: Looks,
    bare: BareProcess,
    meter: Meter,
    seconds: float,
    busy: tuple[int, float] | None = None,
) -> Measured:
    return Measured(
        "study",
        case,
        "",
        seconds,
        [each.seconds for each in answers if not each.error],
        dict(Counter(each.error for each in answers if each.error)),
        looked_at=looks.count,
        wrong=looks.wrong(bare.png),
        cpu_seconds=meter.cpu_seconds,
        memory=meter.memory,
        busy=busy,
    )


def memory(model: str, rounds: int) -> Iterator[Measured]:
    """Each case in each round, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    for _, weights, attention, batch in product(range(rounds), WEIGHTS, ATTENTION, BATCHES):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_called, args=(model, weights, attention, batch, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            yield ours.recv()
        except EOFError:
            process.join()
            raise SystemExit(f"the process with the pipeline ended with {process.exitcode}") from None
        process.join()


def _called(model: str, weights: str, attention: str, batch: int, connection: "Connection[Measured, None]") -> None:
    """Send what the calls took; memory is the most that was resident while it called, weights and libraries too."""
    pipeline = BarePipeline(model)
    pipeline.use_channels_last(weights != WEIGHTS[0])
    pipeline.use_attention(attention)
    Path("/proc/self/clear_refs").write_text("5")  # forget what loading took
    pipeline.seconds(batch, batch, 2)  # until it is warm
    began = os.times()
    seconds = [pipeline.seconds(batch, batch, MIXES["uniform"].steps[0]) for _ in range(CALLS)]
    ended = os.times()
    most = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert most is not None, "each process has it"
    connection.send(
        Measured(
            "memory",
            f"weights {weights}, attention {attention}, batch {batch}",
            "",
            sum(seconds),
            seconds,
            {},
            cpu_seconds=ended.user + ended.system - began.user - began.system,
            memory=int(most[1]) * KIB,
        )
    )


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
