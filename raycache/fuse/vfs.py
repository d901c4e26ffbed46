"""The file system, without FUSE and without Ray: inode numbers, attributes, directories, reads.

Responsible for: what a mount shows. Not responsible for: the wire (sessions), errno numbers (``errno``).

An inode number says where its row is - ``dir_id << 32 | row + 1`` for a file, ``dir_id << 32`` for a directory - so
there is no table of inodes: nothing grows with the files that are looked up, nothing is lost with the process, and
another process with the same manifests answers for the same numbers. The kernel calls the root of a mount 1, which no
directory's number can be.

``wait=False`` asks for an answer from memory only and raises WouldBlock otherwise; a session answers those at once
and gives the rest to a pool.

Threading: safe; holds no state of its own beyond the counters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycache.client.blockfiles import Begun
from raycache.client.namespace import Namespace, WouldBlock
from raycache.client.reader import Reader
from raycache.core import paths
from raycache.core.columns import binary_views
from raycache.core.manifest import Manifest
from raycache.core.values import Buffer
from raycache.errors import IsADirectory, NotADirectory, NotFound

__all__ = ["ROOT_INO", "Attr", "DirEntry", "Vfs", "WouldBlock"]

ROOT_INO = 1
_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1
_DIRECTORY_BYTES = 4096


class Attr(NamedTuple):
    """What ``stat`` shows of an entry; mode and owner are the mount's business."""

    ino: int
    is_dir: bool
    size: int
    mtime_ns: int


class DirEntry(NamedTuple):
    """One step of a directory listing."""

    name: bytes
    attr: Attr
    next_offset: int
    """Where to go on; stable however the directory grows."""


class Entries(NamedTuple):
    """Consecutive entries of a directory in columns, one row each: a listing costs no Python object per file."""

    ino: NDArray[np.uint64]
    is_dir: NDArray[np.bool_]
    size: NDArray[np.uint64]
    mtime_ns: NDArray[np.int64]
    next_offset: NDArray[np.uint64]
    name_at: NDArray[np.int64]
    """Where in ``names`` a name begins."""
    name_length: NDArray[np.int64]
    names: NDArray[np.uint8]
    directory_rows: int
    """Rows of the whole directory."""


@dataclass
class Counters:
    """What a mount did. Plain adds: a lost update under contention costs nothing that matters."""

    reads: int = 0
    read_bytes: int = 0
    view_hits: int = 0
    lookups: int = 0
    errors: int = 0


class Vfs:
    """A read-only tree over one directory of a dataset."""

    def __init__(self, namespace: Namespace, reader: Reader, root_id: int, mtime_ns: int) -> None:
        """``root_id``: directory id to show as the root. ``mtime_ns``: shown for directories, which have none."""
        self._namespace = namespace
        self._reader = reader
        self._root_id = root_id
        self._mtime_ns = mtime_ns
        self.counters = Counters()

    def lookup(self, parent: int, name: bytes, *, wait: bool = True) -> Attr:
        """The entry ``name`` of a directory. Raises NotFound, NotADirectory, WouldBlock."""
        self.counters.lookups += 1
        manifest = self._manifest(parent, wait)
        row = manifest.find(name)
        if row is None:
            raise NotFound(f"{manifest.directory.source}: no {name!r} in {manifest.directory.path or '/'}")
        return self._attr(manifest, row)

    def getattr(self, ino: int, *, wait: bool = True) -> Attr:
        """Attributes of a number that this file system handed out. Raises NotFound, WouldBlock."""
        dir_id, row = self._split(ino)
        if row is None:
            return Attr(ino, True, _DIRECTORY_BYTES, self._mtime_ns)
        manifest = self._namespace.manifest(dir_id, wait=wait)
        self._check(manifest, row)
        return self._attr(manifest, row)

    def readdir(self, ino: int, offset: int = 0, *, wait: bool = True) -> Iterator[DirEntry]:
        """Entries from ``offset`` on (0 is the start). Raises NotADirectory, WouldBlock before the first entry."""
        manifest = self._manifest(ino, wait)
        return (DirEntry(manifest.name(row), self._attr(manifest, row), row + 1) for row in manifest.rows(offset))

    def scan(self, ino: int, offset: int, count: int, *, wait: bool = True) -> Entries:
        """The same in columns, ``count`` entries at most. Raises as ``readdir``."""
        manifest = self._manifest(ino, wait)
        rows = manifest.live_rows(min(offset, manifest.row_count), count)
        columns = manifest.columns
        at = np.searchsorted(columns.dir_rows, rows)
        at[at == len(columns.dir_rows)] = 0
        is_dir = columns.dir_rows[at] == rows if len(columns.dir_rows) else np.zeros(len(rows), bool)
        wide = rows.astype(np.uint64)
        ino_column = np.uint64(manifest.directory.dir_id << _ROW_BITS) | (wide + np.uint64(1))
        ino_column[is_dir] = columns.dir_ids[at[is_dir]] << np.uint64(_ROW_BITS)
        # All rows from the first to the last, tombstones too: seldom many more than are asked for.
        first, last = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        picked = rows.astype(np.int64) - first
        mtime_ns = columns.times.slice(first, last)[picked]
        mtime_ns[is_dir | (mtime_ns == 0)] = self._mtime_ns
        name_ends, names = binary_views(columns.names.slice(first, last))
        name_at = np.asarray(name_ends).astype(np.int64)
        return Entries(
            ino=ino_column,
            is_dir=is_dir,
            size=np.where(is_dir, np.uint64(_DIRECTORY_BYTES), np.diff(columns.ends[first : last + 1])[picked]),
            mtime_ns=mtime_ns,
            next_offset=wide + np.uint64(1),
            name_at=name_at[picked],
            name_length=np.diff(name_at)[picked],
            names=np.frombuffer(names, np.uint8),
            directory_rows=manifest.row_count,
        )

    def begin_beside(self) -> int | None:
        """Have ``begin_read`` begin reads. See BlockFiles."""
        return self._reader.files.begin_beside()

    def begin_read(self, ino: int, offset: int, size: int) -> Buffer | Begun:
        """Up to ``size`` bytes, or a read that was begun: see ``ended``. Raises as ``read`` does without waiting."""
        manifest, row = self._file(ino, wait=False)
        found = self._reader.begin(manifest, row, offset, size)
        if found is None:
            raise WouldBlock
        if not isinstance(found, Begun):
            self.counters.view_hits += 1
            self._count(found)
        return found

    def ended(self) -> list[tuple[Begun, Buffer | None]]:
        """Reads that were begun and have ended, with their bytes; None: ``read`` it, with waiting."""
        found = self._reader.files.ended()
        for _, data in found:
            if data is not None:
                self._count(data)
        return [*found]

    def read(self, ino: int, offset: int, size: int, *, wait: bool = True) -> Buffer:
        """Up to ``size`` bytes. Raises what Reader.read raises, IsADirectory, and WouldBlock."""
        manifest, row = self._file(ino, wait=wait)
        data = self._reader.held(manifest, row, offset, size)
        if data is None:
            if not wait:
                raise WouldBlock
            data = self._reader.read(manifest, row, offset, size)
        else:
            self.counters.view_hits += 1
        self._count(data)
        return data

    def _file(self, ino: int, wait: bool) -> tuple[Manifest, int]:
        dir_id, row = self._split(ino)
        if row is None:
            raise IsADirectory(f"inode {ino} is a directory")
        manifest = self._namespace.manifest(dir_id, wait=wait)
        self._check(manifest, row)
        return manifest, row

    def _count(self, data: Buffer) -> None:
        self.counters.reads += 1
        self.counters.read_bytes += len(data)

    def threads_may_hang(self) -> None:
        """Whoever calls ``read`` does so in threads that may be left to a disk that hangs."""
        self._reader.files.callers_may_hang = True

    def is_disk_hanging(self) -> bool:
        """Whether a read of this node's block files is overdue. A second try of what waits for it goes another way."""
        return self._reader.files.hanging

    def follow(self, since: int) -> tuple[int, list[tuple[int, bytes]], list[int]]:
        """Move on to what was refreshed: the number for the next call, and what a kernel must forget of it.

        Names, as ``(directory, name)``: those that went, came or mean another file now (one that came may be known as
        missing). Inodes: the directories, for their listings. Old inodes stay readable where they are open.
        """
        newest, replaced = self._namespace.follow(since)
        names: list[tuple[int, bytes]] = []
        for old, new in replaced:
            directory = self._directory_ino(new.directory.dir_id)
            if old is None:
                changed = set(range(new.row_count))
            else:
                changed = {row for row in old.rows() if new.is_dead(row)} | set(new.rows(old.row_count))
            names += [(directory, name) for name in {new.name(row) for row in changed}]
        return newest, names, [self._directory_ino(new.directory.dir_id) for _, new in replaced]

    def forget(self) -> None:
        """Hold no listing any more: each is asked for again."""
        self._namespace.forget()

    def _directory_ino(self, dir_id: int) -> int:
        return ROOT_INO if dir_id == self._root_id else dir_id << _ROW_BITS

    def path(self, ino: int) -> str:
        """For messages: the path of a number inside its dataset, as far as it is known without asking."""
        try:
            dir_id, row = self._split(ino)
            manifest = self._namespace.manifest(dir_id, wait=False)
            return manifest.directory.path if row is None else manifest.path(row)
        except (WouldBlock, NotFound, IndexError):
            return f"inode {ino:#x}"

    def totals(self) -> tuple[int, int]:
        """Bytes and files of the root directory, for statfs; 0 when it has not been listed yet."""
        try:
            manifest = self._namespace.manifest(self._root_id, wait=False)
        except WouldBlock:
            return 0, 0
        return manifest.size_bytes, manifest.row_count

    def _manifest(self, ino: int, wait: bool) -> Manifest:
        dir_id, row = self._split(ino)
        if row is not None:
            raise NotADirectory(f"inode {ino:#x} is a file, not a directory")
        return self._namespace.manifest(dir_id, wait=wait)

    def _split(self, ino: int) -> tuple[int, int | None]:
        if ino == ROOT_INO:
            return self._root_id, None
        row = (ino & _ROW_MASK) - 1
        return ino >> _ROW_BITS, (row if row >= 0 else None)

    def _attr(self, manifest: Manifest, row: int) -> Attr:
        child = manifest.child_id(row)
        if child is not None:
            return Attr(child << _ROW_BITS, True, _DIRECTORY_BYTES, self._mtime_ns)
        ino = (manifest.directory.dir_id << _ROW_BITS) | (row + 1)
        return Attr(ino, False, manifest.size(row), manifest.mtime_ns(row) or self._mtime_ns)

    @staticmethod
    def _check(manifest: Manifest, row: int) -> None:
        if row >= manifest.row_count:
            raise NotFound(f"{paths.join(manifest.directory.source, manifest.directory.path)}: no row {row}")
