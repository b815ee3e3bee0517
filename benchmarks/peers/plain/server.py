"""The four endpoints of the published experiment: a function of FastAPI that is `async` or is not, and an answer that
is streamed or is not. The pipeline keeps a call's state in its scheduler, so that one call at a time may use it.
"""

import io
import threading
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, Response
from fastapi.responses import StreamingResponse

from benchmarks.peers.painter import HOST, MIME, PORT, Painter

Request = Annotated[dict[str, Any], Body()]

app = FastAPI()
painter = Painter()
turn = threading.Lock()


def paint(request: dict[str, Any]) -> bytes:
    with turn:
        return painter.paint([request])[0]


@app.post("/sync")
def sync(request: Request) -> Response:
    return Response(paint(request), media_type=MIME)


@app.post("/sync-stream")
def sync_stream(request: Request) -> StreamingResponse:
    return StreamingResponse(io.BytesIO(paint(request)), media_type=MIME)


@app.post("/async")
async def asynchronous(request: Request) -> Response:
    return Response(paint(request), media_type=MIME)


@app.post("/async-stream")
async def asynchronous_stream(request: Request) -> StreamingResponse:
    return StreamingResponse(io.BytesIO(paint(request)), media_type=MIME)


if __name__ == "__main__":
    uvicorn.run(app, host=HOST, port=PORT, log_level="warning")
