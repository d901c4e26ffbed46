"""Segments that workers delete: files whose bytes their source has refer to it from then on, and what no file needs is
dropped for good. Verbs upon the tree, see ``client.treeapi``.

What the source has not got stays where it is: a file is let go whole, and only when the version that it has now was
put, and nothing about it or about that path of the source is pending. Who has read before where its bytes lie finds
them by what is remembered of each segment (``extents.moved``).
"""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection

from raycache.core.inode import Extent
from raycache.meta.extents import moved, replace_extents
from raycache.meta.inodes import Inodes
from raycache.meta.tasks import text

MOVES_MAX = 200_000
"""Extents of segments that were let go which are remembered, the newest."""
DROPPED_MAX = 100_000
"""Segments of which it is remembered that they were dropped, the newest: a commit that names one is late by seconds."""
_SOURCE = """
    SELECT dataset, path, etag, size_bytes FROM persisted JOIN inodes USING (dataset, ino, version)
    WHERE ino = ?1 AND etag != '' AND NOT EXISTS (SELECT 1 FROM pending WHERE ino = ?1)
    AND NOT EXISTS (SELECT 1 FROM pending q WHERE q.dataset = persisted.dataset AND q.path = persisted.path) LIMIT 1"""
_PARTS = "SELECT at, length, segment, segment_offset FROM extents WHERE ino = ? AND segment NOT NULL"


def let_go_segments(tree: Inodes, worker_id: str, segments: Sequence[str]) -> list[int]:
    """How many bytes of each segment commits named, -1 for one that is still needed."""
    return [_let_go(tree.db, worker_id, segment) for segment in segments]


def _let_go(db: Connection, worker_id: str, segment: str) -> int:
    row = db.execute(
        "SELECT size_bytes FROM segments WHERE segment = ? AND worker_id = ?", (segment, worker_id)
    ).fetchone()
    if row is None:
        return -1  # none that commits name: it is left over, or gone already
    inos = [ino for (ino,) in db.execute("SELECT DISTINCT ino FROM extents WHERE segment = ?", (segment,))]
    found = {ino: db.execute(_SOURCE, (ino,)).fetchone() for ino in inos}
    if None in found.values():
        return -1
    for ino, (dataset, path, etag, size_bytes) in found.items():
        parts = db.execute(_PARTS, (ino,)).fetchall()
        db.executemany(
            "INSERT INTO let_go (dataset, segment, offset, length, path, etag, source_offset)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(dataset, name, offset, length, path, etag, at) for at, length, name, offset in parts],
        )
        replace_extents(db, ino, [Extent(0, size_bytes, path=text(path), etag=etag)])
    db.execute("DELETE FROM let_go WHERE number <= (SELECT max(number) FROM let_go) - ?", (MOVES_MAX,))
    return int(row[0])


def drop_segments(tree: Inodes, worker_id: str, segments: Sequence[str]) -> list[bool]:
    """Whether nobody needs them; then nobody ever will."""
    needed = "SELECT 1 FROM extents WHERE segment = ?"
    found = [tree.db.execute(needed, (segment,)).fetchone() is None for segment in segments]
    unneeded = [(segment,) for segment, is_unneeded in zip(segments, found, strict=True) if is_unneeded]
    tree.db.executemany("INSERT OR IGNORE INTO dropped (segment) VALUES (?)", unneeded)
    tree.db.execute("DELETE FROM dropped WHERE number <= (SELECT max(number) FROM dropped) - ?", (DROPPED_MAX,))
    return found


def moved_segments(tree: Inodes, dataset: str, extents: Sequence[Extent]) -> list[list[Extent]]:
    """Where the bytes of extents are now; as they are, where nothing is known of that."""
    return [moved(tree.db, dataset, extent) for extent in extents]


def held_bytes(db: Connection, worker_id: str) -> int:
    """Bytes in segments of a worker that files need. Part of a transaction."""
    held = "SELECT coalesce(sum(size_bytes), 0) FROM segments WHERE worker_id = ?"
    return int(db.execute(held, (worker_id,)).fetchone()[0])
