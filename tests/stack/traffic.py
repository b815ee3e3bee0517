"""Requests of all kinds, until told to stop: what a stack has to tell of."""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

import httpx

POISON = "poison"  # a prompt with this word fails; see service.engine.faults
Asking = Callable[[httpx.Client, int], None]


def _ask(client: httpx.Client, wait: float, **body: object) -> httpx.Response:
    return client.post("/generate", params={"wait": wait}, json={"guidance_scale": 4.0, **body})


def _new_pictures(client: httpx.Client, number: int) -> None:
    sizes = [{}, {"width": 64, "height": 64}]
    _ask(client, 60, prompt=f"a red apple {number}", num_inference_steps=(4, 12)[number % 2], **sizes[number % 3 == 0])


def _urgent_and_patient(client: httpx.Client, number: int) -> None:
    _ask(client, 60, prompt=f"a pizza {number}", num_inference_steps=8, priority=("high", "low")[number % 2])


def _the_same_again(client: httpx.Client, number: int) -> None:
    _ask(client, 60, prompt="a blue fish", num_inference_steps=4, seed=number % 2)


def _called_off(client: httpx.Client, number: int) -> None:
    if number % 20:
        return
    job = _ask(client, 0, prompt=f"a tree {number}", num_inference_steps=40).json()
    if "job_id" in job:
        client.delete(f"/jobs/{job['job_id']}")


def _wrong(client: httpx.Client, number: int) -> None:
    if number % 100:
        return
    _ask(client, 60, prompt=f"{POISON} {number}", num_inference_steps=4)
    _ask(client, 60, prompt="no steps", num_inference_steps=0)
    _ask(client, 60, prompt="no time", num_inference_steps=100, timeout_s=1)


KINDS: tuple[Asking, ...] = (_new_pictures, _urgent_and_patient, _the_same_again, _called_off, _wrong)


@contextlib.contextmanager
def flowing(url: str) -> Iterator[None]:
    """One client of each kind while the block runs."""
    stop = threading.Event()

    def go_on(ask: Asking) -> None:
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            for number in itertools.count():
                if stop.is_set():
                    return
                with contextlib.suppress(httpx.HTTPError):  # the service may be the one that is tried out
                    ask(client, number)
                stop.wait(0.2)

    threads = [threading.Thread(target=go_on, args=(each,), daemon=True) for each in KINDS]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)
