"""Diffusers' schedulers by the names of the API."""

import warnings
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

from service.settings import SCHEDULER_NAMES

CLASSES: dict[str, type[Any]] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
}


def names_for(own: Any) -> tuple[str, ...]:
    """The names that work for a model whose own scheduler is `own`, the model's own first.

    A noise- or velocity-predicting model takes all of them; any other (flow matching) just its own, which is
    then called by its class name.
    """
    if "beta_schedule" not in own.config:
        return (type(own).__name__,)
    own_name = next((name for name, cls in CLASSES.items() if type(own) is cls), None)
    return tuple(sorted(SCHEDULER_NAMES, key=lambda name: (name != own_name, SCHEDULER_NAMES.index(name))))


def make(name: str, own: Any) -> Any:
    """A fresh scheduler object `name` with the noise schedule of `own`.

    Never shared between batches: schedulers keep the state of the run they are stepping.
    """
    cls = CLASSES.get(name, type(own))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes differ in the keys they know, and say so at every call
        return cls.from_config(own.config)
