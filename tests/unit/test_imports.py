"""What libraries of an engine find in their environment."""

import os
from typing import Any

import pytest

from service.engine import worker
from service.settings import EngineSettings


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """That of an engine to which nobody has said anything."""
    found: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", found)
    return found


@pytest.mark.parametrize(
    ("settings", "build", "is_bound"),
    [
        ({"device": "cpu"}, "2.13.0", True),
        ({"device": "auto"}, "2.13.0+cpu", True),
        ({"device": "auto"}, "2.13.0", False),
        ({"device": "cuda"}, "2.13.0", False),
        ({"device": "cpu", "torch_threads": 1}, "2.13.0", False),
    ],
)
def test_who_takes_all_cores_is_bound_to_them(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    build: str,
    is_bound: bool,
) -> None:
    """An engine with a GPU, or with some of the cores, is free."""
    monkeypatch.setattr(worker, "version", lambda _name: build)
    worker.prepare_imports(EngineSettings(**settings))
    assert ("OMP_PROC_BIND" in environment) == is_bound


def test_the_administrators_word_stands(environment: dict[str, str]) -> None:
    """A number of threads from outside is that of some of the cores."""
    environment |= {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "7"}
    worker.prepare_imports(EngineSettings(device="cpu"))
    assert environment["GOMP_SPINCOUNT"] == "7"
    assert "OMP_PLACES" not in environment
