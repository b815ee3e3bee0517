"""Diffusers' schedulers by the names of the API."""

import warnings
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
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
    "flow_match_euler": FlowMatchEulerDiscreteScheduler,
}
FLOW_MATCHING = frozenset({"flow_match_euler"})


def names_for(own: Any) -> tuple[str, ...]:
    """The names that work for a model whose own scheduler is `own`, the model's own first.

    A noise- or velocity-predicting model takes all that add and remove Gaussian noise by betas; any other just its
    own, which is called by its class name when it has no other.
    """
    own_name = next((name for name, cls in CLASSES.items() if type(own) is cls), "")
    if own_name in FLOW_MATCHING:
        return (own_name,)
    if not _is_gaussian(own):
        return (type(own).__name__,)
    names = [name for name in SCHEDULER_NAMES if name not in FLOW_MATCHING]
    return tuple(sorted(names, key=lambda name: (name != own_name, names.index(name))))


def _is_gaussian(own: Any) -> bool:
    """Whether `own` removes noise or velocity by a table of betas. Some classes do that and flow matching too."""
    return (
        "beta_schedule" in own.config
        and own.config.get("prediction_type", "epsilon") in {"epsilon", "v_prediction"}
        and not own.config.get("use_flow_sigmas", False)
    )


def make(name: str, own: Any) -> Any:
    """A fresh scheduler object `name` with the noise schedule of `own`.

    Never shared between batches: schedulers keep the state of the run they are stepping.
    """
    cls = CLASSES.get(name, type(own))
    # DDIM clips by default, which is meant for pixels: latents go beyond -1 to 1.
    options = {"clip_sample": False} if cls is DDIMScheduler and "clip_sample" not in own.config else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes differ in the keys they know, and say so at every call
        return cls.from_config(own.config, **options)
