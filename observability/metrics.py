"""Every metric that is made from events, declared once."""

from observability.declared import Declarations
from observability.labels import (
    ENDINGS,
    FAILURES,
    BatchField,
    Batching,
    Cache,
    CacheResult,
    Dependency,
    Outcome,
    Pool,
    Priority,
    Reason,
    Source,
    Stage,
    WorkClass,
)

REQUEST_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 600.0)
WAIT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
STAGE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
STEP_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)
HTTP_SECONDS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0)
LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0)
SHARES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
BATCH_SIZES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 12.0, 16.0, 24.0, 32.0)
STEP_COUNTS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 64.0)

ENDED = [(outcome, reason) for outcome, reasons in ENDINGS.items() for reason in reasons]
LOST = (*FAILURES, Outcome.CANCELLED)
LOOKUPS = [
    *((Cache.RESPONSE, result) for result in CacheResult),
    *((Cache.PROMPT_EMBEDDING, result) for result in (CacheResult.HIT, CacheResult.MISS)),
]


class RequestMetrics:
    """Requests, from the door to their end."""

    def __init__(self, make: Declarations) -> None:
        of_outcome = {"outcome": Outcome, "reason": Reason, "source": Source}
        endings = [(outcome, reason, source) for outcome, reason in ENDED for source in Source]
        self.ended = make.counter("requests_total", "Requests that ended, by outcome.", of_outcome, endings)
        self.seconds = make.histogram(
            "request_duration_seconds",
            "Time from acceptance to completion of completed requests.",
            REQUEST_SECONDS,
            {"work_class": WorkClass, "source": Source},
            first=[(each, Source.USER) for each in WorkClass],  # the probe has its own, and most often there is none
        )
        self.wait = make.histogram(
            "queue_wait_seconds",
            "Users' requests: time from acceptance to the first batch.",
            WAIT_SECONDS,
            {"priority": Priority},
        )
        self.depth = make.gauge("queue_depth", "Requests waiting for their first batch.", {"priority": Priority})
        self.limit = make.gauge("queue_limit", "Requests that may wait; one more is refused.")
        self.oldest_age = make.gauge("queue_oldest_age_seconds", "Time the oldest waiting request has waited, or 0.")
        self.running = make.gauge("requests_running", "Requests that have started and not ended.")
        self.retries = make.counter("client_retries_total", "Requests that said they were another try.")
        self.images = make.counter("images_total", "Pictures of completed requests that were not cache hits.")
        self.pixels = make.counter(
            "image_pixels_total", "Pixels of the pictures of completed requests that were not cache hits."
        )
        self.batch_seconds = make.counter(
            "image_batch_seconds_total", "Share that completed requests had of the time of denoising steps."
        )
        self.estimate_error = make.histogram(
            "estimate_error_ratio", "Error of the estimated time of a completed request, over its true time.", RATIOS
        )


class EngineMetrics:
    """Batches and steps."""

    def __init__(self, make: Declarations) -> None:
        self.batch_size = make.histogram("batch_size", "Requests in the batch, at each denoising step.", BATCH_SIZES)
        self.batch_pictures = make.histogram("batch_pictures", "Pictures in the batch, at each step.", BATCH_SIZES)
        self.occupancy = make.histogram("batch_occupancy_ratio", "Share of slots that are taken, at each step.", SHARES)
        self.slots = make.gauge("batch_slots", "Pictures of the model's own size that share a step at most.")
        self.slots_now = make.gauge(
            "batch_slots_in_force", "Pictures of the size of the last step that may share one, as memory allows."
        )
        self.starved = make.counter(
            "free_slot_seconds_total", "Time of free slots while pictures waited that could have taken them."
        )
        self.passed_over = make.counter(
            "pictures_passed_over_total",
            "Pictures that could not share a batch or step though they were there, by the first field that differs.",
            {"field": BatchField},
        )
        self.step_seconds = make.histogram(
            "step_duration_seconds", "Time of one denoising step, to where the device has ended it.", STEP_SECONDS
        )
        self.steps = make.counter("steps_total", "Denoising steps, counted once a picture.")
        self.last_step = make.gauge("engine_last_step_timestamp_seconds", "Unix time of the last denoising step, or 0.")
        self.stage_seconds = make.histogram(
            "stage_duration_seconds", "Time of one stage of a batch or a request.", STAGE_SECONDS, {"stage": Stage}
        )
        self.delay = make.histogram(
            "admission_delay_seconds",
            "Time from a picture's arrival, or a slot becoming free for it, to its first denoising step.",
            WAIT_SECONDS,
        )
        self.delay_steps = make.histogram(
            "admission_delay_steps",
            "Denoising steps that end between a picture's arrival, or a free slot for it, and its first one.",
            STEP_COUNTS,
        )
        self.paused = make.counter("pictures_paused_total", "Pictures that lost their slots to more urgent ones.")
        self.resumed = make.counter("pictures_resumed_total", "Paused pictures that got a slot again.")
        why = {"reason": Reason}
        reasons = dict.fromkeys([*((reason,) for outcome, reason in ENDED if outcome in LOST), (Reason.MOVED,)])
        self.wasted_steps = make.counter("wasted_steps_total", "Steps whose result was thrown away.", why, reasons)
        self.wasted_seconds = make.counter(
            "wasted_seconds_total",
            "Time of steps whose result was thrown away, as a share of their batches' time.",
            why,
            reasons,
        )
        self.splits = make.counter("oom_splits_total", "Batches split because they did not fit into memory.")
        self.peak = make.gauge("step_peak_memory_bytes", "Device memory at the peak of the last step; 0: not known.")
        self.predicted = make.gauge(
            "step_predicted_memory_bytes",
            "Device memory at the peak of the last step by the start-up profile; 0: not known.",
        )


class ServiceMetrics:
    """Caches, the model and the process."""

    def __init__(self, make: Declarations) -> None:
        self.lookups = make.counter(
            "cache_lookups_total", "Cache look-ups by result.", {"cache": Cache, "result": CacheResult}, LOOKUPS
        )
        self.cache_bytes = make.gauge("cache_bytes", "Bytes that a cache holds.", {"cache": Cache})
        self.saved = make.counter("cache_saved_seconds_total", "Time that cached and shared answers saved, roughly.")
        self.workers = make.gauge(
            "workers",
            "Workers that are there, as an API of a fleet sees it; not there without a queue.",
            {"pool": Pool},
            [],
        )
        self.desired_workers = make.gauge(
            "desired_workers", "Workers that the load calls for, as an API of a fleet works it out; 0: it does not."
        )
        self.workers_limit = make.gauge("workers_limit", "Workers that there may be at most; 0: not set.")
        self.dependencies = make.gauge(
            "dependency_up",
            "1 while a part that is elsewhere can be used, 0 while it cannot; only of those that are elsewhere.",
            {"dependency": Dependency},
            [],
        )
        self.batching = make.gauge(
            "batching_mode", "1 for the way in which requests share batches.", {"mode": Batching}
        )
        self.draining = make.gauge("draining", "1 while the process takes no more work and ends what it has.")
        self.ready = make.gauge("model_ready", "1 while a warmed model is loaded.")
        self.load_seconds = make.gauge("model_load_seconds", "Time that loading the model took.")
        self.warmup_seconds = make.gauge("model_warmup_seconds", "Time that warming and profiling the model took.")
        self.restarts = make.counter("engine_restarts_total", "Times the engine process was lost and started anew.")
        self.dollars = make.gauge("gpu_dollars_per_hour", "Price of the GPU, as set; 0: not set.")
        self.lag = make.histogram(
            "event_loop_lag_seconds", "How late the API's event loop is, each second.", LAG_SECONDS
        )
