"""fsync of files in a mount that is written: their bytes, then what the master holds of them, are on a disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycache.core.inode import LISTED_FILE
from raycache.fuse.draftlog import DraftLog
from raycache.fuse.files import Files
from raycache.fuse.grouped import Grouped
from raycache.testing.inprocess import InProcessCache


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[InProcessCache]:
    (tmp_path / "source").mkdir()
    with InProcessCache(segments=tmp_path / "segments") as cache:
        cache.files.attach(str(tmp_path / "source"), "data", {})
        yield cache


def test_fsync_waits_for_the_bytes_and_then_for_the_master(
    cache: InProcessCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    tree, fsync = cache.metadata.tree, os.fdatasync
    monkeypatch.setattr(tree._catalog, "sync", lambda: done.append("catalog"))
    monkeypatch.setattr(os, "fdatasync", lambda fd: (done.append("segment"), fsync(fd)))
    log = DraftLog(tmp_path / "log")
    log.open()
    files = Files(Grouped(tree), cache.segments, "data", log, lambda ino: None)
    attr = tree.mknod(("data", ""), b"file", LISTED_FILE, 0, 0, 0)
    files.open(attr.ino, False)
    files.write(attr.ino, 0, memoryview(b"bytes"))
    files.commit(attr.ino, "1")
    assert done == [], "a file that is closed need not be on a disk"
    files.commit(attr.ino, "2", sync=True)
    assert done == ["segment", "catalog"], "also when it was closed before"
    files.write(attr.ino, 5, memoryview(b"more"))
    files.commit(attr.ino, "3", sync=True)
    assert done == ["segment", "catalog"] * 2
    files.drafts.drop(attr.ino)
    files.commit(attr.ino, "4", sync=True)
    assert done[4:] == ["catalog"]
    content: Any = tree.content(("data", "file"))[1]
    assert content.size_bytes == 9
