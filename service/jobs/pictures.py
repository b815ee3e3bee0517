"""From pixels to files."""

import io
from collections.abc import Sequence

from PIL import Image

from service.core import ImageFormat
from service.engine.contract import Pixels

OPTIONS: dict[ImageFormat, dict[str, int]] = {
    ImageFormat.PNG: {"compress_level": 6},
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
