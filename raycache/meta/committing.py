"""Verbs about contents and where their bytes lie. See ``client.treeapi`` for what each does."""

from __future__ import annotations

import stat
from collections.abc import Sequence

from raycache.core.arguments import check_write_type
from raycache.core.inode import MOUNT_OWNER, Attr, Content, Extent, Place, Segment, split_ino
from raycache.core.values import Failed
from raycache.errors import Changed, Exists, InvalidInput, IsADirectory, NotADirectory
from raycache.meta import journal
from raycache.meta.extents import check_content, cut_content, read_content, write_content
from raycache.meta.inodes import Folder, Inodes, check_name, where
from raycache.meta.naming import make, make_folder

DIRECTORY_MODE = 0o755
"""Of directories that are made on the way of a path."""


def content(tree: Inodes, place: Place) -> tuple[Attr, Content]:
    attr = tree.locate(place)
    _must_be_file(place, attr)
    if has_rows(tree, attr.ino):
        return attr, read_content(tree.db, attr.ino, attr.size_bytes)
    dir_id, row = split_ino(attr.ino)
    folder = tree.folder(dir_id)
    lower = tree.lower(folder)
    assert lower is not None and row is not None  # noqa: PT018 - a file that has no rows is listed
    path = folder.below(lower.name(row)).decode("utf-8", "surrogateescape")
    whole = Extent(0, attr.size_bytes, path=path, etag=lower.etag(row), row=attr.ino)
    return attr, Content(attr.size_bytes, (whole,) if attr.size_bytes else ())


def contents(tree: Inodes, wanted: Sequence[tuple[int, int]]) -> list[Content | Failed]:
    found: list[Content | Failed] = []
    for ino, version in wanted:
        row = tree.db.execute("SELECT version, size_bytes FROM inodes WHERE ino = ?", (ino,)).fetchone()
        if row is None or row[0] != version:
            found.append(Failed(Changed(f"version {version} of file {ino} is gone: it was written again, or removed")))
        else:
            found.append(read_content(tree.db, ino, row[1]))
    return found


def commit(
    tree: Inodes,
    place: Place,
    content: Content,
    segments: Sequence[Segment],
    mtime_ns: int,
    write_type: str = "",
) -> Attr:
    check_content(content)
    _check_write_type(write_type)
    attr = tree.locate(place)
    _must_be_file(place, attr)
    return _rewrite(tree, tree.copy_up(attr.ino), content, segments, mtime_ns, write_type)


def _rewrite(
    tree: Inodes, attr: Attr, content: Content, segments: Sequence[Segment], mtime_ns: int, write_type: str
) -> Attr:
    """Give a file that has rows other contents."""
    content = journal.freshened(tree.db, tree.dataset_of(attr.ino), attr.ino, content)
    names = tree.names(attr.ino)
    base_etags = [tree.source_etag(*name) for name in names]
    write_content(tree.db, attr.ino, content, segments, is_new=False)
    attr = attr._replace(
        size_bytes=content.size_bytes, mtime_ns=mtime_ns, ctime_ns=tree.now_ns, version=attr.version + 1
    )
    tree.db.execute(
        "UPDATE inodes SET size_bytes = ?, mtime_ns = ?, ctime_ns = ?, version = ? WHERE ino = ?",
        (attr.size_bytes, attr.mtime_ns, attr.ctime_ns, attr.version, attr.ino),
    )
    _rewritten(tree, attr, names, base_etags, write_type)
    return attr


def _rewritten(
    tree: Inodes,
    attr: Attr,
    names: Sequence[tuple[Folder, bytes]],
    base_etags: Sequence[str | None],
    write_type: str = "",
) -> None:
    for (folder, name), base_etag in zip(names, base_etags, strict=True):
        tree.touch(folder)
        if tree.persists(folder.dataset, write_type):
            tree.want_put(folder, name, attr, base_etag)


def put(
    tree: Inodes,
    parent: Place,
    name: bytes,
    mode: int,
    content: Content,
    segments: Sequence[Segment],
    mtime_ns: int,
    write_type: str = "",
    replace: bool = True,
) -> Attr:
    check_content(content)
    _check_write_type(write_type)
    folder = tree.locate_folder(parent) if isinstance(parent, int) else _made_on_the_way(tree, *parent)
    found = tree.find(folder, name)
    if found is not None:
        if not replace:
            raise Exists(f"{where(folder, name)} is there already")
        _must_be_file(where(folder, name), found)
        return _rewrite(tree, tree.copy_up(found.ino), content, segments, mtime_ns, write_type)
    check_name(name)
    content = journal.freshened(tree.db, folder.dataset, 0, content)
    base_etag = tree.source_etag(folder, name)
    attr = make(
        tree, folder, name, stat.S_IFREG | stat.S_IMODE(mode), MOUNT_OWNER, MOUNT_OWNER,
        size_bytes=content.size_bytes, mtime_ns=mtime_ns,
    )  # fmt: skip
    write_content(tree.db, attr.ino, content, segments, is_new=True)
    if tree.persists(folder.dataset, write_type):
        tree.want_put(folder, name, attr, base_etag)
    return attr


def _made_on_the_way(tree: Inodes, dataset: str, path: str) -> Folder:
    known = tree.known_folder(dataset, path)
    if known is not None:
        return known
    folder = tree.folder(tree.about(dataset).root_id)
    for name in path.encode("utf-8", "surrogateescape").split(b"/") if path else ():
        found = tree.find(folder, name)
        if found is None:
            found = make_folder(tree, folder, name, DIRECTORY_MODE, MOUNT_OWNER, MOUNT_OWNER)
        if not found.is_dir:
            raise NotADirectory(f"{where(folder, name)} is no directory")
        folder = tree.folder(split_ino(found.ino)[0])
    tree.know_folder(folder)
    return folder


def resize(tree: Inodes, attr: Attr, size_bytes: int) -> Attr:
    """Cut a file that has rows, or give it a hole at its end."""
    if size_bytes < 0:
        raise InvalidInput(f"a size of {size_bytes} bytes")
    if size_bytes == attr.size_bytes:
        return attr
    names = tree.names(attr.ino)
    base_etags = [tree.source_etag(*name) for name in names]
    if size_bytes < attr.size_bytes:
        cut_content(tree.db, attr.ino, size_bytes)
    attr = attr._replace(size_bytes=size_bytes, version=attr.version + 1)
    tree.db.execute("UPDATE inodes SET size_bytes = ?, version = ? WHERE ino = ?", (size_bytes, attr.version, attr.ino))
    _rewritten(tree, attr, names, base_etags)
    return attr


def has_rows(tree: Inodes, ino: int) -> bool:
    """Whether an inode was made or changed here."""
    return tree.db.execute("SELECT 1 FROM inodes WHERE ino = ?", (ino,)).fetchone() is not None


def extend_segment(tree: Inodes, segment: Segment) -> None:
    if segment.size_bytes < 0:
        tree.db.execute("DELETE FROM segments WHERE segment = ? AND worker_id = ?", segment[:2])
    elif tree.db.execute("SELECT 1 FROM extents WHERE segment = ?", segment[:1]).fetchone():
        tree.db.execute("INSERT OR REPLACE INTO segments VALUES (?, ?, ?)", segment)


def known_segments(tree: Inodes, worker_id: str, segments: Sequence[str]) -> list[bool]:
    # What a file needs is known, whoever was said to have it.
    find = "SELECT EXISTS (SELECT 1 FROM extents WHERE segment = ?)"
    return [bool(tree.db.execute(find, (segment,)).fetchone()[0]) for segment in segments]


def segment_places(tree: Inodes, segments: Sequence[str]) -> list[list[str]]:
    find = "SELECT worker_id FROM segments WHERE segment = ? ORDER BY worker_id"
    return [[worker_id for (worker_id,) in tree.db.execute(find, (segment,))] for segment in segments]


def segments_of(tree: Inodes, worker_id: str, after: str, count: int) -> list[str]:
    find = "SELECT segment FROM segments WHERE worker_id = ? AND segment > ? ORDER BY segment LIMIT ?"
    return [segment for (segment,) in tree.db.execute(find, (worker_id, after, count))]


def set_write_type(tree: Inodes, dataset: str, write_type: str) -> None:
    check_write_type(write_type)
    tree.about(dataset)
    tree.db.execute("UPDATE datasets SET write_type = ? WHERE name = ?", (write_type, dataset))
    tree.forget()


def _check_write_type(write_type: str) -> None:
    if write_type:
        check_write_type(write_type)


def _must_be_file(place: object, attr: Attr) -> None:
    if attr.is_dir:
        raise IsADirectory(f"{place} is a directory")
    if not stat.S_ISREG(attr.mode):
        raise InvalidInput(f"{place} is no regular file, and has no contents")
