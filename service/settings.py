"""Every setting of the service, read once from `SAFELIGHT_*` variables and the command line."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import parse_qsl

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from observability.labels import Batching, Pool
from service.core import Size
from service.errors import StartupError
from service.scaling.policy import UP_SECONDS, Policy
from service.scaling.policy import parse as parse_policy

PREFIX = "SAFELIGHT_"

SchedulerName = Literal["ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "lcm", "flow_match_euler"]
SCHEDULER_NAMES: tuple[SchedulerName, ...] = get_args(SchedulerName)

WORD_FAULTS = frozenset({"fail", "crash", "hang"})
FAULT_NUMBERS = {"oom_above": r"\d{1,6}", "slow": r"\d{1,4}(\.\d+)?", "load": r"\d{1,4}(\.\d+)?"}
FAULTS_ALLOWED = "1"
SIZE = r"([1-9]\d{0,4})x([1-9]\d{0,4})"


def _sizes(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(rf"{SIZE}(,{SIZE})*", value):
        raise ValueError("must be sizes in pixels such as 512x512,768x512")
    return value


def _slots(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(rf"{SIZE}=[1-9]\d{{0,2}}(,{SIZE}=[1-9]\d{{0,2}})*", value):
        raise ValueError("must be slots by size such as 512x512=8,1024x1024=2")
    return value


def check_faults(text: str) -> None:
    """Raise `ValueError` if `text` is not what `engine.faults` takes."""
    faults = dict(parse_qsl(text, keep_blank_values=True))
    unknown = faults.keys() - WORD_FAULTS - FAULT_NUMBERS.keys()
    numbers_are_right = all(re.fullmatch(pattern, faults.get(name, "0")) for name, pattern in FAULT_NUMBERS.items())
    if unknown or (text and not faults) or "" in faults.values() or not numbers_are_right:
        raise ValueError("must be faults such as fail=WORD&crash=WORD&hang=WORD&slow=0.5&oom_above=4&load=10")


def _faults(value: str | None) -> str | None:
    if not value:
        return None
    if value != FAULTS_ALLOWED:
        check_faults(value)
    return value


def _workers(value: str | None) -> str | None:
    if value:
        parse_policy(value)
    return value or None


def _schedule(value: str | None) -> str | None:
    if value:
        parse_policy("1:1", value)
    return value or None


def _devices(value: str | None) -> str | None:
    if value and not re.fullmatch(r"\d{1,3}(,\d{1,3})*", value):
        raise ValueError("must be numbers of GPUs such as 0,1,2")
    return value or None


def _port(value: int) -> int:
    if not 0 <= value <= 65535:
        raise ValueError("must be from 0 to 65535")
    return value


def _optional_port(value: int | None) -> int | None:
    return None if value is None else _port(value)


def _url(value: str | None) -> str | None:
    if not value:
        return None
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", value):
        raise ValueError("must be a URL such as http://localhost:4318")
    return value.rstrip("/")


class EngineSettings(BaseSettings):
    """What the engine process needs to know. Sent to it whole when it starts."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    model: str = Field(
        "models/tiny",
        description="Folder or hub id of a diffusers text-to-image pipeline; `fake:` for a stand-in without weights.",
    )
    data_dir: Path = Field(Path("data"), description="Folder for all that the service keeps.")
    batching: Batching = Field(
        Batching.CONTINUOUS,
        description="How requests share batches: continuous (join at the next step; window for pipelines that are not "
        "known), window (micro-batching) or sequential (one picture at a time).",
    )
    max_batch: int = Field(8, ge=1, le=256, description="Pictures in one batch at most.")
    prompt_cache_mb: float = Field(
        64.0,
        ge=0,
        description="Memory for the embeddings of prompts seen lately, in MiB, on the model's device; 0: none.",
    )
    slots: Annotated[str | None, AfterValidator(_slots)] = Field(
        None,
        description="Pictures in one step of continuous batching by size, as 512x512=8,768x768=4, up to the largest "
        "batch; unset: the knee of the profile.",
    )
    profile_sizes: Annotated[str | None, AfterValidator(_sizes)] = Field(
        None, description="Sizes to time at start, as 512x512,768x768; others are scaled. Unset: the model's own."
    )
    order: Literal["shortest_first", "first_come"] = Field(
        "shortest_first",
        description="Who of equal priority gets a slot first: least work left, with ageing, or oldest.",
    )
    batch_window_ms: float = Field(
        500.0, ge=0, le=60_000, description="Longest wait of a picture for batch-mates, in milliseconds."
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="Where the model runs.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="Number format of weights and latents; auto is float16 on CUDA and MPS, float32 on the CPU."
    )
    channels_last: bool | None = Field(
        None, description="Keep convolution weights in channels-last memory order; unset: yes, but not on MPS."
    )
    attention_slicing: bool = Field(False, description="Compute attention in slices: less memory, slower.")
    attention_backend: str | None = Field(
        None, description="Attention backend by diffusers' name, such as native, flash or xformers; unset: its default."
    )
    cudnn_benchmark: bool = Field(
        False,
        description="Let cuDNN time its algorithms and keep the fastest, anew for every size of picture and of batch "
        "(CUDA only): for traffic where those hardly change.",
    )
    torch_threads: int | None = Field(
        None, ge=1, description="CPU threads of PyTorch; unset: 1 on CUDA, all cores on the CPU."
    )
    scheduler: SchedulerName | None = Field(
        None, description="Default scheduler of requests that name none; unset: the model's own."
    )
    min_size: int | None = Field(None, ge=8, description="Smallest width and height; unset: half the model's own.")
    max_size: int | None = Field(None, ge=8, description="Largest width and height; unset: 1.5 times the model's own.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Style of the log; auto: console on a terminal, else a JSON object a line."
    )
    faults: Annotated[str | None, AfterValidator(_faults)] = Field(
        None,
        description="For drills: 1 allows PUT /debug/faults on the metrics port; or faults to begin with, as "
        "fail=WORD&crash=WORD&hang=WORD&slow=SECONDS&oom_above=N&load=SECONDS (see engine/faults.py).",
    )

    @property
    def sizes_to_profile(self) -> list[Size]:
        """The sizes of `profile_sizes`."""
        return [(int(width), int(height)) for width, height in re.findall(SIZE, self.profile_sizes or "")]

    @property
    def slots_by_size(self) -> dict[Size, int]:
        """The caps of `slots`."""
        found = re.findall(rf"{SIZE}=(\d+)", self.slots or "")
        return {(int(width), int(height)): int(slots) for width, height, slots in found}


class Settings(EngineSettings):
    """All settings. A bad value stops start-up and names the variable."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Annotated[int, AfterValidator(_port)] = Field(8000, description="Port to listen on; 0 takes a free one.")
    database_url: str | None = Field(
        None, description="SQLAlchemy URL of jobs and cache; unset: a SQLite file in the data folder."
    )
    storage_url: str | None = Field(
        None, description="fsspec URL of finished pictures; unset: the folder `images` in the data folder."
    )
    queue_url: str | None = Field(
        None,
        description="Redis of a fleet, as redis://host:6379: `serve` is the API alone, and `safelight worker` makes "
        "the pictures; unset: one process does both.",
    )
    pool: Pool = Field(
        Pool.ON_DEMAND,
        description="Where a worker runs: on_demand, or spot, which may be taken away: urgent jobs go elsewhere first.",
    )
    spot_notice: str | None = Field(
        None,
        description="File that appears, or URL that answers 200, when a worker's machine is about to be taken away: it "
        "hands over what it has and ends, as after SIGTERM.",
    )
    workers: Annotated[str | None, AfterValidator(_workers)] = Field(
        None,
        description="Workers of a fleet, least and most, as 1:4: `serve` starts and drains them as they are needed.",
    )
    workers_local: bool = Field(
        True, description="Start them as processes of this machine; false: only say how many there should be."
    )
    workers_schedule: Annotated[str | None, AfterValidator(_schedule)] = Field(
        None, description="Least workers by hours of the day (UTC), as 8-20=4,20-23=2."
    )
    scale_seconds: float = Field(30.0, gt=0, description="How often the number of workers is thought over.")
    scale_down_seconds: float = Field(
        300.0, gt=0, description="For how long fewer workers must have been enough before one is ended."
    )
    devices: Annotated[str | None, AfterValidator(_devices)] = Field(
        None, description="GPUs of this machine, as 0,1,2: `worker` keeps a process for each."
    )
    queue_limit: int = Field(100, ge=1, description="Waiting jobs at most; one more is answered 429.")
    retention_seconds: float = Field(86_400.0, gt=0, description="How long finished jobs and their pictures are kept.")
    cache_variants: int = Field(
        0, ge=0, le=1000, description="Requests without a seed may get one of this many earlier answers; 0: never."
    )
    cache_ttl_seconds: float = Field(86_400.0, gt=0, description="How long a cached answer may be used.")
    cache_max_bytes: int = Field(1 << 30, ge=0, description="Bytes of pictures the cache holds; 0 turns it off.")
    drain_seconds: float = Field(30.0, ge=0, description="Time that running work gets to finish after SIGTERM.")
    heartbeat_timeout_seconds: float = Field(
        60.0, gt=0, description="Silence of the engine after which `/health/live` fails; more than one step takes."
    )
    metrics_port: Annotated[int | None, AfterValidator(_optional_port)] = Field(
        None, description="Port to serve `/metrics` on, from a thread of its own; unset: the main port."
    )
    slo_profile: str = Field(
        "default", description="Objectives that `/slo` tells of: default, or demo, which fit the embedded model."
    )
    probe_token: str | None = Field(
        None, description="Secret by which the probe is known, so that it stays out of the users' objectives."
    )
    gpu_dollars_per_hour: float = Field(
        0.0, ge=0, description="Price of the GPU an hour in dollars, from which the cost of pictures follows."
    )
    otlp_endpoint: Annotated[str | None, AfterValidator(_url)] = Field(
        None,
        description="OTLP/HTTP collector of traces, such as http://localhost:4318; unset: traces stay in the process. "
        "The standard OTEL_EXPORTER_OTLP_HEADERS and the like hold too.",
    )
    trace_ratio: float = Field(0.1, ge=0, le=1, description="Share of traces that are exported in any case.")
    trace_slow_seconds: float = Field(
        30.0, gt=0, description="Traces with something this slow are exported too, as are those with errors."
    )
    record_prompts: bool = Field(False, description="Put prompts into traces and logs.")

    @property
    def policy(self) -> Policy | None:
        """How many workers there are to be, if that is to be worked out."""
        if self.workers is None:
            return None
        up = min(self.scale_seconds, UP_SECONDS)
        return replace(
            parse_policy(self.workers, self.workers_schedule), up_seconds=up, down_seconds=self.scale_down_seconds
        )

    @property
    def resolved_database_url(self) -> str:
        """The database URL with its default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'safelight.db'}"

    @property
    def resolved_storage_url(self) -> str:
        """The storage URL with its default filled in."""
        return self.storage_url or str(self.data_dir.resolve() / "images")

    def for_engine(self) -> EngineSettings:
        """The part that the engine process gets."""
        return EngineSettings(**self.model_dump(include=set(EngineSettings.model_fields)))


def load(**given: Any) -> Settings:
    """Settings from `given` values (the command line), then the environment, then the defaults.

    Raises `StartupError` with one line that names the first bad variable.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        raise StartupError(
            f"{PREFIX}{name.upper()} (--{name.replace('_', '-')}): {first['msg']}, got {first['input']!r}"
        ) from error
