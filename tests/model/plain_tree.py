"""What a tree of files is, in plain Python: the reference for the tree that writers see."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from raycache.core.inode import EXCHANGE, NOREPLACE

Path = tuple[str, ...]


class Fails(Exception):
    """What a verb is refused for."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.number = number


@dataclass(eq=False)
class Node:
    """A file, directory or link."""

    kind: str
    """``file``, ``dir``, ``link`` or ``pipe``."""
    mode: int = 0
    data: bytes = b""
    """Of a file; the target of a link."""
    entries: dict[str, Node] = field(default_factory=dict)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    ino: int = 0
    """What the real tree calls it, once that is known."""


class PlainTree:
    """The tree; verbs take paths, and check in the order that a kernel would."""

    def __init__(self, root: Node) -> None:
        self.root = root

    def get(self, path: Path) -> Node:
        """What a path means."""
        node = self.root
        for name in path:
            if node.kind != "dir":
                raise Fails(errno.ENOTDIR)
            if name not in node.entries:
                raise Fails(errno.ENOENT)
            node = node.entries[name]
        return node

    def folder(self, path: Path) -> Node:
        """A path that must be a directory."""
        node = self.get(path)
        if node.kind != "dir":
            raise Fails(errno.ENOTDIR)
        return node

    def file(self, path: Path) -> Node:
        """A path that must be a regular file."""
        node = self.get(path)
        if node.kind != "file":
            raise Fails(errno.EISDIR if node.kind == "dir" else errno.EINVAL)
        return node

    def walk(self, node: Node | None = None, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """All that is below, with paths."""
        node = self.root if node is None else node
        yield path, node
        for name, below in node.entries.items():
            yield from self.walk(below, (*path, name))

    def links(self, node: Node) -> int:
        """What st_nlink is."""
        if node.kind == "dir":
            return 2 + sum(below.kind == "dir" for below in node.entries.values())
        return sum(other is node for _, other in self.walk())

    def make(self, path: Path, node: Node) -> None:
        """Give a new node a name."""
        folder = self.folder(path[:-1])
        if path[-1] in folder.entries:
            raise Fails(errno.EEXIST)
        if node.kind == "dir":
            node.mode |= folder.mode & stat.S_ISGID
        folder.entries[path[-1]] = node

    def link(self, source: Path, path: Path) -> None:
        """As link(2)."""
        folder, node = self.folder(path[:-1]), self.get(source)
        if node.kind == "dir":
            raise Fails(errno.EPERM)
        if path[-1] in folder.entries:
            raise Fails(errno.EEXIST)
        folder.entries[path[-1]] = node

    def unlink(self, path: Path) -> Node:
        """As unlink(2)."""
        folder, node = self.folder(path[:-1]), self.get(path)
        if node.kind == "dir":
            raise Fails(errno.EISDIR)
        return folder.entries.pop(path[-1])

    def rmdir(self, path: Path) -> None:
        """As rmdir(2)."""
        folder, node = self.folder(path[:-1]), self.get(path)
        if node.kind != "dir":
            raise Fails(errno.ENOTDIR)
        if node.entries:
            raise Fails(errno.ENOTEMPTY)
        del folder.entries[path[-1]]

    def remove_tree(self, path: Path) -> int:
        """Remove all; how many entries went."""
        node = self.get(path)
        if not path:
            raise Fails(errno.EBUSY)
        del self.folder(path[:-1]).entries[path[-1]]
        return sum(1 for _ in self.walk(node))

    def put(self, path: Path, data: bytes, replace: bool) -> Node:
        """Make or replace a file, with its directories."""
        folder = self.root
        for name in path[:-1]:
            folder = folder.entries.setdefault(name, Node("dir", 0o755 | folder.mode & stat.S_ISGID))
            if folder.kind != "dir":
                raise Fails(errno.ENOTDIR)
        if (node := folder.entries.get(path[-1])) is not None:
            if not replace:
                raise Fails(errno.EEXIST)
            if node.kind != "file":
                raise Fails(errno.EISDIR if node.kind == "dir" else errno.EINVAL)
            node.data = data
            return node
        folder.entries[path[-1]] = node = Node("file", 0o644, data)
        return node

    def rename(self, old: Path, new: Path, flags: int) -> Node:
        """As renameat2(2)."""
        folder, to_folder, node = self.folder(old[:-1]), self.folder(new[:-1]), self.get(old)
        target = to_folder.entries.get(new[-1])
        if flags == EXCHANGE and target is None:
            raise Fails(errno.ENOENT)
        if flags == NOREPLACE and target is not None:
            raise Fails(errno.EEXIST)  # as Linux says also where it would be moved into itself
        if node.kind == "dir" and any(other is to_folder for _, other in self.walk(node)):
            raise Fails(errno.EINVAL)
        if target is node:
            return node
        if flags == EXCHANGE and target is not None:
            if target.kind == "dir" and any(other is folder for _, other in self.walk(target)):
                raise Fails(errno.EINVAL)
            folder.entries[old[-1]], to_folder.entries[new[-1]] = target, node
            return node
        if target is not None and target.kind == "dir" and any(other is folder for _, other in self.walk(target)):
            raise Fails(errno.ENOTEMPTY)  # what is moved lies in it: Linux asks that first
        if target is not None and node.kind == "dir" and target.kind != "dir":
            raise Fails(errno.ENOTDIR)
        if target is not None and node.kind != "dir" and target.kind == "dir":
            raise Fails(errno.EISDIR)
        if target is not None and target.entries:
            raise Fails(errno.ENOTEMPTY)
        del folder.entries[old[-1]]
        to_folder.entries[new[-1]] = node
        return node
