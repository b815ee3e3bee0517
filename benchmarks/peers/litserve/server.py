"""LitServe with batching.

See https://lightning.ai/docs/litserve/features/batching.
"""

from typing import Any

import litserve
from fastapi import Response

from benchmarks.peers.painter import BATCH, HOST, MIME, PORT, Painter


class PainterAPI(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.painter = Painter()

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        return request

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(inputs)

    def predict(self, batch: list[dict[str, Any]]) -> list[bytes]:
        return self.painter.paint(batch)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type=MIME)


if __name__ == "__main__":
    api = PainterAPI(max_batch_size=BATCH, batch_timeout=0.05)
    server = litserve.LitServer(api, accelerator="auto", timeout=600)
    server.run(host=HOST, port=PORT, generate_client_file=False, log_level="warning")
