"""The catalog: what the master remembers, in one SQLite file. The schema below is its documentation.

One transaction per verb; WAL, so that a reader never waits for a writer. Nothing secret is ever stored here.
Threading: one connection behind one lock; no verb does anything slow inside it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from raycache.core.manifest import Directory, Manifest
from raycache.core.values import Buffer, Dataset
from raycache.errors import InvalidInput, NotFound

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE datasets (
    name        TEXT PRIMARY KEY,         -- what users call it
    source      TEXT NOT NULL UNIQUE,     -- URI without a trailing slash; two names for one source would cache it twice
    root_id     INTEGER NOT NULL,         -- directories.dir_id of its root
    attached_ns INTEGER NOT NULL,         -- when; shown as the mtime of its directories, which have none of their own
    refresh_every_s REAL NOT NULL DEFAULT 0 -- how often its directories are listed anew; 0: only when asked
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
    changed INTEGER NOT NULL              -- 0 for a first version, else higher than any before it
);
CREATE INDEX manifests_by_change ON manifests (changed) WHERE changed > 0;
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
            rows = db.execute(
                "SELECT name, source, root_id, attached_ns, refresh_every_s FROM datasets ORDER BY name"
            ).fetchall()
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
            db.execute("INSERT INTO datasets VALUES (?, ?, ?, ?, 0)", (name, source, root_id, attached_ns))
        return Dataset(name, source, root_id, attached_ns)

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """Record how often a dataset is refreshed, 0 for never. Raises NotFound."""
        with self._transaction() as db:
            db.execute("UPDATE datasets SET refresh_every_s = ? WHERE name = ?", (every_s, name))
        return self.dataset(name)

    def remove_dataset(self, name: str) -> None:
        """Forget a dataset and all its directories; the source is not touched."""
        with self._transaction() as db:
            db.execute(
                "DELETE FROM manifests WHERE dir_id IN (SELECT dir_id FROM directories WHERE dataset = ?)", (name,)
            )
            db.execute("DELETE FROM directories WHERE dataset = ?", (name,))
            db.execute("DELETE FROM datasets WHERE name = ?", (name,))

    def directory(self, dir_id: int) -> tuple[Dataset, str]:
        """Dataset and path of a directory. Raises NotFound."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT name, source, root_id, attached_ns, refresh_every_s, path"
                " FROM directories JOIN datasets ON dataset = name WHERE dir_id = ?",
                (dir_id,),
            ).fetchone()
        if row is None:
            raise NotFound(f"no directory has the id {dir_id}; its dataset was removed")
        return Dataset(*row[:5]), row[5].decode("utf-8", "surrogateescape")

    def number_directories(self, dataset: str, paths: Sequence[str]) -> list[int]:
        """Ids of directories, new or known, in order."""
        keys = [(dataset, path.encode("utf-8", "surrogateescape")) for path in paths]
        find = "SELECT dir_id FROM directories WHERE dataset = ? AND path = ?"
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO directories (dataset, path) VALUES (?, ?)", keys)
            return [db.execute(find, key).fetchone()[0] for key in keys]

    def version(self, dir_id: int) -> int:
        """Version of the stored manifest, 0 when there is none."""
        with self._transaction() as db:
            row = db.execute("SELECT version FROM manifests WHERE dir_id = ?", (dir_id,)).fetchone()
        return row[0] if row else 0

    def manifest(self, dir_id: int) -> Manifest | None:
        """The stored manifest of a directory, or None when it was never listed."""
        with self._transaction() as db:
            row = db.execute("SELECT body FROM manifests WHERE dir_id = ?", (dir_id,)).fetchone()
        return Manifest.from_buffer(row[0]) if row else None

    def save_manifest(self, about: Directory, body: Buffer) -> None:
        """Store a version of a directory, replacing the one before. A later version is a change: see ``changes``."""
        with self._transaction() as db:
            (last,) = db.execute("SELECT coalesce(max(changed), 0) FROM manifests WHERE changed > 0").fetchone()
            changed = last + 1 if about.version > 1 else 0
            db.execute(
                "INSERT OR REPLACE INTO manifests VALUES (?, ?, ?, ?)", (about.dir_id, about.version, body, changed)
            )

    def changes(self, since: int) -> tuple[int, list[int]]:
        """Directories that got a later version after change ``since``, and the number to ask with next time."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT changed, dir_id FROM manifests WHERE changed > 0 AND changed > ? ORDER BY changed", (since,)
            ).fetchall()
        return (rows[-1][0] if rows else since), [dir_id for _, dir_id in rows]

    def newest_change(self) -> int:
        """Number of the newest change, 0 before the first."""
        with self._transaction() as db:
            (newest,) = db.execute("SELECT coalesce(max(changed), 0) FROM manifests WHERE changed > 0").fetchone()
        return int(newest)

    def next_listed(self, dataset: str, after: int) -> int | None:
        """The directory of a dataset, of those that have been listed, with the lowest id above ``after``."""
        with self._transaction() as db:
            # In this order: a walk along the ids that stops at the first one.
            row = db.execute(
                "SELECT manifests.dir_id FROM manifests CROSS JOIN directories USING (dir_id)"
                " WHERE manifests.dir_id > ? AND dataset = ? ORDER BY manifests.dir_id LIMIT 1",
                (after, dataset),
            ).fetchone()
        return row[0] if row else None

    def counts(self, dataset: str) -> tuple[int, int]:
        """Directories known and directories listed, of a dataset."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT count(*), count(version) FROM directories LEFT JOIN manifests USING (dir_id) WHERE dataset = ?",
                (dataset,),
            ).fetchone()
        return row[0], row[1]

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
