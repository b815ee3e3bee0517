"""Drills of what users ask for and get, and of what it costs."""

from observability.gameday import causes
from observability.gameday.causes import WORD, asked, faults, together, traffic
from observability.gameday.drill import ERRORS, PATIENT, QUIET, SLOW, SPLITS, Drill
from observability.gameday.traffic import SIZE, Body, small

CALLED_OFF = frozenset({"StepsWasted"})  # in the end, what still waits and runs is
# Batches end every few seconds, so that no window of a rate is without an end.
FEW = {"num_inference_steps": 4, "cache": False, **SIZE}


def _some_fail(number: int) -> Body:
    return {**small(number), "prompt": f"{'lemon' if number % 3 == 0 else 'pizza'} {number}"}


def _fails(number: int) -> Body:
    return {**small(number), "prompt": f"{WORD} {number}"}


def _again(number: int) -> Body:
    return {"prompt": f"a fish {number % 3}", "seed": 1, "num_inference_steps": 1, **SIZE}


def _always_new(number: int) -> Body:
    return {"prompt": "a fish", "seed": number + 2, "num_inference_steps": 1, **SIZE}


def _patient(number: int) -> Body:
    return {**PATIENT, "prompt": f"{WORD}, more {number}"}


def _few(number: int) -> Body:
    return {**FEW, "prompt": f"{WORD}, more {number}"}


def _hurried(number: int) -> Body:
    if number % 3:
        return small(number)
    return {"prompt": f"a tree {number}", "num_inference_steps": 8, "priority": "low", "timeout_s": 3, **SIZE}


# The first of all: a budget over days goes by all that was before.
TICKETS = Drill(
    "a third of all requests fail",
    ("ErrorRateHigh", "AvailabilityBudgetBurn"),
    together(traffic(8, _some_fail), faults("fail=lemon")),
    within={"ErrorRateHigh": "12m", "AvailabilityBudgetBurn": "30m"},
)

REQUESTS = (
    Drill(
        "a few jobs wait behind long ones",
        ("QueueOldestOld",),
        together(SLOW, asked(12, **PATIENT)),
        within="5m",
        beside=CALLED_OFF,
        is_core=True,
    ),
    Drill(
        "many jobs wait behind long ones",
        ("QueueLong", "QueueOldestOld"),
        together(SLOW, asked(80, **PATIENT)),
        within="5m",
        beside=CALLED_OFF,
    ),
    Drill(
        "the queue is full, and still more is asked for",
        ("QueueFull", "QueueLong"),
        together(SLOW, asked(210, **PATIENT), traffic(10, _patient)),
        within="6m",
        beside=ERRORS | CALLED_OFF | {"ProbeFailing"},
        takes=30.0,  # to ask so often
    ),
    Drill(
        "requests in a hurry come while many wait",
        ("DeadlineRefusals",),
        together(SLOW, asked(40, **PATIENT), traffic(3, _hurried)),
        within="12m",
        beside=ERRORS | CALLED_OFF | {"QueueLong", "FailuresAtLowTraffic"},
    ),
    Drill(
        "there are few requests, and some of them fail",
        ("FailuresAtLowTraffic",),
        together(traffic(0.25, _fails), faults(f"fail={WORD}")),
        within="65m",
        beside=frozenset({"CostOverBudget", "AvailabilityBudgetBurn"}),
    ),
)

INFORMATION = (
    Drill(
        "the GPU is paid for and hardly used",
        (),
        QUIET,
        within="80m",
        muted=("CostOverBudget", "InfoInhibitor"),
    ),
    Drill(
        "the GPU is hardly used, and batches do not fit into memory",
        ("CostOverBudget", "OutOfMemorySplits"),
        together(QUIET, SPLITS),
        within={"CostOverBudget": "80m", "OutOfMemorySplits": "2m"},
    ),
    Drill(
        "users stop asking for what was asked before",
        ("CacheHitsCollapsed", "OutOfMemorySplits"),
        together(
            causes.after(20, traffic(30, _again)),
            traffic(4, _always_new),
            SPLITS,
        ),
        within={"CacheHitsCollapsed": "60m", "OutOfMemorySplits": "2m"},
        takes=20.0,
    ),
    Drill(
        "the store of traces is away",
        ("TelemetryLost", "OutOfMemorySplits"),
        together(causes.no_traces, SPLITS),
        within={"TelemetryLost": "15m", "OutOfMemorySplits": "2m"},
    ),
)

OBJECTIVES = (
    Drill(
        "every request fails",
        ("RequestsFailing", "AvailabilityBudgetBurn", "ProbeFailing"),
        together(
            traffic(3), faults("fail=*")
        ),  # the hour before is full of the good requests that ended the last drill
        within={"RequestsFailing": "3m", "AvailabilityBudgetBurn": "75m", "ProbeFailing": "5m"},  # after a good hour
        beside=frozenset({"ErrorRateHigh", "CostOverBudget"}),
    ),
    Drill(
        "steps take very long, and more is asked for than can be made",
        (
            "LatencyBudgetBurn",
            "QueueWaitBudgetBurn",
            "QueueOldestOld",
            "QueueLong",
            "LatencyP99High",
        ),
        together(faults("slow=0.8"), asked(180, **FEW), traffic(3, _few)),
        within={
            "LatencyBudgetBurn": "10m",
            "QueueWaitBudgetBurn": "10m",
            "QueueOldestOld": "6m",
            "QueueLong": "5m",
            "LatencyP99High": "20m",
        },
        beside=ERRORS | {"ProbeFailing", "QueueFull", "DeadlineRefusals", "CostOverBudget"},
        takes=90.0,  # until requests have taken more than a minute
    ),
)
