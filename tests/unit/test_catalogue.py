"""The list of metrics is complete, up to date, and covers what other servers export."""

from observability import catalogue
from observability.declared import PREFIX


def test_the_committed_list_is_up_to_date() -> None:
    """`make config` writes it."""
    assert catalogue.main(["--check"]) == 0


def test_everything_that_other_servers_export_is_there() -> None:
    """Each of their metrics points at one that is declared."""
    known = catalogue.names()
    missing = {ours for pairs in catalogue.PEERS.values() for ours in pairs.values()} - known
    assert not missing


def test_names_follow_prometheus_conventions() -> None:
    """Counters end in _total, nothing else does; units are base units."""
    for part in catalogue.declared().values():
        for each in part:
            assert each.name.startswith(PREFIX)
            assert each.name.endswith("_total") == (each.kind == "counter")
            assert not each.name.endswith(("_ms", "_milliseconds", "_mb", "_percent"))
            assert each.text.endswith(".")
