"""Faults on demand, for drills and tests: `fail=WORD&crash=WORD&hang=WORD&slow=SECONDS&oom_above=N&load=SECONDS`.

A step of a prompt that holds the word of `fail` raises, of `crash` ends the process, of `hang` does not come back for
as long as that is in force; the word `*` is in every prompt. Each step takes `slow` seconds more, a step of more than
`oom_above` pictures runs out of memory, and loading the model takes `load` seconds more.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic
from urllib.parse import parse_qsl

from service.core import ModelInfo
from service.engine.contract import Batch, BatchModel, Decoded, Picture, R, StepModel

ANY = "*"
LOOK_SECONDS = 0.1  # between looks whether a hang is over


class Faults:
    """Those that are in force; may be changed from any thread. Other options in the text are passed over."""

    def __init__(self, text: str = "") -> None:
        self.put(text)

    def put(self, text: str) -> None:
        """Take these in the place of those in force."""
        self._options: Mapping[str, str] = dict(parse_qsl(text))

    def load(self) -> None:
        """Take the time that loading takes more."""
        self._last("load")

    def _last(self, action: str) -> None:
        """Take its seconds, or as many as pass before it is taken back."""
        began = time.monotonic()
        while (left := began + float(self._options.get(action, 0)) - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))

    def strike(self, pictures: Iterable[Picture]) -> None:
        """Do what a step of these pictures asks for."""
        prompts = [each.params.prompt for each in pictures]
        self._last("slow")
        if len(prompts) > int(self._options.get("oom_above", len(prompts))):
            raise MemoryError
        if self._meets("crash", prompts):
            os._exit(3)
        while self._meets("hang", prompts):
            time.sleep(LOOK_SECONDS)
        if self._meets("fail", prompts):
            raise RuntimeError("asked to fail by a word in the prompt")

    def _meets(self, action: str, prompts: Iterable[str]) -> bool:
        word = self._options.get(action)
        return word is not None and any(word == ANY or word in prompt for prompt in prompts)


class FaultyBatchModel:
    """A model whose batches meet `faults` after every step."""

    def __init__(self, model: BatchModel, faults: Faults) -> None:
        self._model = model
        self._faults = faults

    @property
    def info(self) -> ModelInfo:
        """The model's own."""
        return self._model.info

    def generate(self, pictures: Sequence[Picture], on_step: Callable[[float], None]) -> Batch:
        """See `BatchModel.generate`."""

        def step(seconds: float) -> None:
            self._faults.strike(pictures)
            on_step(seconds)

        return self._model.generate(pictures, step)


@dataclass(slots=True)
class FaultyRow(Generic[R]):
    """A row that knows its picture."""

    row: R
    picture: Picture

    @property
    def step(self) -> int:
        """Steps done."""
        return self.row.step

    @property
    def total_steps(self) -> int:
        """Steps to do."""
        return self.row.total_steps

    @property
    def truncated(self) -> bool:
        """Whether the prompt was cut."""
        return self.row.truncated


class FaultyStepModel(Generic[R]):
    """A model whose steps meet `faults` first."""

    def __init__(self, model: StepModel[R], faults: Faults) -> None:
        self._model = model
        self._faults = faults

    @property
    def info(self) -> ModelInfo:
        """The model's own."""
        return self._model.info

    def begin(self, pictures: Sequence[Picture]) -> Sequence[FaultyRow[R]]:
        """See `StepModel.begin`."""
        rows = self._model.begin(pictures)
        return [FaultyRow(row, picture) for row, picture in zip(rows, pictures, strict=True)]

    def denoise(self, rows: Sequence[FaultyRow[R]]) -> Sequence[Exception | None]:
        """See `StepModel.denoise`."""
        self._faults.strike(each.picture for each in rows)
        return self._model.denoise([each.row for each in rows])

    @property
    def decodes_beside(self) -> bool:
        """See `StepModel.decodes_beside`."""
        return self._model.decodes_beside

    def decode(self, rows: Sequence[FaultyRow[R]]) -> Sequence[Decoded]:
        """See `StepModel.decode`."""
        return self._model.decode([each.row for each in rows])

    def peak_bytes(self) -> int | None:
        """See `StepModel.peak_bytes`."""
        return self._model.peak_bytes()
