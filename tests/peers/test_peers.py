"""Every peer of the benchmarks starts and makes the picture that it is asked for (`make test-peers`)."""

import pytest

from benchmarks.peers import published
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.environment import CannotInstall, prepare, serving
from benchmarks.peers.load import is_right
from benchmarks.traffic import Request

MODEL = "models/tiny"
REQUEST = Request(at=0.0, prompt="a pizza on a teal background", seed=1, steps=8, guidance=5.0)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_makes_the_picture(name: str) -> None:
    """On the background that was asked for."""
    _install(PEERS[name].environment, PEERS[name].python)
    with serving(PEERS[name], MODEL) as endpoint:
        answer = endpoint.ask(REQUEST)
    assert not answer.error
    assert is_right(answer.picture, REQUEST)


def test_locust_asks() -> None:
    """The clients of the published experiment, for a few seconds."""
    _install("locust")
    with serving(PEERS["plain-sync"], MODEL) as endpoint:
        answers, looks, _ = published.run(endpoint, published.Scenario(users=2, arrival=2.0))
    assert answers
    assert not [each.error for each in answers if each.error]
    assert looks.count


def _install(environment: str, python: str | None = None) -> None:
    """Or skip the test."""
    try:
        prepare(environment, python)
    except CannotInstall as error:
        pytest.skip(f"{environment} cannot be installed here: {error}")
