"""From the engine's pixels to stored files, a recorded blob and a cached response."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy import Connection

from observability.labels import Stage
from service.core import Job, Params
from service.engine.contract import Pixels
from service.errors import Unavailable
from service.jobs import pictures, table
from service.storage.cache import CachedResponse, ResponseCache
from service.storage.images import ImageStore

log = logging.getLogger("safelight.jobs")

AGAIN_SECONDS = (1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class Delivered:
    """Bytes written, and the seconds that encoding and storing took."""

    size: int
    timings: Mapping[Stage, float]


class Delivery:
    """Encodes and stores pictures in threads of its own, away from the event loop and the engine."""

    def __init__(self, images: ImageStore, cache: ResponseCache, wall: Callable[[], float] = time.time) -> None:
        self._images = images
        self._cache = cache
        self._wall = wall
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="safelight-delivery")

    async def deliver(self, blob: str, params: Params, pixels: Sequence[Pixels]) -> Delivered:
        """Write the pictures as files of the blob. Raises `Unavailable`, of a store elsewhere after some tries."""
        loop = asyncio.get_running_loop()
        pauses = list(AGAIN_SECONDS if self._images.is_remote else ())
        while True:
            try:
                return await loop.run_in_executor(self._threads, self._write, blob, params, pixels)
            except Unavailable as error:
                if not pauses:
                    raise
                log.warning("trying again in %g s to store %s: %s", pauses[0], blob, error.detail)
            await asyncio.sleep(pauses.pop(0))

    def _write(self, blob: str, params: Params, pixels: Sequence[Pixels]) -> Delivered:
        started = time.monotonic()
        files = pictures.encode(pixels, params.output_format)
        encoded = time.monotonic()
        self._images.put(blob, files, params.output_format)
        timings = {Stage.IMAGE_ENCODE: encoded - started, Stage.STORE: time.monotonic() - encoded}
        return Delivered(sum(map(len, files)), timings)

    def record(
        self, connection: Connection, blob: str, size: int, end: Callable[[Connection], list[Job]], truncated: bool
    ) -> list[Job]:
        """In one transaction: the blob, the jobs that `end` completes by it, and the response for the cache.

        Return those jobs. A blob that completes none is deleted like any other that nothing points at.
        """
        now = self._wall()
        table.add_blob(connection, blob, size, now)  # or it is there: the answer to this very transaction was lost
        jobs = end(connection)
        cacheable = next((job for job in jobs if job.cache_key is not None), None)
        if cacheable is not None and cacheable.cache_key is not None:
            response = CachedResponse(cacheable.cache_key, cacheable.params.seed, blob, truncated)
            self._cache.put(connection, response, cacheable.params.prompt_key(cacheable.revision), now)
        return jobs

    async def discard(self, blob: str) -> None:
        """Remove what was written of a blob that will not be recorded. Raises what the image store raises."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._images.delete, blob)

    def close(self) -> None:
        """Wait for what is being written."""
        self._threads.shutdown(wait=True)
