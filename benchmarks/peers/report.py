"""The results as text, as part of RESULTS.md and as a picture."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.curve import MAX_BATCH, Times
from benchmarks.peers.catalogue import PEERS, SAFELIGHT
from benchmarks.peers.published import ARRIVAL_SECONDS
from benchmarks.peers.results import (
    BARE,
    EIGHT_USERS,
    IDLE,
    MIXED,
    ONE_USER,
    OURS,
    OWN_LOAD,
    SATURATED,
    UNIFORM,
    Measured,
    Results,
)
from benchmarks.traffic import MIXES

BEGIN, END = "<!-- peers: written by make bench -->", "<!-- peers: end -->"
PICTURE = "![Each peer and Safelight beside it](plots/peers.png)"
MIB = 1 << 20
TITLES = {
    **{name: each.title for name, each in PEERS.items()},
    OURS: SAFELIGHT.title,
    BARE: "the bare pipeline",
    "ideal": "an ideal engine (simulated)",
}
COLUMNS = ("requests", "failures", "mean s", "per second", "p50", "p90", "p95", "p99", "cores", "MiB", "right")
PART_TITLES = {
    IDLE: "One client, one request after the other, all in turns; 20 steps",
    UNIFORM: "Uniform: 16 closed-loop clients, 20 steps",
    SATURATED: "Mixed, saturated: 16 closed-loop clients; 4, 8, 20 or 50 steps, guidance 5.0 or 7.5",
    MIXED: "Mixed, open loop, at 0.7 of the {rate:.2f} pictures/s that Safelight's window mode makes of it at most",
    OWN_LOAD: "Mixed, open loop, at 0.7 of what the peer itself makes of it at most",
    ONE_USER: "The published scenario of one user",
    EIGHT_USERS: "The published scenario of eight users, of whom one comes every {arrival:g} s",
}
ALONE_TITLES = {
    "sizes": "four sizes, 16 closed-loop clients, 20 steps",
    "repeat": "repeat-heavy: cache hits, 8 closed-loop clients",
    "crowd": "1,000 clients at once, 4 steps, half may wait",
    "aborts": "64 clients at once, 50 steps, half of whom leave",
}
COMMON = {"requests", "failures", "mean", "throughput", "p50", "p90", "p95", "p99", "cores", "memory_mib"}
COMMON |= {"looked_at", "wrong"}


def line(each: Measured) -> str:
    """What one target did of a part, in a line."""
    named = zip(COLUMNS, _cells(each), strict=True)
    return f"{each.part}, {each.target}: " + ", ".join(f"{name} {value}" for name, value in named if value)


def _cells(each: Measured) -> list[str]:
    percentiles = (each.figure(name) for name in ("p50", "p90", "p95", "p99"))
    return [
        str(each.requests),
        f"{each.failures:.0f}",
        f"{np.mean(each.latencies or [np.nan]):.3f}",
        f"{each.throughput:.2f}",
        *("" if value is None else f"{value:.3f}" for value in percentiles),
        f"{each.cpu_seconds / each.seconds:.2f}" if each.memory else "",
        f"{each.memory / MIB:,.0f}" if each.memory else "",
        f"{each.looked_at - each.wrong} of {each.looked_at}" if each.looked_at else "",
    ]


def _head() -> str:
    return f"| | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}"


def table(rows: Iterable[tuple[str, Measured]]) -> str:
    """In Markdown."""
    return "\n".join([_head(), *(f"| {name} | {' | '.join(_cells(each))} |" for name, each in rows)])


def tables(results: Results) -> Iterator[str]:
    """One for each part; a peer, and then what was beside it."""
    order = {peer: number for number, peer in enumerate(PEERS)}
    for part, title in PART_TITLES.items():
        if blocks := results.blocks(part):
            told = title.format(arrival=ARRIVAL_SECONDS * results.settings["scale_time"], rate=results.window_rate)
            yield f"**{told}**\n"
            rows = sorted(blocks.values(), key=lambda each: (order[each.beside], each.target != each.beside))
            yield table((_name(each), each) for each in rows) + "\n"
        if part == MIXED and results.saturated:
            told = "; ".join(f"{TITLES[peer]} ({why})" for peer, why in results.saturated.items())
            yield f"Saturated, so that latencies grow for as long as one measures: {told}.\n"


def _name(each: Measured) -> str:
    rate = "" if each.rate is None else f" at {each.rate:.2f}/s"
    return f"{TITLES[each.target]}{rate}" if each.target == each.beside else f"beside it: {TITLES[each.target]}"


def markdown(results: Results) -> str:
    """Everything, for RESULTS.md."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    settings = ", ".join(f"{name} {value}" for name, value in results.settings.items())
    lines = [f"{results.machine}. {versions}. Settings: {settings}.\n"]
    lines.append("| bar | found | asked | |\n| --- | --- | --- | --- |")
    for each in results.bars():
        value = "" if each.value is None else f"{each.value:.3f}"
        sign = "at most" if each.most else "at least"
        lines.append(f"| {each.name} | {value} | {sign} {each.bar:g} | {each.verdict} |")
    lines += ["", *tables(results)]
    lines += [*_limits(results), *_alone(results.alone)]
    for peer, why in results.not_run.items():
        lines.append(f"{TITLES.get(peer, peer)} could not run, or not all of it: {why}.\n")
    if results.encode_seconds:
        told = ", ".join(f"{seconds * 1e3:.1f}" for seconds in results.encode_seconds.values())
        lines.append(f"Encoding a picture of the idle Safelight, ms, beside each peer: {told}.\n")
    return "\n".join(lines)


def _limits(results: Results) -> Iterator[str]:
    """What the bare pipeline makes of uniform traffic around what Safelight does of it, and beside mixed traffic."""
    if results.limits:
        cases = list(next(iter(results.limits.values())))
        yield (
            "**The limit of uniform traffic: pictures a second of the bare pipeline by batch size, just before "
            "and after Safelight's blocks; raw in the engine's order of weights, plain as diffusers loads them**\n"
        )
        yield f"| beside | {' | '.join(cases)} | Safelight | {' | '.join(f'of {each}' for each in cases[-2:])} |"
        yield f"|{' --- |' * (len(cases) + 4)}"
        for peer, limit in results.limits.items():
            ours = results.blocks(UNIFORM)[peer, OURS].throughput
            rates = [f"{rate:.2f}" for rate in (*limit.values(), ours)] + [
                f"{ours / limit[each]:.3f}" for each in cases[-2:]
            ]
            yield f"| {TITLES[peer]} | {' | '.join(rates)} |"
        yield ""
    if results.curve:
        times, sizes = Times(results.curve), range(1, MAX_BATCH + 1)
        told = ", ".join(f"{size}: {size / times.batch(size, MIXES[UNIFORM].steps[0]):.2f}" for size in sizes)
        yield f"By the medians of its stages beside mixed traffic it makes, at every batch size: {told}.\n"


def _alone(alone: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """What all workloads have, as a table; and what each has of its own."""
    if alone:
        yield f"**Safelight alone**\n\n{_head()}"
    own: dict[str, float] = {}
    for name, figures in alone.items():
        percentiles = (f"{figures[each]:.3f}" if each in figures else "" for each in ("p50", "p90", "p95", "p99"))
        cells = (
            f"{figures['requests']:.0f}",
            f"{figures.get('failures', 0.0):.0f}",
            f"{figures['mean']:.3f}",
            f"{figures['throughput']:,.2f}",
            *percentiles,
            f"{figures['cores']:.2f}",
            f"{figures['memory_mib']:,.0f}",
            f"{figures['looked_at'] - figures['wrong']:.0f} of {figures['looked_at']:.0f}",
        )
        yield f"| {ALONE_TITLES[name]} | {' | '.join(cells)} |"
        own |= {key: value for key, value in figures.items() if key not in COMMON}
    if own:
        yield f"\nBesides: {', '.join(f'{key} {value:.4g}' for key, value in own.items())}.\n"


def insert(results: Results, file: Path) -> None:
    """Write the tables into RESULTS.md, over those of an earlier run. Raises `ValueError` if their place is missing."""
    before, rest = file.read_text().split(BEGIN)
    _, after = rest.split(END)
    file.write_text(f"{before}{BEGIN}\n{PICTURE}\n\n{markdown(results)}\n{END}{after}")


def draw(results: Results, file: Path) -> None:
    """Each peer and Safelight beside it: throughput of uniform traffic and the limit, latencies of mixed traffic."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    uniform = results.pairs(UNIFORM)
    carried = [pair for pair in results.pairs(MIXED) if pair[0].target not in results.saturated]
    mixed = [*carried, *results.pairs(OWN_LOAD)]
    _bars(left, "Uniform, 16 clients: pictures a second", uniform, "throughput")
    for case, style in ((f"plain {results.slots}", ":"), (f"raw {results.slots}", "--")):
        if rates := [limit[case] for limit in results.limits.values()]:
            left.axvline(float(np.mean(rates)), color="black", linestyle=style, label=f"bare pipeline, {case}")
    title = "Mixed: median and p95 (pale), s\n* at a load that it can carry"
    _bars(right, title, mixed, "p95", alpha=0.4)
    _bars(right, title, mixed, "p50")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=100)


def _bars(axes: Axes, title: str, pairs: Sequence[tuple[Measured, Measured]], figure: str, alpha: float = 1.0) -> None:
    for side, (offset, colour) in enumerate(((-0.2, "tab:blue"), (0.2, "tab:orange"))):
        values = [pair[side].figure(figure) or 0.0 for pair in pairs]
        label = ("peer", SAFELIGHT.title + " beside it")[side] if alpha == 1.0 else None
        places = [number + offset for number in range(len(pairs))]
        axes.barh(places, values, height=0.4, color=colour, alpha=alpha, label=label)
    names = [TITLES[theirs.target] + " *" * (theirs.part == OWN_LOAD) for theirs, _ in pairs]
    axes.set_yticks(range(len(pairs)), names)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_title(title)
