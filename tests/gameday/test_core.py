"""The core of a game day in compressed time: real causes, and who is told of them."""

from collections.abc import Iterator

import pytest

from observability.gameday.drill import Drill
from observability.gameday.drills import DRILLS
from observability.gameday.run import COMPRESSED, GameDay, prepared

CORE = [each for each in DRILLS if each.is_core]


@pytest.fixture(scope="module")
def day(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GameDay]:
    """A stack of its own, warm and calm: of one process, or of a fleet."""
    with prepared(tmp_path_factory.mktemp("gameday"), COMPRESSED, lambda _text: None, request.param) as started:
        yield started


@pytest.mark.parametrize(
    ("day", "drill"), [(each.is_of_fleet, each) for each in CORE], ids=[each.what for each in CORE], indirect=["day"]
)
def test_alerts_fire_are_told_and_resolve(day: GameDay, drill: Drill) -> None:
    """Those of the drill, and no others but what follows from its cause."""
    result = day.run(drill)
    assert result.problems == ()
    assert {row.alert for row in result.rows} == {*drill.alerts, *drill.muted}
