"""The alert inbox: what it keeps, what it shows, and when it misses its watchdog."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from observability.inbox import deadman
from observability.inbox.app import build_app
from observability.inbox.core import Inbox, Options
from observability.inbox.deadman import CallFailed, Deadman, State, Status
from observability.inbox.pages import Pages, span
from observability.inbox.store import Store
from observability.inbox.webhook import Malformed, parse
from observability.labels import AlertStatus, CallResult
from tests.support.alerts import ENDED_SECONDS, STARTED, STARTED_SECONDS, alert, notification

TIMEOUT = 300.0
MISSING = Status(State.MISSING, None, TIMEOUT)


class Clock:
    """Seconds that pass when told, the same by both clocks."""

    def __init__(self) -> None:
        self.passed = 0.0

    def monotonic(self) -> float:
        """From some start."""
        return 50.0 + self.passed

    def wall(self) -> float:
        """Unix time."""
        return 1_795_341_700.0 + self.passed


class Someone:
    """Is told, if it can be."""

    def __init__(self) -> None:
        self.told: list[State] = []
        self.is_deaf = False

    def __call__(self, status: Status) -> None:
        """One call."""
        if self.is_deaf:
            raise CallFailed("nobody there")
        self.told.append(status.state)


@pytest.fixture
def anyio_backend() -> str:
    """The inbox runs on asyncio."""
    return "asyncio"


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one."""
    store = Store(tmp_path / "inbox.db")
    yield store
    store.close()


def take(store: Store, *alerts: dict[str, Any], now: float) -> None:
    """As if they had come at `now`."""
    store.take(parse(json.dumps(notification(*alerts)).encode()).alerts, now)


def test_a_repeated_notification_is_the_same_alert(store: Store) -> None:
    """It is counted; when it first came stays known."""
    take(store, alert(), now=10.0)
    take(store, alert(annotations={"summary": "newer"}), now=70.0)
    (record,) = store.alerts()
    assert (record.status, record.notifications) == (AlertStatus.FIRING, 2)
    assert (record.received_firing_at, record.last_seen, record.received_resolved_at) == (10.0, 70.0, None)
    assert record.starts_at == pytest.approx(STARTED_SECONDS, abs=1e-6)
    assert record.ends_at is None
    assert record.annotations["summary"] == "newer"


def test_an_end_is_dated_by_its_first_notification(store: Store) -> None:
    """Beside the alert's own time."""
    take(store, alert(), now=10.0)
    take(store, alert(status="resolved"), now=20.0)
    take(store, alert(status="resolved"), now=30.0)
    (record,) = store.alerts()
    assert (record.status, record.ends_at) == (AlertStatus.RESOLVED, ENDED_SECONDS)
    assert (record.received_firing_at, record.received_resolved_at, record.last_seen) == (10.0, 20.0, 30.0)
    assert store.firing() == 0


def test_an_end_may_be_all_that_came(store: Store) -> None:
    """The inbox was down before."""
    take(store, alert(status="resolved"), now=20.0)
    (record,) = store.alerts()
    assert (record.received_firing_at, record.received_resolved_at) == (None, 20.0)


def test_an_alert_may_go_on_after_its_end(store: Store) -> None:
    """Alertmanager keeps the start of one that comes back at once; the last notification holds."""
    for moment, status in enumerate(("firing", "resolved", "firing")):
        take(store, alert(status=status), now=float(moment))
    (record,) = store.alerts()
    assert (record.status, record.ends_at, record.received_resolved_at) == (AlertStatus.FIRING, None, None)


def test_a_new_start_ends_the_one_before(store: Store) -> None:
    """Also if Alertmanager never said so; what is then said of the first one still counts."""
    take(store, alert(), now=10.0)
    take(store, alert(startsAt="2026-11-22T11:00:00+00:00"), now=20.0)
    newer, older = store.alerts()
    assert (newer.status, older.status) == (AlertStatus.FIRING, AlertStatus.RESOLVED)
    assert (older.ends_at, older.received_resolved_at) == (None, None)
    take(store, alert(status="resolved"), now=30.0)
    assert [each.ends_at for each in store.alerts()] == [ENDED_SECONDS, None], "the one heard of last comes first"


def test_alerts_are_found_by_what_is_asked(store: Store) -> None:
    """Newest first."""
    take(store, alert("A"), alert("B"), now=10.0)
    take(store, alert("B", "resolved"), alert("C"), now=20.0)

    def found(**asked: Any) -> list[str]:
        return [each.alertname for each in store.alerts(**asked)]

    assert found() == ["C", "B", "A"]
    assert found(status=AlertStatus.FIRING) == ["C", "A"]
    assert found(alertname="B") == ["B"]
    assert found(since=20.0) == ["C", "B"]
    assert found(limit=1) == ["C"]
    assert store.firing() == 2


def test_old_alerts_are_forgotten(store: Store) -> None:
    """By when they were last heard of."""
    take(store, alert("A"), alert("B"), now=10.0)
    take(store, alert("A"), now=20.0)
    store.forget(before=15.0)
    assert [each.alertname for each in store.alerts()] == ["A"]


def test_there_is_a_most_of_alerts(tmp_path: Path) -> None:
    """What fires stays, then what came last."""
    store = Store(tmp_path / "inbox.db", max_alerts=2)
    take(store, alert("A"), now=10.0)
    take(store, alert("B", "resolved"), now=20.0)
    take(store, alert("C", "resolved"), now=30.0)
    assert [each.alertname for each in store.alerts()] == ["C", "A"]
    store.close()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "body: Invalid JSON"),
        (b"not json", "body: Invalid JSON"),
        (b"[1]", "body: Input should be an object"),
        (b'{"a": "\xff"}', "body: Invalid JSON"),
        (b"[" * 100_000, "body: Invalid JSON"),
        (json.dumps(notification(alert(), version="5")).encode(), "version: Input should be '4'"),
        (json.dumps(notification(alert(status="odd"), status="odd")).encode(), "status: Input should be 'firing'"),
        (json.dumps(notification(alert(startsAt="soon"))).encode(), "alerts.0.startsAt: Input should be a valid"),
        (json.dumps(notification(alert(startsAt="0001-01-01T00:00:00+09:00"))).encode(), "alerts.0.startsAt: "),
        (json.dumps(notification(alert(startsAt="2026-11-22T10:00:00"))).encode(), "timezone"),
        (json.dumps(notification(alert(labels={"a": 1}))).encode(), "alerts.0.labels.a: Input should be a valid str"),
        (json.dumps(notification(alert(fingerprint=""))).encode(), "alerts.0.fingerprint: "),
        (json.dumps(notification(*[alert(fingerprint="")] * 9)).encode(), "; and 4 more"),
    ],
)
def test_what_is_wrong_with_a_body_is_told(body: bytes, expected: str) -> None:
    """By the field's name, and not at length."""
    with pytest.raises(Malformed) as caught:
        parse(body)
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("ended", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+09:00", "9999-12-31T23:59:59-09:00"])
def test_an_end_out_of_this_world_is_none(ended: str) -> None:
    """Alertmanager's zero is in the year 1."""
    (told,) = parse(json.dumps(notification(alert(status="resolved", endsAt=ended))).encode()).alerts
    assert told.ended_at is None


@pytest.fixture
def someone() -> Someone:
    """Who is told."""
    return Someone()


@pytest.fixture
def results() -> list[CallResult]:
    """What came of the calls."""
    return []


@pytest.fixture
def begin(store: Store, clock: Clock, someone: Someone, results: list[CallResult]) -> Callable[[], Deadman]:
    """The switch after a start of the program."""
    return lambda: Deadman(
        store, TIMEOUT, {"someone": someone}, results.append, monotonic=clock.monotonic, wall=clock.wall
    )


def test_a_watchdog_that_never_comes_is_missed(begin: Callable[[], Deadman], clock: Clock, someone: Someone) -> None:
    """After the timeout; before that it is waited for."""
    switch = begin()
    clock.passed = TIMEOUT - 1
    switch.check()
    assert (switch.status(), someone.told) == (Status(State.WAITING, None, TIMEOUT), [])
    clock.passed = TIMEOUT
    switch.check()
    assert (switch.status(), someone.told) == (Status(State.MISSING, None, TIMEOUT), [State.MISSING])


def test_an_outage_is_told_once_and_so_is_its_end(
    begin: Callable[[], Deadman], clock: Clock, someone: Someone, caplog: pytest.LogCaptureFixture
) -> None:
    """And again for the next one; in the log too."""
    caplog.set_level("INFO")
    switch = begin()
    switch.hear()
    switch.check()
    assert someone.told == []
    heard = clock.wall()
    for _ in range(2):
        clock.passed += TIMEOUT
        switch.check()
        clock.passed += 1
        switch.check()
        assert switch.status() == Status(State.MISSING, heard, TIMEOUT)
        switch.hear()
        heard = clock.wall()
        switch.check()
        switch.check()
    assert someone.told == [State.MISSING, State.OK] * 2
    assert [each.levelname for each in caplog.records] == ["INFO", *["ERROR", "INFO"] * 2]


def test_a_call_that_fails_is_made_again(
    begin: Callable[[], Deadman], clock: Clock, someone: Someone, results: list[CallResult]
) -> None:
    """At every check, until it has succeeded once; if nobody knows of the outage, its end is no news."""
    switch = begin()
    clock.passed = TIMEOUT
    someone.is_deaf = True
    switch.check()
    switch.check()
    someone.is_deaf = False
    switch.check()
    switch.check()
    assert someone.told == [State.MISSING]
    assert results == [CallResult.FAILED, CallResult.FAILED, CallResult.OK]
    switch.hear()
    switch.check()
    clock.passed += TIMEOUT
    someone.is_deaf = True
    switch.check()
    someone.is_deaf = False
    switch.hear()
    switch.check()
    assert someone.told == [State.MISSING, State.OK]


def test_a_restart_neither_repeats_nor_forgets(begin: Callable[[], Deadman], clock: Clock, someone: Someone) -> None:
    """What was told of an outage, and when the watchdog was last heard of, are on disk."""
    begin().hear()
    heard = clock.wall()
    clock.passed = TIMEOUT - 1
    switch = begin()
    assert switch.status() == Status(State.OK, heard, TIMEOUT)
    clock.passed = TIMEOUT
    switch.check()
    clock.passed = 2 * TIMEOUT
    switch = begin()
    assert switch.status() == Status(State.WAITING, heard, TIMEOUT)
    clock.passed = 3 * TIMEOUT
    switch.check()
    assert someone.told == [State.MISSING]
    switch = begin()
    switch.hear()
    switch.check()
    assert someone.told == [State.MISSING, State.OK]


def test_a_program_is_told_the_state(tmp_path: Path) -> None:
    """By a variable and on its input."""
    told = tmp_path / "told"
    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ[sys.argv[2]] + sys.stdin.read())"
    deadman.run([sys.executable, "-c", code, str(told), deadman.STATE_VARIABLE], MISSING)
    state, _, rest = told.read_text().partition("{")
    assert state == "missing"
    assert json.loads("{" + rest)["text"] == "The watchdog is missing, last heard of: never. Alerts may not arrive."


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["false"], "exit status 1"),
        (["/no/such/program"], "No such file"),
        (["sleep", "60"], "not done in 0.1 s"),
    ],
)
def test_a_program_may_fail(argv: list[str], expected: str) -> None:
    """By its status, by not being there, or by taking too long."""
    with pytest.raises(CallFailed, match=expected):
        deadman.run(argv, MISSING, seconds=0.1 if argv[0] == "sleep" else deadman.COMMAND_SECONDS)


@pytest.fixture
def pages(tmp_path: Path) -> Pages:
    """With one runbook."""
    folder = tmp_path / "runbooks"
    folder.mkdir()
    (folder / "QueueFull.md").write_text(
        "# The queue is full\n\n<script>alert(1)</script>\n\n[bad](javascript:alert(1)) [other](Other.md)\n\n"
        "| a | b |\n| --- | --- |\n| `1` | 2 |\n"
    )
    (folder / "not-a-name.md").write_text("x")
    return Pages(folder)


def shown(pages: Pages, store: Store, watchdog: Status = MISSING, now: float = ENDED_SECONDS) -> str:
    """The page of all that is stored."""
    firing, resolved = (store.alerts(status) for status in AlertStatus)
    return pages.alerts(firing, resolved, watchdog, now)


def test_what_alerts_say_is_only_text(pages: Pages, store: Store) -> None:
    """Neither HTML nor a link to a script gets through, wherever it stands."""
    bad = "<script>alert('x')</script>\"&"
    hostile = alert(
        bad,
        labels={"severity": bad, bad: bad, "items": "x", "get": "y"},
        annotations={"summary": bad, "description": bad, "runbook_url": "javascript:x()", "dashboard_url": bad},
        generatorURL="data:text/html,x",
    )
    take(store, hostile, {**hostile, "status": "resolved", "fingerprint": "f"}, now=1.0)
    page = shown(pages, store)
    assert "<script" not in page
    assert "javascript:" not in page
    assert 'href="data:,"' in page
    assert page.count("data:") == 1
    assert "&lt;script&gt;" in page


def test_the_worst_is_shown_first(pages: Pages, store: Store) -> None:
    """With its own runbook rather than one elsewhere; times are told in words."""
    urls = {"runbook_url": "https://example.com/b", "dashboard_url": "http://grafana/d/1"}
    take(store, alert("Low", labels={"severity": "info"}, annotations=urls), now=1.0)
    take(store, alert("QueueFull", labels={"severity": "critical"}, annotations=urls), now=2.0)
    take(store, alert("Odd", labels={"severity": "none"}), now=3.0)
    page = shown(pages, store)
    assert page.index("> QueueFull<") < page.index("> Low<") < page.index("> Odd<")
    assert 'href="/runbooks/QueueFull"' in page
    assert page.count('href="https://example.com/b"') == 1
    assert page.count('href="http://grafana/d/1"') == 2
    assert "Since <time>2026-11-22 10:00:00 UTC</time>, 5 min 0 s" in page


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (Status(State.WAITING, None, TIMEOUT), "should come within 5 min 0 s"),
        (Status(State.OK, ENDED_SECONDS - 7, TIMEOUT), "heard of 7 s ago"),
        (Status(State.MISSING, None, TIMEOUT), "It never came."),
        (Status(State.MISSING, ENDED_SECONDS - 3700, TIMEOUT), "1 h 1 min ago, at <time>2026-11-22 09:03:20 UTC"),
    ],
)
def test_the_page_tells_of_the_watchdog(pages: Pages, store: Store, status: Status, expected: str) -> None:
    """In its first line, as an alarm only when it is missing."""
    page = shown(pages, store, status)
    assert expected in page
    assert ('role="alert"' in page) == (status.state is State.MISSING)


def test_a_runbook_is_rendered_without_its_html(pages: Pages) -> None:
    """Markdown with tables; links to other runbooks lead there."""
    page = pages.runbook("QueueFull")
    assert page is not None
    assert "<h1>The queue is full</h1>" in page
    assert "<td><code>1</code></td>" in page
    assert "&lt;script&gt;" in page
    assert "javascript:" not in page.replace("(javascript:", "")
    assert 'href="Other.md"' in page
    assert pages.runbook("QueueFull.md") == page
    assert pages.runbooks() == ["QueueFull"]


@pytest.mark.parametrize("name", ["Other", "", "../secret", "..", "not-a-name", "QueueFull\n", "QueueFull/x", "Ä"])
def test_only_names_of_alerts_are_runbooks(pages: Pages, tmp_path: Path, name: str) -> None:
    """No path leads out of the folder."""
    (tmp_path / "secret.md").write_text("secret")
    assert pages.runbook(name) is None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-5, "0 s"), (59.4, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (90_000, "1 d 1 h")],
)
def test_spans_are_told_in_two_units(seconds: float, expected: str) -> None:
    """Nobody asks for the seconds of a day."""
    assert span(seconds) == expected


def test_times_are_kept_to_the_microsecond() -> None:
    """Alertmanager tells nanoseconds, which are cut off."""
    assert STARTED.endswith("123456789Z")
    (told,) = parse(json.dumps(notification(alert())).encode()).alerts
    assert told.starts_at.microsecond == 123456


def test_what_is_old_is_forgotten_by_the_inbox(tmp_path: Path, clock: Clock) -> None:
    """After the days that it is told; the gauge follows."""
    inbox = Inbox(Options(tmp_path, tmp_path, TIMEOUT, retention_seconds=60.0), clock.monotonic, clock.wall)
    inbox.take(parse(json.dumps(notification(alert())).encode()))
    clock.passed = 60.0
    inbox.forget()
    assert len(inbox.store.alerts()) == 1
    assert b"\nsafelight_inbox_alerts_firing 1.0\n" in inbox.exposition.render("")[0]
    clock.passed = 61.0
    inbox.forget()
    assert inbox.store.alerts() == []
    assert b"\nsafelight_inbox_alerts_firing 0.0\n" in inbox.exposition.render("")[0]
    inbox.store.close()


async def test_what_cannot_be_kept_is_asked_for_again(tmp_path: Path) -> None:
    """Alertmanager repeats what was answered 503, and only that."""
    inbox = Inbox(Options(tmp_path, tmp_path, TIMEOUT, retention_seconds=60.0))
    inbox.store.close()
    transport = httpx.ASGITransport(build_app(inbox))
    async with httpx.AsyncClient(transport=transport, base_url="http://inbox") as client:
        response = await client.post("/webhook", json=notification(alert()))
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
