"""The comparison itself: peer after peer does each part of the work, and Safelight the same beside it.

  idle             one client, one request after the other, five each in turns; the bare pipeline beside idle Safelight
  uniform          16 closed-loop clients, 20 steps; before and after Safelight the bare pipeline, which is the limit
  mixed saturated  16 closed-loop clients; 4, 8, 20 or 50 steps, guidance 5.0 or 7.5
  mixed            the same, open loop: seeded Poisson arrivals at 0.7 of what Safelight's `window` mode makes of them
  mixed, its own load   the same, for a peer that cannot carry that, once more at 0.7 of what it makes itself
  one user, eight users   the published experiment's scenarios, by Locust, with the servers that it had

A part is done in blocks: peer, Safelight, Safelight, peer; one of the published scenarios once by each, and `idle` five
requests by each in turns. Who fails while it is at work ends that turn, and not the run.
"""

import argparse
import statistics
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import psutil

from benchmarks import alone, simulate
from benchmarks.bare import BareEnded, BareProcess, bare_process
from benchmarks.curve import Times
from benchmarks.harness import service
from benchmarks.peers import published, report
from benchmarks.peers.catalogue import BATCH, PEERS, PLAIN, SAFELIGHT, Peer
from benchmarks.peers.environment import CannotServe, prepare, serving
from benchmarks.peers.load import Answer, Endpoint, Looks, Work, busy, closed, in_turn, opened
from benchmarks.peers.pair import Meter, Pair, endpoint
from benchmarks.peers.results import BARE, IDLE, MIXED, OURS, OWN_LOAD, SATURATED, UNIFORM, Measured, Results
from benchmarks.report import SERVED_ORDER
from benchmarks.told import Told
from benchmarks.traffic import MIXES, Mix, Request, all_at_once, block
from observability.labels import Batching

CLIENTS = 16
LOAD = 0.7
CARRIED = 0.9  # of what a peer makes at most: with more, its queue grows for as long as one measures
RAW_BATCHES = (1, 2, 4)  # beside those of `BATCH`
LIMIT_BATCHES = 3  # times as many pictures of those, which are the limit
CURVE_ROUNDS = 2
IDLE_BLOCK = 5
WARM = ((Mix(steps=(4,), guidance=(7.5,)), 160), (MIXES[UNIFORM], 16))  # BentoML learns from its first dozen batches
PARTS = (IDLE, UNIFORM, SATURATED, MIXED, OWN_LOAD, *published.SCENARIOS)
FULL = {IDLE: 30, UNIFORM: 192, SATURATED: 192, MIXED: 120, OWN_LOAD: 120}
QUICK = {IDLE: 10, UNIFORM: 64, SATURATED: 64, MIXED: 60, OWN_LOAD: 60}
ALL_PARTS_OF = {"plain-async"}  # of the plain endpoints, as fast as any under load; the others for what is published
AS_PUBLISHED = {*PLAIN, "window"}
FAILURES = (
    CannotServe,
    psutil.Error,
    subprocess.SubprocessError,
    OSError,
    EOFError,
    RuntimeError,
    LookupError,
    SystemExit,
)
REASON_LENGTH = 500


class Runner:
    """Measures what `results` does not have yet."""

    def __init__(self, arguments: argparse.Namespace, results: Results) -> None:
        self._arguments = arguments
        self._results = results
        self._counts = QUICK if arguments.quick else FULL
        self._parts: list[str] = list(arguments.parts)
        self._seed: int = arguments.seed
        self._at_work = ""

    def run(self) -> Iterator[str]:
        """Everything; yield what came out as it comes."""
        if set(published.SCENARIOS) & set(self._parts):
            self._results.not_run.pop("locust", None)
            try:
                prepare("locust")
            except CannotServe as error:
                yield self._failed("locust", error)
                self._parts = [part for part in self._parts if part not in published.SCENARIOS]
        if not self._results.size or (MIXED in self._parts and not self._results.window_rate):
            yield self._window()
        for name in self._arguments.peers:
            yield from self._turn(PEERS[name])
        for name in self._arguments.alone:
            if name not in self._results.alone:
                yield self._alone(name)

    def _requests(self, part: str) -> list[Request]:
        mix = MIXES[MIXED if part.startswith(MIXED) else UNIFORM]
        return all_at_once(mix, self._counts[part] // len(mix.kinds()), f"{self._seed} {part}")

    def _alone(self, name: str) -> str:
        self._results.not_run.pop(name, None)
        try:
            figures = self._results.alone[name] = alone.WORKLOADS[name](self._arguments.model)
        except FAILURES as error:
            return self._failed(name, error)
        return f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items())

    def _failed(self, name: str, error: BaseException) -> str:
        told = f"{type(error).__name__}: {error}"[-REASON_LENGTH:]
        self._results.not_run[name] = " ".join(told.split())  # it becomes a table's cell
        return f"{name}: {self._results.not_run[name]}"

    def _window(self) -> str:
        """The model's size, and the rate of which open-loop loads are a share."""
        with service(self._arguments.model, self._settings(Batching.WINDOW)) as target:
            known = target.get_json("/model")
            self._results.size = f"{known['default_width']}x{known['default_height']}"
            if MIXED not in self._parts:
                return f"a picture has {self._results.size} pixels"
            served = endpoint(SAFELIGHT, target)
            _warm(served)
            answers = closed(CLIENTS)(served, self._requests(SATURATED))
        counted, seconds = busy(answers, CLIENTS)
        self._results.window_rate = counted / seconds * statistics.mean(not each.error for each in answers)
        return f"window mode makes {self._results.window_rate:.2f} pictures/s of mixed traffic"

    def _settings(self, batching: Batching = Batching.CONTINUOUS) -> dict[str, object]:
        device = self._arguments.device
        dtype = "float32" if device == "cpu" else "auto"
        settings: dict[str, object] = {"batching": batching, "queue_limit": 10_000, "device": device, "dtype": dtype}
        if batching is Batching.CONTINUOUS:
            settings["slots"] = f"{self._results.size}={BATCH}"
        return settings

    def _turn(self, peer: Peer) -> Iterator[str]:
        parts = [part for part in parts_of(peer.name, self._parts) if not is_done(self._results, part, peer.name)]
        if not parts:
            return
        names = {peer.name: peer.name} | {each: f"{each} beside {peer.name}" for each in (OURS, BARE)}
        for name in names.values():
            self._results.not_run.pop(name, None)
        model, device = self._arguments.model, self._arguments.device
        try:
            with ExitStack() as stack:
                self._at_work = peer.name
                theirs = stack.enter_context(serving(peer, model, device))
                bare = stack.enter_context(bare_process(model, device))
                self._at_work = OURS
                ours = stack.enter_context(service(model, self._settings()))
                pair = stack.enter_context(Pair(theirs, ours, bare))
                for each in pair.endpoints:
                    with self._only(pair, each):
                        _warm(each)
                for part in parts:
                    if not is_done(self._results, part, peer.name):  # by the part before it
                        yield from self._part(part, pair)
        except FAILURES as error:
            yield self._failed(names[BARE if isinstance(error, BareEnded) else self._at_work], error)

    @contextmanager
    def _only(self, pair: Pair, target: Endpoint) -> Iterator[Meter]:
        """As the pair's; what fails meanwhile is held against it."""
        self._at_work = target.peer.name
        with pair.only(target) as meter:
            yield meter

    def _part(self, part: str, pair: Pair) -> Iterator[str]:
        limits: list[dict[str, float]] = []
        if part in published.SCENARIOS:
            blocks = self._scenario(part, pair)
        elif part == IDLE:
            blocks = self._idle(pair)
        elif part in (MIXED, OWN_LOAD):
            blocks = self._open(part, pair)
        elif part == UNIFORM:
            blocks = self._blocks(
                part,
                pair,
                closed(CLIENTS),
                self._requests(part),
                around_ours=lambda: limits.append(self._limit(pair.bare)),
            )
        else:
            blocks = self._blocks(part, pair, closed(CLIENTS), self._requests(part))
        self._results.measured += blocks  # all or none, so that a run that goes on does not lack some
        if limits:
            limit = {case: statistics.harmonic_mean(each[case] for each in limits) for case in limits[0]}
            self._results.limits[pair.name] = limit
            yield "the bare pipeline: " + ", ".join(f"{case} {rate:.2f}/s" for case, rate in limit.items())
        for target in dict.fromkeys(each.target for each in blocks):
            yield report.line(self._results.blocks(part)[pair.name, target])
        if part == MIXED and pair.name in self._results.saturated:
            yield f"{pair.name} cannot carry mixed traffic: {self._results.saturated[pair.name]}"

    def _blocks(
        self,
        part: str,
        pair: Pair,
        work: Work,
        requests: Sequence[Request],
        rate: float | None = None,
        around_ours: Callable[[], None] = lambda: None,
    ) -> list[Measured]:
        """Each does half of the requests first and half of them last; `around_ours` comes before and after ours."""
        half = len(requests) // 2
        first, second = requests[:half], requests[half:]
        found = []
        theirs, ours = pair.endpoints
        for each, share in ((theirs, first), (ours, first), (ours, second), (theirs, second)):
            if each is ours and share is first:
                around_ours()
            with self._only(pair, each) as meter:
                answers = work(each, share)
            if each is ours and share is second:
                around_ours()
            _check(each, answers)
            block = self._measured(part, pair, each, meter, answers, self._looks(answers), rate)
            found.append(replace(block, busy=busy(answers, CLIENTS)) if rate is None else block)
        return found

    def _looks(self, answers: Sequence[Answer]) -> Looks:
        """Only the embedded model paints what it is asked for."""
        return Looks.at(answers) if self._arguments.has_colours else Looks(0, ())

    def _measured(
        self,
        part: str,
        pair: Pair,
        target: Endpoint,
        meter: Meter,
        answers: Sequence[Answer],
        looks: Looks,
        rate: float | None = None,
        seconds: float | None = None,
    ) -> Measured:
        return Measured(
            part=part,
            target=target.peer.name,
            beside=pair.name,
            seconds=seconds or meter.seconds,
            latencies=[round(each.seconds, 5) for each in answers if not each.error],
            errors=dict(Counter(each.error for each in answers if each.error)),
            looked_at=looks.count,
            wrong=looks.wrong(pair.bare.png),
            cpu_seconds=meter.cpu_seconds,
            memory=meter.memory,
            rate=rate,
        )

    def _idle(self, pair: Pair) -> list[Measured]:
        """A few requests each, who begins changes; the first after a pause does not count."""
        requests, steps = self._requests(IDLE), MIXES[UNIFORM].steps[0]
        found, encode = [], []
        for number, first in enumerate(range(0, len(requests), IDLE_BLOCK)):
            some = requests[first : first + IDLE_BLOCK]
            for each in pair.endpoints if number % 2 else reversed(pair.endpoints):
                with self._only(pair, each):
                    if each.peer is SAFELIGHT:
                        _, *bare = [pair.bare.seconds(1, 1, steps) for _ in (None, *some)]
                        found.append(Measured(IDLE, BARE, pair.name, sum(bare), bare, {}))
                    in_turn(each, some[:1])
                    before = Told(pair.ours) if each.peer is SAFELIGHT else None
                    with Meter(each.pid) as meter:
                        answers = in_turn(each, some)
                    _check(each, answers)
                    if before is not None:
                        encode.append(Told(pair.ours).stages_since(before)["image_encode"])
                found.append(self._measured(IDLE, pair, each, meter, answers, self._looks(answers)))
        self._results.encode_seconds[pair.name] = statistics.median(encode)
        return found

    def _limit(self, bare: BareProcess) -> dict[str, float]:
        """Pictures a second of the bare pipeline in a loop, at every batch size; half of what is done of it."""
        steps = MIXES[UNIFORM].steps[0]
        count = max(1, self._counts[UNIFORM] // 12 // BATCH) * BATCH  # whole batches
        many = LIMIT_BATCHES * count
        rates = {f"raw {batch}": count / bare.seconds(batch, count, steps) for batch in RAW_BATCHES}
        rates[f"raw {BATCH}"] = many / bare.seconds(BATCH, many, steps)
        bare.use_channels_last(False)
        rates[f"plain {BATCH}"] = many / bare.seconds(BATCH, many, steps)
        bare.use_channels_last(True)
        return rates

    def _open(self, part: str, pair: Pair) -> list[Measured]:
        """Peer and Safelight, and what an ideal engine makes of the same requests by the bare pipeline's times."""
        carried = self._results.blocks(SATURATED)[pair.name, pair.name].throughput
        rate = LOAD * (self._results.window_rate if part == MIXED else carried)
        if rate > CARRIED * carried:
            why = f"{rate:.2f} requests/s came, and it makes {carried:.2f} pictures/s at most"
            self._results.saturated[pair.name] = why
        halves = [block(MIXED, LOAD, number, rate, self._counts[part] // 2, self._seed) for number in range(2)]
        samples = pair.bare.curve(CURVE_ROUNDS)
        blocks = self._blocks(part, pair, opened, [*halves[0], *halves[1]], rate)
        samples += pair.bare.curve(CURVE_ROUNDS)
        self._results.curve += samples
        ideal = simulate.engines(Times(samples), BATCH)[SERVED_ORDER]
        found = [(half, ideal(half)) for half in halves]
        latencies = [each for _, these in found for each in these]
        seconds = sum(
            max(request.at + latency for request, latency in zip(half, these, strict=True)) for half, these in found
        )
        return [*blocks, Measured(part, "ideal", pair.name, seconds, latencies, {}, rate=rate)]

    def _scenario(self, part: str, pair: Pair) -> list[Measured]:
        scenario = published.SCENARIOS[part].scaled(self._arguments.scale_time)
        found = []
        for each in pair.endpoints:
            with self._only(pair, each) as meter:
                answers, looks, seconds = published.run(each, scenario)
            looks = looks if self._arguments.has_colours else Looks(0, ())
            found.append(self._measured(part, pair, each, meter, answers, looks, seconds=seconds))
        return found


def _warm(target: Endpoint) -> None:
    for mix, count in WARM:
        _check(target, closed(CLIENTS)(target, all_at_once(mix, count, "warm")))


def _check(target: Endpoint, answers: Sequence[Answer]) -> None:
    """Raises `CannotServe` where no answer of a peer is a picture; Safelight's failures count, however many."""
    if target.peer is not SAFELIGHT and all(each.error for each in answers):
        raise CannotServe(f"{target.peer.name} makes no picture: {answers[0].error}")


def seconds_of(part: str, arguments: argparse.Namespace) -> float:
    """About how long a part takes of a peer and of Safelight, on two cores and with the embedded model."""
    if part in published.SCENARIOS:
        return 2 * published.SCENARIOS[part].scaled(arguments.scale_time).seconds + 10
    each = {IDLE: 2.5, UNIFORM: 0.9, SATURATED: 0.6, MIXED: 1.0, OWN_LOAD: 1.1}[part]
    return (QUICK if arguments.quick else FULL)[part] * each


def is_done(results: Results, part: str, peer: str) -> bool:
    """Whether the peer has done it, or need not: one that carries the common load has no other."""
    is_carried = bool(results.of(MIXED, peer)) and peer not in results.saturated
    return bool(results.of(part, peer)) or (part == OWN_LOAD and is_carried)


def parts_of(peer: str, parts: Sequence[str]) -> list[str]:
    """Those of the parts that the peer does."""
    does_all = peer not in PLAIN or peer in ALL_PARTS_OF

    def does(part: str) -> bool:
        return peer in AS_PUBLISHED if part in published.SCENARIOS else does_all or part == IDLE

    return [part for part in parts if does(part)]
