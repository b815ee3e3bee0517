"""Histograms, held against those of prometheus_client."""

from random import Random

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest

from observability.histogram import Histogram

BOUNDS = (0.0, 0.1, 1.0, 2.5)


def test_a_scrape_is_that_of_the_library() -> None:
    """Values on bounds, between and above them; with labels and without; buckets that nothing fell into."""
    disable_created_metrics()  # as the service does
    random = Random(3)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    age = Histogram("age", "Age.", ["of", "kind"], BOUNDS, ours)
    size = Histogram("size", "Size.", (), BOUNDS, ours)
    their_age = prometheus_client.Histogram("age", "Age.", ["of", "kind"], buckets=BOUNDS, registry=theirs)
    their_size = prometheus_client.Histogram("size", "Size.", buckets=BOUNDS, registry=theirs)
    for _ in range(200):
        value, labels = random.choice([*BOUNDS, random.uniform(0, 5)]), (random.choice("ab"), random.choice("xy"))
        for each in (age.labels(*labels), size, their_age.labels(*labels), their_size):
            each.observe(value)
    assert generate_latest(ours) == generate_latest(theirs)


def test_a_bucket_names_the_last_value_with_an_exemplar() -> None:
    """A later one without leaves it there."""
    registry = CollectorRegistry()
    size = Histogram("size", "Size.", (), BOUNDS, registry)
    for value, exemplar in ((1.5, {"trace_id": "1"}), (2.5, {"trace_id": "2"}), (2.0, None)):
        size.observe(value, exemplar)
    (family,) = registry.collect()
    found = {each.labels["le"]: each.exemplar for each in family.samples if each.exemplar}
    assert {limit: (each.labels, each.value) for limit, each in found.items()} == {"2.5": ({"trace_id": "2"}, 2.5)}


def test_a_name_is_taken_once() -> None:
    """And labels must be as many as were declared."""
    registry = CollectorRegistry()
    size = Histogram("size", "Size.", ["of"], BOUNDS, registry)
    with pytest.raises(ValueError, match="size"):
        Histogram("size", "Size.", (), BOUNDS, registry)
    with pytest.raises(ValueError, match="argument"):
        size.labels("a", "b")
