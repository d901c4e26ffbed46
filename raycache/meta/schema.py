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
    body    BLOB NOT NULL,                -- see core.archive
    changed INTEGER NOT NULL              -- 0 for a first version, else higher than any before it
);
CREATE INDEX manifests_by_change ON manifests (changed) WHERE changed > 0;
"""

_SCALE = """
CREATE TABLE bodies (
    body_id  INTEGER PRIMARY KEY,         -- a table of their own: to publish a tree moves ids, and no bodies
    body     BLOB NOT NULL,               -- see core.archive
    checksum INTEGER NOT NULL             -- xxh3_64 of body, as a signed number: damage is found, not decoded
);

ALTER TABLE manifests RENAME TO manifests_1;
DROP INDEX manifests_by_change;
CREATE TABLE manifests (
    dir_id  INTEGER PRIMARY KEY,          -- a directory without a row here has not been listed yet
    version INTEGER NOT NULL,             -- from 1, higher with each change
    body_id INTEGER NOT NULL,             -- bodies.body_id
    changed INTEGER NOT NULL,             -- 0 for a first version, else higher than any before it
    changes TEXT NOT NULL                 -- what ``changed`` was for each version from the second on, with commas
);
CREATE INDEX manifests_by_change ON manifests (changed) WHERE changed > 0;
INSERT INTO bodies SELECT dir_id, body, xxh3_64(body) FROM manifests_1;
INSERT INTO manifests SELECT dir_id, version, dir_id, changed, '' FROM manifests_1;
DROP TABLE manifests_1;
CREATE TRIGGER manifest_replaced AFTER UPDATE OF body_id ON manifests WHEN OLD.body_id != NEW.body_id
    BEGIN DELETE FROM bodies WHERE body_id = OLD.body_id; END;
CREATE TRIGGER manifest_gone AFTER DELETE ON manifests
    BEGIN DELETE FROM bodies WHERE body_id = OLD.body_id; END;

ALTER TABLE datasets ADD COLUMN
    refresh_every_s REAL NOT NULL DEFAULT 0; -- how often its directories are listed anew; 0: only when asked

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
    body_id      INTEGER,                 -- bodies.body_id; NULL: listed, and as it was, or published
    PRIMARY KEY (job_id, dir_id)
);
CREATE TRIGGER staged_gone AFTER DELETE ON staged_manifests WHEN OLD.body_id NOT NULL
    BEGIN DELETE FROM bodies WHERE body_id = OLD.body_id; END;
"""

_RETENTION = """
ALTER TABLE datasets ADD COLUMN
    eviction TEXT;                        -- keep, sieve or lru; NULL: as the cache's setting says
ALTER TABLE datasets ADD COLUMN
    quota_bytes INTEGER;                  -- most that it may hold in all tiers of all workers; NULL: no limit
ALTER TABLE datasets ADD COLUMN
    ttl_s REAL NOT NULL DEFAULT 0;        -- blocks not read for so long are freed; 0: never
ALTER TABLE datasets ADD COLUMN
    priority INTEGER NOT NULL DEFAULT 0;  -- blocks of datasets with a lower one make way for its blocks
ALTER TABLE datasets ADD COLUMN
    replicas INTEGER NOT NULL DEFAULT 1;  -- workers that hold each of its blocks

CREATE TABLE pins (                       -- what is not evicted
    dataset    TEXT NOT NULL,             -- datasets.name
    path       BLOB NOT NULL,             -- a file or directory with all below it, as in directories; empty: everything
    size_bytes INTEGER NOT NULL,          -- bytes of its blocks when it was pinned: what a next pin is weighed against
    pinned_ns  INTEGER NOT NULL,          -- when
    PRIMARY KEY (dataset, path)
) WITHOUT ROWID;
"""

_WRITING = """
ALTER TABLE datasets ADD COLUMN
    write_type TEXT NOT NULL DEFAULT 'async'; -- cache, through or async: when what is written gets to the source

ALTER TABLE directories ADD COLUMN
    opaque INTEGER NOT NULL DEFAULT 0;    -- 1: made or moved here; what the source lists under its path is not shown

CREATE TABLE inodes (                     -- what was made or changed through the cache; all else is rows of manifests
    ino        INTEGER PRIMARY KEY,       -- see core.inode: says what it is; never used twice
    dataset    TEXT NOT NULL,             -- datasets.name
    mode       INTEGER NOT NULL,          -- st_mode: kind and permissions
    uid        INTEGER NOT NULL,          -- -1: whoever mounted
    gid        INTEGER NOT NULL,          -- -1: whoever mounted
    nlink      INTEGER NOT NULL,          -- names it has; a directory 2 and one for each in it; 0: only open
    size_bytes INTEGER NOT NULL,
    atime_ns   INTEGER NOT NULL,
    mtime_ns   INTEGER NOT NULL,
    ctime_ns   INTEGER NOT NULL,
    rdev       INTEGER NOT NULL,          -- of a device node
    target     BLOB,                      -- of a symbolic link, else NULL
    version    INTEGER NOT NULL           -- of the contents: higher with each commit and each change of size
);

CREATE TABLE entries (                    -- names laid over the manifest of their directory
    parent INTEGER NOT NULL,              -- number of the directory
    name   BLOB NOT NULL,
    ino    INTEGER,                       -- what it means; NULL: a whiteout, the name in the source is gone
    PRIMARY KEY (parent, name)
) WITHOUT ROWID;
CREATE INDEX entries_by_ino ON entries (ino) WHERE ino NOT NULL; -- the names of an inode, and the way up from it

CREATE TABLE extents (                    -- where the bytes of written files lie; what none covers is zeros
    ino            INTEGER NOT NULL,      -- inodes.ino
    at             INTEGER NOT NULL,      -- offset in the file
    length         INTEGER NOT NULL,
    segment        TEXT,                  -- segments.segment, or NULL: in the source
    segment_offset INTEGER NOT NULL,      -- in the segment, or in the object
    path           BLOB,                  -- of the object, inside the dataset; NULL: in a segment
    etag           TEXT NOT NULL,         -- version of the object
    row            INTEGER NOT NULL,      -- number of a listed file with these bytes; 0: none
    PRIMARY KEY (ino, at)
) WITHOUT ROWID;
CREATE INDEX extents_by_segment ON extents (segment) WHERE segment NOT NULL; -- whether a segment is still needed
CREATE INDEX extents_by_path ON extents (path) WHERE path NOT NULL; -- whether an object of the source is still needed

CREATE TABLE segments (                   -- files of new bytes on the disks of workers
    segment    TEXT NOT NULL,
    worker_id  TEXT NOT NULL,             -- whose; one row for each copy
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (segment, worker_id)
) WITHOUT ROWID;
CREATE INDEX segments_by_worker ON segments (worker_id, segment);

CREATE TABLE xattrs (
    ino   INTEGER NOT NULL,               -- inodes.ino
    name  BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (ino, name)
) WITHOUT ROWID;

CREATE TABLE orphans (                    -- inodes without a name that a mount has open
    ino    INTEGER NOT NULL,              -- inodes.ino
    holder TEXT NOT NULL,                 -- id of the mount
    PRIMARY KEY (ino, holder)
) WITHOUT ROWID;

CREATE TABLE touched (                    -- directories whose published manifest is behind their entries
    dir_id   INTEGER PRIMARY KEY,
    since_ns INTEGER NOT NULL,            -- when the first change came that is not published
    changes  INTEGER NOT NULL DEFAULT (random()) -- another with each: whether more came while a version was made
);

CREATE TABLE pending (                    -- what the source has not got yet: for each path, what it is to be last
    seq         INTEGER PRIMARY KEY AUTOINCREMENT, -- order in which it is brought about
    dataset     TEXT NOT NULL,            -- datasets.name
    path        BLOB NOT NULL,            -- inside the dataset
    kind        TEXT NOT NULL,            -- put, delete, mkdir or rmdir
    ino         INTEGER,                  -- of put: inodes.ino
    version     INTEGER,                  -- of put: of the contents to be put
    base_etag   TEXT,                     -- the file that the source has there as far as is known; '': none;
                                          -- NULL: not known
    directory   INTEGER NOT NULL DEFAULT 0, -- 1: the source may have a directory there
    worker_id   TEXT NOT NULL,            -- of put: the worker with most of its bytes; '': any can do it
    since_ns    INTEGER NOT NULL,         -- when the path was first behind
    lease       TEXT NOT NULL DEFAULT '', -- the process that is at it, until not_before_ns; '': none
    tried       TEXT NOT NULL DEFAULT '', -- versions that may have got there although nobody heard of it, as JSON
    tries       INTEGER NOT NULL DEFAULT 0,
    not_before_ns INTEGER NOT NULL DEFAULT 0, -- backoff, or the end of the lease, or for a while after the change
    error       TEXT NOT NULL DEFAULT '', -- of the last try
    aside       INTEGER NOT NULL DEFAULT 0, -- those after it do not wait for it; 1: it fails; 2: its worker is away;
                                          -- 3: what is to go from the source is in its way
    conflict    INTEGER NOT NULL DEFAULT 0, -- 1: the source holds something newer; not tried again by itself
    found_etag  TEXT NOT NULL DEFAULT '', -- of a conflict: what the source holds
    UNIQUE (dataset, path)
);
CREATE INDEX pending_order ON pending (dataset, kind, seq) WHERE aside = 0; -- what others wait for
CREATE INDEX pending_due ON pending (dataset, kind, worker_id, seq) WHERE conflict = 0;
CREATE INDEX pending_aside ON pending (dataset, not_before_ns) WHERE aside != 0 AND conflict = 0;
CREATE INDEX pending_leased ON pending (lease) WHERE lease != '';
CREATE INDEX pending_by_ino ON pending (ino) WHERE ino NOT NULL; -- whether an inode is behind

CREATE TABLE persisted (                  -- what the source has of written files
    dataset TEXT NOT NULL,                -- datasets.name
    path    BLOB NOT NULL,                -- inside the dataset
    ino     INTEGER NOT NULL,             -- inodes.ino
    version INTEGER NOT NULL,             -- of the contents that were put
    etag    TEXT NOT NULL,                -- the version that the source gave them
    PRIMARY KEY (dataset, path)
) WITHOUT ROWID;
CREATE INDEX persisted_by_ino ON persisted (ino); -- one row for each hard link

CREATE TABLE gone (                       -- objects of sources that are put over or deleted; the newest are remembered
    number  INTEGER PRIMARY KEY,          -- in the order in which workers were told to
    dataset TEXT NOT NULL,                -- datasets.name
    path    BLOB NOT NULL,                -- inside the dataset
    etag    TEXT NOT NULL,                -- the version that is gone, or about to be: no new extent may refer to it
    ino     INTEGER,                      -- the file whose bytes these were, where that is known
    UNIQUE (dataset, path, etag)
);
INSERT INTO counters VALUES ('inos', 1);  -- last number given out for what is made here; none comes twice
-- 'boot', beside it, is of the start of Linux that the catalog was opened in last.
"""

_LET_GO = """
CREATE TABLE let_go (                     -- bytes of segments that were let go, as the source has them; the newest
    number        INTEGER PRIMARY KEY,
    dataset       TEXT NOT NULL,          -- datasets.name
    segment       TEXT NOT NULL,
    offset        INTEGER NOT NULL,       -- in the segment
    length        INTEGER NOT NULL,
    path          BLOB NOT NULL,          -- of the object, inside the dataset
    etag          TEXT NOT NULL,          -- version of the object
    source_offset INTEGER NOT NULL        -- in the object
);
CREATE INDEX let_go_by_segment ON let_go (segment, offset);
"""

_DROPPED = """
CREATE TABLE dropped (                    -- segments that are deleted and no commit may name any more; the newest
    number  INTEGER PRIMARY KEY,
    segment TEXT NOT NULL UNIQUE
);
"""

MIGRATIONS: tuple[str, ...] = (_NAMESPACE, _SCALE, _RETENTION, _WRITING, _LET_GO, _DROPPED)
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
