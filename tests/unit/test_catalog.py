"""The catalog on disk: restarts, ids that are never used twice, damage that is named."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raycache.core import archive
from raycache.core.listing import LISTING_SCHEMA, build
from raycache.core.manifest import Directory
from raycache.errors import InvalidInput, NotFound
from raycache.meta.catalog import SCHEMA_VERSION, Catalog


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
