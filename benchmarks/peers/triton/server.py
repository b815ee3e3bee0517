"""Triton through PyTriton with its dynamic batcher.

See https://triton-inference-server.github.io/pytriton/latest/.
"""

from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.painter import BATCH, HOST, PORT, Painter

INPUTS = {"prompt": bytes, "seed": np.int64, "num_inference_steps": np.int32, "guidance_scale": np.float32}

painter = Painter()


@batch
def paint(prompt: Any, seed: Any, num_inference_steps: Any, guidance_scale: Any) -> dict[str, Any]:
    columns = zip(prompt[:, 0], seed[:, 0], num_inference_steps[:, 0], guidance_scale[:, 0], strict=True)
    requests = [
        {"prompt": words.decode(), "seed": int(seed), "num_inference_steps": int(steps), "guidance_scale": float(scale)}
        for words, seed, steps, scale in columns
    ]
    return {"picture": np.array([[each] for each in painter.paint(requests)], dtype=object)}


if __name__ == "__main__":
    config = TritonConfig(http_address=HOST, http_port=PORT, allow_grpc=False, allow_metrics=False, log_verbose=0)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="painter",
            infer_func=paint,
            inputs=[Tensor(name=name, dtype=kind, shape=(1,)) for name, kind in INPUTS.items()],
            outputs=[Tensor(name="picture", dtype=bytes, shape=(1,))],
            config=ModelConfig(max_batch_size=BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
