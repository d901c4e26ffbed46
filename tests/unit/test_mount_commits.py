"""Commits of files in a mount that is written: what is on a disk when, and where the answer of one is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from raycache.client.namespace import WouldBlock
from raycache.core.inode import LISTED_FILE, Verb
from raycache.errors import Unavailable
from raycache.fuse.draftlog import DraftLog
from raycache.fuse.files import Files
from raycache.fuse.grouped import Grouped
from raycache.testing.inprocess import InProcessCache


class Forgetful:
    """A master that does what it is asked, and does not always say so."""

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self.is_silent = False
        self.commits = 0

    def apply(self, verbs: Sequence[Verb]) -> list[Any]:
        answers: list[Any] = self._tree.apply(verbs)
        self.commits += sum(verb.name == "commit" for verb in verbs)
        if self.is_silent:
            raise Unavailable("no answer")
        return answers


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[InProcessCache]:
    (tmp_path / "source").mkdir()
    with InProcessCache(segments=tmp_path / "segments") as cache:
        cache.files.attach(str(tmp_path / "source"), "data", {})
        yield cache


@pytest.fixture
def master(cache: InProcessCache) -> Forgetful:
    return Forgetful(cache.metadata.tree)


@pytest.fixture
def files(cache: InProcessCache, master: Forgetful, tmp_path: Path) -> Files:
    log = DraftLog(tmp_path / "log")
    log.open()
    tree: Any = master
    return Files(Grouped(tree), cache.segments, "data", log, lambda ino: None)


def begin(cache: InProcessCache, files: Files, data: bytes) -> int:
    attr = cache.metadata.tree.mknod(("data", ""), b"file", LISTED_FILE, 0, 0, 0)
    files.open(attr.ino, False)
    files.write(attr.ino, 0, memoryview(data))
    return attr.ino


def test_what_was_written_before_it_is_asked_again_is_committed_too(
    cache: InProcessCache, master: Forgetful, files: Files
) -> None:
    ino = begin(cache, files, b"first")
    master.is_silent = True
    with pytest.raises(Unavailable):
        files.commit(ino, "1")
    files.write(ino, 5, memoryview(b", second"))
    master.is_silent = False
    files.commit(ino, "1")
    assert files.is_committed(ino)
    assert cache.files.read_many(["raycache://data/file"]) == [b"first, second"]


def test_the_same_that_is_asked_again_takes_effect_once(cache: InProcessCache, master: Forgetful, files: Files) -> None:
    ino = begin(cache, files, b"ours")
    master.is_silent = True
    with pytest.raises(Unavailable):
        files.commit(ino, "1")
    cache.files.write_many({"raycache://data/file": b"theirs, later"})
    master.is_silent = False
    files.commit(ino, "1")
    assert cache.files.read_many(["raycache://data/file"]) == [b"theirs, later"]


def test_steps_that_may_not_wait_leave_what_another_commits_alone(cache: InProcessCache, files: Files) -> None:
    ino = begin(cache, files, b"bytes")
    first = files.commit_steps(ino, "1", wait=False)
    next(first)
    with pytest.raises(WouldBlock):
        next(files.commit_steps(ino, "2", wait=False))
    first.close()
    files.commit(ino, "2")
    assert files.is_committed(ino)


def test_fsync_waits_for_the_bytes_and_then_for_the_master(
    cache: InProcessCache, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    tree, fsync = cache.metadata.tree, os.fdatasync
    monkeypatch.setattr(tree._catalog, "sync", lambda: done.append("catalog"))
    monkeypatch.setattr(os, "fdatasync", lambda fd: (done.append("segment"), fsync(fd)))
    ino = begin(cache, files, b"bytes")
    files.commit(ino, "1")
    assert done == [], "a file that is closed need not be on a disk"
    files.commit(ino, "2", sync=True)
    assert done == ["segment", "catalog"], "also when it was closed before"
    files.write(ino, 5, memoryview(b"more"))
    files.commit(ino, "3", sync=True)
    assert done == ["segment", "catalog"] * 2
    files.drafts.drop(ino)
    files.commit(ino, "4", sync=True)
    assert done[4:] == ["catalog"]
    content: Any = tree.content(("data", "file"))[1]
    assert content.size_bytes == 9
