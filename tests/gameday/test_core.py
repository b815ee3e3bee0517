"""The core of a game day in compressed time: real causes, and who is told of them."""

from collections.abc import Iterator

import pytest

from observability.gameday.drill import Drill
from observability.gameday.drills import DRILLS
from observability.gameday.run import COMPRESSED, GameDay, prepared


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GameDay]:
    """A stack of its own, warm and calm."""
    with prepared(tmp_path_factory.mktemp("gameday"), COMPRESSED, lambda _text: None) as started:
        yield started


@pytest.mark.parametrize(
    "drill", [each for each in DRILLS if each.is_core and not each.is_of_fleet], ids=lambda drill: drill.what
)
def test_alerts_fire_are_told_and_resolve(day: GameDay, drill: Drill) -> None:
    """Those of the drill, and no others but what follows from its cause."""
    check(day, drill)


def check(day: GameDay, drill: Drill) -> None:
    """Go through a drill."""
    result = day.run(drill)
    assert result.problems == ()
    assert {row.alert for row in result.rows} == {*drill.alerts, *drill.muted}
