"""What every peer calls: diffusers' pipeline, once for all requests that can share a call, as its users do.

It runs in the peers' own environments, and so imports nothing of Safelight.
"""

import io
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image

BATCH = int(os.environ.get("PEER_BATCH", "8"))
MIME = "image/png"
PORT = int(os.environ.get("PEER_PORT", "8000"))
HOST = "127.0.0.1"


class Painter:
    """The pipeline of the folder that `PEER_MODEL` names, on the device of `PEER_DEVICE`; float16 on a GPU."""

    def __init__(self) -> None:
        device = os.environ.get("PEER_DEVICE", "cpu")
        dtype = torch.float32 if device == "cpu" else torch.float16
        pipe: Any = AutoPipelineForText2Image.from_pretrained(os.environ["PEER_MODEL"], dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        self._pipe = pipe.to(device)

    def paint(self, requests: Sequence[Mapping[str, Any]]) -> list[bytes]:
        """A PNG for each; those with the same steps and guidance share a call of the pipeline."""
        groups: dict[tuple[int, float], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[request["num_inference_steps"], request["guidance_scale"]].append(number)
        pictures: dict[int, bytes] = {}
        for (steps, guidance), numbers in groups.items():
            images = self._pipe(
                [requests[each]["prompt"] for each in numbers],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator("cpu").manual_seed(requests[each]["seed"]) for each in numbers],
            ).images
            pictures |= zip(numbers, map(_png, images), strict=True)
        return [pictures[number] for number in range(len(requests))]


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
