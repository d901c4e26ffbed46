"""A listed tree cut into directories, against the plain way to do it; and many listings as one stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from listings import Entry, listing_of

from raycache.core.paths import is_shown
from raycache.core.tree import cut
from raycache.errors import NotFound, SourceUnavailable
from raycache.ufs.treewalk import AddBranch, in_parallel, walk_tree

SEGMENTS = st.sampled_from([b"a", b"b", b"ab", b"a.x", b"\xff", b"new\n", b"", b".", b"..", b"x" * 255, b"y" * 256])
PATHS = st.lists(SEGMENTS, min_size=1, max_size=4).map(b"/".join)
ENTRIES = st.lists(
    st.builds(Entry, PATHS, is_dir=st.booleans(), size=st.integers(0, 9), mtime_ns=st.just(1), etag=st.just("v")),
    max_size=20,
)


def plainly(entries: list[Entry]) -> dict[str, list[tuple[bytes, bool]]]:
    """Directories of a tree by their paths, each with the names and kinds in it, sorted."""
    found: dict[tuple[bytes, ...], set[tuple[bytes, bool]]] = {(): set()}
    for entry in entries:
        *above, name = entry.name.split(b"/")
        for depth, segment in enumerate(above):
            found.setdefault(tuple(above[:depth]), set()).add((segment, True))
        found.setdefault(tuple(above), set()).add((name, entry.is_dir))
        if entry.is_dir:
            found.setdefault((*above, name), set())
    shown = {path: rows for path, rows in found.items() if all(map(is_shown, path))}
    return {b"/".join(path).decode("utf-8", "surrogateescape"): sorted(rows) for path, rows in shown.items()}


@given(entries=ENTRIES, batches=st.integers(1, 4), seed=st.randoms(use_true_random=False))
def test_cut_is_the_plain_way(entries: list[Entry], batches: int, seed: Any) -> None:
    seed.shuffle(entries)
    parts = [listing_of(entries[number::batches]) for number in range(batches)]
    found = list(cut(parts))
    assert len({path for path, _ in found}) == len(found), "each directory once"
    for _, level in found:
        level.validate(full=True)
    assert {
        path: sorted(zip(level["name"].to_pylist(), level["is_dir"].to_pylist(), strict=True)) for path, level in found
    } == plainly(entries)


def test_cut_keeps_what_belongs_to_a_row() -> None:
    rows = [Entry(b"a/b/f", False, 7, 3, "one"), Entry(b"g", False, 9, 4, "two"), Entry(b"a/b", True, 0, 5)]
    sliced = listing_of([Entry(b"zz/other"), *rows]).slice(1)  # offsets of a slice do not begin at 0
    found = {path: level.to_pylist() for path, level in cut([sliced])}
    assert found["a/b"] == listing_of([Entry(b"f", False, 7, 3, "one")]).to_pylist()
    assert sorted(found[""], key=lambda row: row["name"]) == listing_of([Entry(b"a", True), rows[1]]).to_pylist()
    assert found["a"] == listing_of([Entry(b"b", True, 0, 5)]).to_pylist()


TREE = {"": ["d", "e"], "d": ["x", "y"], "d/x": [], "d/y": [], "e": []}


def level(path: str) -> pa.RecordBatch:
    if path not in TREE:
        raise NotFound(f"{path}: no such directory")
    names = [Entry(name.encode(), True) for name in TREE[path]]
    return listing_of([*names, Entry(b"file", size=len(path))])


def names(listing: Iterator[Any]) -> list[str]:
    return sorted(name.decode() for batch in listing for name in batch["name"].to_pylist())


@pytest.mark.parametrize("threads", [1, 3])
def test_walk_tree_lists_everything_below(threads: int) -> None:
    assert names(walk_tree(level, "d", threads)) == ["file", "x", "x/file", "y", "y/file"]


def test_a_directory_deleted_meanwhile_is_left_out_but_not_the_first() -> None:
    def vanished(path: str) -> pa.RecordBatch:
        return level(path) if path != "d/x" else level("none")

    assert names(walk_tree(vanished, "d")) == ["file", "x", "y", "y/file"]
    with pytest.raises(NotFound):
        list(walk_tree(level, "none"))


@pytest.mark.parametrize("threads", [1, 4])
def test_a_branch_that_fails_is_an_error_and_no_short_listing(threads: int) -> None:
    def away(path: str) -> pa.RecordBatch:
        if path == "d/y":
            raise SourceUnavailable(f"{path}: away")
        return level(path)

    with pytest.raises(SourceUnavailable, match="d/y"):
        list(walk_tree(away, "", threads))


def test_who_stops_reading_ends_the_threads_and_holds_a_bounded_number_of_batches() -> None:
    listed = threading.Semaphore(0)
    ended = threading.Event()

    def endless(add: AddBranch) -> Iterator[int]:
        try:
            number = 0
            while True:
                listed.release()
                yield number
                number += 1
        finally:
            ended.set()

    listing = in_parallel(endless, 1)
    assert next(listing) == 0
    # One was taken, eight are held, one is in the thread's hand; no more are made until somebody takes one.
    for _ in range(10):
        assert listed.acquire(timeout=10)
    assert not listed.acquire(timeout=0.05)
    listing.close()
    assert ended.wait(10)
