"""What the source has not got yet: for each path what it is to be last, in the order in which it is brought about.

The ``want_`` functions write it, as part of the transaction of whatever change they are about: a change and what is to
become of it in the source are there together, or neither is.

A row of ``pending`` is replaced by the next one about its path, which takes over what is known of the source. What
the source had when a path began to be behind stays the base until the source is known to have something else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from raycache.core.inode import Content, Extent, pieces
from raycache.errors import Changed
from raycache.meta.extents import moved, read_content

_MOST = (
    "SELECT worker_id FROM extents JOIN segments USING (segment) WHERE ino = ?"
    " GROUP BY worker_id ORDER BY sum(length) DESC, worker_id LIMIT 1"
)

CALM_NS = 10**9
"""How long after a path began to be behind it is left alone: many are written under one name and moved to another, and
what has gone by then never was in the source."""
GONE_MAX = 100_000
"""Objects that are gone, remembered for writers that began before."""
_NOW_NS = "CAST((julianday('now') - 2440587.5) * 86400e9 AS INTEGER)"


def want_put(db: sqlite3.Connection, dataset: str, path: bytes, ino: int, version: int, base_etag: str | None) -> None:
    """Have the contents of a file at a path; part of a transaction, after the extents of ``version`` are written.

    ``base_etag``: what the source has there as far as is known; ``""``: nothing; None: not known.
    """
    _replace(db, dataset, path, "put", base_etag, (ino, version, _most(db, ino)))


def want_delete(db: sqlite3.Connection, dataset: str, path: bytes, base_etag: str | None) -> None:
    """Have no file at a path; part of a transaction. Where the source has none and never had, nothing is to be done."""
    row = db.execute(
        "SELECT base_etag, tried, directory FROM pending WHERE dataset = ? AND path = ?", (dataset, path)
    ).fetchone()
    base, tried, directory = row or (base_etag, "", 0)
    if base == "" and not tried and not directory:
        db.execute("DELETE FROM pending WHERE dataset = ? AND path = ?", (dataset, path))
    else:
        _replace(db, dataset, path, "rmdir" if directory else "delete", base_etag)


def want_many(
    db: sqlite3.Connection,
    dataset: str,
    puts: Iterable[tuple[bytes, int, int, str | None]],
    deletes: Iterable[tuple[bytes, str | None]],
) -> None:
    """``want_put`` (path, number, version, base) and then ``want_delete`` (path, base) for paths of which none is
    pending: ten times as fast."""
    (now_ns,) = db.execute(f"SELECT {_NOW_NS}").fetchone()
    insert = (
        "INSERT INTO pending (dataset, path, kind, ino, version, worker_id, base_etag, since_ns, not_before_ns)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    )
    rows = (
        (dataset, path, "put", ino, version, _most(db, ino) if version else "", base, now_ns, now_ns + CALM_NS)
        for path, ino, version, base in puts
    )
    db.executemany(insert, rows)
    gone = ((dataset, path, "delete", None, None, "", base, now_ns, 0) for path, base in deletes if base != "")
    db.executemany(insert, gone)


def want_mkdir(db: sqlite3.Connection, dataset: str, path: bytes) -> None:
    """Have a directory at a path, where the source has real ones; part of a transaction."""
    _replace(db, dataset, path, "mkdir", "")


def want_rmdir(db: sqlite3.Connection, dataset: str, path: bytes) -> None:
    """Have no directory at a path, where the source has real ones; part of a transaction.

    Where a file is to be there instead, whoever puts it removes the directory. A file that the source has still in the
    place of a directory that never came goes with it.
    """
    is_put = db.execute(
        "UPDATE pending SET directory = 1 WHERE dataset = ? AND path = ? AND kind = 'put'", (dataset, path)
    ).rowcount
    if not is_put:
        _replace(db, dataset, path, "rmdir", "")


def known_etag(db: sqlite3.Connection, dataset: str, path: bytes, listed_etag: str | None) -> str | None:
    """What the source has at a path as far as is known, ``""`` for nothing: what was put there, else what was listed
    (``listed_etag``). For ``base_etag``; part of a transaction."""
    row = db.execute("SELECT etag FROM persisted WHERE dataset = ? AND path = ?", (dataset, path)).fetchone()
    return row[0] if row else listed_etag


def _most(db: sqlite3.Connection, ino: int) -> str:
    """The worker that has most of a file's new bytes, empty where none has any."""
    most = db.execute(_MOST, (ino,)).fetchone()
    return str(most[0]) if most else ""


def _replace(
    db: sqlite3.Connection,
    dataset: str,
    path: bytes,
    kind: str,
    base_etag: str | None,
    contents: tuple[int | None, int | None, str] = (None, None, ""),
) -> None:
    """Whoever is at the old row keeps the lease: two that put one path side by side could end in the wrong order."""
    kept = db.execute(
        "DELETE FROM pending WHERE dataset = ? AND path = ?"
        " RETURNING base_etag, since_ns, lease, tried, not_before_ns, directory OR kind IN ('mkdir', 'rmdir')",
        (dataset, path),
    ).fetchone() or (None, None, "", "", 0, 0)
    base, since_ns, lease, tried, not_before_ns, directory = kept
    if since_ns is None:
        (since_ns,) = db.execute(f"SELECT {_NOW_NS}").fetchone()
    if not lease:
        not_before_ns = since_ns + CALM_NS if kind == "put" else 0
    base = base_etag if base is None else base
    db.execute(
        "INSERT INTO pending (dataset, path, kind, ino, version, worker_id,"
        " base_etag, since_ns, lease, tried, not_before_ns, directory) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (dataset, path, kind, *contents, base, since_ns, lease, tried, not_before_ns, directory),
    )


def freshened(db: sqlite3.Connection, dataset: str, ino: int, content: Content) -> Content:
    """Contents that are about to be committed, without references to objects and segments that are gone; part of a
    transaction, before anything of it is written.

    Who writes into a file refers to what it was made of when the writing began. Where that has been put over meanwhile,
    it has been kept, or put, and the file has it at the same place. Raises Changed for bytes of another file.
    """
    found: list[Extent] = []
    for extent in (piece for each in content.extents for piece in moved(db, dataset, each)):
        gone = (
            extent.path
            and db.execute(
                "SELECT ino FROM gone WHERE dataset = ? AND path = ? AND etag = ?",
                (dataset, extent.path.encode("utf-8", "surrogateescape"), extent.etag),
            ).fetchone()
        )
        if not gone:
            found.append(extent)
            continue
        now = _now_at(db, ino, extent) if ino in (gone[0], extent.row) else None
        if now is None:
            raise Changed(f"{extent.path}: the bytes that were asked for are being put over; read them again")
        found.extend(now)
    return Content(content.size_bytes, tuple(found))


def note_gone(db: sqlite3.Connection, dataset: str, path: bytes, etag: str, ino: int | None) -> None:
    """An object is about to be put over or deleted; nothing refers to it. Part of a transaction."""
    if ino is None:
        row = db.execute("SELECT ino FROM persisted WHERE dataset = ? AND path = ?", (dataset, path)).fetchone()
        ino = row[0] if row else None
    db.execute("INSERT OR IGNORE INTO gone (dataset, path, etag, ino) VALUES (?, ?, ?, ?)", (dataset, path, etag, ino))
    db.execute("DELETE FROM gone WHERE number <= (SELECT max(number) FROM gone) - ?", (GONE_MAX,))


def _now_at(db: sqlite3.Connection, ino: int, extent: Extent) -> list[Extent] | None:
    """What a file has now where an extent is; None where it ends before."""
    row = db.execute("SELECT size_bytes FROM inodes WHERE ino = ?", (ino,)).fetchone()
    if row is None or row[0] < extent.at + extent.length:
        return None
    return pieces(read_content(db, ino, row[0]).extents, extent.at, extent.length)
