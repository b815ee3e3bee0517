"""For every test, and the servers that tests start."""

import os

import pytest

# Tests share their machine with others: OpenMP's threads must not spin while they wait, nor stay on one core each (see
# docs/decisions/001).
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_PROC_BIND", "false")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--setting fleet` runs the tests of the API, which are the same, against a fleet."""
    parser.addoption("--setting", choices=["alone", "fleet"], default="alone", help="what the tests of the API run on")
