"""Finished pictures in any fsspec file system: a folder, S3, ..."""

from collections.abc import Sequence

import fsspec

from service.core import ImageFormat
from service.errors import StartupError


class ImageStore:
    """Pictures by blob id and number. Methods block and are called in threads.

    Raises `FileNotFoundError` for a picture that is not there, and the file system's own `OSError`s.
    """

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
            self._fs.makedirs(self._root, exist_ok=True)
        except (OSError, ValueError, ImportError) as error:
            raise StartupError(f"SAFELIGHT_STORAGE_URL: {url!r} cannot be used: {error}") from error

    def put(self, blob: str, pictures: Sequence[bytes], output_format: ImageFormat) -> None:
        """Write all pictures of a blob, over older ones of the same id."""
        self._fs.makedirs(self._folder(blob), exist_ok=True)
        for index, data in enumerate(pictures):
            self._fs.pipe_file(self._path(blob, index, output_format), data)

    def get(self, blob: str, index: int, output_format: ImageFormat) -> bytes:
        """The bytes of one picture."""
        data: bytes = self._fs.cat_file(self._path(blob, index, output_format))
        return data

    def delete(self, blob: str) -> None:
        """Remove a blob; one that is not there is no error."""
        try:
            self._fs.rm(self._folder(blob), recursive=True)
        except FileNotFoundError:
            return

    def _folder(self, blob: str) -> str:
        return f"{self._root}/{blob[:2]}/{blob}"

    def _path(self, blob: str, index: int, output_format: ImageFormat) -> str:
        return f"{self._folder(blob)}/{index}.{output_format}"
