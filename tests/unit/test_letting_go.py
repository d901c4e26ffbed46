"""Segments whose bytes the source has are let go; what it has not got stays."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from written import ROOT, Cache, segment_content

from raycache.core.inode import Content, Extent
from raycache.core.persisting import DONE, Outcome
from raycache.errors import Changed
from raycache.meta import letgo
from raycache.meta.handout import Handout

LATER_NS = 10**19 // 4


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "source")


def put(cache: Cache, name: str, segment: str, offset: int = 0) -> int:
    content, segments = segment_content(segment, 10, offset)
    return cache.tree.put(ROOT, name.encode(), 0o644, content, segments, 5).ino


def persist(cache: Cache, turn: int = 1) -> list[str]:
    """Have a worker do all that is due; what it did."""
    handout = Handout(cache.catalog, lambda: LATER_NS, Random(1))
    tasks = handout.exchange("worker", f"p{turn}", 1, [], [], 100)
    outcomes = [
        Outcome(task.seq, "data", task.path, DONE, f"put-{task.path}", "", task.content, task.tried[-1].mark)
        if task.content
        else Outcome(task.seq, "data", task.path, DONE)
        for task in tasks
    ]
    handout.exchange("worker", f"p{turn}", 2, outcomes, [], 0)
    return [f"{task.kind} {task.path}" for task in tasks]


def test_a_segment_goes_when_the_source_has_all_that_lies_in_it(cache: Cache) -> None:
    first, second = put(cache, "x", "s", 0), put(cache, "y", "s", 10)
    assert cache.tree.let_go_segments("worker", ["s", "none"]) == [-1, -1]
    persist(cache)
    before = cache.tree.getattr(first)
    put(cache, "y", "other")  # another version of one of them, which the source has not got
    put(cache, "z", "s", 20)
    assert cache.tree.let_go_segments("worker", ["s", "other"]) == [-1, -1]
    cache.tree.unlink(ROOT, b"z")
    assert cache.tree.let_go_segments("elsewhere", ["s"]) == [-1]
    assert cache.tree.let_go_segments("worker", ["s", "other"]) == [30, -1]
    assert cache.tree.content(first)[1] == Content(10, (Extent(0, 10, path="x", etag="put-x"),))
    assert cache.tree.content(second)[1].extents[0].segment == "other"
    assert cache.tree.getattr(first) == before, "its blocks stay what they are"
    assert cache.tree.known_segments("worker", ["s", "other"]) == [False, True]


def test_what_is_on_its_way_to_another_name_or_gone_from_its_own_is_kept(cache: Cache) -> None:
    put(cache, "x", "s")
    persist(cache)
    cache.tree.rename(ROOT, b"x", ROOT, b"moved")
    assert cache.tree.let_go_segments("worker", ["s"]) == [-1]
    assert persist(cache, 2) == ["put moved"]
    assert cache.tree.let_go_segments("worker", ["s"]) == [10]  # only its old name is to go from the source
    assert persist(cache, 3) == ["delete x"]


def test_who_read_before_where_its_bytes_lay_finds_them(cache: Cache) -> None:
    ino = put(cache, "x", "s", 5)
    _, content = cache.tree.content(ino)
    persist(cache)
    cache.tree.let_go_segments("worker", ["s"])
    part = content.extents[0]._replace(at=100, length=4, offset=8)
    now = Extent(100, 4, offset=3, path="x", etag="put-x")
    assert cache.tree.moved_segments("data", [part, Extent(0, 3)]) == [[now], [Extent(0, 3)]]
    assert cache.tree.moved_segments("other", [part]) == [[part]]
    beyond = part._replace(length=9)
    assert cache.tree.moved_segments("data", [beyond]) == [[beyond]], "not all of it is known"
    cache.tree.put(ROOT, b"copy", 0o644, Content(10, content.extents), [], 5)
    assert cache.tree.content(("data", "copy"))[1].extents == (Extent(0, 10, path="x", etag="put-x"),)
    with pytest.raises(Changed):
        cache.tree.put(ROOT, b"copy", 0o644, Content(9, (beyond._replace(at=0),)), [], 5)


def test_a_commit_that_names_what_was_dropped_is_refused(cache: Cache) -> None:
    put(cache, "x", "s")
    assert cache.tree.drop_segments("worker", ["s", "left"]) == [False, True]
    assert cache.tree.drop_segments("worker", ["left"]) == [True], "asked again"
    with pytest.raises(Changed, match="write them again"):
        put(cache, "late", "left")
    assert cache.names().count("late") == 0
    put(cache, "y", "s", 10)
    assert cache.rows("SELECT segment FROM segments") == [("s",)]


def test_what_was_dropped_is_remembered_up_to_a_bound(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letgo, "DROPPED_MAX", 3)
    cache.tree.drop_segments("worker", list("abcde"))
    assert cache.rows("SELECT segment FROM dropped ORDER BY number") == [("c",), ("d",), ("e",)]
