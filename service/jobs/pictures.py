"""From pixels to files."""

import io
import zlib
from collections.abc import Sequence

from PIL import Image

from service.core import ImageFormat
from service.engine.contract import Pixels

# In what a model draws nothing but runs repeats: to look for more takes some times as long, and finds next to nothing.
OPTIONS: dict[ImageFormat, dict[str, int]] = {
    ImageFormat.PNG: {"compress_level": 6, "compress_type": zlib.Z_RLE},
    ImageFormat.JPEG: {"quality": 92},
    ImageFormat.WEBP: {"quality": 90, "method": 4},
}


def encode(pictures: Sequence[Pixels], output_format: ImageFormat) -> list[bytes]:
    """Each picture as a file of `output_format`."""
    return [_encode_one(each, output_format) for each in pictures]


def _encode_one(pixels: Pixels, output_format: ImageFormat) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=output_format.value, **OPTIONS[output_format])
    return buffer.getvalue()
