"""A GPU that is really full: batches are split, and every picture is made."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from benchmarks import large
from tests.support.server import Server, serving

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

MIB = 1 << 20
LEFT_BYTES = 512 * MIB
SIDE = 768
PICTURES = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model of the size of Stable Diffusion 1.5, with as many slots for larger pictures as for its own."""
    folder = tmp_path_factory.mktemp("model") / "sd15"
    large.save("sd15", folder, "cuda")
    torch.cuda.empty_cache()
    settings = {"model": folder, "device": "cuda", "slots": f"{SIDE}x{SIDE}={PICTURES}"}
    with serving(tmp_path_factory.mktemp("data"), **settings) as started:
        yield started


@pytest.fixture
def full(server: Server) -> Iterator[torch.Tensor]:
    """All memory but a little is taken, by others than the service."""
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(free - LEFT_BYTES, dtype=torch.uint8, device="cuda")
    yield hog
    del hog
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("full")
def test_a_batch_that_does_not_fit_is_split_and_every_picture_is_made(server: Server) -> None:
    """Eight large pictures are asked for at once, where memory is too short for all in one step."""

    def make(seed: int) -> int:
        body = {"prompt": "a whale", "width": SIDE, "height": SIDE, "num_inference_steps": 6, "seed": seed}
        answer = server.client.post("/generate", json=body, headers={"Accept": "image/png"}, timeout=300)
        assert answer.content.startswith(b"\x89PNG"), answer.text
        return answer.status_code

    with ThreadPoolExecutor(PICTURES) as pool:
        assert list(pool.map(make, range(PICTURES))) == [200] * PICTURES
    assert server.metric("safelight_oom_splits_total") >= 1
