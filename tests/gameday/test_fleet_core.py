"""The core of a fleet's drills."""

from collections.abc import Iterator

import pytest

from observability.gameday.drill import Drill
from observability.gameday.drills import DRILLS
from observability.gameday.run import COMPRESSED, GameDay, prepared
from tests.gameday.test_core import check


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GameDay]:
    """A fleet of its own, warm and calm."""
    with prepared(tmp_path_factory.mktemp("gameday"), COMPRESSED, lambda _text: None, of_fleet=True) as started:
        yield started


@pytest.mark.parametrize(
    "drill", [each for each in DRILLS if each.is_core and each.is_of_fleet], ids=lambda drill: drill.what
)
def test_alerts_fire_are_told_and_resolve(day: GameDay, drill: Drill) -> None:
    """As without a fleet."""
    check(day, drill)
