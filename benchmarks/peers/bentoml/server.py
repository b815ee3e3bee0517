"""BentoML with adaptive batching.

See https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html.

A batchable endpoint takes and gives lists, and JSON has no bytes: pictures come in base64.
"""

import base64
from typing import Any

import bentoml

from benchmarks.peers.painter import BATCH, Painter


@bentoml.service(traffic={"timeout": 600})
class Paint:
    def __init__(self) -> None:
        self.painter = Painter()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=600_000)
    def generate(self, requests: list[dict[str, Any]]) -> list[str]:
        return [base64.b64encode(each).decode() for each in self.painter.paint(requests)]
