"""Whether a picture of the embedded model is what its prompt asks for: a fast wrong picture is a failure."""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHECKED = 4  # of so many answers, one is looked at
BORDER = 4  # pixels of the frame whose colour counts as the background
PALETTE = Path(__file__).parents[2] / "models" / "tiny" / "palette.json"


def right_colour(picture: bytes, prompt: str) -> bool:
    """Whether the background is the one that the prompt, "a thing on a red background", asks for."""
    asked = prompt.split(" on a ")[1].split()[0]
    try:
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=float)
    except (OSError, SyntaxError):  # no picture, or a broken one
        return False
    frame = np.ones(pixels.shape[:2], dtype=bool)
    frame[BORDER:-BORDER, BORDER:-BORDER] = False
    found = np.median(pixels[frame], axis=0)
    return min(_palette(), key=lambda name: float(np.abs(found - _palette()[name]).sum())) == asked


@cache
def _palette() -> dict[str, Any]:
    return {name: np.array(rgb) for name, rgb in json.loads(PALETTE.read_text()).items()}
