"""The catalog: what the master remembers, in one SQLite file. The schema below is its documentation.

One transaction per verb; WAL, so that a reader never waits for a writer. Nothing secret is ever stored here.
Threading: one connection behind one lock; no verb does anything slow inside it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from raycache.core import archive
from raycache.core.manifest import Directory, Manifest
from raycache.core.values import Buffer, Dataset
from raycache.errors import InvalidInput, NotFound

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE datasets (
    name        TEXT PRIMARY KEY,         -- what users call it
    source      TEXT NOT NULL UNIQUE,     -- URI without a trailing slash; two names for one source would cache it twice
    root_id     INTEGER NOT NULL,         -- directories.dir_id of its root
    attached_ns INTEGER NOT NULL          -- when; shown as the mtime of its directories, which have none of their own
) WITHOUT ROWID;

CREATE TABLE directories (
    dir_id  INTEGER PRIMARY KEY AUTOINCREMENT, -- never used twice: it is part of inode numbers that kernels remember
    dataset TEXT NOT NULL,                     -- datasets.name
    path    BLOB NOT NULL,                     -- inside the dataset, no slashes at the ends, empty for the root
    UNIQUE (dataset, path)
);

CREATE TABLE manifests (
    dir_id  INTEGER PRIMARY KEY,          -- a directory without a row here has not been listed yet
    version INTEGER NOT NULL,             -- from 1, +1 with each refresh that found a change
    body    BLOB NOT NULL,                -- Arrow IPC of core.manifest, zstd
    changed INTEGER NOT NULL,             -- 0 for a first version, else higher than any before it
    changes TEXT NOT NULL                 -- what ``changed`` was for each version from the second on, with commas
);
CREATE INDEX manifests_by_change ON manifests (changed) WHERE changed > 0;

CREATE TABLE listings (                   -- recursive listings: those that run, and the last ones that ended
    job_id      INTEGER PRIMARY KEY AUTOINCREMENT,
    dir_id      INTEGER NOT NULL,         -- directory whose tree is listed
    dataset     TEXT NOT NULL,            -- its dataset
    path        BLOB NOT NULL,            -- and path, as in directories
    state       TEXT NOT NULL,            -- running, done, failed or cancelled
    files       INTEGER NOT NULL DEFAULT 0, -- staged so far
    directories INTEGER NOT NULL DEFAULT 0, -- staged so far
    changed     INTEGER NOT NULL DEFAULT 0, -- manifests that it published
    started_ns  INTEGER NOT NULL,         -- when; kept when it is resumed
    updated_ns  INTEGER NOT NULL,         -- last sign of life, or its end; decides whether it can be resumed
    error_kind  TEXT NOT NULL DEFAULT '', -- class in raycache.errors
    error       TEXT NOT NULL DEFAULT ''  -- why it failed
);

CREATE TABLE staged_parts (               -- what a listing that is not done has listed already
    job_id      INTEGER NOT NULL,         -- listings.job_id
    path        BLOB NOT NULL,            -- a directory, as in directories
    whole       INTEGER NOT NULL,         -- 1: with all that is below it; 0: alone
    files       INTEGER NOT NULL,         -- found in this part
    directories INTEGER NOT NULL,         -- found in this part
    PRIMARY KEY (job_id, path)
) WITHOUT ROWID;

CREATE TABLE staged_manifests (           -- directories of these parts, to be published all at once
    job_id       INTEGER NOT NULL,        -- listings.job_id
    dir_id       INTEGER NOT NULL,        -- directories.dir_id
    part         BLOB,                    -- staged_parts.path; NULL: the directory is gone from the source
    base_version INTEGER NOT NULL,        -- manifests.version that the body follows, 0 for a first one
    body         BLOB,                    -- as in manifests; NULL: listed, and as it was
    PRIMARY KEY (job_id, dir_id)
);
"""


class Catalog:
    """Open with ``Catalog.open``; close with ``close``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @staticmethod
    def open(path: Path | str) -> Catalog:
        """Open or create the catalog at ``path`` (``":memory:"`` in tests).

        Raises InvalidInput for a file that is no catalog, is damaged, or was written by a newer raycache.
        """
        try:
            connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            # Before anything is stored: what recursive listings have staged is given back to the disk.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            # Commits are rare, and one that is lost with the power would give its directory ids out again, which
            # kernels on other nodes still remember.
            connection.execute("PRAGMA synchronous = FULL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        except sqlite3.DatabaseError as error:
            raise InvalidInput(
                f"{path} cannot be used as a catalog: {error}; move it away and start again, sources are listed anew"
            ) from error
        if version > SCHEMA_VERSION:
            connection.close()
            raise InvalidInput(
                f"{path} was written by a newer raycache (schema {version}, this one reads {SCHEMA_VERSION}); "
                "upgrade raycache, or move the file away"
            )
        return Catalog(connection)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def datasets(self) -> list[Dataset]:
        """All datasets, by name."""
        with self._transaction() as db:
            rows = db.execute("SELECT name, source, root_id, attached_ns FROM datasets ORDER BY name").fetchall()
        return [Dataset(*row) for row in rows]

    def dataset(self, name: str) -> Dataset:
        """One dataset. Raises NotFound."""
        found = next((dataset for dataset in self.datasets() if dataset.name == name), None)
        if found is None:
            raise NotFound(f"no dataset is named {name!r}")
        return found

    def add_dataset(self, name: str, source: str, attached_ns: int) -> Dataset:
        """Record a dataset and its root directory. Raises InvalidInput when name or source is taken."""
        with self._transaction() as db:
            taken = db.execute("SELECT name, source FROM datasets WHERE name = ? OR source = ?", (name, source))
            if other := taken.fetchone():
                raise InvalidInput(f"dataset {other[0]!r} is {other[1]} already; remove it first or use it")
            (root_id,) = db.execute(
                "INSERT INTO directories (dataset, path) VALUES (?, x'') RETURNING dir_id", (name,)
            ).fetchone()
            db.execute("INSERT INTO datasets VALUES (?, ?, ?, ?)", (name, source, root_id, attached_ns))
        return Dataset(name, source, root_id, attached_ns)

    def remove_dataset(self, name: str) -> None:
        """Forget a dataset and all its directories; the source is not touched."""
        with self._transaction() as db:
            db.execute(
                "DELETE FROM manifests WHERE dir_id IN (SELECT dir_id FROM directories WHERE dataset = ?)", (name,)
            )
            db.execute("DELETE FROM directories WHERE dataset = ?", (name,))
            for table in ("staged_manifests", "staged_parts"):
                db.execute(
                    f"DELETE FROM {table} WHERE job_id IN (SELECT job_id FROM listings WHERE dataset = ?)", (name,)
                )
            db.execute("DELETE FROM listings WHERE dataset = ?", (name,))
            db.execute("DELETE FROM datasets WHERE name = ?", (name,))

    def directory(self, dir_id: int) -> tuple[Dataset, str]:
        """Dataset and path of a directory. Raises NotFound."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT name, source, root_id, attached_ns, path FROM directories JOIN datasets ON dataset = name"
                " WHERE dir_id = ?",
                (dir_id,),
            ).fetchone()
        if row is None:
            raise NotFound(f"no directory has the id {dir_id}; its dataset was removed")
        return Dataset(*row[:4]), row[4].decode("utf-8", "surrogateescape")

    def number_directories(self, dataset: str, paths: Sequence[str]) -> list[int]:
        """Ids of directories, new or known, in order."""
        with self._transaction() as db:
            return number_directories(db, dataset, paths)

    def version(self, dir_id: int) -> int:
        """Version of the stored manifest, 0 when there is none."""
        with self._transaction() as db:
            row = db.execute("SELECT version FROM manifests WHERE dir_id = ?", (dir_id,)).fetchone()
        return row[0] if row else 0

    def manifest(self, dir_id: int) -> Manifest | None:
        """The stored manifest of a directory, or None when it was never listed."""
        with self._transaction() as db:
            row = db.execute("SELECT body, changes FROM manifests WHERE dir_id = ?", (dir_id,)).fetchone()
        if row is None:
            return None
        found = archive.from_bytes(row[0])
        changes = tuple(int(change) for change in row[1].split(",") if change)
        return Manifest(replace(found.directory, changes=changes), found.columns)

    def save_manifest(self, about: Directory, body: Buffer) -> Directory | None:
        """Store a version of a directory in the place of the one before. A later version is a change: see ``changes``.

        Returns ``about`` with its change number. None, and nothing is stored, when it does not follow the stored one:
        somebody else published meanwhile.
        """
        with self._transaction() as db:
            stored = db.execute("SELECT version FROM manifests WHERE dir_id = ?", (about.dir_id,)).fetchone()
            if about.version != (stored[0] if stored else 0) + 1:
                return None
            (last,) = db.execute("SELECT coalesce(max(changed), 0) FROM manifests WHERE changed > 0").fetchone()
            changed = last + 1 if about.version > 1 else 0
            about = replace(about, changes=(*about.changes, changed) if changed else ())
            db.execute(
                "INSERT OR REPLACE INTO manifests VALUES (?, ?, ?, ?, ?)",
                (about.dir_id, about.version, body, changed, ",".join(map(str, about.changes))),
            )
        return about

    def changes(self, since: int) -> tuple[int, list[int]]:
        """Directories that got a later version after change ``since``, and the number to ask with next time."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT changed, dir_id FROM manifests WHERE changed > 0 AND changed > ? ORDER BY changed", (since,)
            ).fetchall()
        return (rows[-1][0] if rows else since), [dir_id for _, dir_id in rows]

    def counts(self, dataset: str) -> tuple[int, int]:
        """Directories known and directories listed, of a dataset."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT count(*), count(version) FROM directories LEFT JOIN manifests USING (dir_id) WHERE dataset = ?",
                (dataset,),
            ).fetchone()
        return row[0], row[1]

    def transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        """One transaction, for verbs that live in a module of their own (``staging``)."""
        return self._transaction()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:  # an interrupt too must not leave the transaction open
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def number_directories(db: sqlite3.Connection, dataset: str, paths: Sequence[str]) -> list[int]:
    """See Catalog.number_directories; part of a transaction."""
    keys = [(dataset, path.encode("utf-8", "surrogateescape")) for path in paths]
    find = "SELECT dir_id FROM directories WHERE dataset = ? AND path = ?"
    db.executemany("INSERT OR IGNORE INTO directories (dataset, path) VALUES (?, ?)", keys)
    return [db.execute(find, key).fetchone()[0] for key in keys]
