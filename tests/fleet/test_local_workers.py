"""Workers that a process of this machine keeps: as many as there is work for, or one for each GPU."""

import os
import signal
from pathlib import Path

from tests.support.fleet import fleet
from tests.support.server import Server, is_running, until


def workers(api: Server) -> int:
    """Those that are there."""
    return int(api.metric("safelight_workers", pool="on_demand"))


def test_workers_come_with_the_work_and_leave_after_it(tmp_path: Path) -> None:
    """From one to two under a burst and back to one, once each; they end with the API that started them."""
    with fleet(tmp_path) as made:
        api = made.api(workers="1:2", scale_seconds=1, scale_down_seconds=5, max_batch=2).await_ready()
        seen = [0]

        def look() -> int:
            if (now := workers(api)) != seen[-1]:
                seen.append(now)
            return now

        until(lambda: look() == 1)
        jobs = [api.generate(num_inference_steps=100, cache=False)["job_id"] for _ in range(40)]
        until(lambda: look() == 2)
        until(lambda: look() and all(api.job(job)["status"] == "completed" for job in jobs))
        until(lambda: look() == 1)
        assert seen == [0, 1, 2, 1]
        assert api.metric("safelight_workers_limit") == 2
        kept = until(lambda: (found := api.children()) and len(found) == 1 and found)
        assert api.stop() == 0
        until(lambda: not any(map(is_running, kept)))


def test_a_worker_for_each_gpu_is_kept(tmp_path: Path) -> None:
    """One that dies is started again, on its GPU; all leave when they are told to."""
    with fleet(tmp_path) as made:
        api = made.api()
        keeper = made.worker(devices="0,3")
        until(lambda: workers(api) == 2)
        before = keeper.children()
        assert gpus(before) == {"0", "3"}
        dead = min(before)
        lost = gpus({dead})
        os.kill(dead, signal.SIGKILL)
        until(lambda: gpus(keeper.children() - before) == lost)
        until(lambda: workers(api) == 3)  # the dead one is believed in for a while
        until(lambda: workers(api) == 2)
        kept = keeper.children()
        assert keeper.stop() == 0
        until(lambda: not any(map(is_running, kept)))


def gpus(processes: set[int]) -> set[str | None]:
    """Those that processes were given."""
    variables = [Path(f"/proc/{each}/environ").read_bytes().decode().split("\0") for each in processes]
    return {dict(each.split("=", 1) for each in of if "=" in each).get("CUDA_VISIBLE_DEVICES") for of in variables}


def test_workers_whose_keeper_is_killed_leave(tmp_path: Path) -> None:
    """None stays to be doubled by the next one's."""
    with fleet(tmp_path) as made:
        keeper = made.worker(devices="0")
        kept = until(keeper.children)
        assert any(map(is_running, kept))
        keeper.kill()
        until(lambda: not any(map(is_running, kept)))
