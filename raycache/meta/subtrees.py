"""A directory with all below it, within one transaction: what is in it, and what becomes of it as a whole.

What moves must not depend on what the source lists under the old path. Before a tree is moved, all that is only listed
in it becomes entries (*settling*): files keep their numbers and lie where they lay in the source, directories keep
their ids, and show from then on what is in the catalog alone.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from raycache.core.inode import (
    LISTED_DIRECTORY,
    LISTED_FILE,
    MOUNT_OWNER,
    ROW_BITS,
    TREE_MAX,
    directory_ino,
    row_ino,
    split_ino,
)
from raycache.errors import Refused
from raycache.meta.inodes import ATTR, WITHIN, Folder, Inodes, forget_directories, where, within
from raycache.meta.lowers import Lower, Missing

_IN_TREE = f"FROM directories d JOIN entries e ON e.parent = d.dir_id << {ROW_BITS}"
_WITHIN = f"WHERE d.dataset = ?1 AND {WITHIN.format('d.path')}"


@dataclass(slots=True)
class Listed:
    """What the source shows in one directory of a tree: what no entry covers."""

    folder: Folder
    lower: Lower
    files: list[int] = field(default_factory=list)
    """Rows."""
    folders: list[tuple[int, Folder]] = field(default_factory=list)
    """Rows, and the directories that they are."""


@dataclass(slots=True)
class Subtree:
    """All that is in a directory and below."""

    folders: list[Folder]
    """The directory itself first, and each before those in it."""
    listed: list[Listed] = field(default_factory=list)

    @property
    def top(self) -> Folder:
        """The directory itself."""
        return self.folders[0]


def gather(tree: Inodes, top: Folder, too_many: int) -> Subtree:
    """Find all directories of a tree. Raises Missing, and Refused with the errno ``too_many`` where the source lists
    more than TREE_MAX in it."""
    found, missing, count = Subtree([top]), [], 0
    for folder in found.folders:  # which grows meanwhile
        entries = dict(tree.db.execute("SELECT name, ino FROM entries WHERE parent = ?", (folder.ino,)))
        found.folders += [tree.folder(ino >> ROW_BITS) for ino in entries.values() if ino and split_ino(ino)[1] is None]
        try:
            lower = tree.lower(folder)
        except Missing:
            missing.append(folder.dir_id)
            continue
        if lower is None:
            continue
        count += lower.count
        if count > TREE_MAX:
            raise Refused.because(
                too_many, f"{where(top)} has more than {TREE_MAX:,} files in the source; do it in parts"
            )
        listed = Listed(folder, lower)
        for row in lower.rows():
            if entries and lower.name(row) in entries:
                continue
            child_id = lower.child_id(row)
            if child_id is None:
                listed.files.append(row)
            elif (below := tree.listed_folder(child_id)) is not None:
                listed.folders.append((row, below))
        found.listed.append(listed)
        found.folders += [below for _, below in listed.folders]
    if missing:
        raise Missing(*missing)
    return found


def in_source(tree: Inodes, subtree: Subtree) -> dict[bytes, str | None]:
    """Paths of the regular files of a tree that has not been settled, with the versions that the source has there."""
    found: dict[bytes, str | None] = {}
    for each in subtree.listed:
        for row in each.files:
            found[each.folder.below(each.lower.name(row))] = each.lower.etag(row)
    for folder, name, _, _ in list(files_of(tree, subtree.top)):
        found[folder.below(name)] = tree.source_etag(folder, name)
    return found


def files_of(tree: Inodes, top: Folder) -> Iterator[tuple[Folder, bytes, int, int]]:
    """Names, numbers and versions of the regular files that have entries in a tree, in order."""
    rows = tree.db.execute(
        f"SELECT d.dir_id, e.name, i.ino, i.version {_IN_TREE} JOIN inodes i USING (ino) {_WITHIN}"
        " AND i.mode & ?5 = ?6 ORDER BY d.path, e.name",
        (*within(top.dataset, top.path), stat.S_IFMT(0o777777), stat.S_IFREG),
    )
    return ((tree.folder(dir_id), name, ino, version) for dir_id, name, ino, version in rows)


def settle(tree: Inodes, subtree: Subtree) -> None:
    """Make entries of all that is only listed in a tree."""
    db = tree.db
    if subtree.listed:
        tree.copy_up_folder(subtree.top)
    for each in subtree.listed:
        folder, lower = each.folder, each.lower
        files = [(row_ino(folder.dir_id, row), lower.name(row), row) for row in each.files]
        db.executemany(
            # Attributes of a directory may have been set before.
            f"INSERT OR IGNORE INTO inodes ({ATTR}, dataset) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?)",
            _inodes(each, tree.about(folder.dataset).attached_ns),
        )
        db.executemany(
            "INSERT INTO entries VALUES (?, ?, ?)",
            [
                *((folder.ino, name, ino) for ino, name, _ in files),
                *((folder.ino, lower.name(row), to.ino) for row, to in each.folders),
            ],
        )
        db.executemany(
            "INSERT INTO extents VALUES (?1, 0, ?2, NULL, 0, ?3, ?4, ?1)",
            ((ino, size, folder.below(name), lower.etag(row)) for ino, name, row in files if (size := lower.size(row))),
        )
        db.execute("DELETE FROM entries WHERE parent = ? AND ino IS NULL", (folder.ino,))
        db.execute("UPDATE directories SET opaque = 1 WHERE dir_id = ?", (folder.dir_id,))
        db.execute(
            "UPDATE inodes SET nlink = 2 + (SELECT count(*) FROM entries WHERE parent = ?1 AND ino & ?2 = 0)"
            " WHERE ino = ?1",
            (folder.ino, directory_ino(1) - 1),
        )
    tree.forget()


def _inodes(each: Listed, listed_ns: int) -> Iterator[tuple[object, ...]]:
    dataset, owner = each.folder.dataset, (MOUNT_OWNER, MOUNT_OWNER)
    for row in each.files:
        ns = each.lower.mtime_ns(row)
        yield row_ino(each.folder.dir_id, row), LISTED_FILE, 1, *owner, each.lower.size(row), ns, ns, ns, dataset
    for _, below in each.folders:
        yield below.ino, LISTED_DIRECTORY, 2, *owner, 0, listed_ns, listed_ns, listed_ns, dataset


def move_paths(tree: Inodes, dataset: str, old: bytes, new: bytes) -> None:
    """Have a directory, and all below it, under another path."""
    db, here = tree.db, within(dataset, old)
    db.execute(
        f"INSERT INTO touched (dir_id, since_ns) SELECT d.dir_id, ?5 FROM directories d {_WITHIN}"
        " ON CONFLICT DO UPDATE SET changes = random()",
        (*here, tree.now_ns),
    )
    db.execute(
        f"UPDATE directories AS d SET path = CAST(?5 || substr(d.path, ?6) AS BLOB) {_WITHIN}",
        (*here, new, len(old) + 1),
    )
    tree.forget()


def drop_tree(tree: Inodes, subtree: Subtree) -> int:
    """Forget a directory and all below it; how many entries there were in it."""
    db, top = tree.db, subtree.top
    listed = sum(len(each.files) + len(each.folders) for each in subtree.listed)
    here = within(top.dataset, top.path)
    named = db.execute(
        f"SELECT e.ino, count(*) {_IN_TREE} {_WITHIN} AND e.ino NOT NULL GROUP BY e.ino", here
    ).fetchall()
    db.executemany(
        "UPDATE inodes SET nlink = nlink - ?2, ctime_ns = ?3 WHERE ino = ?1",
        ((ino, count, tree.now_ns) for ino, count in named if split_ino(ino)[1] is not None),
    )
    gone = [
        ino
        for ino, _ in named
        if split_ino(ino)[1] is None or db.execute("SELECT nlink FROM inodes WHERE ino = ?", (ino,)).fetchone()[0] < 1
    ]
    tree.drop(top.ino, *gone)
    forget_directories(db, top.dataset, top.path)
    tree.forget()
    return listed + sum(int(count) for _, count in named)
