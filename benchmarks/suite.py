"""Safelight beside what a user would pick instead, and beside the physical limit: same model, same work, same run.

Peer after peer is started, does each part of the work and ends; Safelight does the same beside it, so that a machine
whose speed drifts is as fast for both; whoever is not measured is frozen. `benchmarks/peers/runner.py` lists the parts.
Then come workloads for Safelight alone (`benchmarks.alone`). Every figure is kept as it comes; --resume goes on with
the same code on the same machine. --write puts a whole run into the page of results; of a part of it, it only tells.
"""

import argparse
import importlib.metadata
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks import alone
from benchmarks.peers import report
from benchmarks.peers.catalogue import PEERS
from benchmarks.peers.environment import ROOT, requirements
from benchmarks.peers.published import SCENARIOS
from benchmarks.peers.results import IDLE, MIXED, OWN_LOAD, SATURATED, UNIFORM, Results
from benchmarks.peers.runner import PARTS, Runner, is_done, parts_of, seconds_of
from service.engine.torch_setup import describe_machine

RESULTS, PLOT = Path("benchmarks/RESULTS.md"), Path("benchmarks/plots/peers.png")
WRITTEN = Path("benchmarks/results.json")  # what stands there
EMBEDDED = "models/tiny"
MADE = Path("build/models")
QUICK_PEERS = ("window", "mosec")
QUICK_PARTS = (IDLE, UNIFORM, SATURATED, OWN_LOAD)  # two cores' peers carry no more
SETTINGS = ("model", "seed", "quick", "scale_time", "device")
WHOLE = {"model": EMBEDDED, "quick": False, "scale_time": 0.42, "device": "cpu"}
MEASURED = ("service", "observability", "models", "requirements.lock", "benchmarks")  # but for what is written there
PACKAGES = ("safelight", "torch", "diffusers", "transformers", "numpy")
START_SECONDS = 75.0  # of a peer, of Safelight and of the bare pipeline, with their first pictures
ALONE_SECONDS = 60.0


def start_results(arguments: argparse.Namespace) -> Results:
    """Empty results, or with --resume those that are there."""
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    system = f"{platform.system()} {platform.release().split('-')[0]}, {'-'.join(platform.libc_ver())}"
    machine = f"{describe_machine(torch.device(arguments.device))}; {system}"
    versions = {"revision": revision()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()
    for environment in (*dict.fromkeys(each.environment for each in PEERS.values()), "locust"):
        versions |= dict(line.split("==") for line in requirements(environment).read_text().split())
    results = Results(settings, machine, versions)
    if arguments.json.exists():
        if not arguments.resume:
            raise SystemExit(f"{arguments.json} is there: give --resume to go on with it, or take it away")
        begun = Results.read(arguments.json)
        for name in ("settings", "machine", "versions"):
            if getattr(begun, name) != getattr(results, name):
                raise SystemExit(f"{arguments.json} was made with other {name}: {getattr(begun, name)}")
        return begun
    return results


def revision() -> str:
    """The last commit of what is measured, and whether it was changed since."""
    written = (f":!{each}" for each in (RESULTS, WRITTEN, PLOT.parent))
    paths = ["--", *MEASURED, *written]

    def git(*words: str) -> str:
        command = ["git", *words, *paths]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()

    try:
        return git("log", "-1", "--format=%h") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):  # an archive of the files
        return "unknown"


def minutes(arguments: argparse.Namespace) -> float:
    """About how long it takes, if nothing is there yet."""
    seconds = ALONE_SECONDS * len(arguments.alone) + START_SECONDS
    for peer in arguments.peers:
        parts = parts_of(peer, arguments.parts)
        seconds += sum(seconds_of(part, arguments) for part in parts) + (START_SECONDS if parts else 0.0)
    return seconds / 60


def plan(arguments: argparse.Namespace) -> str:
    """What is to be done."""
    return (
        f"peers: {', '.join(arguments.peers)}\nparts: {', '.join(arguments.parts)}\n"
        f"Safelight alone: {', '.join(arguments.alone) or 'none'}\nabout {minutes(arguments):.0f} minutes in all"
    )


def is_whole(results: Results) -> bool:
    """Whether each workload was measured as the page says, and each peer that could run."""
    parts = [part for part in PARTS if part not in SCENARIOS or "locust" not in results.not_run]
    peers = [peer for peer in PEERS if peer not in results.not_run]
    done = (is_done(results, part, peer) for peer in peers for part in parts_of(peer, parts))
    return WHOLE.items() <= results.settings.items() and all(done) and set(alone.WORKLOADS) <= set(results.alone)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=WHOLE["model"], help="diffusers folder, or one that is made: sd15, sdxl")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of all")
    parser.add_argument("--seed", type=int, default=0, help="of the traffic")
    parser.add_argument("--only", dest="peers", action="append", choices=list(PEERS), help="this peer; may be repeated")
    parser.add_argument("--part", dest="parts", action="append", choices=PARTS, help="this part; may be repeated")
    parser.add_argument("--alone", action="append", choices=[*alone.WORKLOADS, "none"], help="this workload; or none")
    parser.add_argument("--quick", action="store_true", help="the core, in ten minutes")
    parser.add_argument("--scale-time", type=float, default=WHOLE["scale_time"], help="of the published scenarios")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="file of the results")
    parser.add_argument("--resume", action="store_true", help="go on where the run ended that wrote that file")
    parser.add_argument("--report", action="store_true", help="measure nothing: only tell what is in that file")
    parser.add_argument("--write", action="store_true", help=f"put a whole run into {RESULTS}, {PLOT} and {WRITTEN}")
    arguments = parser.parse_args()
    if arguments.report and not arguments.json.exists():
        parser.error(f"--report: {arguments.json} is not there")
    arguments.peers = arguments.peers or list(QUICK_PEERS if arguments.quick else PEERS)
    arguments.parts = arguments.parts or list(QUICK_PARTS if arguments.quick else PARTS)
    if {MIXED, OWN_LOAD} & set(arguments.parts) and SATURATED not in arguments.parts:
        parser.error(f"--part {MIXED!r} needs --part {SATURATED!r}, which says what a peer can carry")
    is_core = arguments.quick or arguments.device != "cpu"  # the others are made for the embedded model
    chosen = arguments.alone or (["none"] if is_core else list(alone.WORKLOADS))
    arguments.alone = [each for each in chosen if each != "none"]
    arguments.has_colours = arguments.model == EMBEDDED
    return arguments


def _made(name: str, device: str) -> str:
    from benchmarks import large  # takes diffusers along

    if name not in large.MAKERS:
        raise SystemExit(f"--model: {name} is neither a folder nor one of {', '.join(large.MAKERS)}")
    folder = MADE / name
    if not (folder / "model_index.json").exists():
        large.save(name, folder, device)
    return str(folder)


def main() -> None:
    """Measure, or read what was measured, and report."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an end that leaves nobody frozen
    arguments = parse()
    if arguments.report:
        results = Results.read(arguments.json)
    else:
        results = start_results(arguments)
        if not Path(arguments.model).is_dir():
            arguments.model = _made(arguments.model, arguments.device)
        print(plan(arguments), file=sys.stderr)
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        began, about = time.monotonic(), minutes(arguments)
        for told in Runner(arguments, results).run():
            spent = (time.monotonic() - began) / 60
            print(f"{spent:5.1f} of about {about:.0f} min  {told}", file=sys.stderr, flush=True)
            results.write(arguments.json)
    print(report.markdown(results))
    if arguments.write and not is_whole(results):
        print(f"{RESULTS} is of whole runs: it stays as it is", file=sys.stderr)
    elif arguments.write:
        results.write(WRITTEN)
        report.insert(results, RESULTS)
        report.draw(results, PLOT)


if __name__ == "__main__":
    main()
