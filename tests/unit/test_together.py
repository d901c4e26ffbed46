"""Files that are seen together, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache.client import editing
from raycache.client.filesystem import FileSystem
from raycache.client.together import ASIDE, together
from raycache.core.inode import Verb
from raycache.errors import Exists, InvalidInput, IsADirectory, NotADirectory, NotFound
from raycache.testing.inprocess import InProcessCache

ROOT = "raycache://data"


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[InProcessCache]:
    (tmp_path / "source" / "table").mkdir(parents=True)
    (tmp_path / "source" / "table" / "old").write_bytes(b"old")
    with InProcessCache(segments=tmp_path / "segments") as cache:
        cache.files.attach(str(tmp_path / "source"), "data", {})
        yield cache


def tree(files: FileSystem, uri: str = ROOT) -> list[str]:
    return sorted(f"{base}/{name}".removeprefix(f"{ROOT}/") for base, _, names in files.walk(uri) for name in names)


def test_a_new_directory_is_seen_when_it_is_done(cache: InProcessCache) -> None:
    _, other = cache.another()
    for mode in ("error", "append", "overwrite"):
        with together(cache.files, f"{ROOT}/new/{mode}", mode) as uri:
            cache.files.write_many({f"{uri}/a/1": b"1"})
            other.write_many({f"{uri}/2": b"2"})
            assert cache.files.exists(f"{uri}/2")
            assert not cache.files.exists(f"{ROOT}/new/{mode}")
        assert tree(cache.files, f"{ROOT}/new/{mode}") == [f"new/{mode}/2", f"new/{mode}/a/1"]
    assert cache.files.listdir(f"{ROOT}/new") == ["append", "error", "overwrite"]
    assert cache.files.read_many([f"{ROOT}/new/append/2"]) == [b"2"]


def test_a_directory_is_replaced_in_one_step(cache: InProcessCache, monkeypatch: pytest.MonkeyPatch) -> None:
    with together(cache.files, f"{ROOT}/table", "overwrite") as uri:
        cache.files.write_many({f"{uri}/new": b"new"})
        asked: list[list[str]] = []
        apply = cache.metadata.tree.apply

        def noted(verbs: list[Verb]) -> object:
            asked.append([verb.name for verb in verbs])
            return apply(verbs)

        monkeypatch.setattr(cache.metadata.tree, "apply", noted)
    assert asked == [["replace_tree"]]
    assert tree(cache.files) == ["table/new"]


def test_files_join_those_that_are_there(cache: InProcessCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editing, "VERBS_AT_ONCE", 3)
    monkeypatch.setattr(editing, "ENTRIES_AT_ONCE", 2)
    _, other = cache.another()
    for number in range(2):
        with together(cache.files, f"{ROOT}/table", "append") as uri:
            cache.files.listdir(uri)
            other.write_many({f"{uri}/day={day}/{number}-{part}": b"x" for day in "abcd" for part in range(3)})
            other.write_many({f"{uri}/old": b"%d" % number})
    assert len(tree(cache.files, f"{ROOT}/table")) == 25
    assert cache.files.read_many([f"{ROOT}/table/old"]) == [b"1"]
    with together(cache.files, ROOT, "append") as uri:
        cache.files.write_many({f"{uri}/table/day=a/more": b"x", f"{uri}/top": b"x"})
    assert cache.files.listdir(ROOT) == ["table", "top"]
    assert cache.files.exists(f"{ROOT}/table/day=a/more")


def test_after_an_exception_things_are_as_they_were(cache: InProcessCache) -> None:
    def fail(mode: str, uri: str) -> None:
        with together(cache.files, uri, mode) as aside:
            cache.files.write_many({f"{aside}/new": b"new"})
            raise RuntimeError

    for mode in ("append", "overwrite"):
        for uri in (f"{ROOT}/table", f"{ROOT}/none"):
            with pytest.raises(RuntimeError):
                fail(mode, uri)
    assert cache.files.listdir(ROOT) == ["table"]
    assert tree(cache.files) == ["table/old"]


def test_what_is_refused(cache: InProcessCache) -> None:
    def write(uri: str, mode: str, *names: str) -> None:
        with together(cache.files, uri, mode) as aside:
            cache.files.write_many({f"{aside}/{name}": b"x" for name in names})

    with pytest.raises(Exists, match="append"):
        write(f"{ROOT}/table", "error", "x")
    with pytest.raises(InvalidInput, match="choose one of"):
        write(f"{ROOT}/table", "replace", "x")
    with pytest.raises(InvalidInput, match="root"):
        write(ROOT, "overwrite", "x")
    with pytest.raises(NotFound):
        write("raycache://none/x", "append", "x")
    cache.files.mkdir(f"{ROOT}/table/dir")
    with pytest.raises(IsADirectory):
        write(f"{ROOT}/table", "append", "dir")
    with pytest.raises(NotADirectory):
        write(f"{ROOT}/table", "append", "old/below")
    with pytest.raises(Exists), together(cache.files, f"{ROOT}/new"):
        write(f"{ROOT}/new", "error", "quicker")
    assert cache.files.listdir(f"{ROOT}/new") == ["quicker"]
    assert not [name for name in cache.files.listdir(ROOT) if name.startswith(ASIDE)]
