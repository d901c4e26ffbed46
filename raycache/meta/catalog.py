"""The catalog: what the master remembers, in one SQLite file. ``schema`` is its documentation.

One transaction per verb; WAL, so that a reader never waits for a writer. Nothing secret is ever stored here.
A verb that changes something may carry the id of the client's request: its reply is then kept with the change, so that
a client that did not get it and asks again gets the same reply, and nothing is done twice.

What is stored outlives the process at once. A transaction that is not ``durable`` outlives the power only with the next
one that is, or with ``sync``: what a power cut leaves is what was there at some moment. A catalog that is opened after
one gives out numbers far above those it knows of, since others may remember what was lost.

Threading: one connection behind one lock; no verb does anything slow inside it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from raycache.core import archive
from raycache.core.manifest import Directory, Manifest
from raycache.core.retention import Retention
from raycache.core.values import Buffer, Dataset
from raycache.errors import InvalidInput, NotFound, Unavailable
from raycache.meta.extents import forget_written, renumber_written
from raycache.meta.schema import checksum, migrate

REQUESTS_KEPT = 262_144
"""Replies kept for clients that ask again, a hundred or two bytes each: more than come in while one client pauses
before it asks again, when others make 20,000 files a second."""

NUMBERS_SKIPPED = 1 << 20
"""How much higher a catalog goes on with numbers, of which some that were given out are not in it."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Another one each time that Linux starts."""

Gate = Callable[[str], None]
"""Called with "before commit" and "after commit" of each transaction that changed something. Tests die in it."""


class Listed(NamedTuple):
    """A version of a directory, ready to be stored: packing takes its time, and is done before a transaction."""

    about: Directory
    body: Buffer

    @staticmethod
    def of(manifest: Manifest) -> Listed:
        """Pack a manifest."""
        return Listed(manifest.directory, memoryview(archive.to_kept(manifest)))


class Catalog:
    """Open with ``Catalog.open``; close with ``close``."""

    def __init__(self, connection: sqlite3.Connection, path: Path | str, gate: Gate | None = None) -> None:
        self._connection = connection
        self._path = path
        self._gate = gate
        self._lock = threading.Lock()
        self._durable = True

    @staticmethod
    def open(path: Path | str, gate: Gate | None = None) -> Catalog:
        """Open or create the catalog at ``path`` (``":memory:"`` in tests); an older one is migrated.

        Raises InvalidInput for a file that is no catalog, is damaged, or was written by a newer raycache; Unavailable
        for one that cannot be opened.
        """
        try:
            connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise Unavailable(f"{path} cannot be opened: {error}; check its directory and permissions") from error
        try:
            # Before anything is stored: what recursive listings have staged is given back to the disk.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            migrate(connection, path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            _skip_lost_numbers(connection)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise InvalidInput(
                f"{path} cannot be used as a catalog: {error}; `raycache fsck --repair` moves it away and says whether "
                "there is a backup; without one, sources are listed anew"
            ) from error
        except BaseException:  # whatever it is, the file is not kept open
            connection.close()
            raise
        return Catalog(connection, path, gate)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def datasets(self) -> list[Dataset]:
        """All datasets, by name."""
        with self.transaction() as db:
            rows = db.execute(f"SELECT {_DATASET} FROM datasets ORDER BY name").fetchall()
            pins = db.execute("SELECT dataset, path FROM pins ORDER BY dataset, path").fetchall()
        return [_dataset(row, pins) for row in rows]

    def dataset(self, name: str) -> Dataset:
        """One dataset. Raises NotFound."""
        found = next((dataset for dataset in self.datasets() if dataset.name == name), None)
        if found is None:
            raise NotFound(f"no dataset is named {name!r}")
        return found

    def reply(self, request_id: str | None) -> Any:
        """What a request was told before, or None when it has changed nothing yet."""
        if request_id is None:
            return None
        with self.transaction() as db:
            row = db.execute("SELECT reply FROM requests WHERE request_id = ?", (request_id,)).fetchone()
        return None if row is None else json.loads(row[0])

    def reserve_ids(self, count: int) -> range:
        """Directory ids that nothing else will get. Those that are not used after all are never used."""
        with self.transaction() as db:
            (last,) = db.execute(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'directories'"
            ).fetchone()
            set_last_id(db, last + count)
        return range(last + 1, last + 1 + count)

    def add_dataset(
        self,
        name: str,
        source: str,
        attached_ns: int,
        root: Listed | None = None,
        paths: Sequence[str] = (),
        request_id: str | None = None,
    ) -> Dataset:
        """Record a dataset and its root directory. Raises InvalidInput when name or source is taken.

        ``root``: its first listing, if there is one already, numbered with reserved ids. ``paths``: the directories in
        it, with the ids that follow the root's own.
        """
        with self.transaction() as db:
            taken = db.execute("SELECT name, source FROM datasets WHERE name = ? OR source = ?", (name, source))
            if other := taken.fetchone():
                raise InvalidInput(f"dataset {other[0]!r} is {other[1]} already; remove it first or use it")
            insert = "INSERT INTO directories (dir_id, dataset, path) VALUES (?, ?, ?) RETURNING dir_id"
            (root_id,) = db.execute(insert, (root.about.dir_id if root else None, name, b"")).fetchone()
            if root:
                rows = (
                    (root_id + at, name, path.encode("utf-8", "surrogateescape")) for at, path in enumerate(paths, 1)
                )
                db.executemany("INSERT INTO directories (dir_id, dataset, path) VALUES (?, ?, ?)", rows)
                _put_manifest(db, *root)
            dataset = Dataset(name, source, root_id, attached_ns)
            columns = "name, source, root_id, attached_ns"
            db.execute(f"INSERT INTO datasets ({columns}) VALUES (?, ?, ?, ?)", (name, source, root_id, attached_ns))
            told = {"name": name, "source": source, "root_id": root_id, "attached_ns": attached_ns}
            keep_reply(db, request_id, told)
        return dataset

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """Record how often a dataset is refreshed, 0 for never. Raises NotFound."""
        with self.transaction() as db:
            db.execute("UPDATE datasets SET refresh_every_s = ? WHERE name = ?", (every_s, name))
        return self.dataset(name)

    def remove_dataset(self, name: str, request_id: str | None = None) -> None:
        """Forget a dataset and all its directories; the source is not touched."""
        with self.transaction() as db:
            forget_written(db, name)
            db.execute(
                "DELETE FROM manifests WHERE dir_id IN (SELECT dir_id FROM directories WHERE dataset = ?)", (name,)
            )
            db.execute("DELETE FROM directories WHERE dataset = ?", (name,))
            for table in ("staged_manifests", "staged_parts"):
                db.execute(
                    f"DELETE FROM {table} WHERE job_id IN (SELECT job_id FROM listings WHERE dataset = ?)", (name,)
                )
            db.execute("DELETE FROM listings WHERE dataset = ?", (name,))
            db.execute("DELETE FROM pins WHERE dataset = ?", (name,))
            db.execute("DELETE FROM datasets WHERE name = ?", (name,))
            keep_reply(db, request_id, True)

    def directory(self, dir_id: int) -> tuple[Dataset, str]:
        """Dataset and path of a directory. Raises NotFound."""
        with self.transaction() as db:
            row = db.execute(
                f"SELECT {_DATASET}, path FROM directories JOIN datasets ON dataset = name WHERE dir_id = ?", (dir_id,)
            ).fetchone()
            pins = db.execute("SELECT dataset, path FROM pins WHERE dataset = ?", row[:1]).fetchall() if row else ()
        if row is None:
            raise NotFound(f"no directory has the id {dir_id}; its dataset was removed")
        return _dataset(row[:-1], pins), row[-1].decode("utf-8", "surrogateescape")

    def number_directories(self, dataset: str, paths: Sequence[str]) -> list[int]:
        """Ids of directories, new or known, in order."""
        with self.transaction() as db:
            return number_directories(db, dataset, paths)

    def version(self, dir_id: int) -> int:
        """Version of the stored manifest, 0 when there is none."""
        with self.transaction() as db:
            return stored_version(db, dir_id)

    def manifest(self, dir_id: int) -> Manifest | None:
        """The stored manifest of a directory, or None when it was never listed.

        Raises InvalidInput, with what is wrong, when it is damaged.
        """
        with self.transaction() as db:
            row = db.execute(
                "SELECT body, checksum, changes FROM manifests JOIN bodies USING (body_id) WHERE dir_id = ?", (dir_id,)
            ).fetchone()
        return open_manifest(*row) if row else None

    def save_manifest(self, about: Directory, body: Buffer, request_id: str | None = None) -> Directory | None:
        """Store a version of a directory in the place of the one before. A later version is a change: see ``changes``.

        Returns ``about`` with its change number. None, and nothing is stored, when it does not follow the stored one:
        somebody else published meanwhile.
        """
        with self.transaction() as db:
            return save_listed(db, Listed(about, body), request_id)

    def body(self, dir_id: int) -> bytes:
        """The stored manifest as it is, damaged or not; empty when there is none."""
        with self.transaction() as db:
            row = db.execute(
                "SELECT body FROM manifests JOIN bodies USING (body_id) WHERE dir_id = ?", (dir_id,)
            ).fetchone()
        return row[0] if row else b""

    def find_directory(self, dataset: str, path: str) -> int | None:
        """Id of a directory by its path, if it has one."""
        key = (dataset, path.encode("utf-8", "surrogateescape"))
        with self.transaction() as db:
            row = db.execute("SELECT dir_id FROM directories WHERE dataset = ? AND path = ?", key).fetchone()
        return row[0] if row else None

    def replace_directory(self, dir_id: int, new_id: int, parent: Listed | None) -> None:
        """Give a directory another, reserved id and forget its listing, so that it is listed anew.

        ``parent``: the next version of the directory above, which names the new id; None where it has no listing. A
        root's new id goes into its dataset.
        """
        with self.transaction() as db:
            db.execute("DELETE FROM manifests WHERE dir_id = ?", (dir_id,))
            db.execute("UPDATE directories SET dir_id = ? WHERE dir_id = ?", (new_id, dir_id))
            renumber_written(db, dir_id, new_id)
            db.execute("UPDATE datasets SET root_id = ? WHERE root_id = ?", (new_id, dir_id))
            if parent is not None:
                _put_manifest(db, *parent)

    def drop_directory(self, dir_id: int) -> None:
        """Forget a directory that nothing leads to."""
        with self.transaction() as db:
            db.execute("DELETE FROM manifests WHERE dir_id = ?", (dir_id,))
            db.execute("DELETE FROM directories WHERE dir_id = ?", (dir_id,))

    def renew_root(self, name: str) -> int:
        """Give a dataset a root, the directory that has no path or a new one, and return its id."""
        with self.transaction() as db:
            db.execute("INSERT OR IGNORE INTO directories (dataset, path) VALUES (?, x'')", (name,))
            find = "SELECT dir_id FROM directories WHERE dataset = ? AND path = x''"
            (root_id,) = db.execute(find, (name,)).fetchone()
            db.execute("UPDATE datasets SET root_id = ? WHERE name = ?", (root_id, name))
        return int(root_id)

    def changes(self, since: int) -> tuple[int, list[int]]:
        """Directories that got a later version after change ``since``, and the number to ask with next time."""
        with self.transaction() as db:
            rows = db.execute(
                "SELECT changed, dir_id FROM manifests WHERE changed > 0 AND changed > ? ORDER BY changed", (since,)
            ).fetchall()
        return (rows[-1][0] if rows else since), [dir_id for _, dir_id in rows]

    def newest_change(self) -> int:
        """Number of the newest change, 0 before the first."""
        with self.transaction() as db:
            (newest,) = db.execute("SELECT value FROM counters WHERE name = 'changes'").fetchone()
        return int(newest)

    def next_listed(self, dataset: str, after: int) -> int | None:
        """The directory of a dataset, of those that have been listed, with the lowest id above ``after``."""
        with self.transaction() as db:
            # In this order: a walk along the ids that stops at the first one.
            row = db.execute(
                "SELECT manifests.dir_id FROM manifests CROSS JOIN directories USING (dir_id)"
                " WHERE manifests.dir_id > ? AND dataset = ? ORDER BY manifests.dir_id LIMIT 1",
                (after, dataset),
            ).fetchone()
        return row[0] if row else None

    def counts(self, dataset: str) -> tuple[int, int]:
        """Directories known and directories listed, of a dataset."""
        with self.transaction() as db:
            row = db.execute(
                "SELECT count(*), count(version) FROM directories LEFT JOIN manifests USING (dir_id) WHERE dataset = ?",
                (dataset,),
            ).fetchone()
        return row[0], row[1]

    def shorten_log(self) -> None:
        """Move what the write-ahead log has into the file, and empty it. While somebody reads, as much as can be."""
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def sync(self) -> None:
        """Have all that was stored outlive the power. Raises Unavailable."""
        try:
            log = os.open(f"{self._path}-wal", os.O_RDONLY)
        except FileNotFoundError:
            return  # all of it is in the file itself, or in memory
        try:
            os.fsync(log)
        except OSError as error:
            raise Unavailable(f"{self._path} cannot be synced: {error}; what was written since may be lost") from error
        finally:
            os.close(log)

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction; also for verbs that live in a module of their own. ``durable``: see the module."""
        with self._lock:
            if durable != self._durable:
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            before = self._connection.total_changes
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection
                wrote = self._connection.total_changes != before
                if wrote and self._gate:
                    self._gate("before commit")
                self._connection.execute("COMMIT")
            except BaseException as error:  # an interrupt too must not leave the transaction open
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if type(error) in (sqlite3.OperationalError, sqlite3.DatabaseError):
                    raise _failed(self._path, error) from error
                raise
        if wrote and self._gate:
            self._gate("after commit")


def open_manifest(body: Buffer, stored_checksum: int, changes: str) -> Manifest:
    """A manifest from a row of the catalog. Raises InvalidInput when its bytes are not those that were written."""
    if checksum(body) != stored_checksum:
        raise InvalidInput("not the bytes that were written: the checksum differs")
    found = archive.from_bytes(body)
    numbers = tuple(int(change) for change in changes.split(",") if change)
    return Manifest(replace(found.directory, changes=numbers), found.columns)


def put_body(db: sqlite3.Connection, body: Buffer) -> int:
    """Store the body of a manifest and return its id; part of a transaction."""
    values = (body, checksum(memoryview(body)))
    (body_id,) = db.execute("INSERT INTO bodies (body, checksum) VALUES (?, ?) RETURNING body_id", values).fetchone()
    return int(body_id)


def take_changes(db: sqlite3.Connection, count: int) -> int:
    """Take ``count`` change numbers, which follow the one that is returned; part of a transaction."""
    update = "UPDATE counters SET value = value + ? WHERE name = 'changes' RETURNING value"
    return int(db.execute(update, (count,)).fetchone()[0]) - count


def number_directories(db: sqlite3.Connection, dataset: str, paths: Sequence[str]) -> list[int]:
    """See Catalog.number_directories; part of a transaction."""
    keys = [(dataset, path.encode("utf-8", "surrogateescape")) for path in paths]
    find = "SELECT dir_id FROM directories WHERE dataset = ? AND path = ?"
    db.executemany("INSERT OR IGNORE INTO directories (dataset, path) VALUES (?, ?)", keys)
    return [db.execute(find, key).fetchone()[0] for key in keys]


def stored_version(db: sqlite3.Connection, dir_id: int) -> int:
    """See Catalog.version; part of a transaction."""
    row = db.execute("SELECT version FROM manifests WHERE dir_id = ?", (dir_id,)).fetchone()
    return int(row[0]) if row else 0


def save_listed(db: sqlite3.Connection, listed: Listed, request_id: str | None = None) -> Directory | None:
    """See Catalog.save_manifest; part of a transaction."""
    about, body = listed
    if about.version != stored_version(db, about.dir_id) + 1:
        return None
    about = _put_manifest(db, about, body)
    keep_reply(db, request_id, about.version)
    return about


def _skip_lost_numbers(db: sqlite3.Connection) -> None:
    """If Linux has started since the catalog was opened last, go on with higher numbers.

    Versions and changes are not among what may be lost: publishing is durable.
    """
    boot = uuid.UUID(BOOT_ID.read_text().strip()).int >> 65
    before = db.execute("SELECT value FROM counters WHERE name = 'boot'").fetchone()
    if before == (boot,):
        return
    db.execute("BEGIN IMMEDIATE")
    if before is not None:
        skip_numbers(db)
        db.execute("UPDATE counters SET value = value + ? WHERE name = 'inos'", (NUMBERS_SKIPPED,))
    db.execute("INSERT OR REPLACE INTO counters VALUES ('boot', ?)", (boot,))
    db.execute("COMMIT")


def skip_numbers(db: sqlite3.Connection) -> None:
    """Go on with higher numbers of directories; part of a transaction."""
    (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'directories'").fetchone()
    set_last_id(db, last + NUMBERS_SKIPPED)


def set_last_id(db: sqlite3.Connection, last: int) -> None:
    """Say which directory id was given out last."""
    if not db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'directories'", (last,)).rowcount:
        db.execute("INSERT INTO sqlite_sequence VALUES ('directories', ?)", (last,))


_DATASET = (
    "name, source, root_id, attached_ns, refresh_every_s, eviction, quota_bytes, ttl_s, priority, replicas, write_type"
)


def _dataset(row: Sequence[Any], pins: Iterable[tuple[str, bytes]]) -> Dataset:
    mine = tuple(path.decode("utf-8", "surrogateescape") for dataset, path in pins if dataset == row[0])
    name, source, root_id, attached_ns, refresh_every_s, eviction, quota_bytes, ttl_s, priority, replicas, kind = row
    retention = Retention(eviction, quota_bytes, ttl_s, priority, replicas, mine)
    return Dataset(name, source, root_id, attached_ns, refresh_every_s, retention, kind)


def _put_manifest(db: sqlite3.Connection, about: Directory, body: Buffer) -> Directory:
    changed = take_changes(db, 1) + 1 if about.version > 1 else 0
    about = replace(about, changes=(*about.changes, changed) if changed else ())
    db.execute(
        "INSERT INTO manifests (dir_id, version, body_id, changed, changes) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (dir_id) DO UPDATE SET version = excluded.version, body_id = excluded.body_id,"
        " changed = excluded.changed, changes = excluded.changes",
        (about.dir_id, about.version, put_body(db, body), changed, ",".join(map(str, about.changes))),
    )
    return about


def keep_reply(db: sqlite3.Connection, request_id: str | None, reply: Any) -> None:
    """Keep what a request is told, as JSON; part of the transaction that does it."""
    if request_id is not None:
        keep_replies(db, {request_id: reply})


def keep_replies(db: sqlite3.Connection, replies: Mapping[str, Any]) -> None:
    """The same for several."""
    rows = [(request_id, json.dumps(reply, separators=(",", ":"))) for request_id, reply in replies.items()]
    db.executemany("INSERT INTO requests (request_id, reply) VALUES (?, ?)", rows)
    db.execute("DELETE FROM requests WHERE number <= (SELECT max(number) FROM requests) - ?", (REQUESTS_KEPT,))


def _failed(path: Path | str, error: BaseException) -> Unavailable:
    if "full" in str(error):
        return Unavailable(f"{path} cannot be written: {error}; nothing was changed, make room and try again")
    if "malformed" in str(error) or "not a database" in str(error):
        return Unavailable(
            f"{path} is damaged: {error}; end the cache with `raycache stop`, then `raycache fsck --repair`"
        )
    return Unavailable(f"{path}: {error}; nothing was changed, try again")
