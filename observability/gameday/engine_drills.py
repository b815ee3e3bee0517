"""Drills of the API's process, its engine and the probe."""

from observability.gameday import causes
from observability.gameday.causes import LONG, WORD, asked, faults, repeated, started_with, stopped, together
from observability.gameday.drill import BUDGETS, ERRORS, QUIET, SPLITS, Drill

ENGINE = (
    Drill(
        "the API is killed",
        ("ApiDown",),
        stopped("api"),
        within="3m",
        beside=ERRORS | {"ProbeFailing", "ServiceNotReady"},
        is_core=True,
    ),
    Drill(
        "the engine hangs",
        ("EngineStalled",),
        together(QUIET, faults(f"hang={WORD}"), asked(1, **LONG)),
        within="4m",
        beside=frozenset({"ProbeFailing", "QueueOldestOld"}),
        is_core=True,
    ),
    Drill(
        "the engine dies over a request, and again when it is tried alone",
        ("EngineRestarting",),
        together(faults(f"crash={WORD}"), asked(1, **LONG)),
        within="5m",
        beside=frozenset({"ProbeFailing", "ServiceNotReady"}),
        is_core=True,
    ),
    Drill(
        "the engine dies, and its model takes very long to load",
        ("ServiceNotReady",),
        together(QUIET, faults(f"crash={WORD}&load=600"), asked(1, **LONG)),
        within="12m",
        beside=frozenset({"EngineRestarting", "ProbeFailing"}),
    ),
    Drill(
        "the API is told to stop while a job runs that does not end",
        ("DrainStuck",),
        together(QUIET, causes.draining),
        within="4m",
        beside=frozenset({"ApiDown", "ProbeFailing", "ServiceNotReady"}),
    ),
    Drill(
        "the engine was lost over a long job, which runs alone while all others wait",
        ("BatchesOfOne",),
        together(QUIET, causes.crashed_once),
        within="12m",
        beside=frozenset({"ProbeFailing", "ServiceNotReady", "CostOverBudget", *BUDGETS}),  # hardly a picture is made
        takes=15.0,  # until the engine has loaded its model anew
    ),
    Drill(
        "batches do not fit into memory",
        ("OutOfMemorySplits",),
        SPLITS,
        within="2m",
        is_core=True,
    ),
    Drill(
        "clients call their jobs off",
        ("StepsWasted",),
        repeated(causes.called_off, every=0.2),
        within="20m",
    ),
    Drill(
        "the API's process gets no processor for most of a second, again and again",
        ("EventLoopLagging",),
        repeated(causes.pausing(0.8), every=0.7),
        within="12m",
        beside=frozenset({"ApiDown"}),
    ),
    Drill(
        "the probe's prompts alone fail",
        ("ProbeFailing",),
        faults("fail=apple"),
        within="5m",
        is_core=True,
    ),
    Drill(
        "the probe asks too seldom",
        ("ProbeSilent",),
        started_with("probe", "--interval", "100000"),
        within="8m",
    ),
)
