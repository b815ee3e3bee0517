"""Users for the stack (`make stack LOAD=1`), run by Locust: each asks for a picture, waits for it, and then rests."""

import random

from locust import FastHttpUser, between, task

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
THINGS = ("pizza", "rocket", "cat", "umbrella", "guitar", "whale", "candle", "tractor", "mushroom", "key")
FAVOURITES = 5  # prompts with seeds that many ask for again
WAIT_SECONDS = 50  # less than the client waits for an answer


class Painter(FastHttpUser):
    """Asks mostly for something new, also for favourites, which the cache has; now and then changes its mind."""

    wait_time = between(0.5, 3)

    @task(6)
    def new(self) -> None:
        """Any steps and guidance: all share batches."""
        steps, guidance = random.choice((4, 8, 20, 50)), random.choice((4.0, 7.5))
        self._ask(self._prompt(), num_inference_steps=steps, guidance_scale=guidance)

    @task(3)
    def favourite(self) -> None:
        """The same as others."""
        self._ask("a pizza on a teal background", num_inference_steps=20, seed=random.randrange(FAVOURITES))

    @task(1)
    def changed_mind(self) -> None:
        """A job that is called off."""
        answer = self.client.post("/generate", json={"prompt": self._prompt(), "num_inference_steps": 50})
        if answer.status_code == 202:
            self.client.delete(f"/jobs/{answer.json()['job_id']}", name="/jobs/{id}")

    def _prompt(self) -> str:
        return f"a {random.choice(THINGS)} on a {random.choice(COLOURS)} background, number {random.randrange(1 << 30)}"

    def _ask(self, prompt: str, **more: float) -> None:
        body = {"prompt": prompt, **more}
        self.client.post("/generate", params={"wait": WAIT_SECONDS}, json=body, headers={"Accept": "image/png"})
