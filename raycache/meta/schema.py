"""The catalog's schema, which is the documentation of the metadata: numbered migrations, the newest last.

Migration ``n`` takes a catalog from version ``n - 1`` to ``n``, in one transaction that also sets the version, so that
one that fails leaves the file as it was. A new catalog goes through all of them. One that has been released is never
edited: what is to be different comes as the next one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import xxhash

from raycache.errors import InvalidInput

_NAMESPACE = """
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
    version INTEGER NOT NULL,             -- from 1, higher with each change
    body    BLOB NOT NULL,                -- Arrow IPC of core.manifest, zstd
    changed INTEGER NOT NULL              -- 0 for a first version, else higher than any before it
);
CREATE INDEX manifests_by_change ON manifests (changed) WHERE changed > 0;
"""

_DURABILITY = """
ALTER TABLE manifests ADD COLUMN
    checksum INTEGER NOT NULL DEFAULT 0;  -- xxh3_64 of body, as a signed number: damage is found, not decoded
UPDATE manifests SET checksum = xxh3_64(body);

CREATE TABLE counters (
    name  TEXT PRIMARY KEY,               -- 'changes': last number given out in manifests.changed; none comes
    value INTEGER NOT NULL                -- twice, also not when the dataset that had the last one is removed
) WITHOUT ROWID;
INSERT INTO counters SELECT 'changes', coalesce(max(changed), 0) FROM manifests;

CREATE TABLE requests (
    number     INTEGER PRIMARY KEY,       -- in the order they were answered; the newest REQUESTS_KEPT are kept
    request_id TEXT NOT NULL UNIQUE,      -- chosen by the client, the same each time it asks again
    reply      TEXT NOT NULL              -- what it was told, as JSON: written together with the change it tells of
);
"""

MIGRATIONS: tuple[str, ...] = (_NAMESPACE, _DURABILITY)
SCHEMA_VERSION = len(MIGRATIONS)


def checksum(body: bytes | memoryview) -> int:
    """``manifests.checksum`` of a manifest's body."""
    return int.from_bytes(xxhash.xxh3_64_digest(body), "big", signed=True)


def version_of(db: sqlite3.Connection, path: Path | str) -> int:
    """The schema version of an open file, 0 for an empty one.

    Raises InvalidInput when it was written by a newer raycache or is another program's; sqlite3.DatabaseError when it
    is not SQLite's or is damaged.
    """
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise InvalidInput(
            f"{path} was written by a newer raycache (schema {version}, this one reads {SCHEMA_VERSION}); "
            "upgrade raycache, or move the file away"
        )
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()
    names = "SELECT count(*) FROM sqlite_master WHERE name IN ('datasets', 'directories', 'manifests')"
    if (version == 0 and tables) or (version > 0 and db.execute(names).fetchone()[0] != 3):
        raise InvalidInput(f"{path} is an SQLite file, but not a catalog of raycache; move it away")
    return version


def migrate(db: sqlite3.Connection, path: Path | str, scripts: Sequence[str] = MIGRATIONS) -> None:
    """Bring an open file (in autocommit mode) to the version that ``scripts`` lead to. Raises what ``version_of``
    raises; a migration that fails is undone as a whole."""
    db.create_function("xxh3_64", 1, checksum, deterministic=True)
    for number in range(version_of(db, path) + 1, len(scripts) + 1):
        try:
            db.executescript(f"BEGIN IMMEDIATE; {scripts[number - 1]}; PRAGMA user_version = {number}; COMMIT;")
        except BaseException:  # an interrupt too must not leave half a migration open
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
