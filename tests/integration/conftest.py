"""Servers that several tests of a module share; tests that need their own settings start their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server, serving

FAKE = "fake:?step_ms=20&fail=poison&crash=landmine"
# A job that lasts far longer than any look at it: 400 steps of 20 ms with two slots, or 800 with one.
LONG: dict[str, Any] = {"num_images": 8, "num_inference_steps": 100}


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the fake model."""
    with serving(tmp_path_factory.mktemp("fake"), model=FAKE, max_batch=2) as server:
        yield server


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that runs one picture at a time, so that the order of the queue is the order of starts."""
    with serving(tmp_path_factory.mktemp("sequential"), model=FAKE, batching="sequential") as server:
        yield server


@contextmanager
def held(server: Server) -> Iterator[None]:
    """`server.held()`, once the engine of a shared server has left the batch of a job that was cancelled."""
    server.generate(params={"wait": 60}, expect=200, prompt="all before is over", num_inference_steps=1, cache=False)
    with server.held():
        yield


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder of the test's own."""
    return tmp_path / "data"
