"""The store of finished pictures, and those of them that are at hand."""

from pathlib import Path

import pytest

from service.core import ImageFormat
from service.storage.images import ImageStore

PNG = ImageFormat.PNG


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    """One that keeps ten bytes at hand."""
    return ImageStore(str(tmp_path), recent_bytes=10)


def test_what_was_written_or_read_is_at_hand(store: ImageStore, tmp_path: Path) -> None:
    """By picture and format."""
    store.put("blob", [b"one", b"two"], PNG)
    assert [store.recent("blob", index, PNG) for index in range(3)] == [b"one", b"two", None]
    assert store.recent("blob", 0, ImageFormat.WEBP) is None
    other = ImageStore(str(tmp_path), recent_bytes=10)
    assert other.recent("blob", 1, PNG) is None
    assert other.get("blob", 1, PNG) == other.recent("blob", 1, PNG) == b"two"


def test_those_used_longest_ago_are_let_go(store: ImageStore) -> None:
    """Their files stay."""
    for blob in ("first", "second"):
        store.put(blob, [b"12345"], PNG)
    assert store.recent("first", 0, PNG) == b"12345"
    store.put("third", [b"678"], PNG)
    assert store.recent("second", 0, PNG) is None
    assert store.recent("first", 0, PNG) == b"12345"
    assert store.recent("third", 0, PNG) == b"678"
    assert store.get("second", 0, PNG) == b"12345"


def test_a_picture_that_is_written_again_counts_once(store: ImageStore) -> None:
    """And is the new one; one that is too large for all is not kept."""
    store.put("other", [b"12345"], PNG)
    for data in (b"abc", b"abcde"):
        store.put("blob", [data], PNG)
    assert store.recent("blob", 0, PNG) == b"abcde"
    assert store.recent("other", 0, PNG) == b"12345"
    store.put("large", [b"x" * 11], PNG)
    assert store.recent("large", 0, PNG) is None
    assert store.recent("other", 0, PNG) == b"12345"


def test_what_is_deleted_is_forgotten(store: ImageStore) -> None:
    """And makes room."""
    store.put("first", [b"12345"], PNG)
    store.put("second", [b"67890"], PNG)
    store.delete("first")
    assert store.recent("first", 0, PNG) is None
    store.put("third", [b"abcde"], PNG)
    assert [store.recent(blob, 0, PNG) for blob in ("second", "third")] == [b"67890", b"abcde"]
