"""Verbs about what an inode shows, and what programs attach to it. See ``client.treeapi`` for what each does."""

from __future__ import annotations

import errno
import stat

from raycache.core.inode import Attr, Place
from raycache.errors import Exists, InvalidInput, IsADirectory, NoSpace, Refused
from raycache.meta.committing import resize
from raycache.meta.inodes import Inodes

SETTABLE = ("mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns", "size_bytes")
XATTR_MAX, XATTRS_MAX = 65_536, 1 << 20
"""Longest value of an extended attribute, and most bytes of all those of an inode."""
_CREATE, _REPLACE = 1, 2
"""Flags of setxattr(2)."""


def getattr_(tree: Inodes, place: Place) -> Attr:
    return tree.locate(place)


def setattr_(tree: Inodes, place: Place, changes: dict[str, int]) -> Attr:
    if unknown := changes.keys() - set(SETTABLE):
        raise InvalidInput(f"{', '.join(sorted(unknown))}: there is no such attribute to set")
    attr = tree.copy_up(tree.locate(place).ino)
    chosen = dict(changes)
    if "size_bytes" in chosen:
        if attr.is_dir:
            raise IsADirectory(f"{place} is a directory, and has no size to set")
        if not stat.S_ISREG(attr.mode):
            raise InvalidInput(f"{place} is no regular file, and has no size to set")
        attr = resize(tree, attr, chosen.pop("size_bytes"))
        chosen.setdefault("mtime_ns", tree.now_ns)
    if "mode" in chosen:
        chosen["mode"] = stat.S_IFMT(attr.mode) | stat.S_IMODE(chosen["mode"])
    chosen.setdefault("ctime_ns", tree.now_ns)
    attr = attr._replace(**chosen)
    tree.db.execute(
        "UPDATE inodes SET mode = ?, uid = ?, gid = ?, atime_ns = ?, mtime_ns = ?, ctime_ns = ? WHERE ino = ?",
        (attr.mode, attr.uid, attr.gid, attr.atime_ns, attr.mtime_ns, attr.ctime_ns, attr.ino),
    )
    if "mtime_ns" in chosen:
        tree.touch_names(attr.ino)
    return attr


def getxattr(tree: Inodes, place: Place, name: bytes) -> bytes:
    attr = tree.locate(place)
    row = tree.db.execute("SELECT value FROM xattrs WHERE ino = ? AND name = ?", (attr.ino, name)).fetchone()
    if row is None:
        raise _no_data(place, name)
    return bytes(row[0])


def listxattr(tree: Inodes, place: Place) -> list[bytes]:
    attr = tree.locate(place)
    return [name for (name,) in tree.db.execute("SELECT name FROM xattrs WHERE ino = ? ORDER BY name", (attr.ino,))]


def setxattr(tree: Inodes, place: Place, name: bytes, value: bytes, flags: int) -> None:
    if not name or len(name) > 255:
        raise Refused.because(errno.ERANGE, f"an attribute's name of {len(name)} bytes; they have 1 to 255")
    if len(value) > XATTR_MAX:
        raise Refused.because(errno.E2BIG, f"an attribute of {len(value)} bytes; they have at most {XATTR_MAX}")
    attr = tree.locate(place)
    (bytes_before, is_there) = tree.db.execute(
        "SELECT coalesce(sum(length(name) + length(value)) FILTER (WHERE name != ?2), 0), coalesce(max(name = ?2), 0)"
        " FROM xattrs WHERE ino = ?1",
        (attr.ino, name),
    ).fetchone()
    if is_there and flags & _CREATE:
        raise Exists(f"{place} has an attribute {name!r} already")
    if not is_there and flags & _REPLACE:
        raise _no_data(place, name)
    if bytes_before + len(name) + len(value) > XATTRS_MAX:
        raise NoSpace(f"attributes of {place} would be more than {XATTRS_MAX} bytes")
    tree.copy_up(attr.ino)
    tree.db.execute("INSERT OR REPLACE INTO xattrs VALUES (?, ?, ?)", (attr.ino, name, value))
    tree.db.execute("UPDATE inodes SET ctime_ns = ? WHERE ino = ?", (tree.now_ns, attr.ino))


def removexattr(tree: Inodes, place: Place, name: bytes) -> None:
    attr = tree.locate(place)
    if not tree.db.execute("DELETE FROM xattrs WHERE ino = ? AND name = ?", (attr.ino, name)).rowcount:
        raise _no_data(place, name)
    tree.db.execute("UPDATE inodes SET ctime_ns = ? WHERE ino = ?", (tree.now_ns, attr.ino))


def _no_data(place: Place, name: bytes) -> Refused:
    return Refused.because(errno.ENODATA, f"{place} has no attribute {name!r}")
