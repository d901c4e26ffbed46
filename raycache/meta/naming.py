"""Verbs about names: making and removing entries, and asking for them. See ``client.treeapi`` for what each does."""

from __future__ import annotations

import errno
import stat
from itertools import islice

from raycache.core.inode import NLINK_MAX, Attr, Name, Place, directory_ino, split_ino
from raycache.errors import Exists, InvalidInput, IsADirectory, NotADirectory, NotEmpty, NotFound, Refused
from raycache.meta import journal
from raycache.meta.inodes import Folder, Inodes, check_name, where

READDIR_MAX = 65_536
"""Most entries of one answer."""
TARGET_MAX = 4095
"""Longest target of a symbolic link, bytes."""
_KINDS = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)


def lookup(tree: Inodes, parent: Place, name: bytes) -> Attr:
    return tree.get(tree.locate_folder(parent), name)


def readdir(tree: Inodes, place: Place, after: bytes, count: int) -> list[Name]:
    return list(islice(tree.children(tree.locate_folder(place), after), min(count, READDIR_MAX)))


def readlink(tree: Inodes, place: Place) -> bytes:
    attr = tree.locate(place)
    if not stat.S_ISLNK(attr.mode):
        raise InvalidInput(f"{place} is no symbolic link")
    (target,) = tree.db.execute("SELECT target FROM inodes WHERE ino = ?", (attr.ino,)).fetchone()
    return bytes(target)


def mknod(tree: Inodes, parent: Place, name: bytes, mode: int, uid: int, gid: int, rdev: int) -> Attr:
    kind = stat.S_IFMT(mode) or stat.S_IFREG
    if kind not in _KINDS:
        raise InvalidInput(f"mode {mode:o} is of nothing that mknod makes")
    folder = tree.locate_folder(parent)
    wanted = kind == stat.S_IFREG and tree.persists(folder.dataset)
    must_be_free(tree, folder, name)
    base_etag = tree.source_etag(folder, name) if wanted else None
    attr = make(tree, folder, name, kind | stat.S_IMODE(mode), uid, gid, rdev)
    if wanted:
        tree.want_put(folder, name, attr, base_etag)
    return attr


def symlink(tree: Inodes, parent: Place, name: bytes, target: bytes, uid: int, gid: int) -> Attr:
    if not target:
        raise NotFound("a symbolic link to an empty name")
    if len(target) > TARGET_MAX:
        raise Refused.because(errno.ENAMETOOLONG, f"a link of {len(target)} bytes; they have at most {TARGET_MAX}")
    folder = tree.locate_folder(parent)
    must_be_free(tree, folder, name)
    return make(tree, folder, name, stat.S_IFLNK | 0o777, uid, gid, target=target)


def make(
    tree: Inodes,
    folder: Folder,
    name: bytes,
    mode: int,
    uid: int,
    gid: int,
    rdev: int = 0,
    target: bytes | None = None,
    size_bytes: int = 0,
    mtime_ns: int | None = None,
) -> Attr:
    """Make an inode with a name that is free."""
    now_ns, size_bytes = tree.now_ns, size_bytes or len(target or b"")
    mtime_ns = now_ns if mtime_ns is None else mtime_ns
    above, above_gid = tree.changed(folder)
    gid = above_gid if above & stat.S_ISGID else gid
    attr = Attr(tree.new_ino(), mode, 1, uid, gid, size_bytes, now_ns, mtime_ns, now_ns, rdev, 1)
    tree.insert(folder.dataset, attr, target)
    tree.put_entry(folder, name, attr.ino)
    return attr


def mkdir(tree: Inodes, parent: Place, name: bytes, mode: int, uid: int, gid: int) -> Attr:
    return make_folder(tree, tree.locate_folder(parent), name, mode, uid, gid)


def make_folder(tree: Inodes, folder: Folder, name: bytes, mode: int, uid: int, gid: int) -> Attr:
    """Make a directory. Raises Exists."""
    must_be_free(tree, folder, name)
    now_ns, path = tree.now_ns, folder.below(name)
    above, above_gid = tree.changed(folder, links=1)
    if above & stat.S_ISGID:  # its group is that of all below it
        mode, gid = mode | stat.S_ISGID, above_gid
    dir_id = tree.new_folder(folder.dataset, path)
    attr = Attr(directory_ino(dir_id), stat.S_IFDIR | stat.S_IMODE(mode), 2, uid, gid, 0, now_ns, now_ns, now_ns, 0, 0)
    tree.insert(folder.dataset, attr)
    tree.put_entry(folder, name, attr.ino)
    tree.touch(tree.folder(dir_id))
    if tree.persists(folder.dataset):
        journal.want_mkdir(tree.db, folder.dataset, path)
    return attr


def must_be_free(tree: Inodes, folder: Folder, name: bytes) -> None:
    """Raises Exists, and what ``check_name`` raises."""
    check_name(name)
    if tree.find(folder, name) is not None:
        raise Exists(f"{where(folder, name)} is there already")


def link(tree: Inodes, place: Place, parent: Place, name: bytes) -> Attr:
    folder, attr = tree.locate_folder(parent), tree.locate(place)
    if attr.is_dir:
        raise Refused.because(errno.EPERM, f"{place} is a directory, and has one name only")
    must_be_free(tree, folder, name)
    attr = tree.copy_up(attr.ino)
    if attr.nlink >= NLINK_MAX:
        raise Refused.because(errno.EMLINK, f"{place} has {attr.nlink} names, the most")
    if attr.nlink == 0:
        raise NotFound(f"{place} was removed, and gets no name again")
    source = tree.dataset_of(attr.ino)
    if source != folder.dataset:
        raise Refused.because(errno.EXDEV, f"{place} is in dataset {source!r}, {where(folder)} in another one")
    base_etag = tree.source_etag(folder, name)
    tree.changed(folder)
    tree.put_entry(folder, name, attr.ino)
    tree.db.execute("UPDATE inodes SET nlink = nlink + 1, ctime_ns = ? WHERE ino = ?", (tree.now_ns, attr.ino))
    if tree.persists(folder.dataset):
        tree.want_put(folder, name, attr, base_etag)
    return attr._replace(nlink=attr.nlink + 1, ctime_ns=tree.now_ns)


def unlink(tree: Inodes, parent: Place, name: bytes, holder: str = "") -> Attr:
    folder = tree.locate_folder(parent)
    attr = tree.get(folder, name)
    if attr.is_dir:
        raise IsADirectory(f"{where(folder, name)} is a directory")
    return take_name(tree, folder, name, attr, holder)


def take_name(tree: Inodes, folder: Folder, name: bytes, attr: Attr, holder: str = "") -> Attr:
    """Take a name from a file, and forget the file with its last one unless ``holder`` has it open."""
    base_etag = tree.source_etag(folder, name)
    tree.changed(folder)
    if holder and attr.nlink == 1:
        tree.copy_up(attr.ino)
    tree.hide(folder, name)
    attr = attr._replace(nlink=attr.nlink - 1, ctime_ns=tree.now_ns)
    tree.db.execute("UPDATE inodes SET nlink = ?, ctime_ns = ? WHERE ino = ?", (attr.nlink, attr.ctime_ns, attr.ino))
    if attr.nlink == 0 and holder:
        tree.db.execute("INSERT OR IGNORE INTO orphans VALUES (?, ?)", (attr.ino, holder))
    elif attr.nlink == 0:
        tree.drop(attr.ino)
    if stat.S_ISREG(attr.mode) and tree.persists(folder.dataset):
        journal.want_delete(tree.db, folder.dataset, folder.below(name), base_etag)
    return attr


def rmdir(tree: Inodes, parent: Place, name: bytes) -> Attr:
    folder = tree.locate_folder(parent)
    attr = tree.get(folder, name)
    if not attr.is_dir:
        raise NotADirectory(f"{where(folder, name)} is no directory")
    take_folder(tree, folder, name, attr)
    return attr._replace(nlink=0, ctime_ns=tree.now_ns)


def take_folder(tree: Inodes, folder: Folder, name: bytes, attr: Attr) -> None:
    """Remove a directory. Raises NotEmpty."""
    gone = tree.folder(split_ino(attr.ino)[0])
    if not tree.is_empty(gone):
        raise NotEmpty(f"{where(gone)} is not empty")
    tree.changed(folder, links=-1)
    tree.hide(folder, name)
    tree.drop_folder(gone)
    if tree.persists(folder.dataset):
        journal.want_rmdir(tree.db, folder.dataset, gone.path)


def release(tree: Inodes, holder: str, inos: list[int] | None = None) -> None:
    db = tree.db
    if inos is None:
        inos = [ino for (ino,) in db.execute("SELECT ino FROM orphans WHERE holder = ?", (holder,))]
    for ino in inos:
        db.execute("DELETE FROM orphans WHERE ino = ? AND holder = ?", (ino, holder))
        held = db.execute("SELECT 1 FROM orphans WHERE ino = ?", (ino,)).fetchone()
        if not held and db.execute("SELECT 1 FROM inodes WHERE ino = ? AND nlink = 0", (ino,)).fetchone():
            tree.drop(ino)
