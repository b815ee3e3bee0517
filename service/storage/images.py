"""Finished pictures in any fsspec file system: a folder, S3, ..."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import fsspec

from service.core import ImageFormat
from service.errors import StartupError, Unavailable

T = TypeVar("T")

URL_SECONDS = 300
RETRY_SECONDS = 5
# S3 alone: it has to say soon that it is away, and listings that are kept would not see what other processes wrote.
S3: dict[str, Any] = {
    "config_kwargs": {"connect_timeout": 1, "read_timeout": 10, "retries": {"max_attempts": 1}},
    "use_listings_cache": False,
}


class ImageStore:
    """Pictures by blob id and number; `recent_bytes` of them are kept at hand. Methods block and are called in threads.

    Raises `FileNotFoundError` for a picture that is not there, and `Unavailable` while the store cannot be used.
    """

    def __init__(self, url: str, recent_bytes: int = 0) -> None:
        self.is_remote = "://" in url and not url.startswith("file:")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url, **(S3 if url.startswith("s3:") else {}))
            self._fs.makedirs(self._root, exist_ok=True)
        except Exception as error:  # each file system has errors of its own
            raise StartupError(f"SAFELIGHT_STORAGE_URL: {url!r} cannot be used: {error}") from error
        self._recent = _Recent(recent_bytes)

    def put(self, blob: str, pictures: Sequence[bytes], output_format: ImageFormat) -> None:
        """Write all pictures of a blob, over older ones of the same id."""
        self._try(self._fs.makedirs, self._folder(blob), exist_ok=True)
        for index, data in enumerate(pictures):
            path = self._path(blob, index, output_format)
            self._try(self._fs.pipe_file, path, data)
            self._recent.put(blob, path, data)

    def recent(self, blob: str, index: int, output_format: ImageFormat) -> bytes | None:
        """The bytes of one picture if they are at hand, as those are that were written or read lately. Does not block.

        For a blob that is known to be there: others may have deleted it.
        """
        return self._recent.get(blob, self._path(blob, index, output_format))

    def get(self, blob: str, index: int, output_format: ImageFormat) -> bytes:
        """The bytes of one picture."""
        path = self._path(blob, index, output_format)
        data = bytes(self._try(self._fs.cat_file, path))
        self._recent.put(blob, path, data)
        return data

    def url(self, blob: str, index: int, output_format: ImageFormat) -> str | None:
        """An address at which the store gives the picture to anybody for `URL_SECONDS`; None if it has none."""
        try:
            return str(self._try(self._fs.sign, self._path(blob, index, output_format), expiration=URL_SECONDS))
        except NotImplementedError:
            return None

    def delete(self, blob: str) -> None:
        """Remove a blob; one that is not there is no error."""
        self._recent.forget(blob)
        try:
            self._try(self._fs.rm, self._folder(blob), recursive=True)
        except FileNotFoundError:
            return

    def check(self) -> None:
        """Look whether the store answers."""
        self._try(self._fs.exists, f"{self._root}/none")

    def _try(self, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
        try:
            return call(*arguments, **named)
        except (FileNotFoundError, NotImplementedError):
            raise
        except Exception as error:
            detail = f"the pictures' store cannot be used at the moment: {type(error).__name__}"
            raise Unavailable(detail, retry_after=RETRY_SECONDS) from error

    def _folder(self, blob: str) -> str:
        return f"{self._root}/{blob[:2]}/{blob}"

    def _path(self, blob: str, index: int, output_format: ImageFormat) -> str:
        return f"{self._folder(blob)}/{index}.{output_format}"


class _Recent:
    """The files of the blobs that were used last, up to so many bytes. For any thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._blobs: OrderedDict[str, dict[str, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, blob: str, path: str, data: bytes) -> None:
        if len(data) > self._max_bytes:
            return
        with self._lock:
            files = self._blobs.setdefault(blob, {})
            self._blobs.move_to_end(blob)
            self._bytes += len(data) - len(files.get(path, b""))
            files[path] = data
            while self._bytes > self._max_bytes:
                self._drop(next(iter(self._blobs)))

    def get(self, blob: str, path: str) -> bytes | None:
        with self._lock:
            data = self._blobs.get(blob, {}).get(path)
            if data is not None:
                self._blobs.move_to_end(blob)
            return data

    def forget(self, blob: str) -> None:
        with self._lock:
            self._drop(blob)

    def _drop(self, blob: str) -> None:
        self._bytes -= sum(map(len, self._blobs.pop(blob, {}).values()))
