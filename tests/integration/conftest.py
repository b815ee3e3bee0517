"""Servers that several tests of a module share; tests that need their own settings start their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server, serving

# 20 ms a step: a job of 100 steps lasts long enough to be looked at and cancelled, one of 1 step does not.
FAKE = "fake:?step_ms=20&fail=poison&crash=landmine"


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the fake model."""
    with serving(tmp_path_factory.mktemp("fake"), model=FAKE) as server:
        yield server


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder of the test's own."""
    return tmp_path / "data"
