"""What ``raycache fsck`` knows of the tree that writers see: what must hold between its tables, and how it is mended.

What is wrong in bytes (extents that overlap, a segment that no worker has) is named and left as it is: nothing here
could bring it back, and a file with a hole where there should be bytes would look whole.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from sqlite3 import Connection
from typing import NamedTuple

from raycache.core.inode import ROW_BITS
from raycache.meta.extents import drop_extents

_DIR_BITS = f"{stat.S_IFMT(0o777777)} = {stat.S_IFDIR}"
_IS_DIR = f"mode & {_DIR_BITS}"


class Wrong(NamedTuple):
    """One thing that does not hold."""

    kind: str
    """``entry``, ``links``, ``nameless``, ``extents`` or ``segment``."""
    ino: int
    what: str
    parent: int = 0
    """Of ``entry``: the directory, by its number."""
    name: bytes = b""


def wrong_tree(db: Connection) -> Iterator[Wrong]:
    """All that does not hold, in a snapshot."""
    yield from _entries(db)
    yield from _links(db)
    yield from _extents(db)


def _entries(db: Connection) -> Iterator[Wrong]:
    lost = (
        "SELECT parent, name, ino, d.dir_id IS NULL FROM entries LEFT JOIN inodes i USING (ino)"
        f" LEFT JOIN directories d ON d.dir_id = parent >> {ROW_BITS}"
        " WHERE d.dir_id IS NULL OR (ino NOT NULL AND i.mode IS NULL)"
    )
    for parent, name, ino, no_parent in db.execute(lost):
        what = "it is in a directory that is not there" if no_parent else f"it means {ino}, which is not there"
        yield Wrong("entry", ino or 0, what, parent, name)
    moved = (
        "SELECT e.parent, e.name, e.ino, d.path FROM entries e"
        f" LEFT JOIN directories d ON d.dir_id = e.ino >> {ROW_BITS}"
        f" JOIN directories p ON p.dir_id = e.parent >> {ROW_BITS}"
        f" JOIN inodes i ON i.ino = e.ino WHERE i.{_IS_DIR} AND (d.path IS NULL"
        " OR d.path != CAST(iif(p.path = x'', e.name, p.path || '/' || e.name) AS BLOB))"
    )
    for parent, name, ino, path in db.execute(moved):
        where = "is not there" if path is None else f"has the path {path.decode('utf-8', 'backslashreplace')!r}"
        yield Wrong("entry", ino, f"it means directory {ino >> ROW_BITS}, which {where}", parent, name)


def _links(db: Connection) -> Iterator[Wrong]:
    counted = (
        "SELECT ino, nlink, (SELECT count(*) FROM entries e WHERE e.ino = i.ino) AS names,"
        f" EXISTS (SELECT 1 FROM orphans o WHERE o.ino = i.ino), {_IS_DIR} FROM inodes i"
        f" WHERE names != iif({_IS_DIR}, 1, nlink) OR names = 0"
    )
    for ino, nlink, names, held, is_dir in db.execute(counted):
        if names == 0 and is_dir:
            root = db.execute("SELECT 1 FROM datasets WHERE root_id = ?", (ino >> ROW_BITS,)).fetchone()
            if not root:
                yield Wrong("nameless", ino, "a directory that no name leads to")
        elif names == 0 and not held:
            yield Wrong("nameless", ino, "a file that no name leads to, and nobody has open")
        elif names != nlink and not is_dir:
            yield Wrong("links", ino, f"it has {names} names and should have {nlink}")
    opaque = (
        "SELECT i.ino, i.nlink, 2 + (SELECT count(*) FROM entries e JOIN inodes c ON c.ino = e.ino"
        f" WHERE e.parent = i.ino AND c.{_IS_DIR}) AS links FROM directories d"
        f" JOIN inodes i ON i.ino = d.dir_id << {ROW_BITS} WHERE d.opaque = 1 AND i.nlink != links"
    )
    for ino, nlink, links in db.execute(opaque):
        yield Wrong("links", ino, f"a directory with {links} links that says {nlink}")


def _extents(db: Connection) -> Iterator[Wrong]:
    overlap = (
        "SELECT ino, at FROM (SELECT ino, at, at + length AS stop, length, i.size_bytes AS size_bytes,"
        " lead(at) OVER (PARTITION BY ino ORDER BY at) AS next FROM extents LEFT JOIN inodes i USING (ino))"
        " WHERE length <= 0 OR stop > next OR size_bytes IS NULL OR stop > size_bytes"
    )
    for ino, at in db.execute(overlap):
        yield Wrong("extents", ino, f"its bytes from {at} on overlap others, are beyond its end, or of no file")
    lost = (
        "SELECT DISTINCT ino, segment FROM extents WHERE segment NOT NULL"
        " AND segment NOT IN (SELECT segment FROM segments)"
    )
    for ino, segment in db.execute(lost):
        yield Wrong("segment", ino, f"bytes of it were in segment {segment}, which no worker has; write it again")


def place_of(db: Connection, ino: int) -> tuple[str, str]:
    """Dataset and path of an inode, for messages; empty where it cannot be said."""
    row = db.execute(
        f"SELECT d.dataset, d.path, e.name FROM entries e JOIN directories d ON d.dir_id = e.parent >> {ROW_BITS}"
        " WHERE e.ino = ? LIMIT 1",
        (ino,),
    ).fetchone()
    if row is None:
        return "", f"inode {ino}"
    path = row[1] + b"/" + row[2] if row[1] else row[2]
    return row[0], path.decode("utf-8", "backslashreplace")


def mend(db: Connection, wrong: Wrong) -> str:
    """Put one thing right and say how; empty where it cannot be put right. Part of a transaction."""
    if wrong.kind == "entry":
        db.execute("DELETE FROM entries WHERE parent = ? AND name = ?", (wrong.parent, wrong.name))
        return "the name is forgotten"
    if wrong.kind == "links":
        db.execute(
            f"UPDATE inodes SET nlink = iif({_IS_DIR},"
            " 2 + (SELECT count(*) FROM entries e JOIN inodes c ON c.ino = e.ino"
            f" WHERE e.parent = inodes.ino AND c.{_IS_DIR}), (SELECT count(*) FROM entries e WHERE e.ino = inodes.ino))"
            " WHERE ino = ?",
            (wrong.ino,),
        )
        return "its links are counted anew"
    if wrong.kind == "nameless":
        return _give_name(db, wrong.ino)
    if wrong.kind == "extents" and not db.execute("SELECT 1 FROM inodes WHERE ino = ?", (wrong.ino,)).fetchone():
        drop_extents(db, (wrong.ino,))
        return "forgotten, there is no such file"
    return ""


def _give_name(db: Connection, ino: int) -> str:
    """A file is found in the root of its dataset from now on, a directory under its path if that is free."""
    dataset, is_dir = db.execute(f"SELECT dataset, {_IS_DIR} FROM inodes WHERE ino = ?", (ino,)).fetchone()
    root = db.execute("SELECT root_id FROM datasets WHERE name = ?", (dataset,)).fetchone()
    where = db.execute("SELECT path FROM directories WHERE dir_id = ?", (ino >> ROW_BITS,)).fetchone()
    if root is None or (is_dir and where is None):
        for table in ("inodes", "extents", "xattrs"):
            db.execute(f"DELETE FROM {table} WHERE ino = ?", (ino,))
        return "forgotten, what it was in is gone"
    parent, name = root[0], b"lost+found.%d" % ino
    if is_dir:
        above, _, name = where[0].rpartition(b"/")
        found = db.execute("SELECT dir_id FROM directories WHERE dataset = ? AND path = ?", (dataset, above)).fetchone()
        parent = found[0] if found else parent
    db.execute("INSERT OR IGNORE INTO entries VALUES (?, ?, ?)", (parent << ROW_BITS, name, ino))
    db.execute("INSERT OR IGNORE INTO touched (dir_id, since_ns) VALUES (?, 0)", (parent,))
    if not is_dir:
        db.execute("UPDATE inodes SET nlink = 1 WHERE ino = ?", (ino,))
    return f"it is {name.decode('utf-8', 'backslashreplace')!r} now"
