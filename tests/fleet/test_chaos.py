"""A fleet whose processes are killed again and again loses nothing: the short form of `python -m tests.chaos`."""

from pathlib import Path

from tests.chaos.trouble import go_through


def test_every_job_ends_once(tmp_path: Path) -> None:
    """A hundred jobs and ten kills, a restart of Redis and one of PostgreSQL."""
    told: list[str] = []
    found = go_through(tmp_path, jobs=100, kills=10, every=2.0, tell=told.append)
    assert found.states == {"completed": 100}, f"{found}\n{told}"
    assert found.changed == []
    assert not any(found.left.values())
    assert sum(found.kills.values()) == 12
