"""Backups: taken while the catalog is written, put back whole, and refused when anything about them is wrong."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raycache.errors import InvalidInput, NotFound, SourceUnavailable
from raycache.meta import backup as module
from raycache.meta.backup import KEPT, SUFFIX, Backup, RegularBackup, back_up, find_backups, restore
from raycache.meta.catalog import Catalog
from raycache.meta.check import check
from raycache.meta.schema import MIGRATIONS, SCHEMA_VERSION
from raycache.testing.inprocess import InProcessCache
from raycache.ufs.registry import open_ufs

NOON = datetime(2026, 5, 4, 12, tzinfo=timezone.utc)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A catalog of a directory with a thousand files, still open in this process."""
    source = tmp_path / "data"
    (source / "sub").mkdir(parents=True)
    for number in range(1000):
        (source / f"{number:04}").write_bytes(b"x")
    (tmp_path / "state").mkdir()
    path = tmp_path / "state" / "catalog-test.db"
    with InProcessCache(catalog=str(path)) as cache:
        cache.files.attach(str(source), "data", {})
        list(cache.files.walk("raycache://data"))
    return path


@pytest.fixture
def place(tmp_path: Path) -> Any:
    return open_ufs(str(tmp_path / "backups"))


def test_there_and_back_while_the_master_writes(path: Path, place: Any, tmp_path: Path) -> None:
    master = Catalog.open(path)
    master._connection.execute("BEGIN IMMEDIATE")
    master._connection.execute("DELETE FROM datasets")
    made = back_up(path, "test", place, NOON)  # in the middle of a transaction that comes to nothing
    master._connection.execute("ROLLBACK")
    later = master.add_dataset("later", "s3://later", 1)
    with pytest.raises(InvalidInput, match="--force"):
        restore(place, None, "test", path)
    assert [dataset.name for dataset in Catalog.open(path).datasets()] == ["data", "later"]
    put_back = restore(place, None, "test", tmp_path / "elsewhere" / "catalog-test.db")
    assert put_back.uri == made.uri
    assert (made.head.namespace, made.head.schema_version) == ("test", SCHEMA_VERSION)
    assert made.head.created == NOON.isoformat()
    again = Catalog.open(tmp_path / "elsewhere" / "catalog-test.db")
    (dataset,) = again.datasets()
    manifest = again.manifest(dataset.root_id)
    assert manifest is not None
    assert manifest.live_count == 1001
    # What was numbered after the backup is in use somewhere; those numbers do not come again.
    assert again.add_dataset("other", "s3://other", 1).root_id > later.root_id
    assert again._connection.execute("SELECT value FROM counters").fetchone()[0] >= module.NUMBERS_SKIPPED
    again.close()
    assert check(tmp_path / "elsewhere" / "catalog-test.db").problems == []
    assert made.size_bytes < path.stat().st_size + 4096
    assert not list(path.parent.glob(".backup-*"))


def test_force_sets_the_old_catalog_aside(path: Path, place: Any) -> None:
    back_up(path, "test", place, NOON)
    changed = Catalog.open(path)
    changed.add_dataset("later", "s3://later", 1)
    changed.close()
    restore(place, None, "test", path, force=True)
    (aside,) = (path.parent / "lost+found").glob("*.db")
    assert [dataset.name for dataset in Catalog.open(aside).datasets()] == ["data", "later"]
    assert [dataset.name for dataset in Catalog.open(path).datasets()] == ["data"]


def test_the_newest_are_kept_and_nothing_else_is_touched(path: Path, place: Any) -> None:
    others = ["notes.txt", f"catalog-other-20260101T000000.000000Z{SUFFIX}", f"catalog-test-x{SUFFIX}"]
    for name in others:
        place.put(name, b"mine")
    made = [back_up(path, "test", place, NOON + timedelta(minutes=minutes)) for minutes in range(KEPT + 2)]
    names = [backup.uri.rpartition("/")[2] for backup in made]
    assert find_backups(place, "test") == names[-KEPT:]
    listed = {name.decode() for name in place.list_directory("").column("name").to_pylist()}
    assert listed == {*others, *names[-KEPT:]}


def cut(body: bytes) -> bytes:
    return body[: len(body) // 2]


def unpacked(body: bytes) -> bytes | None:
    try:
        with pa.CompressedInputStream(pa.BufferReader(body.partition(b"\n")[2]), "zstd") as stream:
            return bytes(stream.read())
    except OSError:
        return None


def flip(body: bytes) -> bytes:
    """Some bits of a zstd stream mean nothing: flip one that does."""
    for at in range(len(body) - 40, len(body)):
        changed = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        if unpacked(changed) != unpacked(body):
            return changed
    raise AssertionError("no bit of it means anything")


def edit(**changes: Any) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        head, _, rest = body.partition(b"\n")
        return json.dumps({**json.loads(head), **changes}).encode() + b"\n" + rest

    return change


SPOILT = {
    "cut short": (cut, "damaged or cut short"),
    "no body": (lambda body: body.partition(b"\n")[0] + b"\n", "damaged or cut short"),
    "empty": (lambda body: b"", "no backup of a catalog"),
    "a flipped bit": (flip, "damaged or cut short|checksum differs"),  # zstd may decode it all the same
    "another file": (lambda body: b"\x89PNG\r\n" + body, "no backup of a catalog"),
    "another head": (edit(namespace="prod"), "checksum differs"),
    "a newer catalog": (edit(schema_version=SCHEMA_VERSION + 1), "newer raycache"),
    "a newer format": (edit(format="raycache-backup-9"), "newer raycache"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("there", [False, True], ids=["no catalog", "a catalog"])
def test_a_spoilt_backup_changes_nothing(
    path: Path, place: Any, tmp_path: Path, spoil: Callable[[bytes], bytes], message: str, there: bool
) -> None:
    made = back_up(path, "test", place, NOON)
    file = Path(made.uri.removeprefix("file://"))
    file.write_bytes(spoil(file.read_bytes()))
    target = path if there else tmp_path / "new" / "catalog-test.db"
    before = target.read_bytes() if there else None
    with pytest.raises(InvalidInput, match=message) as raised:
        restore(place, None, "test", target, force=True)
    assert made.uri in str(raised.value)
    assert (target.read_bytes() if target.exists() else None) == before
    assert {entry.name for entry in target.parent.iterdir()} <= {f"{target.name}{end}" for end in ("", "-wal", "-shm")}


def test_an_older_catalog_is_migrated_as_it_is_put_back(tmp_path: Path, place: Any) -> None:
    old = tmp_path / "old.db"
    db = sqlite3.connect(old)
    db.executescript(MIGRATIONS[0])
    db.execute("INSERT INTO directories VALUES (7, 'train', x'')")
    db.execute("INSERT INTO datasets VALUES ('train', 's3://bucket/train', 7, 5)")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    assert back_up(old, "test", place, NOON).head.schema_version == 1
    restore(place, None, "test", tmp_path / "new.db")
    assert Catalog.open(tmp_path / "new.db").dataset("train").root_id == 7


def test_nothing_to_back_up_or_to_restore(tmp_path: Path, place: Any) -> None:
    with pytest.raises(NotFound, match="there is no catalog"):
        back_up(tmp_path / "none.db", "test", place, NOON)
    place.put("notes.txt", b"mine")
    with pytest.raises(NotFound, match="no backup of namespace 'test'"):
        restore(place, None, "test", tmp_path / "new.db")
    with pytest.raises(NotFound):
        restore(place, f"gone{SUFFIX}", "test", tmp_path / "new.db")


def test_a_turn_that_fails_is_shown_and_the_next_one_is_made() -> None:
    turns: list[Any] = [SourceUnavailable("the bucket is away"), ValueError("odd"), "s3://b/one"]

    def make() -> Backup:
        turn = turns.pop(0)
        if isinstance(turn, Exception):
            raise turn
        return Backup(turn, module.Head("", 1, "", "", 1), 1)

    regular = RegularBackup(make, 600, lambda: 1234.5)
    assert regular.status() == {"made": 0, "failed": 0, "last": None, "last_s": None, "error": None}
    regular.once()
    assert (regular.status()["failed"], regular.status()["error"]) == (1, "the bucket is away")
    regular.once()
    regular.once()
    assert regular.status() == {"made": 1, "failed": 2, "last": "s3://b/one", "last_s": 1234.5, "error": None}


def test_the_loop_waits_first_and_ends_when_told() -> None:
    waited: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0)
            return len(waited) == 3

    made: list[int] = []

    def make() -> Backup:
        made.append(len(waited))
        return Backup("s3://b/one", module.Head("", 1, "", "", 1), 1)

    RegularBackup(make, 600).run(Stop())
    assert (waited, made) == ([600, 600, 600], [1, 2])
