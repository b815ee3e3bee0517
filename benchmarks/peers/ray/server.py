"""Ray Serve with batching.

See https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html.
"""

import os
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.painter import BATCH, HOST, MIME, PORT, Painter

CORES = os.cpu_count()
GPUS = 0 if os.environ.get("PEER_DEVICE", "cpu") == "cpu" else 1


@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": CORES, "num_gpus": GPUS})
class Paint:
    def __init__(self) -> None:
        self.painter = Painter()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.01)
    async def paint(self, requests: list[dict[str, Any]]) -> list[bytes]:
        return self.painter.paint(requests)

    async def __call__(self, request: Request) -> Response:
        return Response(await self.paint(await request.json()), media_type=MIME)


application: Any = Paint.bind()  # type: ignore[attr-defined]  # made by the decorator, which has no types

if __name__ == "__main__":
    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": HOST, "port": PORT})
    serve.run(application, route_prefix="/generate", blocking=True)
