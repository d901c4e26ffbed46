"""What became of rows of ``pending``: what the source has now, and where the bytes of files are to be found since. Each
function is part of a transaction."""

from __future__ import annotations

from sqlite3 import Connection

from raycache.core.inode import Content
from raycache.core.persisting import KEPT, Outcome, kept, relocated
from raycache.meta.extents import read_content, replace_extents
from raycache.meta.tasks import Row, needed_by, text


def note_done(db: Connection, row: Row, outcome: Outcome, worker_id: str) -> None:
    """The source has what a row said; or what it said when it was handed out, if it has changed since."""
    key = (row.dataset, row.path)
    if outcome.content is not None and outcome.mark == KEPT:
        _note_kept(db, row, outcome.content, worker_id)
        db.execute("UPDATE pending SET lease = '', not_before_ns = 0 WHERE seq = ?", (row.seq,))
        return
    if outcome.content is not None:
        _note_put(db, row, outcome, outcome.content)
    else:
        db.execute("DELETE FROM persisted WHERE dataset = ? AND path = ?", key)
    if row.seq == outcome.seq:
        db.execute("DELETE FROM pending WHERE seq = ?", (row.seq,))
        return
    db.execute(
        "UPDATE pending SET lease = '', not_before_ns = 0, tries = 0, tried = '', error = '', base_etag = ?,"
        " directory = iif(?, 0, directory) WHERE seq = ?",
        (outcome.etag, outcome.content is not None, row.seq),
    )


def _note_put(db: Connection, row: Row, outcome: Outcome, content: Content) -> None:
    attempt = next((each for each in row.attempts if each.mark == outcome.mark), None)
    if attempt is None:
        return  # heard before: the answer to that was lost
    db.execute(
        "INSERT OR REPLACE INTO persisted (dataset, path, ino, version, etag) VALUES (?, ?, ?, ?, ?)",
        (row.dataset, row.path, attempt.ino, attempt.version, outcome.etag),
    )
    # What it was made of in the source is also here now, and may be deleted there next: it was moved.
    inode = db.execute("SELECT size_bytes FROM inodes WHERE ino = ?", (attempt.ino,)).fetchone()
    if inode is not None:
        old = read_content(db, attempt.ino, inode[0]).extents
        if any(extent.path for extent in old):
            replace_extents(db, attempt.ino, relocated(old, content, outcome.path, outcome.etag))


def _note_kept(db: Connection, row: Row, segments: Content, worker_id: str) -> None:
    """What files are made of in an object that is to go is in segments of a worker."""
    inos = dict.fromkeys(each.ino for each in needed_by(db, row))
    ends: dict[str, int] = {}
    for extent in segments.extents:
        ends[extent.segment] = max(ends.get(extent.segment, 0), extent.offset + extent.length)
    if inos:
        db.executemany(
            "INSERT OR REPLACE INTO segments VALUES (?, ?, ?)", [(name, worker_id, end) for name, end in ends.items()]
        )
    for ino in inos:
        (size_bytes,) = db.execute("SELECT size_bytes FROM inodes WHERE ino = ?", (ino,)).fetchone()
        old = read_content(db, ino, size_bytes).extents
        replace_extents(db, ino, kept(old, text(row.path), row.base_etag or "", segments))
