"""What is drilled: every alert, brought about by something that really happens, or by a simulated exporter where that
would take hardware, containers or a full disk.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from observability.gameday import causes
from observability.gameday.causes import (
    LONG,
    WORD,
    Cause,
    asked,
    configured,
    faults,
    repeated,
    simulated,
    started_with,
    stopped,
    together,
    traffic,
    with_faults,
)
from observability.gameday.traffic import SIZE, Body, easy, of_every_class, small

BUDGETS = frozenset({"AvailabilityBudgetBurn", "LatencyBudgetBurn", "QueueWaitBudgetBurn"})
"""These go on for hours after their cause, as shipped."""
WAITING = frozenset({"ProbeSilent"})
"""When steps are slow, the probe waits for its picture: longer, in compressed time, than it may be silent."""
ERRORS = frozenset({"ErrorRateHigh", "RequestsFailing", "AvailabilityBudgetBurn"})


@dataclass(frozen=True, slots=True)
class Drill:
    """Something that happens, and the alerts that are told of it, as shipped within so long.

    `beside` are those that may be told too, since they follow from the same cause or from its end; any other is a
    failure. `muted` fire, and are told to nobody. What is `told_after` cannot be told before the cause is gone. `core`
    are quick and cover each kind of cause.
    """

    what: str
    alerts: tuple[str, ...]
    cause: Cause
    within: Mapping[str, str] | str
    beside: frozenset[str] = frozenset()
    muted: tuple[str, ...] = ()
    is_simulated: bool = False
    told_after: bool = False
    is_core: bool = False

    def expected(self, alert: str) -> str:
        """How long it may take to be told of `alert`, as shipped."""
        return self.within if isinstance(self.within, str) else self.within[alert]


QUIET = traffic(0)
SLOW = faults("slow=0.3")
PATIENT = {**LONG, "priority": "low"}
SPLITS = repeated(causes.out_of_memory, every=2.0)
GPU = "dcgm"
HOT = {"DCGM_FI_DEV_GPU_TEMP_CELSIUS": 95}


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


def _hurried(number: int) -> Body:
    if number % 3:
        return small(number)
    return {"prompt": f"a tree {number}", "num_inference_steps": 8, "priority": "low", "timeout_s": 3, **SIZE}


SERVICE = (
    Drill(
        "the API is killed",
        ("ApiDown",),
        stopped("api"),
        within="3m",
        beside=ERRORS | {"ProbeFailing", "ServiceNotReady", "QueueOldestOld"},
        is_core=True,
    ),
    Drill(
        "the engine hangs",
        ("EngineStalled",),
        together(QUIET, faults(f"hang={WORD}"), asked(1, **LONG)),
        within="4m",
        beside=WAITING | {"QueueOldestOld", "ProbeFailing"},
        is_core=True,
    ),
    Drill(
        "the engine dies over a request, and again when it is tried alone",
        ("EngineRestarting",),
        together(faults(f"crash={WORD}"), asked(1, **LONG)),
        within="5m",
        beside=WAITING | {"ProbeFailing", "ServiceNotReady", "QueueOldestOld"},
        is_core=True,
    ),
    Drill(
        "the engine dies, and its model takes very long to load",
        ("ServiceNotReady",),
        together(QUIET, faults(f"crash={WORD}&load=600"), asked(1, **LONG)),
        within="12m",
        beside=WAITING | {"EngineRestarting", "ProbeFailing", "QueueOldestOld"},
    ),
    Drill(
        "the API is told to stop while a job runs that does not end",
        ("DrainStuck",),
        together(QUIET, causes.draining),
        within="4m",
        beside=WAITING | {"ApiDown", "ProbeFailing", "ServiceNotReady", "QueueOldestOld"},
    ),
    Drill(
        "the engine was lost over a long job, which runs alone while all others wait",
        ("BatchesOfOne",),
        causes.crashed_once,
        within="12m",
        beside=WAITING | {"QueueOldestOld", "ProbeFailing", "ServiceNotReady", *BUDGETS},
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
        beside=frozenset({"ApiDown", "ScrapeSlow"}),
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
    Drill(
        "a few jobs wait behind long ones",
        ("QueueOldestOld",),
        together(SLOW, asked(12, **PATIENT)),
        within="5m",
        beside=WAITING,
        is_core=True,
    ),
    Drill(
        "many jobs wait behind long ones",
        ("QueueLong", "QueueOldestOld"),
        together(SLOW, asked(80, **PATIENT)),
        within="5m",
        beside=WAITING,
    ),
    Drill(
        "the queue is full, and still more is asked for",
        ("QueueFull", "QueueLong"),
        together(SLOW, asked(110, **PATIENT), traffic(10, _patient)),
        within="6m",
        beside=ERRORS | WAITING | {"QueueOldestOld", "ProbeFailing"},
    ),
    Drill(
        "requests in a hurry come while many wait",
        ("DeadlineRefusals",),
        together(SLOW, asked(40, **PATIENT), traffic(3, _hurried)),
        within="12m",
        beside=ERRORS | WAITING | {"QueueOldestOld", "QueueLong", "FailuresAtLowTraffic"},
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
    ),
    Drill(
        "the store of traces is away",
        ("TelemetryLost", "OutOfMemorySplits"),
        together(causes.no_traces, SPLITS),
        within={"TelemetryLost": "15m", "OutOfMemorySplits": "2m"},
    ),
)


def _of(job: str, what: str, alert: str, within: str, **values: float) -> Drill:
    return Drill(what, (alert,), simulated(job, **values), within, is_simulated=True)


SIMULATED = (
    _of(GPU, "the GPU has no room for a burst", "GpuSaturated", "20m", DCGM_FI_DEV_GPU_UTIL_RATIO=0.99),
    Drill(
        "the GPU idles while jobs wait",
        ("GpuIdleWithWork", "QueueOldestOld"),
        together(simulated(GPU, DCGM_FI_DEV_GPU_UTIL_RATIO=0.1), SLOW, asked(12, **PATIENT)),
        within={"GpuIdleWithWork": "18m", "QueueOldestOld": "5m"},
        beside=WAITING,
        is_simulated=True,
    ),
    _of(GPU, "the GPU's memory is nearly full", "GpuMemoryHigh", "7m", DCGM_FI_DEV_FB_USED_BYTES=79e9),
    replace(_of(GPU, "the GPU reports XID 79", "GpuXidFatal", "2m", DCGM_EXP_XID_ERRORS_COUNT=79), is_core=True),
    _of(GPU, "the GPU reports XID 31", "GpuXid", "2m", DCGM_EXP_XID_ERRORS_COUNT=31),
    _of(GPU, "the GPU's memory loses data", "GpuEccUncorrectable", "2m", DCGM_FI_DEV_ECC_DBE_VOL_TOTAL=1),
    _of(GPU, "the GPU cannot replace a broken row", "GpuRowRemapFailed", "2m", DCGM_FI_DEV_ROW_REMAP_FAILED=1),
    _of(GPU, "the GPU is hot", "GpuHot", "7m", **HOT),
    _of(
        GPU,
        "heat slows the GPU down",
        "GpuThermalThrottling",
        "12m",
        DCGM_FI_DEV_GPU_THERMAL_THROTTLE_SECONDS_TOTAL=0.5,
    ),
    Drill(
        "the GPU is held at its power limit, and hot",
        ("GpuPowerThrottling", "GpuHot"),
        simulated(GPU, DCGM_FI_DEV_GPU_POWER_THROTTLE_SECONDS_TOTAL=0.9, **HOT),
        within={"GpuPowerThrottling": "18m", "GpuHot": "7m"},
        is_simulated=True,
    ),
    Drill(
        "the only GPU is gone",
        ("GpuMissing", "GpuExporterStale"),
        simulated(GPU, gone=1),
        within="6m",
        is_simulated=True,
        is_core=True,
    ),
    _of(GPU, "NVML hangs", "GpuFactsUnavailable", "7m", safelight_nvml_state=1),
    Drill(
        "a container starts again and again",
        ("ContainerRestarting",),
        with_faults("cadvisor", 1.5, lambda number: {"container_start_time_seconds": 1e9 + number}),
        within="16m",
        is_simulated=True,
    ),
    _of(
        "cadvisor",
        "a container needs more memory than it may",
        "ContainerOomKilled",
        "2m",
        container_oom_events_total=1,
    ),
    _of(
        "cadvisor",
        "a container gets too little processor time",
        "ContainerCpuThrottled",
        "18m",
        container_cpu_cfs_throttled_periods_total=6,
    ),
    _of(
        "cadvisor",
        "a container is near its memory limit",
        "ContainerMemoryHigh",
        "7m",
        container_memory_working_set_bytes=1.95e9,
    ),
    _of("node", "a disk is nearly full", "DiskNearlyFull", "7m", node_filesystem_avail_bytes=7e9),
    Drill(
        "a disk is full",
        ("DiskFull",),
        simulated("node", node_filesystem_avail_bytes=1e9),
        within="3m",
        muted=("DiskNearlyFull",),
        is_simulated=True,
        is_core=True,
    ),
    _of("node", "the host is short of memory", "HostMemoryLow", "7m", node_memory_MemAvailable_bytes=1e9),
    Drill(
        "an exporter answers slowly, and a GPU is hot",
        ("ScrapeSlow", "GpuHot"),
        together(simulated("cadvisor", slow=0.6), simulated(GPU, **HOT)),
        within={"ScrapeSlow": "14m", "GpuHot": "7m"},
        is_simulated=True,
    ),
)

STACK = (
    Drill("an exporter is down", ("TargetDown",), stopped("node"), within="5m", is_core=True),
    Drill(
        "a rule cannot be evaluated",
        ("PrometheusRuleFailures",),
        configured("prometheus", "rules/gameday.yml", causes.rule("up * on () up")),
        within="4m",
        is_core=True,
    ),
    Drill(
        "a rule file is broken",
        ("PrometheusConfigReloadFailed",),
        configured("prometheus", "rules/gameday.yml", causes.rule("sum("), works=False),
        within="3m",
    ),
    Drill(
        "Alertmanager's configuration is broken",
        ("AlertmanagerConfigReloadFailed",),
        configured("alertmanager", "alertmanager.yml", lambda text: f"{text}\nnonsense: true\n", works=False),
        within="3m",
    ),
    Drill(
        "a receiver cannot be reached",
        ("AlertmanagerNotificationsFailing",),
        together(
            configured("alertmanager", "alertmanager.yml", causes.unreachable("ticket-service")),
            SPLITS,
        ),
        within="4m",
        beside=frozenset({"OutOfMemorySplits"}),
    ),
    Drill(
        "Alertmanager is down",
        ("AlertmanagerUnreachable", "PrometheusNotificationsFailing"),
        stopped("alertmanager"),
        within="4m",
        beside=frozenset({"Watchdog"}),
        told_after=True,
        is_core=True,
    ),
    Drill(
        "Prometheus is down, which the inbox notices",
        ("Watchdog",),
        stopped("prometheus"),
        within="12m",
        # It finds its targets 5 s after its start, which are five minutes in compressed time: till then there is nothing.
        beside=frozenset({"ApiDown", "AlertmanagerUnreachable", "GpuMissing"}),
        is_core=True,
    ),
)

# The first of all: a budget over days goes by all that was before.
TICKETS = Drill(
    "a third of all requests fail",
    ("ErrorRateHigh", "AvailabilityBudgetBurn"),
    together(traffic(8, _some_fail), faults("fail=lemon")),
    within={"ErrorRateHigh": "12m", "AvailabilityBudgetBurn": "30m"},
    beside=WAITING,
)

OBJECTIVES = (
    Drill(
        "every request fails",
        ("RequestsFailing", "AvailabilityBudgetBurn", "ProbeFailing"),
        together(traffic(3), faults("fail=*")),
        within={"RequestsFailing": "3m", "AvailabilityBudgetBurn": "10m", "ProbeFailing": "5m"},
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
        together(
            faults("slow=0.35"), asked(90, num_inference_steps=20, cache=False, **SIZE), traffic(1.1, of_every_class)
        ),
        within={
            "LatencyBudgetBurn": "10m",
            "QueueWaitBudgetBurn": "10m",
            "QueueOldestOld": "6m",
            "QueueLong": "5m",
            "LatencyP99High": "20m",
        },
        beside=ERRORS | WAITING | {"ProbeFailing", "QueueFull", "DeadlineRefusals", "CostOverBudget"},
    ),
)

DRILLS = (TICKETS, *SIMULATED, *STACK, *INFORMATION, *SERVICE, *OBJECTIVES)
RECOVERY = traffic(40, easy)
