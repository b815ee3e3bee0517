"""A pipeline of a known family as a `StepModel`: rows of one denoiser call are at steps of their own."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import signature
from typing import Any

import torch

from observability.events import CacheLookedUp, CacheResized, Event
from observability.labels import Cache, CacheResult
from service.core import Params
from service.engine import schedulers
from service.engine.contract import Decoded, Picture
from service.engine.families import Conditioning, Embeddings, Family
from service.engine.pipeline import LoadedPipeline, to_bytes
from service.engine.torch_setup import Beside, peak_bytes, synchronize


class Prompt:
    """A prompt after text encoding. What takes time and is not needed before the first step waits until it is asked."""

    def __init__(self, embeddings: Embeddings, truncates: Callable[[], bool]) -> None:
        self.embeddings = embeddings
        self._truncates = truncates

    @cached_property
    def truncated(self) -> bool:
        """Whether the prompt was longer than the model reads."""
        return self._truncates()

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(each.nbytes for each in self.embeddings)


class PromptCache:
    """The prompts used last, at most `max_bytes` of them. None stands for the absence of a negative prompt."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._prompts: OrderedDict[str | None, Prompt] = OrderedDict()
        self.nbytes = 0

    def get(self, text: str | None) -> Prompt | None:
        """The prompt if it is there; it then counts as just used."""
        if text in self._prompts:
            self._prompts.move_to_end(text)
        return self._prompts.get(text)

    def put(self, text: str | None, prompt: Prompt) -> None:
        """Keep `prompt`, at the cost of those not used for longest. One larger than the cache goes at once."""
        self._prompts[text] = prompt
        self.nbytes += prompt.nbytes
        while self.nbytes > self._max_bytes:
            _, dropped = self._prompts.popitem(last=False)
            self.nbytes -= dropped.nbytes


@dataclass(slots=True, eq=False)
class StepwiseRow:
    """One picture being denoised. `scheduler` and `generator` are its own; `negative` is there when it is guided."""

    params: Params
    scheduler: Any
    step_options: dict[str, Any]
    latents: torch.Tensor  # [1, ...]
    prompt: Prompt
    negative: Prompt | None
    step: int = 0

    @property
    def total_steps(self) -> int:
        """Denoising steps that it takes."""
        return len(self.scheduler.timesteps)

    @property
    def truncated(self) -> bool:
        """Whether the prompt was longer than the model reads."""
        return self.prompt.truncated

    @property
    def timestep(self) -> torch.Tensor:
        """The timestep of the next step, on the host."""
        timestep: torch.Tensor = self.scheduler.timesteps[self.step]
        return timestep

    def model_input(self) -> torch.Tensor:
        """The latents as the denoiser is to see them at this step."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        scaled: torch.Tensor = self.latents if scale is None else scale(self.latents, self.timestep)
        return scaled

    def guided(self, output: torch.Tensor, negative_output: torch.Tensor | None) -> torch.Tensor:
        """The denoiser's output away from that for the negative prompt."""
        if negative_output is None:
            return output
        return negative_output + self.params.guidance_scale * (output - negative_output)

    def advance(self, output: torch.Tensor) -> Exception | None:
        """One step of the scheduler with the guided output; returns what went wrong, the row then being lost."""
        try:
            stepped = self.scheduler.step(output, self.timestep, self.latents, return_dict=False, **self.step_options)
            self.latents = stepped[0].to(self.latents.dtype)
        except Exception as error:  # noqa: BLE001  # whatever a scheduler raises is this row's alone
            return error
        self.step += 1
        return None


class StepwiseModel:
    """Rows with schedulers, generators and prompts of their own that share calls of the text encoder, the denoiser
    and the decoder.

    `observe` is told, for each distinct prompt of each picture, whether it needed no encoding.
    """

    def __init__(
        self,
        loaded: LoadedPipeline,
        family: Family,
        prompt_cache_bytes: int,
        observe: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        self.info = loaded.info
        self._loaded = loaded
        self._family = family
        self._beside = Beside(loaded.device, wanted=not family.looks_at_pictures)
        self._cache = PromptCache(prompt_cache_bytes)
        self.observe = observe
        self._pristine: dict[str, tuple[Any, bool]] = {}  # schedulers by name, never stepped
        self._together: tuple[list[StepwiseRow], Conditioning] = ([], {})  # the last rows and their conditioning

    @torch.inference_mode()
    def begin(self, pictures: Sequence[Picture]) -> list[StepwiseRow]:
        """Encode the prompts that are not in the cache together and draw each picture's first latents."""
        prompts = self._prompts([self._texts(each.params) for each in pictures])
        rows = [self._row(each, prompts) for each in pictures]
        synchronize(self._loaded.device)
        return rows

    def _texts(self, params: Params) -> tuple[str | None, ...]:
        """The prompt and, when the picture is guided by it, the negative one."""
        return (params.prompt, params.negative_prompt or None) if self._is_guided(params) else (params.prompt,)

    def _is_guided(self, params: Params) -> bool:
        return self.info.rows(params) == 2

    def _prompts(self, texts_of_pictures: Sequence[Sequence[str | None]]) -> dict[str | None, Prompt]:
        found: dict[str | None, Prompt] = {}
        missing: dict[str | None, None] = {}  # in order, each once
        hits = 0
        for text in (text for texts in texts_of_pictures for text in dict.fromkeys(texts)):
            hit = text in found or text in missing
            if not hit and (cached := self._cache.get(text)) is not None:
                found[text] = cached
                hit = True
            elif not hit:
                missing[text] = None
            hits += hit
        for text, embeddings in zip(missing, self._family.encode(list(missing)) if missing else (), strict=True):
            found[text] = Prompt(embeddings, partial(self._loaded.truncates, text or ""))
            self._cache.put(text, found[text])
        self._tell(hits, len(missing))
        return found

    def _tell(self, hits: int, misses: int) -> None:
        cache = Cache.PROMPT_EMBEDDING
        if hits:
            self.observe(CacheLookedUp(cache, CacheResult.HIT, hits))
        if misses:
            self.observe(CacheLookedUp(cache, CacheResult.MISS, misses))
            self.observe(CacheResized(cache, self._cache.nbytes))

    def _row(self, picture: Picture, prompts: dict[str | None, Prompt]) -> StepwiseRow:
        params = picture.params
        prompt, *negative = (prompts[text] for text in self._texts(params))
        generator = torch.Generator("cpu").manual_seed(picture.seed)
        scheduler, draws = self._scheduler(params.scheduler)
        self._family.set_timesteps(scheduler, params)
        return StepwiseRow(
            params=params,
            scheduler=scheduler,
            step_options={"generator": generator} if draws else {},
            latents=self._family.latents(params, scheduler, generator, prompt.embeddings[0].dtype),
            prompt=prompt,
            negative=negative[0] if negative else None,
        )

    def _scheduler(self, name: str) -> tuple[Any, bool]:
        """A fresh scheduler, and whether its steps draw noise. Copied, since making one takes some milliseconds.

        It shares the tables that were there before any timesteps: no run changes them, or diffusers' own could not
        follow one another.
        """
        if name not in self._pristine:
            made = schedulers.make(name, self._loaded.scheduler)
            self._pristine[name] = made, "generator" in signature(made.step).parameters
        pristine, draws = self._pristine[name]
        tables = {id(each): each for each in vars(pristine).values() if isinstance(each, torch.Tensor)}
        return deepcopy(pristine, tables), draws

    @torch.inference_mode()
    def denoise(self, rows: Sequence[StepwiseRow]) -> list[Exception | None]:
        """One call of the denoiser for all `rows`: first every row with its prompt, then the guided ones with their
        negative prompts.
        """
        guided = [index for index, row in enumerate(rows) if row.negative is not None]
        inputs = [row.model_input() for row in rows]
        times = [row.timestep for row in rows]
        latents = torch.cat(inputs + [inputs[index] for index in guided])
        timesteps = torch.stack([time.float() for time in times + [times[index] for index in guided]])
        output = self._family.predict(latents, timesteps.to(self._loaded.device), self._conditioning(rows))
        outputs = output.chunk(len(output))
        negatives: Iterator[torch.Tensor] = iter(outputs[len(rows) :])
        guided_outputs = [  # all of them before any row changes: what raises here can be tried again
            row.guided(own, None if row.negative is None else next(negatives))
            for row, own in zip(rows, outputs, strict=False)
        ]
        outcomes = [row.advance(each) for row, each in zip(rows, guided_outputs, strict=True)]
        synchronize(self._loaded.device)
        return outcomes

    def _conditioning(self, rows: Sequence[StepwiseRow]) -> Conditioning:
        """Made anew only when other rows come together."""
        if self._together[0] != list(rows):
            self._together = ([], {})  # frees the device's memory before more is taken
            guided = [row for row in rows if row.negative is not None]
            embeddings = [row.prompt.embeddings for row in rows]
            embeddings += [row.negative.embeddings for row in guided if row.negative is not None]
            params = [row.params for row in (*rows, *guided)]
            self._together = (list(rows), self._family.conditioning(embeddings, params))
        return self._together[1]

    @property
    def decodes_beside(self) -> bool:
        """See `StepModel.decodes_beside`."""
        return self._beside.is_there

    @torch.inference_mode()
    def decode(self, rows: Sequence[StepwiseRow]) -> list[Decoded]:
        """One call of the decoder for all `rows`."""
        width, height = rows[0].params.size
        latents = torch.cat([row.latents for row in rows])
        pixels, event = self._beside.fetch(latents, lambda given: to_bytes(self._family.decode(given, width, height)))
        return [Decoded(each, event) for each in pixels.numpy()]

    def peak_bytes(self) -> int | None:
        """The most device memory that was taken since the last call; None where that is not known."""
        return peak_bytes(self._loaded.device)
