"""What was measured, kept as it comes, and which bars it meets."""

import json
import statistics
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from pydantic import TypeAdapter

from benchmarks.curve import Sample
from benchmarks.peers.catalogue import BATCH, PEERS, PLAIN, SAFELIGHT

P99_LEAST = 300  # samples
IDLE, UNIFORM, SATURATED, MIXED, OWN_LOAD = "idle", "uniform", "mixed saturated", "mixed", "mixed, its own load"
ONE_USER, EIGHT_USERS = "one user", "eight users"
EIGHT_USERS_BARS = {"cpu": (1.4, 1.4), "cuda": (3.6, 4.0)}  # throughput and p99
MACHINES = {"cpu": "", "cuda": ", on a GPU"}
SPOILT = 0.01
EQUAL = 0.98
EQUAL_SECONDS = 0.002
OURS, BARE = SAFELIGHT.name, "bare"


@dataclass(frozen=True, slots=True)
class Measured:
    """One part of the work as `target` did it, next to `beside`, in `seconds`.

    `latencies` in seconds are those of answers with a picture, `errors` count the others by kind; of `looked_at`
    pictures `wrong` were not what was asked for. `cpu_seconds` and the most `memory` in bytes are of its processes;
    `rate` is that at which requests came in an open loop; `busy` are answers, and the seconds until then, as long as
    all clients of a closed loop had something to ask.
    """

    part: str
    target: str
    beside: str
    seconds: float
    latencies: list[float]
    errors: dict[str, int]
    looked_at: int = 0
    wrong: int = 0
    cpu_seconds: float = 0.0
    memory: int = 0
    rate: float | None = None
    busy: tuple[int, float] | None = None

    @property
    def requests(self) -> int:
        return len(self.latencies) + sum(self.errors.values())

    @property
    def failures(self) -> float:
        """Errors, and as many wrong pictures as there are by the share of those that were looked at."""
        share = self.wrong / self.looked_at if self.looked_at else 0.0
        return sum(self.errors.values()) + share * len(self.latencies)

    @property
    def throughput(self) -> float:
        """Right answers a second; of a closed loop while all its clients ask."""
        answers, seconds = self.busy or (self.requests, self.seconds)
        return answers / seconds * (1 - self.failures / self.requests)

    @property
    def is_rival(self) -> bool:
        """Whether it made pictures, and no more than `SPOILT` of its answers are failures."""
        return bool(self.latencies) and self.failures <= SPOILT * self.requests

    def figure(self, name: str) -> float | None:
        """`throughput`, or a percentile of the latencies as `p50`; None where there are too few to speak of it."""
        if name == "throughput":
            return self.throughput
        share = float(name.removeprefix("p"))
        if not self.latencies or (share >= 99 and len(self.latencies) < P99_LEAST):
            return None
        return float(np.percentile(self.latencies, share))

    def __add__(self, more: "Measured") -> "Measured":
        """Two blocks of the same as one."""
        return Measured(
            self.part,
            self.target,
            self.beside,
            self.seconds + more.seconds,
            self.latencies + more.latencies,
            dict(Counter(self.errors) + Counter(more.errors)),
            self.looked_at + more.looked_at,
            self.wrong + more.wrong,
            self.cpu_seconds + more.cpu_seconds,
            max(self.memory, more.memory),
            self.rate,
            (self.busy[0] + more.busy[0], self.busy[1] + more.busy[1]) if self.busy and more.busy else None,
        )


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure and the least, or the `most`, that it should be; without a value it was not run, and `why` says why.

    `spoilt` says why it is missed whatever the figure.
    """

    name: str
    value: float | None
    bar: float
    most: bool = False
    why: str = ""
    spoilt: str = ""

    @property
    def verdict(self) -> str:
        if self.spoilt:
            return f"missed ({self.spoilt})"
        if self.value is None:
            return f"not run ({self.why or 'not measured'})"
        return "met" if (self.value <= self.bar if self.most else self.value >= self.bar) else "missed"


@dataclass
class Results:
    """All that was measured on `machine` with `versions`.

    `not_run` says of a peer, of Safelight or the bare pipeline beside it, or of a workload why. `limits` are pictures a
    second of the bare pipeline around what Safelight did beside each peer, by batch size, with weights as the engine
    orders them (`raw 8`) and as diffusers does (`plain 8`); `curve` is its; `size` in pixels is the model's own, for
    which the engine has `slots`; `alone` are figures of what only Safelight was asked for.
    """

    settings: dict[str, Any]
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    size: str = ""
    slots: int = BATCH
    curve: list[Sample] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    limits: dict[str, dict[str, float]] = field(default_factory=dict)
    window_rate: float = 0.0  # pictures a second of mixed traffic that Safelight's `window` mode makes when saturated
    saturated: dict[str, str] = field(default_factory=dict)  # peers that cannot carry mixed traffic, and why
    alone: dict[str, dict[str, float]] = field(default_factory=dict)
    encode_seconds: dict[str, float] = field(
        default_factory=dict
    )  # of a picture of the idle Safelight beside each peer
    not_run: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """The results that `write` left."""
        stored = json.loads(path.read_text())
        stored.pop("bars", None)
        return TypeAdapter(cls).validate_python(stored)

    def write(self, path: Path) -> None:
        """Keep everything, and what became of the bars so far."""
        bars = [{**asdict(each), "verdict": each.verdict} for each in self.bars()]
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"bars": bars, **asdict(self)}) + "\n")
        partial.replace(path)

    def blocks(self, part: str) -> "dict[tuple[str, str], Measured]":
        """All that was measured of a part, by whom it was beside and by target; blocks of the same as one."""
        found: dict[tuple[str, str], Measured] = {}
        for each in self.measured:
            if each.part == part:
                key = each.beside, each.target
                found[key] = found[key] + each if key in found else each
        return found

    def of(self, part: str, target: str) -> list[Measured]:
        """What `target` did of a part beside each other."""
        return [each for (_, name), each in self.blocks(part).items() if name == target]

    def pairs(self, part: str) -> list[tuple[Measured, Measured]]:
        """What each peer did of a part, and what Safelight did beside it."""
        blocks = self.blocks(part)
        return [
            (each, blocks[beside, OURS])
            for (beside, target), each in blocks.items()
            if target == beside and (beside, OURS) in blocks
        ]

    def bars(self) -> Iterator[Bar]:
        """In the order in which they were set."""
        yield from self._uniform()
        yield from self._mixed()
        yield from self._idle()
        yield from self._published()
        yield from self._alone()

    def _against(self, name: str, part: str, figure: str, bar: float, peers: Collection[str] = PEERS) -> Bar:
        """How many times better than the best peer: a throughput, or a latency.

        A peer of whose answers more than `SPOILT` are failures is no rival, nor is a saturated one at a load that it
        cannot carry; a failure of Safelight's misses the bar.
        """
        if spoilt := self._spoilt():
            return Bar(name, None, bar, spoilt=spoilt)
        found, enough, lacking = [], [], []
        excluded: dict[str, list[str]] = {"failures": [], "saturated": []}
        for theirs, ours in self.pairs(part):
            if theirs.target not in peers:
                continue
            if not theirs.is_rival or (part == MIXED and theirs.target in self.saturated):
                excluded["saturated" if theirs.is_rival else "failures"].append(theirs.target)
                continue
            if spoilt := self._spoilt(ours):
                return Bar(name, None, bar, spoilt=spoilt)
            values = ours.figure(figure), theirs.figure(figure)
            if None in values:
                lacking.append(theirs.throughput / ours.throughput)
                continue
            mine, yours = cast(tuple[float, float], values)
            found.append((mine / yours if figure == "throughput" else yours / mine, theirs.target))
            enough.append(theirs.throughput / ours.throughput)
        without = "; ".join(f"{', '.join(peers)}: {why}" for why, peers in excluded.items() if peers)
        if not found and not lacking:
            failed = [f"{peer}: {why}" for peer, why in self.not_run.items() if peer in {*peers, "locust"}]
            return Bar(name, None, bar, why=f"no rival; {without}" if without else "; ".join(failed))
        if max(lacking, default=0.0) > max(enough, default=0.0):  # the best may be among them
            return Bar(name, None, bar, why=f"fewer than {P99_LEAST} samples")
        least, peer = min(found)
        return Bar(f"{name} ({peer}{f'; without {without}' if without else ''})", least, bar)

    def _spoilt(self, *ours: Measured) -> str:
        """Why Safelight misses a bar in any case: it broke beside somebody, or failed in what it did."""
        broke = [f"{name}: {why}" for name, why in self.not_run.items() if name.startswith(f"{OURS} ")]
        failed = sum(each.failures for each in ours)
        return "; ".join(broke) or (f"{failed:.0f} of Safelight's requests failed" if failed else "")

    def _uniform(self) -> Iterator[Bar]:
        yield self._against("1. uniform, 16 clients: throughput over the best peer's", UNIFORM, "throughput", EQUAL)
        ours = {beside: each for (beside, target), each in self.blocks(UNIFORM).items() if target == OURS}
        for case in (f"plain {self.slots}", f"raw {self.slots}"):
            name = f"1. uniform, 16 clients: throughput over the bare pipeline's around it, {case} (median)"
            shares = [ours[peer].throughput / rates[case] for peer, rates in self.limits.items()]
            yield Bar(name, statistics.median(shares) if shares else None, 0.97, spoilt=self._spoilt(*ours.values()))

    def _mixed(self) -> Iterator[Bar]:
        for part in (MIXED, OWN_LOAD):
            for figure, bar in (("p50", 2.5), ("p95", 1.4)):
                if part == MIXED or self.pairs(part):
                    yield self._against(f"2. {part}: best peer's {figure} over ours", part, figure, bar)
        yield self._against("2. mixed, saturated: throughput over the best peer's", SATURATED, "throughput", EQUAL)

    def _idle(self) -> Iterator[Bar]:
        name = "3. idle: seconds over the bare pipeline's, without encoding (medians)"
        over, gains = [], []
        for theirs, ours in self.pairs(IDLE):
            bare = self.blocks(IDLE)[theirs.beside, BARE]
            encode = self.encode_seconds[theirs.beside]
            over.append(statistics.median(ours.latencies) - statistics.median(bare.latencies) - encode)
            if theirs.is_rival:
                gains.append((statistics.median(theirs.latencies) - statistics.median(ours.latencies), theirs.target))
        spoilt = self._spoilt(*(ours for _, ours in self.pairs(IDLE)))
        yield Bar(name, statistics.median(over) if over else None, 0.005, most=True, spoilt=spoilt)
        least, peer = min(gains, default=(None, "no peer"))
        yield Bar(f"3. idle: the fastest peer's median less ours, s ({peer})", least, -EQUAL_SECONDS, spoilt=spoilt)

    def _published(self) -> Iterator[Bar]:
        figures = (("throughput", "requests a second over"), ("p99", "p99 below"))
        for device, bars in EIGHT_USERS_BARS.items():
            for (figure, what), bar in zip(figures, bars, strict=True):
                name = f"4. published scenario of 8 users{MACHINES[device]}: {what} the best plain endpoint's"
                if device == self.settings.get("device", "cpu"):
                    yield self._against(name, EIGHT_USERS, figure, bar, PLAIN)
                else:
                    yield Bar(name, None, bar, why="this run is of another kind of machine")

    def _alone(self) -> Iterator[Bar]:
        for part, name, figure, bar, most in (
            ("repeat", "5. repeat-heavy: cache hits a second", "throughput", 1000, False),
            ("repeat", "5. repeat-heavy: p99 of hits, s", "p99", 0.02, True),
            ("repeat", "5. repeat-heavy: work saved over what Zipf predicts", "saved_over_zipf", EQUAL, False),
            ("crowd", "6. 1,000 clients: failures but 429", "failures", 0, True),
            ("crowd", "6. 1,000 clients: p99 of the API's health, s", "health_p99", 0.1, True),
            ("crowd", "6. 1,000 clients: GiB", "memory_gib", 1.5, True),
            ("aborts", "7. abort storm: share of aborted requests' steps not run", "not_run", 0.9, False),
        ):
            figures = self.alone.get(part, {})
            wrong = figures.get("wrong", 0.0)
            spoilt = f"{wrong:.0f} pictures are wrong" if wrong else self.not_run.get(part, "")
            yield Bar(name, figures.get(figure), bar, most, spoilt=spoilt)
