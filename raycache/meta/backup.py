"""Backups of a catalog: taken while it is in use, to any under file system, and put back.

A backup is one file: a line of JSON that says what it is, then the catalog, zstd-compressed. It is written under its
own name in one ``put``, which the under file systems make visible whole or not at all. The checksum covers both parts.
No secret is in a catalog, so none is in a backup.

Threading: a ``RegularBackup`` is run by one thread and asked for its status by others.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import re
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import xxhash

from raycache.core import paths
from raycache.errors import InvalidInput, NotFound, RaycacheError, Unavailable
from raycache.meta.catalog import NUMBERS_SKIPPED, Catalog, skip_numbers
from raycache.meta.recovery import move_aside
from raycache.meta.schema import SCHEMA_VERSION, version_of
from raycache.ufs.base import UnderFileSystem

FORMAT = "raycache-backup-1"
SUFFIX = ".rcbackup"
KEPT = 3
"""Backups of a catalog that are kept; each new one removes the oldest beyond these."""
CHUNK_BYTES = 8 * 2**20
_HEAD_BYTES_MAX = 4096
_SCRATCH = ".backup-"
_STALE_S = 86_400.0
_log = logging.getLogger("raycache.master")


@dataclass(frozen=True, slots=True)
class Head:
    """The first line of a backup."""

    format: str
    schema_version: int
    created: str
    """UTC, ISO 8601."""
    namespace: str
    catalog_bytes: int
    xxh3_128: str = ""
    """Of this line without it, and of the catalog."""


class Backup(NamedTuple):
    """A backup that was made or found."""

    uri: str
    head: Head
    size_bytes: int


def back_up(catalog: Path, namespace: str, destination: UnderFileSystem, now: datetime) -> Backup:
    """Back a catalog up, in use or not, and remove all but the newest KEPT. Needs room for a copy beside the catalog.

    Raises NotFound when there is no catalog, Unavailable when it cannot be read or there is no room, and what the
    under file system raises; then what was there before is still there.
    """
    if not catalog.is_file():
        raise NotFound(f"{catalog}: there is no catalog; run this where the master runs, on Ray's head node")
    with _scratch(catalog.parent) as scratch:
        copy, packed = scratch / "catalog", scratch / "packed"
        try:
            version = _copy(catalog, copy)
            created = now.astimezone(timezone.utc).isoformat()
            head = Head(FORMAT, version, created, namespace, copy.stat().st_size)
            head = Head(**{**asdict(head), "xxh3_128": _digest(head, copy)})
            _pack(head, copy, packed)
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f"{catalog} cannot be backed up: {error}") from error
        name = f"{_stem(namespace)}{now.astimezone(timezone.utc):%Y%m%dT%H%M%S.%fZ}{SUFFIX}"
        with open(packed, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as body:
            view = memoryview(body)
            try:
                destination.put(name, view)
            finally:
                view.release()
        size_bytes = packed.stat().st_size
    for old in find_backups(destination, namespace)[:-KEPT]:
        destination.delete(old)
    return Backup(paths.join(destination.uri, name), head, size_bytes)


def find_backups(source: UnderFileSystem, namespace: str) -> list[str]:
    """Names of the backups of a namespace, the newest last. Raises what listing raises."""
    pattern = re.compile(re.escape(_stem(namespace)) + r"\d{8}T\d{6}\.\d{6}Z" + re.escape(SUFFIX))
    names = [name.decode("utf-8", "replace") for name in source.list_directory("").column("name").to_pylist()]
    return sorted(name for name in names if pattern.fullmatch(name))


def restore(source: UnderFileSystem, name: str | None, namespace: str, catalog: Path, *, force: bool = False) -> Backup:
    """Put a backup in a catalog's place: the one called ``name``, else the newest. The caller holds the lock.

    Raises NotFound (no backup there), InvalidInput (damaged, cut short, newer, or a catalog is there and ``force`` is
    not given), and what reading raises; then nothing has changed. With ``force``, the old catalog is set aside.
    """
    if catalog.exists() and not force:
        raise InvalidInput(f"{catalog} is there already; --force sets it aside and puts the backup in its place")
    found = find_backups(source, namespace) if name is None else [name]
    if not found:
        raise NotFound(f"{source.uri}: no backup of namespace {namespace!r} is here")
    uri = paths.join(source.uri, found[-1])
    catalog.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _scratch(catalog.parent) as scratch:
        packed, copy = scratch / "packed", scratch / "catalog"
        try:
            _fetch(source, found[-1], packed)
            head = _unpack(packed, copy, uri)
            Catalog.open(copy).close()  # migrates an older one
            _skip_numbers(copy)
        except OSError as error:
            if isinstance(error, RaycacheError):
                raise
            raise Unavailable(f"{uri} cannot be put into {catalog.parent}: {error}") from error
        size_bytes = packed.stat().st_size
        if catalog.exists():
            move_aside(catalog, time.time_ns())
        for end in ("-wal", "-shm"):  # of a catalog that is gone: they would be taken for this one's
            Path(f"{catalog}{end}").unlink(missing_ok=True)
        os.replace(copy, catalog)
        _sync(catalog.parent)
    return Backup(uri, head, size_bytes)


class RegularBackup:
    """Makes a backup every so often, and says how that goes. An error is logged and counted; the next turn tries."""

    def __init__(self, make: Callable[[], Backup], every_s: float, now_s: Callable[[], float] = time.time) -> None:
        self._make = make
        self._every_s = every_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._status: dict[str, Any] = {"made": 0, "failed": 0, "last": None, "last_s": None, "error": None}

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set. The first one is made after one interval: a master that restarts again and again
        must not push out the good ones."""
        while not stop.wait(self._every_s):
            self.once()

    def once(self) -> None:
        """One turn."""
        try:
            made = self._make()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next backup must be tried, and the master live on
            _log.exception("the catalog was not backed up")
            with self._lock:
                self._status |= {"failed": self._status["failed"] + 1, "error": str(error)}
            return
        with self._lock:
            made_now = {"made": self._status["made"] + 1, "last": made.uri, "last_s": self._now_s(), "error": None}
            self._status |= made_now

    def status(self) -> dict[str, Any]:
        """``made`` and ``failed`` since the master started, ``last`` (URI) and ``last_s`` (seconds since 1970) of the
        newest one, ``error`` of the last turn or None."""
        with self._lock:
            return dict(self._status)


def _stem(namespace: str) -> str:
    return f"catalog-{namespace}-"


def _copy(catalog: Path, copy: Path) -> int:
    """A consistent copy, whatever the master writes meanwhile; returns its schema version."""
    uri = f"{catalog.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        return version_of(target, catalog)


def _digest(head: Head, copy: Path) -> str:
    digest = _begin_digest(head)
    with open(copy, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _begin_digest(head: Head) -> xxhash.xxh3_128:
    return xxhash.xxh3_128(json.dumps({**asdict(head), "xxh3_128": ""}, sort_keys=True).encode())


def _pack(head: Head, copy: Path, packed: Path) -> None:
    with open(copy, "rb") as file, open(packed, "wb") as target:
        target.write(json.dumps(asdict(head)).encode() + b"\n")
        with pa.CompressedOutputStream(pa.PythonFile(target, "w"), "zstd") as stream:
            shutil.copyfileobj(file, stream, CHUNK_BYTES)


def _fetch(source: UnderFileSystem, name: str, packed: Path) -> None:
    about = source.stat(name)
    if about.is_dir:
        raise NotFound(f"{paths.join(source.uri, name)}: there is no such backup")
    with open(packed, "wb") as file:
        for start in range(0, about.size_bytes, CHUNK_BYTES):
            file.write(source.get(name, start, min(CHUNK_BYTES, about.size_bytes - start), about.etag))


def _unpack(packed: Path, copy: Path, uri: str) -> Head:
    """The catalog in a backup, checked. Raises InvalidInput."""
    with open(packed, "rb") as file:
        head = _read_head(file.readline(_HEAD_BYTES_MAX), uri)
        digest = _begin_digest(head)
        with open(copy, "wb") as target:
            try:
                with pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd") as stream:
                    while chunk := stream.read(CHUNK_BYTES):
                        digest.update(chunk)
                        target.write(chunk)
            except (pa.ArrowException, OSError, EOFError, ValueError) as error:
                raise InvalidInput(f"{uri} is damaged or cut short: {error}; take another backup") from error
            target.flush()
            os.fsync(target.fileno())
    if copy.stat().st_size != head.catalog_bytes or digest.hexdigest() != head.xxh3_128:
        raise InvalidInput(f"{uri} is damaged or cut short: its checksum differs; take another backup")
    return head


def _read_head(line: bytes, uri: str) -> Head:
    try:
        about = json.loads(line)
        form = str(about["format"])
        if form.startswith("raycache-backup-") and form != FORMAT:
            raise InvalidInput(f"{uri} was written by a newer raycache ({form}); upgrade raycache")
        head = Head(**about)
        if form != FORMAT or not all(isinstance(size, int) for size in (head.schema_version, head.catalog_bytes)):
            raise ValueError("its head says something else")
    except InvalidInput:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{uri} is no backup of a catalog, or is damaged: {error}") from error
    if head.schema_version > SCHEMA_VERSION:
        raise InvalidInput(
            f"{uri} was written by a newer raycache (schema {head.schema_version}, this one reads {SCHEMA_VERSION}); "
            "upgrade raycache"
        )
    return head


def _skip_numbers(copy: Path) -> None:
    with closing(sqlite3.connect(copy)) as db, db:
        skip_numbers(db)  # those given out after the backup are in use by mounts
        db.execute("UPDATE counters SET value = value + ? WHERE name = 'changes'", (NUMBERS_SKIPPED,))
        db.execute("DELETE FROM requests")  # of clients that talked to another life of this catalog


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A directory for a while. What one that was killed left behind goes after a day."""
    for left in parent.glob(f"{_SCRATCH}*"):
        if time.time() - left.stat().st_mtime > _STALE_S:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=parent) as directory:
        yield Path(directory)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
