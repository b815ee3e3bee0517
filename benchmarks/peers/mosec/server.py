"""mosec with dynamic batching.

See https://mosecorg.github.io/mosec/examples/stable_diffusion.html.
"""

import json
from typing import Any

from mosec import Server, Worker

from benchmarks.peers.painter import BATCH, MIME, Painter


class Paint(Worker):
    resp_mime_type = MIME

    def __init__(self) -> None:
        self.painter = Painter()

    def deserialize(self, data: bytes) -> dict[str, Any]:
        request: dict[str, Any] = json.loads(data)
        return request

    def forward(self, data: list[dict[str, Any]]) -> list[bytes]:
        return self.painter.paint(data)

    def serialize(self, data: bytes) -> bytes:
        return data


if __name__ == "__main__":  # the address comes from the command line
    server = Server()
    server.append_worker(Paint, num=1, max_batch_size=BATCH, max_wait_time=10, timeout=600)
    server.run()
