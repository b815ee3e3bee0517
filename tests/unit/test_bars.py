"""What the comparison with peers says of figures, and where it writes them."""

import io
import json
from argparse import Namespace
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import alone, suite
from benchmarks.bare import BareEnded
from benchmarks.peers import report, runner
from benchmarks.peers.catalogue import PEERS, SAFELIGHT
from benchmarks.peers.colours import CHECKED, PALETTE
from benchmarks.peers.environment import CannotServe
from benchmarks.peers.load import Answer, Endpoint, Looks, busy, closed
from benchmarks.peers.results import OURS, Measured, Results
from benchmarks.traffic import MIXES, Request, all_at_once

IDLE_BAR = "3. idle: seconds over the bare pipeline's, without encoding"
CROWD = {"requests": 1000.0, "failures": 0.0, "mean": 1.0, "throughput": 500.0, "p50": 1.0, "cores": 2.0}
CROWD |= {"memory_mib": 700.0, "looked_at": 4.0, "wrong": 0.0, "refused": 500.0}
SETTINGS = {"model": "tiny", "seed": 0, "quick": False, "scale_time": 0.4}


def measured(part: str, target: str, beside: str, seconds: float, latency: float, count: int = 100) -> Measured:
    """A block whose latencies are all the same."""
    return Measured(part, target, beside, seconds, [latency] * count, {}, memory=1 << 20)


def flat(colour: str) -> bytes:
    """A PNG of one of the embedded model's colours."""
    png = io.BytesIO()
    Image.new("RGB", (32, 32), tuple(json.loads(PALETTE.read_text())[colour])).save(png, "PNG")
    return png.getvalue()


@contextmanager
def fine(*_: object) -> Any:
    """What starts, and is not asked for anything."""
    yield None


def verdicts(results: Results) -> dict[str, str]:
    """By the start of each bar's name."""
    return {bar.name.split(" (")[0]: bar.verdict for bar in results.bars()}


def test_a_ratio_is_of_neighbours_and_the_best_peer_counts() -> None:
    """The machine was slow while the second peer was measured, and Safelight beside it: that peer was no worse."""
    results = Results(SETTINGS)
    results.measured += [
        measured("uniform", "mosec", "mosec", seconds=20.0, latency=1.0),
        measured("uniform", OURS, "mosec", seconds=10.0, latency=1.0),
        measured("uniform", "ray", "ray", seconds=39.0, latency=1.0),
        measured("uniform", OURS, "ray", seconds=40.0, latency=1.0),
    ]
    (bar,) = (each for each in results.bars() if "best peer" in each.name and "uniform" in each.name)
    assert bar.value == pytest.approx(39 / 40)
    assert "(ray)" in bar.name
    assert bar.verdict == "missed"


def test_the_limit_is_that_around_it_and_one_turn_does_not_decide() -> None:
    """The median share: one turn in which the bare pipeline was disturbed neither meets nor misses a bar."""
    results = Results(SETTINGS)
    for peer, ours, limit in (("mosec", 10.0, 10.0), ("ray", 9.0, 10.0), ("litserve", 10.0, 5.0)):
        results.measured.append(measured("uniform", OURS, peer, seconds=100 / ours, latency=1.0))
        results.limits[peer] = {"plain 8": limit, "raw 8": 2 * limit}
    values = {bar.name: bar.value for bar in results.bars() if "bare pipeline's around it" in bar.name}
    assert list(values.values()) == pytest.approx([1.0, 0.5])


def test_what_was_not_measured_is_said() -> None:
    """With the reason, and nothing is met by it."""
    assert all(verdict.startswith("not run (") for verdict in verdicts(Results(SETTINGS)).values())


def test_wrong_pictures_and_errors_are_failures() -> None:
    """Neither counts as work done; wrong pictures are as frequent as among those that were looked at."""
    block = Measured("uniform", "mosec", "mosec", 10.0, [1.0] * 100, {"status 500": 3}, looked_at=25, wrong=5)
    assert block.failures == pytest.approx(23)
    assert block.throughput == pytest.approx(8.0)


def test_failures_spoil_a_bar() -> None:
    """A peer with many is no rival; one of Safelight's is enough to miss it."""
    theirs, ours = (measured("uniform", target, "mosec", 10.0, 1.0) for target in ("mosec", OURS))
    spoilt = Results(SETTINGS, measured=[replace(theirs, errors={"status 500": 5}), ours])
    assert verdicts(spoilt)["1. uniform, 16 clients: throughput over the best peer's"].startswith("not run")
    failed = Results(SETTINGS, measured=[theirs, replace(ours, errors={"status 500": 1})])
    assert verdicts(failed)["1. uniform, 16 clients: throughput over the best peer's"].startswith("missed (1 of")


def test_few_samples_have_no_p99() -> None:
    """It would be the slowest of them."""
    assert measured("mixed", "mosec", "mosec", 1.0, 1.0, count=299).figure("p99") is None
    assert measured("mixed", "mosec", "mosec", 1.0, 1.0, count=300).figure("p99") == 1.0


def test_a_rival_with_too_few_samples_leaves_a_bar_open() -> None:
    """Unless another makes more pictures."""
    p99 = "4. published scenario of 8 users: p99 below the best plain endpoint's"
    ours = measured("eight users", OURS, "", 100.0, 1.0, count=900)
    slow = [
        measured("eight users", "plain-sync", "plain-sync", 100.0, 1.0, count=299),
        replace(ours, beside="plain-sync"),
    ]
    fast = [
        measured("eight users", "plain-async", "plain-async", 100.0, 2.0, count=400),
        replace(ours, beside="plain-async"),
    ]
    assert verdicts(Results(SETTINGS, measured=slow))[p99].startswith("not run (fewer")
    assert verdicts(Results(SETTINGS, measured=slow + fast))[p99] == "met"


def test_idle_is_without_encoding_and_without_failures() -> None:
    """What a picture takes to become a PNG beside each peer is not held against Safelight; a failure is."""
    blocks = [measured("idle", name, "mosec", 1.0, seconds) for name, seconds in ((OURS, 0.507), ("bare", 0.5))]
    theirs = measured("idle", "mosec", "mosec", 1.0, 0.52)
    results = Results(SETTINGS, measured=[*blocks, theirs], encode_seconds={"mosec": 0.003})
    over = "3. idle: seconds over the bare pipeline's, without encoding"
    assert verdicts(results)[over] == "met"
    failed = replace(results, measured=[replace(blocks[0], errors={"status 500": 1}), *blocks[1:], theirs])
    assert verdicts(failed)[over].startswith("missed (1 of")


def test_blocks_of_the_same_are_one() -> None:
    """Before and after those of the other."""
    block = measured("mixed", "mosec", "mosec", 1.0, 1.0)
    results = Results(
        SETTINGS, measured=[block, measured("mixed", OURS, "mosec", 1.0, 0.5), replace(block, seconds=3.0)]
    )
    ((theirs, ours),) = results.pairs("mixed")
    assert (theirs.requests, theirs.seconds) == (200, 4.0)
    assert (ours.requests, ours.latencies[0]) == (100, 0.5)


def test_a_saturated_peer_is_held_against_at_a_load_that_it_carries() -> None:
    """Its latencies at the common load grow for as long as one measures; the bars are the same for both."""
    own = "mixed, its own load"
    results = Results(SETTINGS, saturated={"mosec": "too slow"})
    for part, theirs in (("mixed", 30.0), (own, 2.0)):
        results.measured += [measured(part, "mosec", "mosec", 100.0, theirs), measured(part, OURS, "mosec", 50.0, 1.0)]
    found = {bar.name: bar.verdict for bar in results.bars() if bar.name.startswith("2. mixed") and "p50" in bar.name}
    assert found == {
        "2. mixed: best peer's p50 over ours": "not run (no rival; mosec: saturated)",
        f"2. {own}: best peer's p50 over ours (mosec)": "missed",
    }


def test_results_are_kept_and_written_into_the_page(tmp_path: Path) -> None:
    """Between the marks, over what stood there."""
    results = Results(SETTINGS, machine="a machine", not_run={"ray": "no reason"}, alone={"crowd": CROWD})
    for part in (*runner.PARTS, runner.PARTS[0]):
        results.measured += [measured(part, name, "mosec", 20.0, 1.0) for name in (OURS, "mosec")]
    results.measured.append(measured("idle", "bare", "mosec", 20.0, 1.0))
    results.saturated["window"] = "too slow"
    results.encode_seconds["mosec"] = 0.004
    results.limits["mosec"] = {"raw 4": 5.0, "raw 8": 6.0, "plain 8": 4.5}
    kept, page = tmp_path / "results.json", tmp_path / "page.md"
    results.write(kept)
    assert Results.read(kept) == results
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.insert(results, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| mosec | 100 | 0 | 1.000 | 5.00 | 1.000 |" in text
    assert text.index("| mosec | 200 |") < text.index("| beside it: Safelight | 200 |"), "of the idle part"
    assert "around it, plain 8 (median) | 1.111 |" in text
    assert "| FastAPI" not in text, "nothing was measured of it"
    assert "| mosec | 5.00 | 6.00 | 4.50 | 5.00 | 0.833 | 1.111 |" in text
    assert f"| {report.ALONE_TITLES['crowd']} | 1000 | 0 | 1.000 | 500.00 |" in text
    assert "Besides: refused 500." in text
    assert "Ray Serve could not run, or not all of it: no reason." in text
    report.draw(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size


def test_whoever_fails_ends_its_own_turn_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that does not start, and a workload that breaks: the reason is kept, and the others go on."""

    def broken(*_: object) -> Any:
        raise CannotServe("no wheel for it")

    monkeypatch.setattr(runner, "serving", broken)
    monkeypatch.setitem(alone.WORKLOADS, "repeat", broken)
    monkeypatch.setitem(alone.WORKLOADS, "crowd", lambda _model: {"failures": 0.0})
    told = Namespace(peers=["ray", "mosec"], parts=["idle"], alone=["repeat", "crowd"], model="", device="cpu")
    results = Results(SETTINGS, size="256x256")
    list(runner.Runner(Namespace(**vars(told), quick=True, seed=0), results).run())
    assert set(results.not_run) == {"ray", "mosec", "repeat"}
    assert verdicts(results)["6. 1,000 clients: failures but 429"] == "met"
    assert verdicts(results)["5. repeat-heavy: p99 of hits, s"] == "missed (CannotServe: no wheel for it)"


@pytest.mark.parametrize(
    ("breaks", "blamed"), [("service", "safelight beside mosec"), ("bare_process", "bare beside mosec")]
)
def test_what_is_ours_is_not_held_against_the_peer(monkeypatch: pytest.MonkeyPatch, breaks: str, blamed: str) -> None:
    """Safelight that breaks beside one peer misses the bars, whoever comes next; a bare pipeline does not."""
    error: BaseException
    error = SystemExit("a log\nthe service ended with 1") if breaks == "service" else BareEnded("gone")

    def broken(*_: object) -> Any:
        raise error

    for each in ("serving", "bare_process", "service"):
        monkeypatch.setattr(runner, each, broken if each == breaks else fine)
    told = Namespace(peers=["mosec"], parts=["idle"], alone=[], model="", device="cpu", quick=True, seed=0)
    results = Results(SETTINGS, size="256x256")
    list(runner.Runner(told, results).run())
    error = CannotServe("no wheel for it")
    monkeypatch.setattr(runner, "serving", broken)
    list(runner.Runner(Namespace(**vars(told) | {"peers": ["ray"]}), results).run())
    assert set(results.not_run) == {blamed, "ray"}
    found = verdicts(results)
    bars = [found["1. uniform, 16 clients: throughput over the best peer's"], found[IDLE_BAR]]
    assert all(each.startswith("missed (safelight beside mosec: ") == (breaks == "service") for each in bars)


def test_who_is_at_work_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locust that fails beside Safelight is no failure of the peer's."""

    class Frozen:
        name = "window"
        endpoints = (Endpoint(PEERS["window"], "", 0, 0), Endpoint(SAFELIGHT, "", 0, 0))

        @contextmanager
        def only(self, _target: Endpoint) -> Any:
            yield None

        __enter__, __exit__ = (lambda self: self), (lambda *_: None)

    def scenario(target: Endpoint, _scenario: object) -> Any:
        if target.peer is SAFELIGHT:
            raise CannotServe("Locust: gone")
        return [], Looks(0, ()), 1.0

    for each in ("serving", "bare_process", "service"):
        monkeypatch.setattr(runner, each, fine)
    monkeypatch.setattr(runner, "Pair", lambda *_: Frozen())
    monkeypatch.setattr(runner, "prepare", lambda _: None)
    monkeypatch.setattr(runner, "_warm", lambda _: None)
    monkeypatch.setattr(runner.Runner, "_measured", lambda *_, **__: None)
    monkeypatch.setattr("benchmarks.peers.published.run", scenario)
    given = {"parts": ["eight users"], "alone": [], "model": "", "device": "cpu", "quick": True, "seed": 0}
    told = Namespace(peers=["window"], scale_time=1.0, has_colours=True, **given)
    results = Results(SETTINGS, size="256x256")
    list(runner.Runner(told, results).run())
    assert set(results.not_run) == {"safelight beside window"}


def test_a_wrong_picture_spoils_what_only_safelight_does() -> None:
    """However fast it came."""
    results = Results(SETTINGS, alone={"repeat": {"throughput": 9000.0, "wrong": 1.0}})
    assert verdicts(results)["5. repeat-heavy: cache hits a second"] == "missed (1 pictures are wrong)"


def test_only_a_peer_ends_its_turn_by_making_nothing() -> None:
    """Safelight's failures count instead."""
    (request,) = all_at_once(MIXES["uniform"], 1, "test")
    failed = [Answer(request, 1.0, "status 500")]
    runner._check(Endpoint(SAFELIGHT, "127.0.0.1", 0, 0), failed)
    with pytest.raises(CannotServe, match="mosec makes no picture"):
        runner._check(Endpoint(PEERS["mosec"], "127.0.0.1", 0, 0), failed)


def test_only_a_whole_run_is_written_into_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of one peer, nor one that goes on; but one without a peer that cannot run."""
    monkeypatch.setattr("sys.argv", ["suite"])
    given = suite.parse()
    whole = Results({name: getattr(given, name) for name in suite.SETTINGS}, alone={name: {} for name in given.alone})
    pairs = [(peer, part) for peer in given.peers for part in runner.parts_of(peer, given.parts)]
    whole.measured += [measured(part, peer, peer, 1.0, 1.0) for peer, part in pairs if peer != "triton"]
    assert not suite.is_whole(whole)
    whole.not_run["triton"] = "no wheel for it"
    assert suite.is_whole(whole)
    for other in ({"quick": True}, {"device": "cuda"}, {"scale_time": 0.1}):
        assert not suite.is_whole(replace(whole, settings=whole.settings | other))
    assert not suite.is_whole(replace(whole, alone={}))
    assert not suite.is_whole(replace(whole, measured=whole.measured[1:]))


def test_a_run_goes_on_only_with_what_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is neither lost nor mixed with figures of other code or settings."""
    kept = tmp_path / "bench.json"
    words = ["suite", "--json", str(kept)]
    monkeypatch.setattr("sys.argv", words)
    begun = suite.start_results(suite.parse())
    begun.measured.append(measured("idle", "mosec", "mosec", 20.0, 1.0))
    begun.write(kept)
    with pytest.raises(SystemExit, match="give --resume"):
        suite.start_results(suite.parse())
    monkeypatch.setattr("sys.argv", [*words, "--resume"])
    assert suite.start_results(suite.parse()) == begun
    monkeypatch.setattr("sys.argv", [*words, "--resume", "--seed", "1"])
    with pytest.raises(SystemExit, match="other settings"):
        suite.start_results(suite.parse())
    replace(begun, versions=begun.versions | {"torch": "0"}).write(kept)
    monkeypatch.setattr("sys.argv", [*words, "--resume"])
    with pytest.raises(SystemExit, match="other versions"):
        suite.start_results(suite.parse())


def test_a_wrong_background_is_doubted_and_the_model_asked() -> None:
    """What the pipeline itself paints no better is not the server's fault."""
    request = all_at_once(MIXES["uniform"], 1, "test")[0]
    red, blue = (replace(request, prompt=f"a cat on a {colour} background") for colour in ("red", "blue"))
    png = flat("red")
    answers = [Answer(each, 1.0, picture=png) for each in [red] * CHECKED + [blue] * 2 * CHECKED]
    looks = Looks.at([*answers, Answer(blue, 1.0, "TimeoutError")])
    assert (looks.count, looks.doubtful) == (3, (blue, blue)), "one of four that came"
    assert looks.wrong(lambda _request: png) == 0
    assert looks.wrong(lambda _request: flat("blue")) == 2


def test_a_client_that_lost_its_patience_asks_no_more() -> None:
    """A peer that never answers costs each client one wait, not one for every request."""
    asked = []

    class Silent(Endpoint):
        def ask(self, request: Request, *_: object) -> Answer:
            asked.append(request)
            return Answer(request, 1.0, TimeoutError.__name__)

    closed(4)(Silent(SAFELIGHT, "127.0.0.1", 0, 0), all_at_once(MIXES["uniform"], 20, "test"))
    assert len(asked) == 4


@pytest.mark.parametrize("batch", [1, 8])
def test_a_closed_loop_counts_as_long_as_all_its_clients_ask(batch: int) -> None:
    """What comes one by one, and what comes in batches: both make 8 a second, and end with less and less to do."""
    (request,) = all_at_once(MIXES["uniform"], 1, "test")
    ends = [batch * (1 + number // batch) / 8 for number in range(80)] + [11.0 + number for number in range(16)]
    answers, seconds = busy([Answer(request, min(ended, 2.0), ended=ended) for ended in ends], clients=16)
    assert (answers, seconds) == (80, pytest.approx(10.0))
    block = Measured("uniform", OURS, "mosec", 27.0, [2.0] * 96, {}, busy=(answers, seconds))
    assert (block + block).throughput == pytest.approx(8.0)


def test_every_peer_is_asked_for_the_same() -> None:
    """Prompt, seed, steps and guidance are in each body."""
    (request, *_) = all_at_once(MIXES["mixed"], 1, "test")
    for peer in (*PEERS.values(), SAFELIGHT):
        body = peer.encode(request.body()).decode()
        for value in (request.prompt, request.seed, request.steps, request.guidance):
            assert str(value) in body
