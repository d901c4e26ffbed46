"""What rows of ``pending`` ask for: as tasks for workers, with all they need to know. Each function is part of a
transaction.

What is in the source may be what files here are made of: a moved file, a file that was changed in places. A row that
would put over it, or delete it, waits for files that are to be put from there; for all others, its own file included,
the bytes are first kept in a segment. So nothing that can be read stops to be so when the source changes, and what may
have got to the source without our hearing of it leaves nothing behind that refers to what was there.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from sqlite3 import Connection
from typing import NamedTuple

from raycache.core.inode import Content, Extent
from raycache.core.persisting import Attempt, Task
from raycache.meta.extents import read_content

ATTEMPTS_MAX = 16
"""Versions remembered of one path that may have got to the source unheard; only changes while it is away add one."""
FAILING, AWAY, IN_THE_WAY = 1, 2, 3
"""Why a row is set aside: ``pending.aside``."""
COLUMNS = "seq, dataset, path, kind, ino, version, base_etag, tried, tries, not_before_ns, lease"
"""Of ``pending``, in the order of Row."""


class Row(NamedTuple):
    """A row of ``pending``."""

    seq: int
    dataset: str
    path: bytes
    kind: str
    ino: int | None
    version: int | None
    base_etag: str | None
    tried: str
    tries: int
    not_before_ns: int
    lease: str

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Of the puts, which may be there."""
        return tuple(Attempt(*each) for each in json.loads(self.tried or "[]"))


class Needed(NamedTuple):
    """A range of an object that a file is made of."""

    ino: int
    offset: int
    length: int


class First(NamedTuple):
    """What another row waits for."""

    path: bytes
    aside: bool
    """Set aside: nothing else is to wait for them."""


def task_of(db: Connection, row: Row, now_ns: int) -> Task:
    """What is to be done."""
    attempts, content, origin = row.attempts, None, None
    if row.kind == "put":
        inode = db.execute("SELECT version, size_bytes FROM inodes WHERE ino = ?", (row.ino,)).fetchone()
        content = read_content(db, row.ino or 0, inode[1])
        origin = _origin(db, row, inode[0], content)
        attempts = _with_attempt(attempts, (row.ino or 0, *inode), now_ns, origin)
    return Task(row.seq, row.dataset, text(row.path), row.kind, row.base_etag or "", attempts, content, origin)


def keep_task(row: Row, needed: Sequence[Needed]) -> Task:
    """Have what is needed of an object kept, before it goes."""
    etag, extents, end = row.base_etag or "", [], 0
    for offset, length in sorted((each.offset, each.length) for each in needed):
        start, stop = max(offset, end), offset + length
        if stop > start:
            extents.append(Extent(start, stop - start, offset=start, path=text(row.path), etag=etag))
            end = stop
    return Task(row.seq, row.dataset, text(row.path), "keep", etag, content=Content(end, tuple(extents)))


def needed_by(db: Connection, row: Row) -> list[Needed]:
    """What files here are made of in the object that a row is to put over or delete."""
    if not row.base_etag:
        return []
    found = db.execute(
        "SELECT e.ino, e.segment_offset, e.length FROM extents e JOIN inodes i USING (ino)"
        " WHERE e.path = ? AND e.etag = ? AND i.dataset = ?",
        (row.path, row.base_etag, row.dataset),
    ).fetchall()
    return [Needed(*each) for each in found]


def is_there(db: Connection, row: Row) -> bool:
    """Whether the source has what a row says, as far as is known: a file was moved away, and back."""
    if row.kind != "put" or row.tried:
        return False
    inode = db.execute("SELECT version, size_bytes FROM inodes WHERE ino = ?", (row.ino,)).fetchone()
    if inode is None:
        return True  # its dataset keeps what was written to itself by now
    content = read_content(db, row.ino or 0, inode[1])
    return _origin(db, row, inode[0], content) == (text(row.path), row.base_etag)


def waits_for(db: Connection, row: Row, needed: Sequence[Needed]) -> First | None:
    """A file that is to be put from what a row is about, and was so before; None where there is none."""
    for ino in dict.fromkeys(each.ino for each in needed):
        found = db.execute(
            "SELECT path, aside FROM pending WHERE ino = ? AND ino IS NOT ? AND kind = 'put' AND seq < ?"
            " AND dataset = ? AND aside != ? LIMIT 1",
            (ino, row.ino, row.seq, row.dataset, IN_THE_WAY),
        ).fetchone()
        if found is not None:
            return First(found[0], bool(found[1]))
    return None


def is_copied_from(db: Connection, row: Row) -> bool:
    """Whether a worker may be copying inside the source from the path of a row: what it finds there is to stay."""
    return (
        db.execute(
            "SELECT 1 FROM persisted p JOIN pending q USING (dataset, ino)"
            " WHERE dataset = ? AND p.path = ? AND q.path != p.path AND q.kind = 'put' AND q.lease != '' LIMIT 1",
            (row.dataset, row.path),
        ).fetchone()
        is not None
    )


def _origin(db: Connection, row: Row, version: int, content: Content) -> tuple[str, str] | None:
    """Where the source has the same bytes under another path, at which no worker is."""
    put = db.execute(
        "SELECT path, etag FROM persisted p WHERE ino = ? AND version = ? AND dataset = ? AND path != ? AND NOT EXISTS"
        " (SELECT 1 FROM pending q WHERE q.dataset = p.dataset AND q.path = p.path AND q.lease != '')",
        (row.ino, version, row.dataset, row.path),
    ).fetchone()
    if put is not None:
        return text(put[0]), put[1]
    if len(content.extents) == 1:
        (extent,) = content.extents
        if extent.path and extent.offset == 0 and extent.etag:
            return extent.path, extent.etag
    return None


def _with_attempt(
    attempts: tuple[Attempt, ...], about: tuple[int, int, int], now_ns: int, origin: tuple[str, str] | None
) -> tuple[Attempt, ...]:
    """The attempts, of which the last one is about this number, version and size; as it was where it is there."""
    mine = next((each for each in attempts if (each.ino, each.version) == about[:2]), None)
    others = tuple(each for each in attempts if each is not mine)
    mark, since_ns = (mine.mark, mine.since_ns) if mine else (secrets.token_hex(8), now_ns)
    return (*others, Attempt(mark, *about, since_ns, origin[1] if origin else ""))[-ATTEMPTS_MAX:]


def raw(path: str) -> bytes:
    """A path as the catalog has it."""
    return path.encode("utf-8", "surrogateescape")


def text(path: bytes) -> str:
    """The same for everybody else."""
    return path.decode("utf-8", "surrogateescape")
