"""fsck: every kind of damage is found, named and mended, and no old row number ever means another file."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raycache.client.namespace import Namespace
from raycache.core import archive
from raycache.core.manifest import Manifest
from raycache.errors import InvalidInput, NotFound, Unavailable
from raycache.fuse.vfs import ROOT_INO, Vfs
from raycache.meta.catalog import Catalog
from raycache.meta.check import check, repair
from raycache.meta.lock import CatalogLock
from raycache.meta.schema import SCHEMA_VERSION, checksum
from raycache.testing.inprocess import InProcessCache


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for path in ("data/one", "data/two", "data/sub/three", "data/sub/deep/four", "data/other/five"):
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path)
    return tmp_path / "data"


@pytest.fixture
def path(tmp_path: Path, source: Path) -> Path:
    """A catalog in which all of ``source`` has been listed."""
    path = tmp_path / "catalog.db"
    with InProcessCache(catalog=str(path)) as cache:
        cache.files.attach(str(source), "data", {})
        list(cache.files.walk("raycache://data"))
    return path


def damage(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path)
    db.create_function("xxh3_64", 1, checksum)
    with db:
        for statement in statements:
            assert db.execute(statement).rowcount, f"does nothing: {statement}"
    db.close()


def dir_id(path: Path, where: str) -> int:
    db = sqlite3.connect(path)
    (found,) = db.execute("SELECT dir_id FROM directories WHERE path = ?", (where.encode(),)).fetchone()
    db.close()
    return int(found)


SUB = "(SELECT dir_id FROM directories WHERE path = CAST('sub' AS BLOB))"
ROOT = "(SELECT dir_id FROM directories WHERE path = x'')"
BODY = "UPDATE bodies SET body ="
OF = "WHERE body_id IN (SELECT body_id FROM manifests WHERE dir_id"
BODY_OF_ROOT = f"(SELECT body FROM bodies JOIN manifests USING (body_id) WHERE dir_id = {ROOT})"
DAMAGE = {
    "a flipped byte": (f"{BODY} CAST(x'00' || substr(body, 2) AS BLOB) {OF} = {SUB})",),
    "cut short": (f"{BODY} substr(body, 1, length(body) / 2) {OF} = {SUB})",),
    "no manifest": (f"{BODY} x'ff', checksum = xxh3_64(x'ff') {OF} = {SUB})",),
    "of another directory": (f"{BODY} {BODY_OF_ROOT}, checksum = xxh3_64({BODY_OF_ROOT}) {OF} = {SUB})",),
    "the root's": (f"{BODY} x'ff' {OF} = {ROOT})",),
    "two": (f"{BODY} x'ff' {OF} IN ({ROOT}, {SUB}))",),
    "all": (f"{BODY} x'ff'",),
    "directory gone": (f"DELETE FROM manifests WHERE dir_id = {SUB}", f"DELETE FROM directories WHERE dir_id = {SUB}"),
    "path gone": (f"DELETE FROM directories WHERE dir_id = {SUB}",),
    "path changed": (f"UPDATE directories SET path = CAST('elsewhere' AS BLOB) WHERE dir_id = {SUB}",),
    "root elsewhere": ("UPDATE datasets SET root_id = 999",),
    "dataset gone": ("DELETE FROM datasets",),
}


@pytest.mark.parametrize("statements", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_found_mended_and_nothing_old_means_another_file(
    path: Path, source: Path, statements: tuple[str, ...]
) -> None:
    seen = rows_of(path)
    damage(path, *statements)
    (source / "sub" / "aaa").write_text("comes first in a new listing: row numbers would move")
    os.unlink(source / "one")
    found = check(path)
    assert found.problems
    assert all(problem.where and problem.what for problem in found.problems)
    mended = repair(path)
    assert mended.problems == []
    assert mended.repaired
    assert check(path).problems == []
    with InProcessCache(catalog=str(path)) as cache:
        cache.files.attach(str(source), "data", {})
        cache.files.refresh("raycache://data")
        cache.files.refresh("raycache://data/sub")
        shown = {
            os.path.join(base.removeprefix("raycache://data").lstrip("/"), name)
            for base, _, names in cache.files.walk("raycache://data")
            for name in names
        }
    assert shown == {"two", "sub/aaa", "sub/three", "sub/deep/four", "other/five"}
    assert check(path).problems == []
    now = rows_of(path)
    assert {key: now[key] for key in seen if key in now} == {key: seen[key] for key in seen if key in now}


def rows_of(path: Path) -> dict[tuple[int, int], tuple[bytes, int, str]]:
    """What each inode number of each readable listing means."""
    db = sqlite3.connect(path)
    bodies = db.execute("SELECT body FROM bodies").fetchall()
    db.close()
    manifests = [archive.from_bytes(body) for (body,) in bodies]
    return {
        (manifest.directory.dir_id, row): (manifest.name(row), manifest.size(row), manifest.etag(row))
        for manifest in manifests
        for row in range(manifest.row_count)
    }


def test_a_sound_catalog_has_no_problems_also_while_the_master_runs(path: Path) -> None:
    master = Catalog.open(path)
    report = check(path)
    assert (report.problems, report.datasets, report.directories, report.files) == ([], 1, 4, 5)
    master.close()
    with CatalogLock.take(path), pytest.raises(Unavailable, match="raycache stop"):
        CatalogLock.take(path)
    CatalogLock.take(path).release()


def test_what_checksums_cannot_see_the_look_at_each_entry_does(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Manifest, "find_many", lambda manifest, names: np.zeros(len(names)))
    assert "is not found by its name" in check(path).problems[0].what
    assert check(path, deep=False).problems == []


@pytest.mark.parametrize("spoil", [lambda body: b"no SQLite at all" * 300, lambda body: body[:100] + b"\xff" * 9000])
def test_a_file_that_sqlite_cannot_use_is_set_aside(path: Path, spoil: Callable[[bytes], bytes]) -> None:
    Catalog.open(path).close()
    path.write_bytes(spoiled := spoil(path.read_bytes()))
    report = check(path)
    assert [problem.kind for problem in report.problems] == ["file"]
    assert path.read_bytes() == spoiled, "looking changes nothing"
    mended = repair(path)
    assert mended.problems == []
    (kept,) = (path.parent / "lost+found").glob("*.db")
    assert kept.read_bytes() == spoiled
    assert str(kept) in mended.repaired[0]
    assert check(path).datasets == 0


def test_numbers_go_on_where_a_broken_file_stopped(path: Path) -> None:
    last = max(dir_id(path, where) for where in ("", "sub", "other", "sub/deep"))
    damage(path, "CREATE INDEX by_version ON manifests (version)")
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'datasets')"
                   " WHERE name = 'by_version'")  # fmt: skip
    db.close()
    assert check(path).problems[0].kind == "file"
    repair(path)
    catalog = Catalog.open(path)
    assert catalog.add_dataset("data", "s3://b", 1).root_id > last


def test_the_master_meets_a_damaged_listing_and_goes_on(path: Path, source: Path) -> None:
    with InProcessCache(catalog=str(path)) as cache:
        before = cache.files.listdir("raycache://data/sub")
        other = Namespace(cache.master)
        old_root = other.walk(*other.locate("raycache://data")).manifest
        old_sub = other.walk(*other.locate("raycache://data/sub")).manifest.directory.dir_id
        damage(path, *DAMAGE["a flipped byte"])
        (source / "sub" / "aaa").write_text("first")
        with pytest.raises(NotFound, match="made anew"):
            cache.master.manifest(old_sub)
        assert cache.metadata.rebuilt == 1
        # A client that holds the old listing of the root finds the way, and one that follows changes is told.
        cache.namespace._held.pop(old_sub)
        assert cache.files.listdir("raycache://data/sub") == sorted([*before, "aaa"])
        ((old, new),) = other.follow(0)[1]
        assert old is old_root
        assert new.directory.version > old_root.directory.version
        assert new.child_id(new.find(b"sub") or 0) != old_sub
        with pytest.raises(NotFound):
            cache.master.manifest(old_sub)
    assert check(path).problems == []


def test_a_mount_is_told_and_an_old_inode_number_never_shows_another_file(path: Path, source: Path) -> None:
    with InProcessCache(catalog=str(path)) as cache:
        (dataset,) = cache.master.datasets()
        vfs = Vfs(Namespace(cache.master), cache.reader, dataset.root_id, 1)
        sub = vfs.lookup(ROOT_INO, b"sub").ino
        three = vfs.lookup(sub, b"three").ino
        damage(path, *DAMAGE["a flipped byte"])
        (source / "sub" / "aaa").write_text("first")
        # The next gateway of the mount: it holds nothing, and gets the numbers that its kernel remembers.
        vfs = Vfs(Namespace(cache.master), cache.reader, dataset.root_id, 1)
        assert vfs.lookup(ROOT_INO, b"sub").ino == sub
        with pytest.raises(NotFound):
            vfs.getattr(three)
        assert vfs.follow(0)[1] == [(ROOT_INO, b"sub")], "the kernel forgets this name, and asks for it again"
        new_sub = vfs.lookup(ROOT_INO, b"sub").ino
        assert bytes(vfs.read(vfs.lookup(new_sub, b"three").ino, 0, 100)) == b"data/sub/three"
        with pytest.raises(NotFound):
            vfs.read(three, 0, 100)


def test_the_master_meets_a_damaged_root(path: Path, source: Path) -> None:
    with InProcessCache(catalog=str(path)) as cache:
        cache.files.stat(str(source))
        damage(path, *DAMAGE["the root's"])
        cache.namespace.forget()
        assert cache.files.listdir("raycache://data") == ["one", "other", "sub", "two"]
        assert cache.metadata.rebuilt == 1
    assert check(path).problems == []


def test_what_is_no_catalog_is_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(NotFound, match="head node"):
        check(tmp_path / "none.db")
    damage_to = tmp_path / "other.db"
    with sqlite3.connect(damage_to) as db:
        db.execute("CREATE TABLE notes (text)")
    db.close()
    for use in (check, Catalog.open):
        with pytest.raises(InvalidInput, match="not a catalog"):
            use(damage_to)
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(InvalidInput, match="newer"):
        repair(path)
