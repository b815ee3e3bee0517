"""The board leads every job to exactly one terminal state, whatever happens in whichever order."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from observability.events import (
    BatchStepped,
    RequestAccepted,
    RequestFinished,
    RequestLeft,
    RequestStarted,
    StepsWasted,
)
from observability.labels import CacheResult, Priority, Reason, Stage
from service.core import Job, JobState
from service.engine.contract import Cancel, Command, Finished, Raise, Stepped, Submit
from service.errors import Unavailable
from service.jobs import table
from service.jobs.board import Board
from service.jobs.delivery import Delivery
from service.jobs.estimate import Estimator
from service.storage.cache import ResponseCache
from service.storage.database import Database
from service.storage.images import ImageStore
from tests.support import build

pytestmark = pytest.mark.anyio

NOW = 1000.0


class Scene:
    """A board with a real database and folder, an engine that only listens, and an observer that remembers."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(f"sqlite:///{folder / 'test.db'}")
        self.images = ImageStore(str(folder / "images"))
        self.sent: list[Command] = []
        self.recorder = build.Recorder()
        self.delivery = Delivery(self.images, ResponseCache(ttl=100.0, max_bytes=10**6), wall=lambda: NOW)
        self.board = self.another()

    def another(self, **more: Any) -> Board:
        """A board with all of this, and `more`."""
        return Board(
            database=self.database,
            delivery=self.delivery,
            estimator=Estimator(),
            send=self.sent.append,
            observer=self.recorder,
            wall=lambda: NOW,
            clock=lambda: 50.0,
            **more,
        )

    def enter(self, job_id: str, **changes: Any) -> CacheResult:
        """Record and queue a job."""
        job = build.job(job_id, **changes)
        self.database.run_here(lambda connection: table.add(connection, job))
        return self.board.enter(job)

    def record(self, job_id: str) -> Job:
        """The job as the database has it."""
        job = self.database.run_here(lambda connection: table.get(connection, job_id))
        assert job is not None
        return job

    def finish(self, job_id: str) -> None:
        """The engine made the job's picture."""
        self.board.finished(
            Finished(job_id, (np.zeros((64, 64, 3), np.uint8),), {}, prompt_truncated=False, batch_seconds=0.5)
        )

    @property
    def ends(self) -> list[RequestFinished]:
        """The terminal events so far."""
        return self.recorder.of(RequestFinished)


@pytest.fixture
def anyio_backend() -> str:
    """The board is written for asyncio."""
    return "asyncio"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """See `Scene`."""
    scene = Scene(tmp_path)
    yield scene
    scene.delivery.close()
    scene.database.close()


async def test_a_finished_job_is_recorded_before_anybody_is_told(scene: Scene) -> None:
    """When the waiter wakes, the record and the pictures are there."""
    scene.enter("a")
    live = scene.board.live("a")
    assert live is not None
    scene.board.started(["a"])
    scene.finish("a")
    await live.done.wait()
    assert scene.record("a").state is JobState.COMPLETED
    assert scene.images.get("a", 0, build.params().output_format)
    await scene.board.settle(60)
    assert len(scene.ends) == 1


async def test_what_shares_a_computation_is_told_so(scene: Scene) -> None:
    """Each request is accepted once, with the context in which it came, and ends once, with its stages."""
    scene.enter("a", cache_key="k", traceparent="00-1-2-01")
    scene.enter("b", cache_key="k")
    accepted = scene.recorder.of(RequestAccepted)
    assert [(each.request.id, each.flight, each.traceparent) for each in accepted] == [
        ("a", "a", "00-1-2-01"),
        ("b", "a", None),
    ]
    scene.board.started(["a"])
    scene.finish("a")
    await scene.board.settle(60)
    assert {each.request.id for each in scene.recorder.of(RequestStarted)} == {"a", "b"}
    assert sorted(each.request.id for each in scene.ends) == ["a", "b"]
    assert all(Stage.STORE in each.timings for each in scene.ends)


async def test_the_time_in_an_earlier_process_counts(scene: Scene) -> None:
    """For the job that it recorded: from acceptance to the first batch, and to the end."""
    scene.enter("old", created_at=NOW - 40.0)
    scene.board.started(["old"])
    scene.finish("old")
    await scene.board.settle(60)
    (started,) = scene.recorder.of(RequestStarted)
    assert (started.queue_wait, scene.ends[0].seconds) == (40.0, 40.0)


@pytest.mark.parametrize("order", ["cancel first", "finish first", "expire first"])
async def test_a_race_of_ends_has_one_winner(scene: Scene, order: str) -> None:
    """Cancel, expiry and completion at the same moment: one terminal event, and the record agrees with it."""
    scene.enter("a", expires_at=NOW if order == "expire first" else NOW + 60)
    live = scene.board.live("a")
    assert live is not None
    scene.board.started(["a"])
    if order == "finish first":
        scene.finish("a")
    cancels = [scene.board.end(live, JobState.CANCELLED, Reason.CLIENT_CANCELLED) for _ in range(3)]
    if order == "expire first":
        await asyncio.sleep(0.01)
    won = await asyncio.gather(*cancels)
    scene.finish("a")
    await scene.board.settle(60)
    assert sum(won) <= 1
    assert len(scene.ends) == 1
    assert scene.record("a").state.value == scene.ends[0].outcome.value == live.job.state.value


async def test_a_shared_computation_survives_its_first_job(scene: Scene) -> None:
    """The engine is told to stop only when the last job has gone."""
    assert scene.enter("a", cache_key="k") is CacheResult.MISS
    assert scene.enter("b", cache_key="k") is CacheResult.COALESCED
    first, second = scene.board.live("a"), scene.board.live("b")
    assert first is not None
    assert second is not None
    await scene.board.end(first, JobState.CANCELLED, Reason.CLIENT_CANCELLED)
    assert [type(command) for command in scene.sent] == [Submit]
    await scene.board.end(second, JobState.CANCELLED, Reason.DISCONNECTED)
    assert scene.sent[-1] == Cancel("a", Reason.DISCONNECTED)
    assert scene.board.waiting == 0


async def test_a_request_that_joins_while_pictures_are_stored_gets_them(scene: Scene) -> None:
    """Identical requests share the computation up to the moment its jobs are completed."""
    scene.enter("a", cache_key="k")
    scene.board.started(["a"])
    scene.finish("a")
    assert scene.enter("b", cache_key="k") is CacheResult.COALESCED
    await scene.board.settle(60)
    assert scene.record("b").state is JobState.COMPLETED
    assert scene.record("b").blob == "a"


async def test_a_task_in_two_crashes_fails_and_the_others_run_again(scene: Scene) -> None:
    """Only those count for whom the model was called: after the first crash they run alone, then they fail."""
    for name in ("culprit", "paused", "bystander"):
        scene.enter(name)
    scene.board.started(["culprit", "paused"])
    scene.board.working(frozenset({"culprit"}))
    scene.board.engine_lost()
    assert scene.board.live("culprit").job.state is JobState.PENDING  # type: ignore[union-attr]
    scene.sent.clear()
    scene.board.resubmit()
    alone = {command.task_id: command.alone for command in scene.sent if isinstance(command, Submit)}
    assert alone == {"culprit": True, "paused": False, "bystander": False}
    scene.board.started(["culprit"])
    scene.board.working(frozenset({"culprit"}))
    scene.board.engine_lost()
    await scene.board.settle(60)
    assert scene.record("culprit").reason is Reason.ENGINE_CRASHED
    assert scene.board.live("bystander") is not None
    assert scene.board.live("paused") is not None


async def test_a_more_urgent_request_that_joins_raises_the_computation(scene: Scene) -> None:
    """Also one that has started; a less urgent one changes nothing."""
    scene.enter("low", cache_key="same", priority=Priority.LOW)
    scene.board.started(["low"])
    scene.sent.clear()
    for name, priority in (("normal", Priority.NORMAL), ("high", Priority.HIGH), ("late", Priority.NORMAL)):
        scene.enter(name, cache_key="same", priority=priority)
    assert scene.sent == [Raise("low", Priority.NORMAL), Raise("low", Priority.HIGH)]


async def test_a_job_whose_time_is_over_at_entry_expires(scene: Scene) -> None:
    """As after a long stop of the service."""
    scene.enter("late", expires_at=NOW - 1)
    await asyncio.sleep(0.01)
    await scene.board.settle(60)
    assert scene.record("late").state is JobState.EXPIRED


async def test_pictures_that_cannot_be_stored_fail_the_job(scene: Scene, tmp_path: Path) -> None:
    """With a reason of its own; the engine is not to blame."""
    (tmp_path / "images" / "a").write_text("a file where a folder must be")
    scene.enter("a")
    scene.board.started(["a"])
    scene.finish("a")
    await scene.board.settle(60)
    assert scene.record("a").reason is Reason.STORAGE_ERROR
    assert [end.reason for end in scene.ends] == [Reason.STORAGE_ERROR]


async def test_an_end_that_cannot_be_recorded_is_told_when_it_can(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database is away nobody is told; then the record and the one event say the same."""
    scene.enter("a")
    live = scene.board.live("a")
    assert live is not None
    work = scene.database.run
    calls = iter([True, False])

    async def run(transaction: Any) -> Any:
        if next(calls, False):
            assert not scene.ends
            raise Unavailable("away")
        return await work(transaction)

    monkeypatch.setattr("service.jobs.recorder.AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(scene.database, "run", run)
    assert await scene.board.end(live, JobState.CANCELLED, Reason.CLIENT_CANCELLED)
    assert scene.record("a").state is JobState.CANCELLED
    assert len(scene.ends) == 1


async def test_what_the_engine_says_of_a_job_that_has_gone_is_passed_over(scene: Scene) -> None:
    """Messages cross with cancellations."""
    scene.enter("a")
    live = scene.board.live("a")
    assert live is not None
    await scene.board.end(live, JobState.CANCELLED, Reason.CLIENT_CANCELLED)
    scene.board.started(["a"])
    step = BatchStepped((("a", 2),), rows=2, size=(64, 64), seconds=0.1, slots=8, waiting=0)
    scene.board.stepped(Stepped(step, {"a": 3}, {"a": 0.3}))
    scene.board.failed("a", Reason.MODEL_ERROR, "late")
    scene.finish("a")
    await scene.board.settle(60)
    assert len(scene.ends) == 1
    assert scene.record("a").state is JobState.CANCELLED


async def test_what_somebody_else_ended_is_let_go(scene: Scene) -> None:
    """It leaves the engine, and no end is told or recorded here; a second time changes nothing."""
    over: list[str] = []
    scene.board = scene.another(on_over=over.append)
    scene.enter("a")
    live = scene.board.live("a")
    assert live is not None
    scene.board.started(["a"])
    scene.board.forget("a", Reason.MOVED)
    scene.board.forget("a", Reason.MOVED)
    assert live.done.is_set()
    assert scene.sent[-1] == Cancel("a", Reason.MOVED)
    assert scene.recorder.of(RequestLeft) == [RequestLeft("a")]
    assert (scene.ends, over) == ([], ["a"])


async def test_only_ends_that_count_are_told(scene: Scene) -> None:
    """The table let another end the job; the pictures are in a blob that nothing points at."""
    scene.board = scene.another(record_ends=lambda _connection, _flight, _jobs: [])
    scene.enter("a")
    scene.board.started(["a"])
    scene.finish("a")
    await scene.board.settle(60)
    assert scene.ends == []
    assert scene.recorder.of(RequestLeft) == [RequestLeft("a")]
    assert scene.database.run_here(table.delete_unused_blobs) == ["a"]


async def test_places_in_the_queue_follow_priority_and_age(scene: Scene) -> None:
    """0 is next; a started job has no place."""
    scene.enter("old", created_at=1.0)
    scene.enter("young", created_at=2.0)
    scene.enter("urgent", created_at=3.0, priority=Priority.HIGH)
    places = {name: scene.board.snapshot(scene.record(name)).queue_position for name in ("urgent", "old", "young")}
    assert places == {"urgent": 0, "old": 1, "young": 2}
    scene.board.started(["urgent"])
    assert scene.board.snapshot(scene.record("urgent")).queue_position is None
    assert scene.board.snapshot(scene.record("old")).queue_position == 0


async def test_shared_pictures_are_paid_for_once(scene: Scene) -> None:
    """By the first job that completes; a cancelled one pays nothing."""
    for name in ("a", "b", "c"):
        scene.enter(name, cache_key="k")
    first = scene.board.live("a")
    assert first is not None
    scene.board.started(["a"])
    await scene.board.end(first, JobState.CANCELLED, Reason.CLIENT_CANCELLED)
    scene.finish("a")
    await scene.board.settle(60)
    assert sorted(each.paid_seconds for each in scene.ends) == [0.0, 0.0, 0.5]
    assert not scene.recorder.of(StepsWasted)


async def test_pictures_that_nobody_wants_any_more_were_made_in_vain(scene: Scene) -> None:
    """Cancelled while they are stored: their steps are wasted, and nobody pays."""
    scene.enter("a")
    live = scene.board.live("a")
    assert live is not None
    scene.board.started(["a"])
    scene.finish("a")
    await scene.board.end(live, JobState.CANCELLED, Reason.CLIENT_CANCELLED)
    await scene.board.settle(60)
    assert scene.recorder.of(StepsWasted) == [StepsWasted(Reason.CLIENT_CANCELLED, 4, 0.5)]
    assert [(each.batch_seconds, each.paid_seconds) for each in scene.ends] == [(0.5, 0.0)]


async def test_pictures_that_somebody_joins_for_are_not_made_in_vain(scene: Scene) -> None:
    """The first job is cancelled while they are stored, an identical one comes in time: it pays, once."""
    scene.enter("a", cache_key="k")
    live = scene.board.live("a")
    assert live is not None
    scene.board.started(["a"])
    scene.finish("a")
    ending = asyncio.ensure_future(scene.board.end(live, JobState.CANCELLED, Reason.CLIENT_CANCELLED))
    await asyncio.sleep(0)
    assert scene.enter("b", cache_key="k") is CacheResult.COALESCED
    await ending
    await scene.board.settle(60)
    assert sorted(each.paid_seconds for each in scene.ends) == [0.0, 0.5]
    assert not scene.recorder.of(StepsWasted)


async def test_what_a_lost_engine_had_done_is_wasted_once(scene: Scene) -> None:
    """The next engine starts from nothing."""
    scene.enter("a")
    scene.board.started(["a"])
    step = BatchStepped((("a", 2),), rows=2, size=(64, 64), seconds=0.1, slots=8, waiting=0)
    scene.board.stepped(Stepped(step, {"a": 3}, {"a": 0.3}))
    scene.board.engine_lost()
    scene.board.engine_lost()
    assert scene.recorder.of(StepsWasted) == [StepsWasted(Reason.ENGINE_CRASHED, 3, 0.3)]
