"""Runs drills, one after the other, against a stack of its own."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from observability.gameday.drill import BUDGETS, BUSY, Drill
from observability.gameday.drills import RECOVERY
from observability.gameday.fleet import FleetStack
from observability.gameday.ground import Ground, Traces
from observability.gameday.program import CannotStart
from observability.gameday.stack import Stack, running
from observability.gameday.traffic import Traffic
from observability.gameday.watching import LOOK_SECONDS, Seen, Watch, restless
from observability.generate.timing import SHIPPED, Timing, seconds

COMPRESSED = Timing(factor=60, scrape=1.0)
MARGIN = 10.0  # seconds, on a slow machine, beside the time that something may take
PATIENCE = 120.0  # seconds until what should have happened has not
CALM_SECONDS = 900.0  # in compressed time, until budgets are as before
MUTED = "3m"  # longer than Alertmanager waits with what it tells
WARM_SECONDS = 10.0
DOLLARS = 30.0  # an hour, so that few pictures are expensive ones and many are not
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One alert of one drill; seconds since the cause began, `resolved` since it ended."""

    alert: str
    what: str
    is_simulated: bool
    pending: float | None
    firing: float | None
    notified: float | None
    expected: float
    resolved: float | None
    is_muted: bool = False

    @property
    def is_late(self) -> bool:
        """Whether it took longer than it should."""
        return self.notified is not None and self.notified > self.expected


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a drill: its rows, others that were told as they may be, and what was wrong."""

    rows: tuple[Row, ...]
    beside: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def late(self) -> tuple[str, ...]:
        """Alerts that took longer than they should."""
        return tuple(row.alert for row in self.rows if row.is_late)


class GameDay:
    """A stack with its users, and the drills that it is put through in `timing`."""

    def __init__(self, ground: Ground, timing: Timing, tell: Tell) -> None:
        self._ground = ground
        self._timing = timing
        self._tell = tell
        # As shipped, a budget takes hours to recover.
        self._lasting = BUDGETS if timing is SHIPPED else frozenset[str]()
        self._busy = frozenset[str]() if timing is SHIPPED else BUSY
        self._calm_seconds = CALM_SECONDS * COMPRESSED.factor / timing.factor

    def calm(self) -> None:
        """Wait until no alert is pending or fires. Raises `TimeoutError` that names those that do."""
        deadline = time.monotonic() + self._calm_seconds
        with RECOVERY(self._ground):
            while found := restless(self._ground.stack, self._lasting):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not calm within {self._calm_seconds:g} s: {', '.join(sorted(found))}")
                time.sleep(LOOK_SECONDS)

    def run(self, drill: Drill) -> Result:
        """One drill. Raises `TimeoutError` if it is not calm before."""
        self.calm()
        self._tell(f"{drill.what}: {', '.join(drill.alerts or drill.muted)}")
        watch = Watch(self._ground.stack)
        problems = []
        wanted = [each for each in drill.alerts if each not in self._lasting]
        patience = max(self._expected(drill, each) for each in (*wanted, *drill.muted))

        def missing(what: str) -> str:
            found = {each for each in wanted if not watch.is_so(what, each)}
            return ", ".join(sorted(found | {each for each in drill.muted if not watch.is_so("firing", each)}))

        began = time.time()
        with drill.cause(self._ground):
            goal = "firing" if drill.told_after else "notified"
            if not self._wait(watch, lambda: not missing(goal), patience + PATIENCE):
                problems.append(f"{missing(goal)}: not {goal} in time")
            if drill.muted:  # long enough to be told of, were it not for that
                self._wait(watch, lambda: False, seconds(MUTED) / self._timing.factor)
            ended = time.time()
        if drill.told_after and not self._wait(watch, lambda: not missing("notified"), PATIENCE):
            problems.append(f"{missing('notified')}: not notified afterwards")

        def left() -> set[str]:
            """Also what is pending yet, or not told of yet: whatever comes of this drill is looked at."""
            unresolved = {each for each in watch.notified - self._lasting if not watch.is_so("resolved", each)}
            return unresolved | restless(self._ground.stack, self._lasting)

        with RECOVERY(self._ground):
            if not self._wait(watch, lambda: not left(), self._calm_seconds):
                problems.append(f"{', '.join(sorted(left()))}: never resolved")
        beside = (drill.beside | self._busy) - set(drill.alerts)
        if surprises := watch.notified - beside - set(drill.alerts):
            problems.append(f"notified, but not to be: {', '.join(sorted(surprises))}")
        rows = [
            self._row(drill, name, watch.seen.get(name, Seen()), began, ended) for name in (*drill.alerts, *drill.muted)
        ]
        return Result(tuple(rows), tuple(sorted(watch.notified & beside)), tuple(problems))

    def _wait(self, watch: Watch, is_done: Callable[[], bool], patience: float) -> bool:
        deadline = time.monotonic() + patience
        while True:
            watch.look()
            if is_done():
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)

    def _expected(self, drill: Drill, alert: str) -> float:
        return seconds(drill.expected(alert)) / self._timing.factor + drill.takes + MARGIN

    def _row(self, drill: Drill, name: str, seen: Seen, began: float, ended: float) -> Row:
        is_muted = name in drill.muted

        def since(start: float, at: float | None) -> float | None:
            return None if at is None else round(at - start, 1)

        return Row(
            name,
            drill.what,
            drill.is_simulated,
            since(began, seen.pending),
            since(began, seen.firing),
            since(began, seen.notified),
            round(self._expected(drill, name), 1),
            since(ended, seen.resolved),
            is_muted,
        )


@contextlib.contextmanager
def prepared(folder: Path, timing: Timing, tell: Tell, of_fleet: bool = False) -> Iterator[GameDay]:
    """A stack that is warm and calm, until the block ends."""
    traces = Traces()
    kind: type[Stack] = FleetStack if of_fleet else Stack
    settings = {
        "faults": "1",
        "trace_ratio": "1",
        "queue_limit": "200",  # long enough for a wait of more than a minute
        "otlp_endpoint": f"http://127.0.0.1:{traces.port}",
        "gpu_dollars_per_hour": f"{DOLLARS:g}",
    }
    try:
        tell("starting the stack of a fleet" if of_fleet else "starting the stack")
        with running(folder, timing, kind, **settings) as stack, Traffic(stack.url("api")) as traffic:
            time.sleep(WARM_SECONDS)
            yield GameDay(Ground(stack, traffic, traces), timing, tell)
    finally:
        traces.stop()


def run(folder: Path, timing: Timing, drills: Sequence[Drill], tell: Tell) -> list[tuple[Drill, Result]]:
    """All of `drills`, those of a fleet last; those that cannot be begun fail."""
    results: list[tuple[Drill, Result]] = []
    for of_fleet in (False, True):
        chosen = [each for each in drills if each.is_of_fleet is of_fleet]
        if not chosen:
            continue
        with prepared(folder / ("fleet" if of_fleet else "alone"), timing, tell, of_fleet) as day:
            for drill in chosen:
                began = time.monotonic()
                result = _result(day, drill)
                results.append((drill, result))
                verdict = "; ".join((*result.problems, *(f"{each}: late" for each in result.late))) or "as it should be"
                tell(f"  {len(results)} of {len(drills)}, {time.monotonic() - began:.0f} s: {verdict}")
    return results


def _result(day: GameDay, drill: Drill) -> Result:
    try:
        return day.run(drill)
    except (TimeoutError, RuntimeError, CannotStart) as error:
        return Result((), (), (str(error),))
