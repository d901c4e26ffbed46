"""A snapshot shows one state of all listings for as long as it lives, and no other bytes than those of that state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache.client.direct import RememberingMaster, Shelf, ShelfMaster
from raycache.client.filesystem import FileSystem
from raycache.client.namespace import Namespace
from raycache.core.arguments import check_change
from raycache.errors import Changed, ClusterUnavailable, InvalidInput, NotFound
from raycache.fuse.vfs import ROOT_INO, Vfs
from raycache.testing.inprocess import InProcessCache

DATA = "raycache://data"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("a/1", "a/2", "a/3", "b/1"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(name.encode())
    return tmp_path / "data"


@pytest.fixture
def cache(source: Path) -> Iterator[InProcessCache]:
    with InProcessCache() as cache:
        cache.files.attach(str(source), "data", {})
        yield cache


def change_much(source: Path, cache: InProcessCache) -> None:
    """A file replaced, one removed, one added, a directory removed and one added; and all of it listed anew."""
    (source / "a" / "1").write_bytes(b"other bytes")
    (source / "a" / "2").unlink()
    (source / "a" / "4").write_bytes(b"a/4")
    (source / "b" / "1").unlink()
    (source / "b").rmdir()
    (source / "c").mkdir()
    for directory in (f"{DATA}/a", DATA):
        cache.files.refresh(directory)


def shown(files: FileSystem) -> dict[str, int]:
    tree = {f"{base}/{name}" for base, _, names in files.walk(DATA) for name in names}
    assert sorted(tree) == files.glob(f"{DATA}/**/[0-9]")
    return {
        path.removeprefix(f"{DATA}/"): about.size_bytes
        for path, about in zip(sorted(tree), files.stat_many(sorted(tree)), strict=True)
    }


OLD = {"a/1": 3, "a/2": 3, "a/3": 3, "b/1": 3}
NEW = {"a/1": 11, "a/3": 3, "a/4": 3}


def check_old(view: FileSystem) -> None:
    assert shown(view) == OLD
    assert view.listdir(DATA) == ["a", "b"]
    assert view.listdir_many([f"{DATA}/a", f"{DATA}/b"]) == [["1", "2", "3"], ["1"]]
    assert view.exists_many([f"{DATA}/{name}" for name in ("a/1", "a/2", "a/4", "b/1", "c")]) == [
        True, True, False, True, False
    ]  # fmt: skip
    assert view.lookup_many(f"{DATA}/a", ["1", "2", "4"]).size_bytes.tolist() == [3, 3, 0]
    assert view.read_many([f"{DATA}/a/3"]) == [b"a/3"]
    for gone in ("a/1", "a/2"):
        with pytest.raises(Changed), view.open(f"{DATA}/{gone}") as file:
            file.read()
        with pytest.raises(Changed):
            view.read_many([f"{DATA}/{gone}"])
    with pytest.raises(NotFound):
        view.open(f"{DATA}/a/4")


def test_what_a_snapshot_has_seen_does_not_move(source: Path, cache: InProcessCache) -> None:
    assert cache.master.newest_change() == 0
    cache.files.listdir(f"{DATA}/a")
    view = cache.view(cache.master.newest_change())
    assert view.change == 0
    assert cache.files.change is None
    assert shown(view) == OLD
    change_much(source, cache)
    assert cache.master.newest_change() == 2
    check_old(view)
    assert shown(cache.files) == NEW
    assert cache.files.read_many([f"{DATA}/a/1"]) == [b"other bytes"]
    for uri in (DATA, f"{DATA}/a"):
        with pytest.raises(InvalidInput, match="snapshot"):
            view.refresh(uri)
    check_old(view)


def test_a_snapshot_is_the_same_in_another_process(source: Path, cache: InProcessCache) -> None:
    cache.files.listdir_many([f"{DATA}/a", f"{DATA}/b"])
    change_much(source, cache)
    check_old(cache.view(0))
    (source / "a" / "5").write_bytes(b"")
    cache.files.refresh(f"{DATA}/a")
    assert cache.view(1).listdir_many([DATA, f"{DATA}/a"]) == [["a", "b"], ["1", "3", "4"]]
    assert cache.view(2).listdir_many([DATA, f"{DATA}/a"]) == [["a", "c"], ["1", "3", "4"]]
    assert cache.view(3).listdir_many([DATA, f"{DATA}/a"]) == [["a", "c"], ["1", "3", "4", "5"]]
    assert cache.view(1).stat(f"{DATA}/a/1").size_bytes == 11
    check_old(cache.view(0))


def test_a_directory_that_was_listed_later_shows_its_first_version(source: Path, cache: InProcessCache) -> None:
    change_much(source, cache)
    change = cache.master.newest_change()
    (source / "c" / "late").touch()
    cache.files.listdir(f"{DATA}/c")
    (source / "c" / "later").touch()
    cache.files.refresh(f"{DATA}/c")
    assert cache.view(change).listdir(f"{DATA}/c") == ["late"]


def test_a_mount_as_of_a_change_follows_nothing(source: Path, cache: InProcessCache, tmp_path: Path) -> None:
    root_id = cache.master.datasets()[0].root_id
    shelf = Shelf(tmp_path / "shelf")
    vfs = Vfs(Namespace(RememberingMaster(cache.master, shelf), 0), cache.reader, root_id, 7)
    a = vfs.lookup(ROOT_INO, b"a")
    old = vfs.lookup(a.ino, b"1")
    change_much(source, cache)
    assert vfs.follow(0) == (0, [], [])
    assert vfs.lookup(a.ino, b"1") == old
    assert [entry.name for entry in vfs.readdir(a.ino)] == [b"1", b"2", b"3"]
    with pytest.raises(Changed):
        vfs.read(old.ino, 0, 3)
    # Without the cluster: what the shelf has is enough.
    direct = Vfs(Namespace(ShelfMaster(shelf), 0), cache.reader, root_id, 7)
    assert direct.lookup(a.ino, b"1") == old
    answers = ShelfMaster(shelf).manifests([root_id, 12345])
    assert [type(answer).__name__ for answer in answers] == ["Manifest", "Failed"]
    for verb in (lambda: ShelfMaster(shelf).newest_change(), lambda: ShelfMaster(shelf).set_refresh("data", 5)):
        with pytest.raises(ClusterUnavailable, match="away"):
            verb()


def test_a_successor_of_a_gateway_shows_the_same(source: Path, cache: InProcessCache, tmp_path: Path) -> None:
    root_id = cache.master.datasets()[0].root_id
    shelf = Shelf(tmp_path / "shelf")
    first = Vfs(Namespace(RememberingMaster(cache.master, shelf), 0), cache.reader, root_id, 7)
    a = first.lookup(ROOT_INO, b"a")
    first.lookup(a.ino, b"1")
    change_much(source, cache)
    successor = Vfs(Namespace(RememberingMaster(cache.master, shelf), 0), cache.reader, root_id, 7)
    direct = Vfs(Namespace(ShelfMaster(shelf), 0), cache.reader, root_id, 7)
    for vfs in (successor, direct):
        assert [entry.name for entry in vfs.readdir(ROOT_INO)] == [b"a", b"b"]
        assert [entry.name for entry in vfs.readdir(a.ino)] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("change", [-1, 8, True, "7", 7.0, None])
def test_a_change_that_cannot_be_meant_is_refused(change: int) -> None:
    assert check_change(7, newest=7) == 7
    with pytest.raises(InvalidInput, match="snapshot"):
        check_change(change, newest=7)
