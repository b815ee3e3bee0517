"""Durations in rules, as they ship and compressed, so that a drill of hours runs in minutes.

A rule is written once. In its expression a window stands as Prometheus has it, `[5m]` or `offset 1h`, and a duration
that is compared with seconds as `<2m>`, which becomes `120`; `<scrape>` is the time between scrapes.
"""

import re
from dataclasses import dataclass

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
SCRAPES_IN_A_WINDOW = 5  # fewer, and a rate has too little to stand on
WINDOW = re.compile(r"\[(\d+[smhd])\]|\b(offset) (\d+[smhd])\b")
AMOUNT = re.compile(r"<(\d+[smhd])>")


def seconds(duration: str) -> int:
    """`5m` in seconds."""
    return int(duration[:-1]) * SECONDS[duration[-1]]


@dataclass(frozen=True, slots=True)
class Timing:
    """How much faster than as shipped time runs, and how many seconds are between scrapes and between evaluations."""

    factor: float = 1.0
    scrape: float = 15.0

    def expression(self, text: str) -> str:
        """An expression with its durations in this timing."""

        def window(match: re.Match[str]) -> str:
            if match[1]:
                return f"[{self.window(match[1])}]"
            return f"offset {self.window(match[3])}"

        text = text.replace("<scrape>", f"{self.scrape:g}")
        amounts = AMOUNT.sub(lambda match: f"{seconds(match[1]) / self.factor:g}", text)
        return WINDOW.sub(window, amounts)

    def window(self, duration: str) -> str:
        """The window of a rate: never so short that it holds too few scrapes."""
        if self.factor == 1:
            return duration
        return _milliseconds(max(seconds(duration) / self.factor, SCRAPES_IN_A_WINDOW * self.scrape))

    def hold(self, duration: str) -> str:
        """How long something has to last."""
        return duration if self.factor == 1 else _milliseconds(seconds(duration) / self.factor)


def _milliseconds(number: float) -> str:
    return f"{round(number * 1000)}ms"


SHIPPED = Timing()
