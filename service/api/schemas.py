"""The JSON of the API."""

import hashlib
import random
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from observability.labels import Batching, Dependency, Priority, Source, Stage
from observability.propagation import current_traceparent
from service.core import ImageFormat, JobState, ModelInfo, Params
from service.engine.profile import Curve, Profile
from service.errors import InvalidRequest
from service.jobs.flight import Snapshot
from service.jobs.order import Order
from service.settings import SchedulerName

MAX_SEED = 2**53 - 1
LCM_MAX_STEPS = 50
MAX_FIELDS = 50


def _printable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain NUL bytes")
    if not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text):
        raise ValueError("must not contain lone surrogates")
    return text


Text = Annotated[str, AfterValidator(_printable)]


class GenerateRequest(BaseModel):
    """A request for pictures. Where a field is left out, the model's own default holds."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        json_schema_extra={"examples": [{"prompt": "a red apple on a blue background", "seed": 7}]},
    )

    prompt: Annotated[Text, Field(min_length=1, max_length=2000, description="What to draw.")]
    negative_prompt: Annotated[Text, Field(max_length=2000, description="What not to draw.")] = ""
    num_inference_steps: Annotated[int | None, Field(ge=1, le=100, description="Denoising steps.")] = None
    guidance_scale: Annotated[
        float | None, Field(ge=1.0, le=20.0, allow_inf_nan=False, description="How closely to follow the prompt.")
    ] = None
    width: Annotated[int | None, Field(description="Pixels; see GET /model for what is allowed.")] = None
    height: Annotated[int | None, Field(description="Pixels; as width.")] = None
    seed: Annotated[
        int | None, Field(ge=0, le=MAX_SEED, description="Seed of the first picture; drawn when left out.")
    ] = None
    num_images: Annotated[int, Field(ge=1, le=8, description="Pictures; their seeds count up.")] = 1
    scheduler: Annotated[SchedulerName | None, Field(description="Sampling method; lcm takes at most 50 steps.")] = None
    output_format: Annotated[Literal["png", "jpeg", "webp"] | None, Field(description="png when left out.")] = None
    priority: Annotated[Literal["high", "normal", "low"], Field(description="Order of service.")] = "normal"
    timeout_s: Annotated[
        float,
        Field(ge=1, le=86_400, allow_inf_nan=False, description="Seconds from acceptance to finish; then: expired."),
    ] = 300.0
    cache: Annotated[bool, Field(description="Whether an earlier, identical answer will do.")] = True

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, data: Any) -> Any:
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise ValueError(f"must have at most {MAX_FIELDS} fields")
        return data

    def fingerprint(self, output_format: ImageFormat) -> str:
        """Hash of what is asked for, to tell whether an idempotency key comes with the same request."""
        return hashlib.sha256(f"{output_format} {self.model_dump_json()}".encode()).hexdigest()

    def order(
        self, model: ModelInfo, *, output_format: ImageFormat, idempotency_key: str | None, source: Source
    ) -> Order:
        """The complete order for `model`. Raises `InvalidRequest` for what this model does not allow."""
        params = Params(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            num_inference_steps=self.num_inference_steps or model.default_steps,
            guidance_scale=float(self.guidance_scale or model.default_guidance_scale),
            width=model.default_width if self.width is None else self.width,
            height=model.default_height if self.height is None else self.height,
            seed=random.randrange(MAX_SEED - 8) if self.seed is None else self.seed,
            num_images=self.num_images,
            scheduler=self.scheduler or model.default_scheduler,
            output_format=output_format,
        )
        check(params, model)
        return Order(
            params=params,
            seed_given=self.seed is not None,
            priority=Priority(self.priority),
            source=source,
            timeout=self.timeout_s,
            use_cache=self.cache,
            idempotency_key=idempotency_key,
            fingerprint="" if idempotency_key is None else self.fingerprint(output_format),
            traceparent=current_traceparent(),
        )


def check(params: Params, model: ModelInfo) -> None:
    """Raise `InvalidRequest`, naming the field and what is allowed, unless `model` can do `params`."""
    for field, size in (("width", params.width), ("height", params.height)):
        if not model.takes_side(size):
            raise InvalidRequest(
                f"must be a multiple of {model.size_multiple} from {model.min_size} to {model.max_size}, got {size}",
                field=field,
            )
    if params.scheduler not in model.schedulers:
        raise InvalidRequest(f"must be one of {', '.join(model.schedulers)}", field="scheduler")
    if params.scheduler == "lcm" and params.num_inference_steps > LCM_MAX_STEPS:
        raise InvalidRequest(
            f"must be at most {LCM_MAX_STEPS} with the lcm scheduler, got {params.num_inference_steps}",
            field="num_inference_steps",
        )
    if params.seed + params.num_images - 1 > MAX_SEED:
        raise InvalidRequest(f"the last picture's seed must be at most {MAX_SEED}", field="seed")
    if params.negative_prompt and not model.supports_negative_prompt:
        raise InvalidRequest("this model takes no negative prompt", field="negative_prompt")


class JobLinks(BaseModel):
    """Where to go on from here."""

    self: str
    events: str
    websocket: str


class JobError(BaseModel):
    """Why a job did not complete."""

    reason: str
    detail: str | None


class JobView(BaseModel):
    """A job and where it stands. Times are Unix times, durations seconds."""

    job_id: str
    status: JobState
    progress: float
    step: int
    total_steps: int
    queue_position: int | None
    estimated_time: float | None
    image_url: str | None
    image_urls: list[str]
    error: JobError | None
    cached: bool
    prompt_truncated: bool
    priority: Priority
    created_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float
    timings: dict[Stage, float]
    parameters: dict[str, str | int | float]
    model_revision: str
    links: JobLinks

    @classmethod
    def of(cls, snapshot: Snapshot) -> "JobView":
        """The JSON of a snapshot."""
        job, params = snapshot.job, snapshot.job.params
        urls = [f"/jobs/{job.id}/images/{index}" for index in range(params.num_images)] if job.blob else []
        failed = job.is_finished and job.state is not JobState.COMPLETED
        steps_done = min(snapshot.steps_done, params.total_steps)  # some schedulers take one more than asked for
        return cls(
            job_id=job.id,
            status=job.state,
            progress=round(steps_done / params.total_steps, 4),
            step=steps_done,
            total_steps=params.total_steps,
            queue_position=snapshot.queue_position,
            estimated_time=None if snapshot.estimated_time is None else round(snapshot.estimated_time, 3),
            image_url=urls[0] if urls else None,
            image_urls=urls,
            error=JobError(reason=job.reason, detail=job.detail) if failed else None,
            cached=job.cached,
            prompt_truncated=job.prompt_truncated,
            priority=job.priority,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            expires_at=job.expires_at,
            timings={stage: round(seconds, 6) for stage, seconds in job.timings.items()},
            parameters=params.as_dict(),
            model_revision=job.revision,
            links=JobLinks(self=f"/jobs/{job.id}", events=f"/jobs/{job.id}/events", websocket=f"/ws/jobs/{job.id}"),
        )


class JobPage(BaseModel):
    """Some jobs, newest first; `next` is the cursor of the page after this one, null on the last."""

    jobs: list[JobView]
    next: str | None


class StepView(BaseModel):
    """A denoising step of so many guided pictures."""

    pictures: int
    seconds: float
    peak_bytes: int | None


class ProfileView(BaseModel):
    """How long steps take at one size, and how many pictures share one at most because of it."""

    width: int
    height: int
    slots: int
    steps: list[StepView]

    @classmethod
    def of(cls, profile: Profile, curve: Curve) -> "ProfileView":
        """The JSON of one curve."""
        width, height = curve.size
        steps = [StepView(**asdict(point)) for point in curve.points]
        return cls(width=width, height=height, slots=profile.cap(curve.size), steps=steps)


class ModelView(BaseModel):
    """The model that is loaded, and what requests it takes."""

    name: str
    revision: str
    pipeline: str
    device: str
    dtype: str
    default_width: int
    default_height: int
    min_size: int
    max_size: int
    size_multiple: int
    default_num_inference_steps: int
    max_num_inference_steps: int = 100
    default_guidance_scale: float
    min_guidance_scale: float = 1.0
    max_guidance_scale: float = 20.0
    max_num_images: int = 8
    schedulers: list[str]
    default_scheduler: str
    output_formats: list[ImageFormat] = list(ImageFormat)
    max_prompt_tokens: int | None
    supports_negative_prompt: bool
    batching: Batching
    max_batch: int
    extra_seconds: float  # of a picture of the default size, beside its steps
    profile: list[ProfileView]


Status = Literal["ok", "loading", "unavailable", "draining", "stalled"]


class Health(BaseModel):
    """Whether the service is fit, and if not, why; `missing` is what it needs and cannot use."""

    status: Status
    missing: list[Dependency] = []


class FieldProblem(BaseModel):
    """One field that is wrong, as a path, and what is allowed."""

    field: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem document."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = []
