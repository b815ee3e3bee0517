"""What a drill is, and what several of them have in common."""

from collections.abc import Mapping
from dataclasses import dataclass

from observability.gameday import causes
from observability.gameday.causes import LONG, faults, repeated, traffic
from observability.gameday.ground import Cause

BUDGETS = frozenset({"AvailabilityBudgetBurn", "LatencyBudgetBurn", "QueueWaitBudgetBurn"})
"""These go on for hours after their cause, as shipped."""
BUSY = frozenset({"ProbeSilent", "QueueOldestOld", "ScrapeSlow", "EventLoopLagging"})
"""In compressed time these go by a few seconds, as a picture on a busy machine takes: may be told beside any."""
ERRORS = frozenset({"ErrorRateHigh", "RequestsFailing", "AvailabilityBudgetBurn"})


@dataclass(frozen=True, slots=True)
class Drill:
    """Something that happens, and the alerts that are told of it, as shipped within so long.

    `beside` are those that may be told too, since they follow from the same cause or from its end; any other is a
    failure. `muted` fire, and are told to nobody. What is `told_after` cannot be told before the cause is gone. `core`
    are quick and cover each kind of cause. Those of a fleet have a stack of their own. `takes` are seconds that the
    cause needs however fast time runs.
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
    is_of_fleet: bool = False
    takes: float = 0.0

    def expected(self, alert: str) -> str:
        """How long it may take to be told of `alert`, as shipped."""
        return self.within if isinstance(self.within, str) else self.within[alert]


QUIET = traffic(0)
SLOW = faults("slow=0.3")
PATIENT = {**LONG, "priority": "low", "timeout_s": 3600}  # not refused, however long the queue
SPLITS = repeated(causes.out_of_memory, every=5.0)  # some within any ten seconds, and few pictures
GPU = "dcgm"
HOT = {"DCGM_FI_DEV_GPU_TEMP_CELSIUS": 95}
