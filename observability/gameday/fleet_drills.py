"""Drills of a fleet: its workers, and what all of it stands on."""

from observability.gameday.causes import LONG, asked, stopped, together
from observability.gameday.drill import ERRORS, QUIET, Drill
from observability.gameday.fleet import CRASH, WORKERS

GONE_SECONDS = 10.0  # until a worker that says nothing more is thought gone
ALL_GONE = together(*map(stopped, WORKERS))
WAITS = frozenset({"QueueLong", "QueueOldestOld", "QueueWaitBudgetBurn", "AvailabilityBudgetBurn", "LatencyBudgetBurn"})
# Workers that are gone load their model anew; what waited for them is called off.
LATER = frozenset({"TargetDown", "ServiceNotReady", "WorkersMissing", "StepsWasted", *WAITS})
KEPT = frozenset({"EngineStalled"})  # what is made and cannot be put anywhere counts as running, without steps

FLEET = (
    Drill(
        "all workers are killed",
        ("NoWorkers",),
        together(QUIET, ALL_GONE),
        within="3m",
        beside=LATER,
        is_core=True,
        is_of_fleet=True,
        takes=GONE_SECONDS,
    ),
    Drill(
        "one of two workers is killed, and none comes in its place",
        ("WorkersMissing",),
        stopped(WORKERS[1]),
        within="12m",
        beside=LATER - {"WorkersMissing"},
        is_of_fleet=True,
        takes=GONE_SECONDS,
    ),
    Drill(
        "more is asked for than all workers that there may be can make",
        ("WorkersAtMaximum", "WorkersMissing"),
        asked(160, **LONG),
        within="22m",
        beside=LATER - {"WorkersMissing"},
        is_of_fleet=True,
    ),
    Drill(
        "a job ends every engine that runs it",
        ("DeadLetters",),
        asked(1, prompt=f"a {CRASH}", num_inference_steps=4, cache=False),
        within="2m",
        beside=LATER | ERRORS | {"EngineRestarting", "NoWorkers", "BatchesOfOne"},
        is_of_fleet=True,
        takes=60.0,  # in each of three attempts an engine is lost twice
    ),
    Drill(
        "Redis is killed",
        ("QueueDown",),
        together(QUIET, stopped("redis")),
        within="3m",
        beside=LATER | ERRORS | {"NoWorkers", "BatchesOfOne"},  # what workers have runs out, and they cannot take more
        is_core=True,
        is_of_fleet=True,
    ),
    Drill(
        "PostgreSQL is killed",
        ("DatabaseDown",),
        together(QUIET, stopped("database")),
        within="3m",
        beside=LATER | ERRORS | KEPT,
        is_of_fleet=True,
    ),
    Drill(
        "the store of pictures is killed",
        ("StorageDown",),
        together(QUIET, stopped("storage")),
        within="3m",
        beside=LATER | ERRORS | KEPT | {"DeadLetters"},
        is_of_fleet=True,
    ),
)
