"""What was written in one directory, as rows for its manifest: the upper layer of the tree as readers are shown it.

Responsible for: reading entries in one transaction, which rows they become, and which listed rows they hide. Not
responsible for: when a manifest is published (``publishing``), what a source lists, and who wins where both have
changed (``merging``). Shown are files and directories; links, pipes and devices only the tree has.

Rows of a manifest are listed, or of written files (``CONTENT_MARK``), or directories. A file that was only given other
permissions keeps its listed row: its blocks stay valid.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from sqlite3 import Connection
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raycache.core.inode import CONTENT_MARK, content_etag, directory_ino, split_ino
from raycache.core.listing import LISTING_SCHEMA, Beside
from raycache.core.manifest import Manifest

_ENTRIES = (
    "SELECT e.name, e.ino, mode, size_bytes, mtime_ns, i.version, p.ino, p.version, p.etag,"
    " q.seq NOT NULL OR (e.ino IS NULL AND EXISTS (SELECT 1 FROM pending WHERE dataset = ?2"
    " AND path > CAST(?3 || e.name || '/' AS BLOB) AND path < CAST(?3 || e.name || '0' AS BLOB)))"  # '0' follows '/'
    " FROM entries e LEFT JOIN inodes i USING (ino)"
    " LEFT JOIN persisted p ON p.dataset = ?2 AND p.path = CAST(?3 || e.name AS BLOB)"
    " LEFT JOIN pending q ON q.dataset = ?2 AND q.path = CAST(?3 || e.name AS BLOB)"
    " WHERE e.parent = ?1"
)


class Entry(NamedTuple):
    """A name that the tree has, or that it hides (``ino`` None)."""

    name: bytes
    ino: int | None
    mode: int
    size_bytes: int
    mtime_ns: int
    version: int
    put_ino: int | None
    """What the source was given last under this path, with the version and what it calls it."""
    put_version: int
    put_etag: str
    is_pending: bool
    """Whether the source is to get something under this path; of a name that is hidden, also below it."""

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.ino is not None and stat.S_ISREG(self.mode)

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.ino is not None and stat.S_ISDIR(self.mode)


class Upper(NamedTuple):
    """A directory as the tree has it at one moment."""

    dir_id: int
    dataset: str
    path: str
    opaque: bool
    changes: int | None
    """Changes that are not published, so far; None: none are."""
    entries: Sequence[Entry]

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but what the source lists."""
        return not self.entries and not self.opaque


class Written(NamedTuple):
    """What was written, beside what is listed."""

    rows: pa.RecordBatch
    """Of LISTING_SCHEMA, in the order of their names."""
    dir_ids: Mapping[bytes, int]
    """Ids of the directories among them."""
    hides: Sequence[bytes]
    """Names of which a listed row means nothing."""
    as_listed: Sequence[int]
    """Listed rows of files that have entries and the same contents."""


def read_upper(db: Connection, dir_id: int) -> Upper | None:
    """A directory; None when there is none of this id. Part of a transaction."""
    row = db.execute(
        "SELECT dataset, path, opaque, changes FROM directories LEFT JOIN touched USING (dir_id) WHERE dir_id = ?",
        (dir_id,),
    ).fetchone()
    if row is None:
        return None
    dataset, path, opaque, changes = row
    found = db.execute(f"{_ENTRIES} ORDER BY e.name", (directory_ino(dir_id), dataset, path + b"/" if path else b""))
    entries = [Entry._make(each) for each in found]
    return Upper(dir_id, dataset, path.decode("utf-8", "surrogateescape"), bool(opaque), changes, entries)


def read_entry(db: Connection, upper: Upper, name: bytes) -> Entry | None:
    """One of its entries as it is now; part of a transaction."""
    path = _key(upper.path)
    values = (directory_ino(upper.dir_id), upper.dataset, path + b"/" if path else b"", name)
    row = db.execute(f"{_ENTRIES} AND e.name = ?4", values).fetchone()
    return None if row is None else Entry._make(row)


def settled(db: Connection, upper: Upper) -> None:
    """A manifest that shows a directory as it was read is stored; part of that transaction.

    Directories that have gone since are hidden. When they went nobody had been shown them, so that no more was left of
    them than their absence, and no row of a directory tells whether the source has it: they would be back for good.
    """
    shown = db.execute("DELETE FROM touched WHERE dir_id = ? AND changes = ?", (upper.dir_id, upper.changes))
    folders = [each.name for each in upper.entries if each.is_dir]
    if shown.rowcount or upper.opaque or not folders:
        return  # nothing has changed since; or no row stays that the tree has not
    parent = directory_ino(upper.dir_id)
    here = {name for (name,) in db.execute("SELECT name FROM entries WHERE parent = ?", (parent,))}
    gone = [(parent, name) for name in folders if name not in here]
    db.executemany("INSERT INTO entries VALUES (?, ?, NULL)", gone)


def look_again(db: Connection, dir_id: int) -> None:
    """What was written in a directory may not be in its first manifest, which is stored in this transaction: while it
    was made, changes were taken for shown because there was none yet."""
    db.execute(
        "INSERT OR IGNORE INTO touched (dir_id, since_ns)"
        " SELECT ?1, 0 WHERE EXISTS (SELECT 1 FROM inodes WHERE ino = ?2)",
        (dir_id, directory_ino(dir_id)),
    )


def written(upper: Upper, manifest: Manifest | None) -> Written:
    """What was written in a directory. ``manifest``: its last one, if it has any."""
    as_listed = {} if manifest is None or upper.opaque else _as_listed(upper, manifest)
    others = [each for at, each in enumerate(upper.entries) if at not in as_listed]
    shown = [each for each in others if each.is_file or each.is_dir]
    ids = {each.name: split_ino(each.ino or 0)[0] for each in shown if each.is_dir}
    return Written(_batch(shown), ids, [each.name for each in others], list(as_listed.values()))


def beside(upper: Upper, manifest: Manifest | None, of: Written) -> Beside:
    """What to compare the written rows beside, where the source is not asked: its rows stay as they are."""
    if manifest is None or upper.opaque:
        return Beside(np.zeros(0, np.uint32), of.dir_ids)
    stays = ~manifest.columns.etags.begin_with(CONTENT_MARK.encode())[: manifest.row_count]
    stays[manifest.columns.dead_rows] = False
    if of.hides:
        hidden = manifest.find_many(of.hides)
        stays[hidden[hidden >= 0]] = False
    return Beside(np.flatnonzero(stays).astype(np.uint32), of.dir_ids)


def listed_row(upper: Upper, entry: Entry, manifest: Manifest | None) -> int | None:
    """The row, live or not, of a file that has the contents which were listed in this directory under its name."""
    if manifest is None or entry.ino is None or entry.version or not entry.is_file:
        return None
    dir_id, row = split_ino(entry.ino)
    if dir_id != upper.dir_id or row is None or row >= manifest.row_count or manifest.name(row) != entry.name:
        return None
    return row


def _as_listed(upper: Upper, manifest: Manifest) -> dict[int, int]:
    """Rows of files that look as they were listed, by the place of their entry."""
    found: dict[int, int] = {}
    for at, each in enumerate(upper.entries):
        row = listed_row(upper, each, manifest)
        if row is None or manifest.is_dead(row):
            continue
        if (each.size_bytes, each.mtime_ns) == (manifest.size(row), manifest.mtime_ns(row)):
            found[at] = row
    return found


def _batch(shown: Sequence[Entry]) -> pa.RecordBatch:
    columns: list[list[object]] = [
        [each.name for each in shown],
        [each.is_dir for each in shown],
        [0 if each.is_dir else each.size_bytes for each in shown],
        [0 if each.is_dir else each.mtime_ns for each in shown],
        [b"" if each.is_dir else content_etag(each.ino or 0, each.version).encode() for each in shown],
    ]
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, LISTING_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=LISTING_SCHEMA)


def _key(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
