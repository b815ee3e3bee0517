"""The published micro-batching: a batch gathers until it is full, or so long after its first request was taken up."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, Response

from benchmarks.peers.painter import BATCH, HOST, MIME, PORT, Painter

SECONDS = float(os.environ.get("PEER_WINDOW_S", "0.5"))

painter = Painter()
waiting: asyncio.Queue[tuple[dict[str, Any], asyncio.Future[bytes]]] = asyncio.Queue()


async def gather() -> list[tuple[dict[str, Any], asyncio.Future[bytes]]]:
    batch = [await waiting.get()]
    loop = asyncio.get_running_loop()
    until = loop.time() + SECONDS
    while len(batch) < BATCH:
        try:
            batch.append(await asyncio.wait_for(waiting.get(), until - loop.time()))
        except TimeoutError:
            break
    return batch


async def work() -> None:
    while True:
        batch = await gather()
        try:
            pictures = await asyncio.to_thread(painter.paint, [request for request, _ in batch])
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the answer
            for _, answer in batch:
                answer.set_exception(error)
            continue
        for (_, answer), picture in zip(batch, pictures, strict=True):
            answer.set_result(picture)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    task = asyncio.create_task(work())
    yield
    task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/generate")
async def generate(request: Annotated[dict[str, Any], Body()]) -> Response:
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    waiting.put_nowait((request, answer))
    return Response(await answer, media_type=MIME)


if __name__ == "__main__":
    uvicorn.run(app, host=HOST, port=PORT, log_level="warning")
