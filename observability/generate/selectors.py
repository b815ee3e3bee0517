"""Selectors of users' requests, and their sums: the same for the objectives and for all other rules."""

from collections.abc import Sequence
from itertools import groupby

from observability.declared import PREFIX
from observability.labels import ENDINGS, Outcome, Reason, Source
from observability.slo import BAD, GOOD


def any_of(values: Sequence[str]) -> str:
    """A matcher's value."""
    return "|".join(values)


def selector(metric: str, **matchers: str) -> str:
    """A metric of the service, by labels; `a|b` is either."""
    found = ", ".join(f'{name}{"=~" if "|" in value else "="}"{value}"' for name, value in matchers.items())
    return f"{PREFIX}{metric}{{{found}}}"


def summed(function: str, selectors: Sequence[str], window: str) -> str:
    """The `rate` or `increase` of all of them together."""
    return f"sum({' or '.join(f'{function}({each}[{window}])' for each in selectors)})"


def _ended(endings: Sequence[tuple[Outcome, Reason]]) -> tuple[str, ...]:
    """One selector an outcome, so that a reason is never taken for that of another outcome."""
    grouped = groupby(endings, key=lambda pair: pair[0])
    return tuple(_requests(outcome, [reason for _, reason in pairs]) for outcome, pairs in grouped)


def _requests(outcome: Outcome, reasons: Sequence[Reason]) -> str:
    every = set(reasons) == set(ENDINGS[outcome])
    matchers = {"outcome": outcome.value} if every else {"outcome": outcome.value, "reason": any_of(reasons)}
    return selector("requests_total", source=Source.USER.value, **matchers)


BAD_REQUESTS = _ended(BAD)
"""Requests that were not as promised."""
COUNTED_REQUESTS = _ended((*GOOD, *BAD))
"""All that count."""
