"""The catalog on disk: restarts, ids that are never used twice, damage that is named."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raycache.core import archive
from raycache.core.listing import LISTING_SCHEMA, build
from raycache.core.manifest import Directory, Manifest
from raycache.errors import InvalidInput, NotFound, Unavailable
from raycache.meta import catalog as catalog_module
from raycache.meta import schema
from raycache.meta.catalog import NUMBERS_SKIPPED, REQUESTS_KEPT, Catalog
from raycache.meta.lock import CatalogLock
from raycache.meta.metadata import Metadata
from raycache.meta.schema import MIGRATIONS, SCHEMA_VERSION
from raycache.ufs.base import Limits


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    catalog = Catalog.open(tmp_path / "catalog.db")
    dataset = catalog.add_dataset("train", "s3://bucket/train", 5)
    first, second = catalog.number_directories("train", ["a", "b\udcff"])
    known, third, also_known = catalog.number_directories("train", ["b\udcff", "c", "a"])
    assert (known, also_known) == (second, first)
    listing = pa.RecordBatch.from_pylist(
        [{"name": b"x", "is_dir": False, "size_bytes": 3, "mtime_ns": 1, "etag": b""}], schema=LISTING_SCHEMA
    )
    manifest = build(Directory(first, "train", "s3://bucket/train", "a", 1, 9, 100), listing, np.zeros(0, np.uint64))
    catalog.save_manifest(manifest.directory, bytes(archive.to_kept(manifest)))
    catalog.close()

    again = Catalog.open(tmp_path / "catalog.db")
    assert again.datasets() == [dataset]
    assert again.directory(second) == (dataset, "b\udcff")
    stored = again.manifest(first)
    assert stored is not None
    assert stored.directory == manifest.directory
    assert stored.find(b"x") == 0
    assert (again.version(first), again.version(second)) == (1, 0)
    assert again.counts("train") == (4, 1)
    again.remove_dataset("train")
    assert again.datasets() == []
    with pytest.raises(NotFound):
        again.directory(first)
    # A kernel may still remember the old numbers: new directories must not get them.
    assert again.add_dataset("train", "s3://bucket/train", 6).root_id > third


def test_a_version_that_does_not_follow_the_stored_one_is_not_stored() -> None:
    catalog = Catalog.open(":memory:")
    root_id = catalog.add_dataset("train", "s3://bucket/train", 5).root_id
    none = pa.RecordBatch.from_pylist([], schema=LISTING_SCHEMA)

    def save(version: int) -> bool:
        about = Directory(root_id, "train", "s3://bucket/train", "", version, 9, 100)
        body = bytes(archive.to_kept(build(about, none, np.zeros(0, np.uint64))))
        return catalog.save_manifest(about, body) is not None

    assert [save(version) for version in (2, 1, 1, 2, 4, 2, 3)] == [False, True, False, True, False, False, True]
    assert catalog.version(root_id) == 3
    assert catalog.changes(0) == (2, [root_id])


def test_one_name_one_source(tmp_path: Path) -> None:
    catalog = Catalog.open(":memory:")
    catalog.add_dataset("train", "s3://bucket/train", 1)
    for name, source in (("train", "s3://other"), ("other", "s3://bucket/train")):
        with pytest.raises(InvalidInput, match="already"):
            catalog.add_dataset(name, source, 1)
    assert len(catalog.datasets()) == 1


def test_a_file_that_is_no_catalog_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"this is not SQLite, but somebody's notes" * 100)
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match=r"catalog\.db"):
        Catalog.open(path)
    assert path.read_bytes() == before


def test_a_catalog_of_a_newer_raycache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    Catalog.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(InvalidInput, match="newer"):
        Catalog.open(path)


def older_file(path: Path) -> bytes:
    """A catalog as the first version wrote it, and the body of its one manifest."""
    listing = pa.RecordBatch.from_pylist(
        [{"name": b"x", "is_dir": False, "size_bytes": 3, "mtime_ns": 1, "etag": b""}], schema=LISTING_SCHEMA
    )
    first = build(Directory(7, "train", "s3://bucket/train", "", 1, 9, 100), listing, np.zeros(0, np.uint64))
    columns = replace(first.columns, version_rows=np.array([1, 1, 1], np.uint64))
    body = bytes(archive.to_kept(Manifest(replace(first.directory, version=3), columns)))
    db = sqlite3.connect(path)
    db.executescript(MIGRATIONS[0])
    db.execute("INSERT INTO directories VALUES (7, 'train', x'')")
    db.execute("INSERT INTO datasets VALUES ('train', 's3://bucket/train', 7, 5)")
    db.execute("INSERT INTO manifests VALUES (7, 3, ?, 12)", (body,))
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    return body


def test_an_older_catalog_is_migrated_with_all_that_is_in_it(tmp_path: Path) -> None:
    body = older_file(tmp_path / "catalog.db")
    catalog = Catalog.open(tmp_path / "catalog.db")
    assert catalog.dataset("train").root_id == 7
    manifest = catalog.manifest(7)
    assert manifest is not None
    assert (manifest.find(b"x"), manifest.directory.version) == (0, 3)
    assert catalog.changes(0) == (12, [7])
    assert catalog.save_manifest(replace(manifest.directory, version=4), body) is not None
    assert catalog.changes(0) == (13, [7]), "change numbers go on"
    catalog.close()
    Catalog.open(tmp_path / "catalog.db").close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    older_file(path)
    before = path.read_bytes()
    db = sqlite3.connect(path, isolation_level=None)
    scripts = [*MIGRATIONS[:1], MIGRATIONS[1] + "INSERT INTO counters VALUES ('half', 1); SELECT * FROM no_such_table"]
    with pytest.raises(sqlite3.OperationalError, match="no_such_table"):
        schema.migrate(db, path, scripts)
    db.close()
    assert path.read_bytes() == before
    Catalog.open(path).close()


def test_no_change_number_comes_twice() -> None:
    catalog = Catalog.open(":memory:")
    listing = pa.RecordBatch.from_pylist([], schema=LISTING_SCHEMA)
    for number, name in enumerate("ab", 1):
        root_id = catalog.add_dataset(name, f"s3://{name}", 1).root_id
        first = build(Directory(root_id, name, f"s3://{name}", "", 1, 9, 100), listing, np.zeros(0, np.uint64))
        for version in (1, 2):
            catalog.save_manifest(replace(first.directory, version=version), bytes(archive.to_kept(first)))
        assert catalog.changes(0) == (number, [root_id])
        catalog.remove_dataset(name)


def test_replies_are_kept_within_a_bound() -> None:
    catalog = Catalog.open(":memory:")
    catalog._connection.executemany(
        "INSERT INTO requests (request_id, reply) VALUES (?, 'true')", ((f"r{n}",) for n in range(REQUESTS_KEPT))
    )
    catalog.remove_dataset("none", "last")
    assert catalog._connection.execute("SELECT count(*) FROM requests").fetchone() == (REQUESTS_KEPT,)
    assert (catalog.reply("r0"), catalog.reply("r1"), catalog.reply("last"), catalog.reply(None)) == (
        None,
        True,
        True,
        None,
    )


@pytest.mark.parametrize("verb", ["attach", "refresh"])
def test_a_full_disk_is_said_and_nothing_has_changed(tmp_path: Path, verb: str) -> None:
    source, other = tmp_path / "source", tmp_path / "other"
    for directory in (source, other):
        directory.mkdir()
        for number in range(20):
            (directory / f"{number}").write_text("x")
    catalog = Catalog.open(tmp_path / "catalog.db")
    vault: dict[str, str] = {}
    ticks = itertools.count(1)
    metadata = Metadata(catalog, vault, Limits(), 1000, lambda: next(ticks))
    dataset = metadata.attach(str(source), "data", {})
    for number in range(400):
        (source / f"new-{number:0200}").write_text("y")
    verbs: dict[str, Callable[[str], Any]] = {
        "attach": lambda request: metadata.attach(str(other), "other", {}, request),
        "refresh": lambda request: metadata.refresh(dataset.root_id, request),
    }
    before = state(catalog, dataset.root_id)
    fill_up(catalog)
    with pytest.raises(Unavailable, match="disk is full; nothing was changed") as raised:
        verbs[verb]("request")
    assert str(tmp_path / "catalog.db") in str(raised.value)
    assert state(catalog, dataset.root_id) == before
    assert set(vault) == {"data"}
    make_room(catalog)
    assert metadata.manifest(dataset.root_id).live_count == 20
    verbs[verb]("request")
    assert state(catalog, dataset.root_id) != before


def state(catalog: Catalog, dir_id: int) -> tuple[Any, ...]:
    return catalog.datasets(), catalog.version(dir_id), catalog.changes(0), catalog.reply("request")


def fill_up(catalog: Catalog) -> None:
    """Leave no page free: what is free is given to a table of the test's."""
    db = catalog._connection
    db.execute("CREATE TABLE IF NOT EXISTS filling (number INTEGER PRIMARY KEY, rest BLOB)")
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
    for size in (2000, 300, 1):
        with suppress(sqlite3.OperationalError):
            while True:
                db.execute("INSERT INTO filling (rest) VALUES (zeroblob(?))", (size,))


def make_room(catalog: Catalog) -> None:
    catalog._connection.execute("PRAGMA max_page_count = 100000")


def test_a_request_that_was_answered_changes_nothing_again(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    vault: dict[str, str] = {}
    metadata = Metadata(Catalog.open(tmp_path / "catalog.db"), vault, Limits(), 1000, lambda: 5)
    dataset = metadata.attach(str(source), "data", {}, "first")
    (source / "new").write_text("x")
    assert metadata.refresh(dataset.root_id, "second") == 2
    (source / "newer").write_text("x")
    assert metadata.refresh(dataset.root_id, "second") == 2
    metadata.remove("data", "third")
    assert metadata.attach(str(source), "data", {}, "first") == dataset, "late, but it was answered before"
    assert metadata.datasets() == []
    again = metadata.attach(str(source), "data", {}, "fourth")
    metadata.remove("data", "third")
    assert metadata.datasets() == [again]
    assert again.root_id > dataset.root_id
    assert set(vault) == {"data"}


def test_a_commit_that_fails_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    full = True

    def gate(name: str) -> None:
        if name == "before commit" and full:
            raise sqlite3.OperationalError("database or disk is full")

    catalog = Catalog.open(tmp_path / "catalog.db", gate)
    with pytest.raises(Unavailable, match=r"catalog\.db cannot be written: .*full; nothing was changed, make room"):
        catalog.add_dataset("train", "s3://bucket/train", 1, request_id="request")
    assert (catalog.datasets(), catalog.reply("request")) == ([], None)
    full = False
    dataset = catalog.add_dataset("train", "s3://bucket/train", 1, request_id="request")
    assert catalog.datasets() == [dataset]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be opened"):
        Catalog.open(tmp_path / "none" / "catalog.db")
    with pytest.raises(Unavailable, match="state directory"):
        CatalogLock.take(tmp_path / "none" / "catalog.db")


def test_what_need_not_outlive_the_power_waits_for_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog.open(tmp_path / "catalog.db")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    levels = []
    for durable in (False, True, True, False):
        with catalog.transaction(durable=durable) as db:
            levels.append(db.execute("PRAGMA synchronous").fetchone()[0])
            db.execute("UPDATE counters SET value = value + 1 WHERE name = 'inos'")
    assert levels == [1, 2, 2, 1], "NORMAL and FULL"
    assert synced == []
    catalog.sync()
    assert synced == [str(tmp_path / "catalog.db-wal")]

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(Unavailable, match="cannot be synced"):
        catalog.sync()
    catalog.close()
    Catalog.open(":memory:").sync()


def test_after_a_power_cut_no_number_comes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers() -> tuple[int, int]:
        """The next directory, and the last file made here."""
        catalog = Catalog.open(tmp_path / "catalog.db")
        (dir_id,) = catalog.number_directories("train", [uuid.uuid4().hex])
        with catalog.transaction() as db:
            (ino,) = db.execute("SELECT value FROM counters WHERE name = 'inos'").fetchone()
        catalog.close()
        return dir_id, ino

    catalog = Catalog.open(tmp_path / "catalog.db")
    catalog.add_dataset("train", "s3://bucket/train", 5)
    catalog.close()
    dir_id, ino = numbers()
    assert numbers() == (dir_id + 1, ino), "only the process has ended"
    (tmp_path / "boot_id").write_text(f"{uuid.uuid4()}\n")
    monkeypatch.setattr(catalog_module, "BOOT_ID", tmp_path / "boot_id")
    assert numbers() == (dir_id + 1 + NUMBERS_SKIPPED + 1, ino + NUMBERS_SKIPPED)
    assert numbers() == (dir_id + 1 + NUMBERS_SKIPPED + 2, ino + NUMBERS_SKIPPED)
