"""Whole trees to the cache, from it and within it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycache.client import transfers
from raycache.client.transfers import copy_tree, download, upload
from raycache.errors import AccessDenied, InvalidInput, IsADirectory, NotADirectory, NotFound, Refused
from raycache.testing.inprocess import InProcessCache

ROOT = "raycache://data"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcessCache]:
    monkeypatch.setattr(transfers, "SMALL_BYTES", 1000)
    monkeypatch.setattr(transfers, "BATCH_FILES", 7)
    with InProcessCache(segments=tmp_path / "segments", workers=2) as cache:
        for name in ("data", "other"):
            (tmp_path / name).mkdir()
            cache.files.attach(str(tmp_path / name), name, {})
        yield cache


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """40 files, some of them large, in directories of which one is empty."""
    rng = random.Random(3)
    for number in range(40):
        path = tmp_path / "local" / "ab"[number % 2] / f"{number % 3}" / f"{number} ä\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(number * 50))
    (tmp_path / "local" / "empty").mkdir()
    return tmp_path / "local"


def tree(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if not path.is_symlink()
    }


def test_a_tree_goes_there_and_back(cache: InProcessCache, local: Path, tmp_path: Path) -> None:
    moved = upload(cache.files, local, f"{ROOT}/up/tree")
    assert (moved.files, moved.size_bytes, moved.left_out) == (40, sum(50 * number for number in range(40)), 0)
    assert download(cache.files, f"{ROOT}/up", tmp_path / "back") == moved
    assert tree(tmp_path / "back" / "tree") == tree(local)
    upload(cache.files, local, f"{ROOT}/up/tree")  # over what is there
    assert copy_tree(cache.files, f"{ROOT}/up", f"{ROOT}/copied/here") == moved
    assert copy_tree(cache.files, f"{ROOT}/copied/here/", "raycache://other") == moved
    for uri in (f"{ROOT}/copied/here", "raycache://other/"):
        download(cache.files, uri, tmp_path / "again")
        assert tree(tmp_path / "again" / "tree") == tree(local)


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_a_file_goes_there_and_back(cache: InProcessCache, tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(os.urandom(size))
    moved = upload(cache.files, tmp_path / "file", f"{ROOT}/dir/file")
    assert (moved.files, moved.size_bytes) == (1, size)
    assert copy_tree(cache.files, f"{ROOT}/dir/file", f"{ROOT}/copy") == moved
    assert download(cache.files, f"{ROOT}/copy", tmp_path / "back") == moved
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()


def test_links_are_followed_to_files_alone(cache: InProcessCache, local: Path) -> None:
    (local / "link").symlink_to(local / "a" / "0" / "0 ä\n")
    (local / "up").symlink_to(local)
    (local / "dangling").symlink_to(local / "none")
    os.mkfifo(local / "pipe")
    moved = upload(cache.files, local, f"{ROOT}/up")
    assert (moved.files, moved.left_out) == (41, 3)
    assert cache.files.read_many([f"{ROOT}/up/link"]) == [b""]


def test_what_cannot_be_copied_says_why(
    cache: InProcessCache, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = cache.files
    with pytest.raises(NotFound, match="none"):
        upload(files, tmp_path / "none", f"{ROOT}/x")
    with pytest.raises(NotFound):
        download(files, f"{ROOT}/none", tmp_path / "x")
    with pytest.raises(NotFound):
        copy_tree(files, f"{ROOT}/none", f"{ROOT}/x")
    upload(files, local, f"{ROOT}/tree")
    with pytest.raises(InvalidInput, match="itself"):
        copy_tree(files, f"{ROOT}/tree", f"{ROOT}/tree/below")
    with pytest.raises(InvalidInput, match="itself"):
        copy_tree(files, ROOT, f"{ROOT}/x")
    with pytest.raises(IsADirectory):
        upload(files, local / "a" / "0" / "0 ä\n", f"{ROOT}/tree")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectory):
        download(files, f"{ROOT}/tree", tmp_path / "file")
    with pytest.raises(NotADirectory):
        download(files, f"{ROOT}/tree/a/0/0 ä\n", tmp_path / "file" / "x")
    with pytest.raises(Refused):
        files.copy_many([(f"{ROOT}/tree/a/0/0 ä\n", "raycache://other/x")])

    def refuse(*_: Any, **__: Any) -> bytes:
        raise PermissionError(13, "Permission denied", "secret")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(AccessDenied, match="secret: Permission denied"):
        upload(files, local, f"{ROOT}/more")
