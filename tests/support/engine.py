"""A continuous loop with the fake model and a clock that only moves when a step is made or pictures are decoded."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

from service.core import Size
from service.engine.continuous import ContinuousLoop
from service.engine.contract import Command, Decoded, Happened, Message, Picture, Stepped
from service.engine.fake import FakeModel, FakeRow
from service.engine.faults import Faults, FaultyRow, FaultyStepModel
from service.engine.profile import Curve, Point, Profile
from service.settings import EngineSettings

STEP_SECONDS = 0.1
ENOUGH_LOOKS = 10


def profile(slots: int = 8, **sizes: int) -> Profile:
    """Steps of 0.1 s whatever the batch; `slots` for every size but those given, as `s64x128=2`."""
    caps: dict[Size, int] = {}
    for name, cap in sizes.items():
        width, height = name.removeprefix("s").split("x")
        caps[int(width), int(height)] = cap
    points = tuple(Point(n, STEP_SECONDS) for n in sorted({1, slots}))
    return Profile((Curve((64, 64), points),), extra_seconds=0.0, rows_per_guided=2, max_batch=slots, slots=caps)


class Inbox(SimpleQueue[Command]):
    """A queue in which nobody waits."""

    def get(self, block: bool = True, timeout: float | None = None) -> Command:
        """What is there, or `Empty`."""
        return super().get_nowait()


class Wire:
    """The test's end of a loop: what it is told, and what it has sent."""

    inbox: "SimpleQueue[Command]"
    sent: list[Message]

    def put(self, *commands: Command) -> None:
        """Queue commands for the loop."""
        for command in commands:
            self.inbox.put(command)

    def of(self, kind: type) -> list[Any]:
        """The messages, or the events in messages, of one kind."""
        events = [each.event for each in self.sent if isinstance(each, Happened | Stepped)]
        return [each for each in (*self.sent, *events) if isinstance(each, kind)]


class StepsLater:
    """An event of a device: it happens when so many more steps have been made, after enough looks without one, or when
    somebody waits for it.
    """

    def __init__(self, bench: "Bench", steps: int) -> None:
        self._bench = bench
        self._due = len(bench.batches) + steps
        self._looks = 0
        self.was_waited_for = False

    def query(self) -> bool:
        """Whether it has happened."""
        self._looks += 1
        return self.was_waited_for or len(self._bench.batches) >= self._due or self._looks > ENOUGH_LOOKS

    def synchronize(self) -> None:
        """Wait for it."""
        self.was_waited_for = self.was_waited_for or not self.query()


class Bench(FakeModel, Wire):
    """A loop with its inbox, what it sent, and a hook that runs after every step; it is the loop's model itself.

    With `decode_steps` a picture is decoded beside that many steps.
    """

    def __init__(
        self, faults: str = "", slots: int = 8, decode_seconds: float = 0.0, decode_steps: int = 0, **sizes: int
    ) -> None:
        super().__init__(EngineSettings(model="fake:"))
        self.decode_seconds = decode_seconds
        self.decode_steps = decode_steps
        self.events: list[StepsLater] = []  # of decoding
        self.now = 1000.0
        self.inbox = Inbox()
        self.sent: list[Message] = []
        self.batches: list[list[tuple[str, int]]] = []  # of every step: whose pictures, at which step
        self.decoded: list[list[str]] = []
        self.after_step: Callable[[int], None] = lambda _step: None
        self.loop: ContinuousLoop[FaultyRow[FakeRow]] = ContinuousLoop(
            FaultyStepModel(self, Faults(faults)),
            self.inbox,
            self.sent.append,
            lambda _: None,
            profile=replace(profile(slots, **sizes), extra_seconds=decode_seconds),
            clock=lambda: self.now,
        )

    def denoise(self, rows: Sequence[FakeRow]) -> list[Exception | None]:
        """The fake model's step, recorded."""
        self.batches.append([(row.picture.task_id, row.step) for row in rows])
        self.now += STEP_SECONDS
        outcome = super().denoise(rows)
        self.after_step(len(self.batches))
        return outcome

    def decode(self, rows: Sequence[FakeRow]) -> list[Decoded]:
        """The fake model's pictures, recorded."""
        self.decoded.append([row.picture.task_id for row in rows])
        self.now += self.decode_seconds * len(rows)
        decoded = super().decode(rows)
        if not self.decodes_beside:
            return decoded
        self.events.append(StepsLater(self, self.decode_steps))
        return [replace(each, event=self.events[-1]) for each in decoded]

    @property
    def decodes_beside(self) -> bool:
        """See `StepModel.decodes_beside`."""
        return self.decode_steps > 0

    def run(self, turns: int = 1000) -> None:
        """Turns until nothing is left to do, at most so many."""
        for _ in range(turns):
            if self.inbox.empty() and not self.loop._tasks:
                return
            self.loop.turn()

    @property
    def holders(self) -> list[Picture]:
        """The pictures that hold slots."""
        return [each.picture for each in self.loop._begun.values() if each.holds_slot]
