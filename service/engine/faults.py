"""Faults on demand, for drills and tests: `fail=WORD&crash=WORD&hang=WORD&oom_above=N`.

A step of a prompt that holds the word of `fail` raises, of `crash` ends the process, of `hang` never comes back; a
step of more than `oom_above` pictures runs out of memory.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic
from urllib.parse import parse_qsl

from service.core import ModelInfo
from service.engine.contract import Batch, BatchModel, Picture, Pixels, R, StepModel


class Faults:
    """See the module's words; other options in `text` are passed over."""

    def __init__(self, text: str) -> None:
        options = dict(parse_qsl(text))
        self._words = {action: options[action] for action in ("crash", "hang", "fail") if action in options}
        self._oom_above = int(options.get("oom_above", 10**6))

    def strike(self, pictures: Iterable[Picture]) -> None:
        """Do what a step of these pictures asks for."""
        prompts = [each.params.prompt for each in pictures]
        if len(prompts) > self._oom_above:
            raise MemoryError
        for action, word in self._words.items():
            if any(word in prompt for prompt in prompts):
                if action == "crash":
                    os._exit(3)
                if action == "hang":
                    time.sleep(3600)
                raise RuntimeError(f"asked to fail by the word {word!r}")


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

    def decode(self, rows: Sequence[FaultyRow[R]]) -> Sequence[Pixels]:
        """See `StepModel.decode`."""
        return self._model.decode([each.row for each in rows])

    def peak_bytes(self) -> int | None:
        """See `StepModel.peak_bytes`."""
        return self._model.peak_bytes()
