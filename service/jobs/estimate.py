"""How long a job will still take, from the step times seen lately."""

from collections.abc import Iterable

from service.jobs.flight import Flight

WEIGHT = 0.1


class Estimator:
    """Keeps a moving average of the time of a denoising step and of the pictures in it."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._step_seconds: float | None = None

    def stepped(self, seconds: float) -> None:
        """Take the time of one step of a batch."""
        if self._step_seconds is None:
            self._step_seconds = seconds
        else:
            self._step_seconds += WEIGHT * (seconds - self._step_seconds)

    def seconds_left(self, flight: Flight, ahead: Iterable[Flight]) -> float | None:
        """Seconds until `flight` is done when the work `ahead` of it goes first, in full batches; None: not known."""
        if self._step_seconds is None:
            return None
        rounds = -(-flight.params.num_images // self._slots)
        own = flight.params.num_inference_steps * rounds - flight.steps_done / min(
            flight.params.num_images, self._slots
        )
        before = sum(self._steps_left(each) for each in ahead)
        return (max(own, 0.0) + before) * self._step_seconds

    def _steps_left(self, flight: Flight) -> float:
        """Denoising steps of the batches that `flight` needs: what runs has its batch, what waits will share one."""
        sharing = min(flight.params.num_images, self._slots) if flight.has_started else self._slots
        return (flight.params.total_steps - flight.steps_done) / sharing
