"""Verbs that move or remove whole trees, and files likewise. See ``client.treeapi`` for what each does."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable

from raycache.core.inode import EXCHANGE, NOREPLACE, Attr, Place, split_ino
from raycache.errors import Exists, InvalidInput, IsADirectory, NotADirectory, NotEmpty, NotFound, Refused
from raycache.meta import journal
from raycache.meta.inodes import WITHIN, Folder, Inodes, check_name, where, within
from raycache.meta.naming import take_folder, take_name
from raycache.meta.subtrees import Subtree, drop_tree, files_of, gather, in_source, move_paths, settle

_ASIDE = b"/moving"
"""A path that nothing has, for one of two trees that change places."""


class _Moved:
    """One of the things that a rename moves: what it is, where from, and what of it the source has."""

    def __init__(self, tree: Inodes, folder: Folder, name: bytes, attr: Attr) -> None:
        self.folder, self.name = folder, name
        self.subtree: Subtree | None = None
        self.olds: dict[bytes, str | None] = {}
        """Paths of its regular files, with the versions that the source has there."""
        if attr.is_dir:
            self.subtree = gather(tree, tree.folder(split_ino(attr.ino)[0]), errno.EXDEV)
            if tree.persists(folder.dataset):
                self.olds = in_source(tree, self.subtree)
            settle(tree, self.subtree)
            self.attr = tree.attr(attr.ino)
        else:
            if stat.S_ISREG(attr.mode) and tree.persists(folder.dataset):
                self.olds = {folder.below(name): tree.source_etag(folder, name)}
            self.attr = tree.copy_up(attr.ino)

    def news(self, tree: Inodes, folder: Folder, name: bytes) -> list[tuple[bytes, int, int]]:
        """Paths, numbers and versions of its regular files where they are now."""
        if self.subtree is not None:
            top = tree.folder(self.subtree.top.dir_id)
            return [(below.below(name), ino, version) for below, name, ino, version in files_of(tree, top)]
        is_file = stat.S_ISREG(self.attr.mode)
        return [(folder.below(name), self.attr.ino, self.attr.version)] if is_file else []


def rename(
    tree: Inodes, parent: Place, name: bytes, to_parent: Place, to_name: bytes, flags: int = 0, holder: str = ""
) -> Attr:
    if flags not in (0, NOREPLACE, EXCHANGE):
        raise InvalidInput(f"{flags} are no flags of rename")
    folder, to_folder = tree.locate_folder(parent), tree.locate_folder(to_parent)
    attr = tree.get(folder, name)
    check_name(to_name)
    if folder.dataset != to_folder.dataset:
        raise Refused.because(errno.EXDEV, f"{where(folder, name)} cannot be moved to dataset {to_folder.dataset!r}")
    target = tree.find(to_folder, to_name)
    if flags == EXCHANGE and target is None:
        raise NotFound(f"{where(to_folder, to_name)}: there is nothing to exchange")
    if flags == NOREPLACE and target is not None:
        raise Exists(f"{where(to_folder, to_name)} is there already")
    _not_into_itself(tree, attr, to_folder)  # the kernel asks in this order
    if target is not None and target.ino == attr.ino:
        return attr
    if flags == EXCHANGE and target is not None:
        _not_into_itself(tree, target, folder)
        return _exchange(tree, (folder, name, attr), (to_folder, to_name, target))
    if target is not None:
        _must_give_way(tree, where(folder, name), attr, where(to_folder, to_name), target, folder)
    base_etag = tree.source_etag(to_folder, to_name)
    if target is not None and target.is_dir:
        take_folder(tree, to_folder, to_name, target)
    moved = _Moved(tree, folder, name, attr)
    if target is not None and not target.is_dir:
        take_name(tree, to_folder, to_name, target, holder)
    tree.hide(folder, name)
    _place(tree, moved, to_folder, to_name)
    links = int(attr.is_dir)
    tree.changed(folder, -links)
    tree.changed(to_folder, links)
    if moved.subtree is not None:
        move_paths(tree, folder.dataset, folder.below(name), to_folder.below(to_name))
    if tree.persists(folder.dataset):
        bases = {to_folder.below(to_name): base_etag} if moved.subtree is None else {}
        # Below what replaces a directory of the source, there may be anything.
        other = "" if base_etag == "" else None
        news = moved.news(tree, to_folder, to_name)
        _want_moved(
            tree, folder.dataset, (folder.below(name), to_folder.below(to_name)), news, moved.olds, bases, other
        )
        _want_folders(tree, folder.dataset, [moved], set())
    return tree.attr(attr.ino)


def _exchange(tree: Inodes, one: tuple[Folder, bytes, Attr], other: tuple[Folder, bytes, Attr]) -> Attr:
    (folder, name, attr), (to_folder, to_name, target) = one, other
    there, back = _Moved(tree, folder, name, attr), _Moved(tree, to_folder, to_name, target)
    _place(tree, there, to_folder, to_name)
    _place(tree, back, folder, name)
    links = int(attr.is_dir) - int(target.is_dir)
    tree.changed(folder, -links)
    tree.changed(to_folder, links)
    dataset, here, away = folder.dataset, folder.below(name), to_folder.below(to_name)
    if attr.is_dir:
        move_paths(tree, dataset, here, _ASIDE)
    if target.is_dir:
        move_paths(tree, dataset, away, here)
    if attr.is_dir:
        move_paths(tree, dataset, _ASIDE, away)
    if tree.persists(dataset):
        news = [*there.news(tree, to_folder, to_name), *back.news(tree, folder, name)]
        olds = {**there.olds, **back.olds}
        _want_moved(tree, dataset, (here, away), news, olds, olds, "")
        _want_folders(tree, dataset, [there, back], {path for path, *_ in news})
    return tree.attr(attr.ino)


def _place(tree: Inodes, moved: _Moved, folder: Folder, name: bytes) -> None:
    tree.put_entry(folder, name, moved.attr.ino)
    tree.db.execute("UPDATE inodes SET ctime_ns = ? WHERE ino = ?", (tree.now_ns, moved.attr.ino))


def _must_give_way(tree: Inodes, name: str, attr: Attr, to_name: str, target: Attr, folder: Folder) -> None:
    if _is_within(tree, target, folder):
        raise NotEmpty(f"{to_name} is not empty: {name} is in it")
    if attr.is_dir and not target.is_dir:
        raise NotADirectory(f"{to_name} is no directory, and {name} is")
    if target.is_dir and not attr.is_dir:
        raise IsADirectory(f"{to_name} is a directory, and {name} is not")


def _not_into_itself(tree: Inodes, attr: Attr, folder: Folder) -> None:
    if _is_within(tree, attr, folder):
        raise InvalidInput(f"{where(folder)} is in the directory that is to be moved there")


def _is_within(tree: Inodes, attr: Attr, folder: Folder) -> bool:
    """Whether a directory is this one or below it."""
    if not attr.is_dir:
        return False
    path = tree.folder(split_ino(attr.ino)[0]).path
    return folder.path == path or folder.path.startswith(path + b"/")


def _want_moved(
    tree: Inodes,
    dataset: str,
    tops: tuple[bytes, bytes],
    news: Iterable[tuple[bytes, int, int]],
    olds: dict[bytes, str | None],
    bases: dict[bytes, str | None],
    other: str | None,
) -> None:
    """Have files under their new paths in the source, and then no more under the old ones.

    ``tops``: where all of them were, and are. ``bases``: what the source has under new paths; ``other``: what it has
    under those that are not in there.
    """
    puts = [(path, ino, version, bases.get(path, other)) for path, ino, version in news]
    here = {path for path, *_ in puts}
    gone = [(path, base_etag) for path, base_etag in olds.items() if path not in here]
    if not any(_is_pending(tree, dataset, top) for top in tops):
        journal.want_many(tree.db, dataset, puts, gone)
        return
    for path, ino, version, base_etag in puts:
        journal.want_put(tree.db, dataset, path, ino, version, base_etag)
    for path, base_etag in gone:
        journal.want_delete(tree.db, dataset, path, base_etag)


def _is_pending(tree: Inodes, dataset: str, path: bytes) -> bool:
    """Whether anything is pending of a path, or below it."""
    find = f"SELECT 1 FROM pending WHERE dataset = ?1 AND {WITHIN.format('path')} LIMIT 1"
    return tree.db.execute(find, within(dataset, path)).fetchone() is not None


def _want_folders(tree: Inodes, dataset: str, moved: Iterable[_Moved], files: set[bytes]) -> None:
    """The same for directories: new ones from above, old ones from below. ``files``: what are files from now on."""
    trees = [each.subtree for each in moved if each.subtree is not None]
    news = {tree.folder(folder.dir_id).path for subtree in trees for folder in subtree.folders}
    olds = {folder.path for subtree in trees for folder in subtree.folders}
    for path in sorted(news - olds):
        journal.want_mkdir(tree.db, dataset, path)
    for path in sorted(olds - news - files, reverse=True):
        journal.want_rmdir(tree.db, dataset, path)


def replace_tree(tree: Inodes, parent: Place, name: bytes, to_parent: Place, to_name: bytes) -> Attr:
    folder, to_folder = tree.locate_folder(parent), tree.locate_folder(to_parent)
    attr, target = tree.get(folder, name), tree.find(to_folder, to_name)
    if target is not None and target.ino != attr.ino:
        _not_into_itself(tree, target, folder)
        remove_tree(tree, (to_folder.dataset, to_folder.below(to_name).decode("utf-8", "surrogateescape")))
    return rename(tree, parent, name, to_parent, to_name)


def remove_tree(tree: Inodes, place: Place) -> int:
    attr = tree.locate(place)
    if not attr.is_dir:
        tree.copy_up(attr.ino)
        folder, name = tree.name_at(place, attr)
        take_name(tree, folder, name, tree.attr(attr.ino))
        return 1
    top = tree.folder(split_ino(attr.ino)[0])
    if not top.path:
        raise Refused.because(errno.EBUSY, f"{where(top)} is the root of its dataset; remove what is in it")
    subtree = gather(tree, top, errno.E2BIG)
    wanted = tree.persists(top.dataset)
    olds = in_source(tree, subtree) if wanted else {}
    above, name = tree.above(top)
    tree.changed(above, links=-1)
    tree.hide(above, name)
    count = drop_tree(tree, subtree)
    if wanted:
        _want_moved(tree, top.dataset, (top.path, top.path), (), olds, {}, None)
        for path in sorted((folder.path for folder in subtree.folders), reverse=True):
            journal.want_rmdir(tree.db, top.dataset, path)
    return count + 1
