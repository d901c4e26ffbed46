"""Where the bytes of written files lie, in the catalog's tables, and what becomes of them with their dataset or
directory. Each function is part of a transaction.

A segment is known for as long as an extent lies in it: with the last one its rows go, and its workers may delete it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from sqlite3 import Connection

from raycache.core.inode import EXTENTS_MAX, ROW_BITS, Content, Extent, Segment, directory_ino
from raycache.errors import Changed, InvalidInput

_EXTENTS = "SELECT at, length, segment, segment_offset, path, etag, row FROM extents WHERE ino = ? ORDER BY at"


def read_content(db: Connection, ino: int, size_bytes: int) -> Content:
    """What a file that has rows is made of, holes included."""
    found: list[Extent] = []
    end = 0
    for at, length, segment, offset, path, etag, row in db.execute(_EXTENTS, (ino,)):
        if at > end:
            found.append(Extent(end, at - end))
        where = "" if path is None else path.decode("utf-8", "surrogateescape")
        found.append(Extent(at, length, segment or "", offset, where, etag, row))
        end = at + length
    if end < size_bytes:
        found.append(Extent(end, size_bytes - end))
    return Content(size_bytes, tuple(found))


def moved(db: Connection, dataset: str, extent: Extent) -> list[Extent]:
    """The same bytes, in the source where their segment was let go. Part of a transaction."""
    if not extent.segment or db.execute("SELECT 1 FROM extents WHERE segment = ?", (extent.segment,)).fetchone():
        return [extent]
    stop = extent.offset + extent.length
    rows = db.execute(
        "SELECT offset, length, path, etag, source_offset FROM let_go"
        " WHERE segment = ? AND dataset = ? AND offset < ? AND offset + length > ? ORDER BY offset, number DESC",
        (extent.segment, dataset, stop, extent.offset),
    )
    return _covered(extent, rows) or [extent]


def _covered(extent: Extent, rows: Iterable[tuple[int, int, bytes, str, int]]) -> list[Extent]:
    """Pieces that make up the extent; nothing where some of it is not known."""
    found: list[Extent] = []
    done, stop = extent.offset, extent.offset + extent.length
    for offset, length, path, etag, source_offset in rows:
        if offset > done:
            return []
        end = min(stop, offset + length)
        if end > done:
            at = extent.at + done - extent.offset
            found.append(
                Extent(at, end - done, "", source_offset + done - offset, path.decode("utf-8", "surrogateescape"), etag)
            )
            done = end
    return found if done == stop else []


def check_content(content: Content) -> None:
    """Raises InvalidInput for extents that overlap, are out of order, reach beyond the end, or are too many."""
    if len(content.extents) > EXTENTS_MAX:
        raise InvalidInput(f"{len(content.extents)} extents; a file has at most {EXTENTS_MAX}, copy what lies between")
    end = 0
    for extent in content.extents:
        if extent.at < end or extent.length <= 0 or extent.offset < 0 or (extent.segment and extent.path):
            raise InvalidInput(f"{extent} overlaps, is out of order, is empty, or lies in two places")
        end = extent.at + extent.length
    if end > content.size_bytes:
        raise InvalidInput(f"extents up to {end} in a file of {content.size_bytes} bytes")


def write_content(db: Connection, ino: int, content: Content, segments: Sequence[Segment], is_new: bool) -> None:
    """Have a file made of other extents. ``is_new``: it has none yet.

    Raises Changed when an extent lies in a segment that is neither known nor among ``segments``, or was dropped.
    """
    for one in segments:
        if db.execute("SELECT 1 FROM dropped WHERE segment = ?", one[:1]).fetchone():
            continue
        db.execute(
            "INSERT INTO segments VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET size_bytes = max(size_bytes, excluded.size_bytes)",
            one,
        )
    used = {extent.segment for extent in content.extents if extent.segment}
    for segment in used:
        if not db.execute("SELECT 1 FROM segments WHERE segment = ?", (segment,)).fetchone():
            raise Changed(f"segment {segment} is gone: its bytes were not committed in time; write them again")
    before = set() if is_new else _segments_of(db, ino)
    if not is_new:
        db.execute("DELETE FROM extents WHERE ino = ?", (ino,))
    rows = [_row(ino, extent) for extent in content.extents if extent.segment or extent.path]
    db.executemany("INSERT INTO extents VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    forget_unused(db, (before | {one.segment for one in segments}) - used)


def replace_extents(db: Connection, ino: int, extents: Iterable[Extent]) -> None:
    """Have the same bytes of a file lie elsewhere."""
    before = _segments_of(db, ino)
    db.execute("DELETE FROM extents WHERE ino = ?", (ino,))
    rows = [_row(ino, extent) for extent in extents if extent.segment or extent.path]
    db.executemany("INSERT INTO extents VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    forget_unused(db, before - _segments_of(db, ino))


def cut_content(db: Connection, ino: int, size_bytes: int) -> None:
    """Have nothing beyond an offset of a file."""
    before = _segments_of(db, ino)
    db.execute("DELETE FROM extents WHERE ino = ? AND at >= ?", (ino, size_bytes))
    db.execute("UPDATE extents SET length = min(length, ?2 - at) WHERE ino = ?1", (ino, size_bytes))
    forget_unused(db, before)


def drop_extents(db: Connection, inos: Sequence[int]) -> None:
    """Forget what files were made of."""
    before = {segment for ino in inos for segment in _segments_of(db, ino)}
    db.executemany("DELETE FROM extents WHERE ino = ?", ((ino,) for ino in inos))
    forget_unused(db, before)


def forget_written(db: Connection, dataset: str) -> None:
    """Forget all that was written in a dataset, while its directories are there yet."""
    mine = "(SELECT ino FROM inodes WHERE dataset = ?)"
    segments = db.execute(f"SELECT DISTINCT segment FROM extents WHERE segment NOT NULL AND ino IN {mine}", (dataset,))
    before = [segment for (segment,) in segments]
    for table in ("extents", "xattrs", "orphans"):
        db.execute(f"DELETE FROM {table} WHERE ino IN {mine}", (dataset,))
    forget_unused(db, before)
    folders = "FROM directories WHERE dataset = ?"
    db.execute(f"DELETE FROM entries WHERE parent IN (SELECT dir_id << {ROW_BITS} {folders})", (dataset,))
    db.execute(f"DELETE FROM touched WHERE dir_id IN (SELECT dir_id {folders})", (dataset,))
    for table in ("pending", "persisted", "inodes"):
        db.execute(f"DELETE FROM {table} WHERE dataset = ?", (dataset,))


def renumber_written(db: Connection, dir_id: int, new_id: int) -> None:
    """What was written in a directory is in it when it has another id, and its manifest is to be made anew."""
    old, new = directory_ino(dir_id), directory_ino(new_id)
    db.execute("UPDATE entries SET parent = ? WHERE parent = ?", (new, old))
    for table in ("entries", "inodes", "xattrs"):
        db.execute(f"UPDATE {table} SET ino = ? WHERE ino = ?", (new, old))
    db.execute("DELETE FROM touched WHERE dir_id = ?", (dir_id,))
    behind = "INSERT INTO touched (dir_id, since_ns) SELECT ?1, 0 WHERE EXISTS (SELECT 1 FROM inodes WHERE ino = ?2)"
    db.execute(behind, (new_id, new))


def forget_unused(db: Connection, segments: Iterable[str]) -> None:
    """Forget those segments that no extent lies in."""
    db.executemany(
        "DELETE FROM segments WHERE segment = ?1 AND NOT EXISTS (SELECT 1 FROM extents WHERE segment = ?1)",
        [(segment,) for segment in segments],
    )


def _segments_of(db: Connection, ino: int) -> set[str]:
    rows = db.execute("SELECT DISTINCT segment FROM extents WHERE ino = ? AND segment NOT NULL", (ino,))
    return {segment for (segment,) in rows}


def _row(ino: int, extent: Extent) -> tuple[object, ...]:
    path = extent.path.encode("utf-8", "surrogateescape") if extent.path else None
    return ino, extent.at, extent.length, extent.segment or None, extent.offset, path, extent.etag, extent.row
