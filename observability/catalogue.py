"""`python -m observability.catalogue` writes docs/metrics.md: every metric, its labels, and its series at most.

`--check` only tells, by the exit status, whether the file is up to date.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from observability.declared import PREFIX, Declared
from observability.exposition import Exposition
from observability.gpu_facts import FACTS, own_memory
from observability.inbox.metrics import InboxMetrics
from observability.labels import NvmlState
from observability.metering import Metrics
from observability.nvml import TEXTS, XIDS
from observability.own import OwnMetrics
from observability.probe import ProbeMetrics

FILE = Path(__file__).parents[1] / "docs" / "metrics.md"

HEAD = """# Metrics

Written by `make config`. `GET /metrics` tells them in Prometheus' text format, or as OpenMetrics to whom asks for it.
Labels take their values from enums, but for those of GPUs and HTTP routes; behind a label is how many there are."""
GPUS = "From NVML, for each GPU, where it is supported."
BESIDE = """`safelight_model_info` names the model; `safelight_engine_process_*` is the engine's process; `process_*`
and `python_*` are the API's. `http_requests_total` and `http_request_duration_seconds` are generic HTTP metrics by
route, method and status: of a job that is made after its answer, they tell only of the answer."""

# What other servers of diffusion models export, and where the same is to be found here.
PEERS: dict[str, dict[str, str]] = {
    "vLLM-Omni": {
        "num_requests_running": "requests_running",
        "num_requests_waiting": "queue_depth",
        "requests_success_total": "requests_total",
        "requests_failed_total": "requests_total",
        "e2e_request_latency_s": "request_duration_seconds",
        "request_queue_wait_s": "queue_wait_seconds",
        "stage_gen_time_s": "stage_duration_seconds",
        "peak_memory_mb": "step_peak_memory_bytes",
        "num_inference_steps": "steps_total",
        "image_count_total": "images_total",
        "image_pixels_total": "image_pixels_total",
        "image_ttfp_s": "request_duration_seconds",
        "diffusion_exec_s": "stage_duration_seconds",
        "diffusion_preprocess_s": "stage_duration_seconds",
        "diffusion_postprocess_s": "stage_duration_seconds",
        "vae_decode_s": "stage_duration_seconds",
        "denoise_step_latency_s": "step_duration_seconds",
    },
    "SGLang": {
        "num_queue_reqs": "queue_depth",
        "num_running_reqs": "requests_running",
        "requests_total": "requests_total",
        "request_latency_seconds": "request_duration_seconds",
        "queue_time_seconds": "queue_wait_seconds",
        "generation_batch_size": "batch_size",
        "stage_host_latency_seconds": "stage_duration_seconds",
    },
    "tt-media-server": {
        "denoise_step_duration_seconds": "step_duration_seconds",
        "denoise_duration_seconds": "stage_duration_seconds",
        "vae_decode_duration_seconds": "stage_duration_seconds",
        "conditioning_duration_seconds": "stage_duration_seconds",
        "image pixels": "image_pixels_total",
        "canary state": "probe_success",
        "canary latency": "probe_duration_seconds",
    },
    "Triton": {
        "request success and failure": "requests_total",
        "inference count": "images_total",
        "execution count": "step_duration_seconds",
        "queue duration": "queue_wait_seconds",
        "compute duration": "stage_duration_seconds",
        "pending requests": "queue_depth",
        "GPU power": "gpu_power_watts",
        "GPU utilization": "gpu_utilization_ratio",
        "GPU memory": "gpu_memory_used_bytes",
        "GPU energy": "gpu_energy_joules_total",
        "cache hits and misses": "cache_lookups_total",
    },
    "Ray Serve": {
        "queued queries": "queue_depth",
        "ongoing requests": "requests_running",
        "batch wait": "queue_wait_seconds",
        "batch execution": "step_duration_seconds",
        "batch utilization": "batch_occupancy_ratio",
        "actual batch size": "batch_size",
        "autoscaling target": "workers_limit",
        "desired replicas": "desired_workers",
        "replica start": "model_load_seconds",
        "health-check latency": "probe_duration_seconds",
    },
    "TGI": {
        "batch current size": "batch_pictures",
        "batch next size": "batch_size",
        "batch concat reasons": "pictures_passed_over_total",
        "request queue": "queue_depth",
        "inference duration": "request_duration_seconds",
    },
}
ABSENT = """Not here: TGI's validation duration, which is that of the HTTP requests answered 422."""


def declared() -> dict[str, tuple[Declared, ...]]:
    """What is declared, by the process and part that exports it."""
    return {
        "Requests, engine and model": Metrics(CollectorRegistry()).declared,
        "Telemetry itself": (*OwnMetrics(CollectorRegistry()).declared, *Exposition(CollectorRegistry()).declared),
        "The probe": ProbeMetrics(CollectorRegistry()).declared,
        "The alert inbox": InboxMetrics(CollectorRegistry()).declared,
    }


def of_gpus() -> Iterator[tuple[str, str, str, str]]:
    """Name, kind, labels and help of what the NVML collector tells."""
    labels_of = {
        "nvml_state": f"state ({len(NvmlState)})",
        "gpu_info": "gpu, model, uuid",
        "gpu_xid_watched": "gpu",
        "gpu_xid_errors_total": f"gpu, xid ({len(XIDS)})",
    }
    for name, help_text in TEXTS.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        yield PREFIX + name, kind, labels_of.get(name, ""), help_text
    for fact in (*FACTS, own_memory(set)):
        labels = "gpu" if fact.label is None else f"gpu, {fact.label}"
        name = f"{PREFIX}{fact.name}{'_total' if fact.is_counter else ''}"
        yield name, "counter" if fact.is_counter else "gauge", labels, fact.text


def names() -> set[str]:
    """Every metric, without the prefix."""
    made = {each.name for part in declared().values() for each in part}
    return {name.removeprefix(PREFIX) for name in made | {row[0] for row in of_gpus()}}


def text() -> str:
    """The whole document."""
    parts = [HEAD]
    for part, metrics in declared().items():
        rows = [(f"`{each.name}`", each.kind, _labels(each), str(each.most_series), each.text) for each in metrics]
        parts += [f"## {part}", _table(("name", "kind", "labels", "series at most", ""), rows)]
    rows_of_gpus = [(f"`{name}`", *rest) for name, *rest in of_gpus()]
    parts += ["## GPUs", GPUS, _table(("name", "kind", "labels", ""), rows_of_gpus), "## Beside these", BESIDE]
    pairs = [(peer, theirs, ours) for peer, metrics_ in PEERS.items() for theirs, ours in metrics_.items()]
    peers = [(f"{peer}: {theirs}", f"`{PREFIX}{ours}`") for peer, theirs, ours in pairs]
    parts += ["## Coming from another server", _table(("their metric", "here"), peers)]
    parts.append(ABSENT)
    return "\n\n".join(parts) + "\n"


def _labels(metric: Declared) -> str:
    return ", ".join(f"{name} ({len(values)})" for name, values in metric.labels.items())


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(each)} |" for each in lines)


def main(arguments: Iterable[str] = sys.argv[1:]) -> int:
    """Write the file, or check it."""
    if "--check" in arguments:
        return int(not FILE.is_file() or FILE.read_text() != text())
    FILE.write_text(text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
