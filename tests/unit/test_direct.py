"""Reading with the cluster away: saved manifests, bytes from the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycache.client.direct import RememberingMaster, Shelf, ShelfMaster, SourcePool
from raycache.client.namespace import Namespace
from raycache.client.reader import Reader
from raycache.errors import Changed, ClusterUnavailable
from raycache.fuse.vfs import ROOT_INO, Vfs
from raycache.testing.inprocess import InProcessCache
from raycache.ufs import open_ufs


def test_what_was_listed_is_read_from_the_source_under_the_same_numbers(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("a/x", "a/y", "b/z"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(name.encode() * 1000)
    shelf = Shelf(tmp_path / "shelf")
    with InProcessCache() as cache:
        dataset = cache.files.attach(str(source), "data", {})
        vfs = Vfs(Namespace(RememberingMaster(cache.master, shelf)), cache.reader, dataset.root_id, 7)
        a = vfs.lookup(ROOT_INO, b"a")
        b = vfs.lookup(ROOT_INO, b"b")
        x = vfs.lookup(a.ino, b"x")

    pool = SourcePool(open_ufs(str(source)))
    alone = Vfs(Namespace(ShelfMaster(shelf)), Reader(pool, 1 << 20, 5), dataset.root_id, 7)
    assert alone.lookup(ROOT_INO, b"a") == a
    assert alone.getattr(x.ino) == x
    assert alone.read(x.ino, 2, 5) == b"xa/xa"
    assert alone.read(alone.lookup(a.ino, b"y").ino, 0, 9000) == b"a/y" * 1000
    assert pool.reads == 2
    with pytest.raises(ClusterUnavailable, match="was not listed before"):
        alone.lookup(b.ino, b"z")
    (source / "a" / "x").write_bytes(b"other")
    with pytest.raises(Changed):
        alone.read(x.ino, 0, 3)


def test_a_damaged_file_on_the_shelf_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    shelf = Shelf(tmp_path / "shelf")
    with InProcessCache() as cache:
        dataset = cache.files.attach(str(tmp_path / "source"), "data", {})
        manifest = cache.master.manifest(dataset.root_id)
    shelf.save(manifest)
    assert shelf.directories() == [dataset.root_id]
    (file,) = (tmp_path / "shelf").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert shelf.load(dataset.root_id) is None
    assert shelf.load(12345) is None
    shelf.clear()
    assert not (tmp_path / "shelf").exists()
