"""One task brought about in a source: what is put over what, what is our own, what is a conflict."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raycache.core.inode import Content, Extent
from raycache.core.paths import parse_uri
from raycache.core.persisting import BLOCKED, CONFLICT, DONE, LATER, REFUSED, Attempt, Outcome, Task
from raycache.core.values import Buffer, Stat
from raycache.errors import Changed, SourceUnavailable, WorkerLost
from raycache.store import carrying
from raycache.store.carrying import carry_out
from raycache.ufs import open_ufs
from raycache.ufs.base import Limits
from raycache.ufs.generic import FsspecUfs

NOW_NS = 10**19 // 5
SEGMENTS = {"s": b"new contents", "big": b"0123456789" * 1000}


@pytest.fixture(params=["marks", "copies", "neither"])
def ufs(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "marks":
        return open_ufs(str(tmp_path))
    name = f"memory://{secrets.token_hex(6)}/d"
    return open_ufs(name) if request.param == "copies" else FsspecUfs(parse_uri(name), {}, Limits())


def read(dataset: str, extents: Sequence[Extent]) -> list[Buffer]:
    assert dataset == "data"
    found: list[Buffer] = []
    for extent in extents:
        data = SEGMENTS[extent.segment] if extent.segment else bytes(extent.offset + extent.length)
        found.append(data[extent.offset : extent.offset + extent.length])
    return found


def attempt(mark: str = "m1", size_bytes: int = 12, since_ns: int = 0, etag: str = "", version: int = 1) -> Attempt:
    return Attempt(mark, 7, version, size_bytes, since_ns, etag)


def put(base_etag: str = "", *older: Attempt, origin: tuple[str, str] | None = None, segment: str = "s") -> Task:
    size_bytes = len(SEGMENTS[segment])
    content = Content(size_bytes, (Extent(0, size_bytes, segment=segment),))
    tried = (*older, attempt(size_bytes=size_bytes))
    return Task(5, "data", "d/f", "put", base_etag, tried, content, origin)


def delete(base_etag: str = "", *tried: Attempt, kind: str = "delete") -> Task:
    return Task(5, "data", "d/f", kind, base_etag, tried)


def contents(ufs: Any, path: str = "d/f") -> bytes | None:
    try:
        found = ufs.stat(path)
    except FileNotFoundError:
        return None
    return bytes(ufs.get(path, 0, found.size_bytes, found.etag))


def test_a_new_file_and_its_next_version(ufs: Any) -> None:
    first = carry_out(put(), ufs, read)
    assert first == Outcome(5, "data", "d/f", DONE, ufs.stat("d/f").etag, content=put().content, mark="m1")
    second = carry_out(put(first.etag, segment="big"), ufs, read)
    assert (second.result, contents(ufs)) == (DONE, SEGMENTS["big"])


def test_large_files_go_in_parts(ufs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "WHOLE_MAX_BYTES", 5000)
    monkeypatch.setattr(carrying, "READ_BYTES", 3000)
    assert carry_out(put(segment="big"), ufs, read).result == DONE
    assert contents(ufs) == SEGMENTS["big"]


def test_what_others_put_is_a_conflict_and_stays(ufs: Any) -> None:
    etag = ufs.put("d/f", b"theirs, and twelve"[:12]).etag
    for base in ("", '"something else"'):
        outcome = carry_out(put(base), ufs, read)
        assert (outcome.result, outcome.etag) == (CONFLICT, etag)
        assert "changed in the source by others" in outcome.error
    assert carry_out(delete('"something else"'), ufs, read).result == CONFLICT
    assert carry_out(delete(), ufs, read).result == CONFLICT
    assert contents(ufs) == b"theirs, and "
    assert carry_out(put(etag), ufs, read).result == DONE  # as decided


def test_the_same_bytes_are_no_conflict(ufs: Any) -> None:
    etag = ufs.put("d/f", SEGMENTS["s"], mark="other").etag
    assert carry_out(put(), ufs, read)[3:5] == (DONE, etag)


def test_what_was_deleted_by_others_is_put_all_the_same(ufs: Any) -> None:
    assert carry_out(put('"gone"'), ufs, read).result == DONE
    assert contents(ufs) == SEGMENTS["s"]


def test_a_put_whose_answer_was_lost_is_known_again(ufs: Any) -> None:
    etag = ufs.put("d/f", SEGMENTS["s"], mark="m1").etag
    assert carry_out(put(), ufs, read)[3:5] == (DONE, etag)


def test_an_earlier_version_that_got_there_unheard_is_put_over_or_deleted(ufs: Any) -> None:
    ufs.put("d/f", b"older", mark="m0")
    older = attempt("m0", size_bytes=5, since_ns=ufs.stat("d/f").mtime_ns, version=0)
    assert carry_out(put("", older), ufs, read).result == DONE
    assert contents(ufs) == SEGMENTS["s"]
    ufs.put("d/f", b"older", mark="m0")
    assert carry_out(delete("", older), ufs, read).result == DONE
    assert contents(ufs) is None


def test_what_only_looks_like_an_earlier_version_is_a_conflict(ufs: Any) -> None:
    ufs.put("d/f", b"their")
    for older in (attempt("m0", size_bytes=4), attempt("m0", size_bytes=5, since_ns=NOW_NS)):
        assert carry_out(put("", older), ufs, read).result == CONFLICT


def test_an_earlier_copy_that_got_there_unheard_is_put_over(ufs: Any) -> None:
    etag = ufs.put("d/f", b"older").etag
    assert carry_out(put("", attempt("m0", 5, NOW_NS, etag)), ufs, read).result == DONE


def test_deletion_of_what_is_gone(ufs: Any) -> None:
    for task in (delete('"x"'), delete(), delete("", attempt())):
        assert carry_out(task, ufs, read).result == DONE
    ufs.put("d/f/below", b"x")
    assert carry_out(delete('"x"'), ufs, read).result == DONE
    assert contents(ufs, "d/f/below") == b"x"


def test_directories_come_and_go(tmp_path: Path) -> None:
    ufs = open_ufs(str(tmp_path))
    etag = ufs.put("d/f", b"was a file").etag
    assert carry_out(delete(etag, kind="mkdir"), ufs, read).result == DONE
    assert ufs.stat("d/f").is_dir
    ufs.put("d/f/theirs", b"x")
    assert carry_out(delete(kind="rmdir"), ufs, read).result == BLOCKED
    assert carry_out(put(), ufs, read).result == BLOCKED
    ufs.delete("d/f/theirs")
    assert carry_out(put(), ufs, read).result == DONE  # a directory that was removed, and a file in its place
    ufs.delete("d/f")
    for _ in range(2):
        assert carry_out(delete(kind="rmdir"), ufs, read).result == DONE


def test_a_copy_inside_the_source_where_there_is_one(ufs: Any) -> None:
    etag = ufs.put("from", SEGMENTS["s"], mark="old").etag
    outcome = carry_out(put(origin=("from", etag)), ufs, read)
    assert (outcome.result, contents(ufs)) == (DONE, SEGMENTS["s"])
    # What there was to copy is gone: the bytes may still be had from elsewhere.
    assert carry_out(put(outcome.etag, origin=("from", '"other"'), segment="big"), ufs, read).result == DONE
    assert contents(ufs) == SEGMENTS["big"]


def test_nothing_is_read_for_a_copy() -> None:
    ufs = open_ufs(f"memory://{secrets.token_hex(6)}/d")
    etag = ufs.put("from", SEGMENTS["s"]).etag
    assert carry_out(put(origin=("from", etag)), ufs, no_bytes).result == DONE


def no_bytes(dataset: str, extents: Sequence[Extent]) -> list[Buffer]:
    raise AssertionError("nothing is to be read")


@pytest.mark.parametrize(
    ("error", "result"),
    [(SourceUnavailable("away"), LATER), (WorkerLost("away"), REFUSED), (Changed("gone"), REFUSED)],
)
def test_bytes_that_cannot_be_read(ufs: Any, error: Exception, result: str) -> None:
    def fail(dataset: str, extents: Sequence[Extent]) -> list[Buffer]:
        raise error

    outcome = carry_out(put(), ufs, fail)
    assert outcome.result == result
    assert str(error) in outcome.error
    assert contents(ufs) is None


def test_a_source_that_is_away_and_one_that_keeps_changing(ufs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> Stat:
        raise SourceUnavailable("no answer")

    def changed(*_: object, **__: object) -> Stat:
        raise Changed("again")

    monkeypatch.setattr(ufs, "put", away)
    assert carry_out(put(), ufs, read).result == LATER
    monkeypatch.setattr(ufs, "put", changed)
    assert carry_out(put(), ufs, read).result == LATER
