"""Deciding conflicts for what the source has. A verb upon the tree, see ``client.treeapi``."""

from __future__ import annotations

from raycache.core.inode import Place
from raycache.core.paths import split
from raycache.errors import InvalidInput, NotADirectory, NotFound
from raycache.meta.behind import matching
from raycache.meta.inodes import Inodes
from raycache.meta.naming import take_name
from raycache.meta.tasks import text


def discard_conflicts(tree: Inodes, place: Place) -> list[int]:
    if isinstance(place, int):
        raise InvalidInput("conflicts are decided by path: give a dataset and a path inside it")
    where, args = matching(place)
    rows = tree.db.execute(f"SELECT dataset, path FROM pending {where} AND conflict = 1 ORDER BY seq", args).fetchall()
    return [_discard(tree, dataset, path) for dataset, path in rows]


def _discard(tree: Inodes, dataset: str, path: bytes) -> int:
    """Forget what was written under a path; the directory that is to be listed anew, 0 where it is gone."""
    above, last = split(text(path))
    name = last.encode("utf-8", "surrogateescape")
    dir_id = 0
    try:
        folder = tree.locate_folder((dataset, above))
    except (NotFound, NotADirectory):
        folder = None
    if folder is not None:
        dir_id = folder.dir_id
        found = tree.find(folder, name)
        if found is not None and not found.is_dir:
            take_name(tree, folder, name, found)
        if found is None or not found.is_dir:
            # Not even as a whiteout: what the source has is to be seen.
            tree.db.execute("DELETE FROM entries WHERE parent = ? AND name = ?", (folder.ino, name))
        tree.touch(folder)
    for table in ("pending", "persisted"):
        tree.db.execute(f"DELETE FROM {table} WHERE dataset = ? AND path = ?", (dataset, path))
    return dir_id
