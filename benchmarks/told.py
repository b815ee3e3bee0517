"""What a service tells of itself in its metrics at one moment."""

from collections import defaultdict

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness import Service

STAGE_METRICS = {"safelight_stage_duration_seconds", "safelight_step_duration_seconds"}


class Told:
    """See the module's words."""

    def __init__(self, target: Service) -> None:
        families = text_string_to_metric_families(target.get("/metrics").decode())
        self._samples = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series of that name with those labels."""
        return sum(
            each.value for each in self._samples if each.name == name and labels.items() <= dict(each.labels).items()
        )

    @property
    def own_memory(self) -> float:
        """Bytes of GPU memory that it uses; 0 where it cannot tell."""
        return self.total("safelight_gpu_memory_own_bytes")

    def stages_since(self, before: "Told") -> dict[str, float]:
        """Mean seconds of each stage and of a step between the two moments."""
        return {
            stage: (seconds - before._times[stage][0]) / (count - before._times[stage][1])
            for stage, (seconds, count) in self._times.items()
            if count > before._times[stage][1]
        }

    @property
    def _times(self) -> dict[str, tuple[float, float]]:
        """Seconds and count of each."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for each in self._samples:
            name, _, kind = each.name.rpartition("_")
            if kind in {"sum", "count"} and name in STAGE_METRICS:
                found[each.labels.get("stage", "step")][kind] = each.value
        return {stage: (each["sum"], each["count"]) for stage, each in found.items()}
