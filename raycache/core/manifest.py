"""Manifest: one listed directory as an immutable columnar table, mapped by every process that reads it.

Responsible for: rows (one per entry), lookup by name, which block holds which bytes of a row, block ids, what a
directory was at an earlier version. Not responsible for: how values are packed (``columns``), how a manifest becomes
bytes (``archive``), or where it comes from and is kept.

Invariants
* A row, once published, never moves and never changes. A newer version of the directory only appends rows and
  tombstones old ones, so a row number is valid in every later version, and so is a block number.
* ``ends`` is the running total of the row sizes: size and position of a row in one column (see ``layout``).
* Names that the index offers are compared, so that equal hashes are fine.
* Nothing holds a Python object per file: columns are buffers, and a scalar is made when it is asked for.

Threading: immutable; the lazily computed block ids may be computed twice, with the same result.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from raycache.core import paths
from raycache.core.columns import Etags, Index, Names, Times, Wanted, binary_views
from raycache.core.values import BlockPlan, Part

PART_BYTES = 4 * 2**20
"""Longest request to an under file system: large files are fetched as concurrent ranges of this size."""
FEW = 32
"""So many names are found sooner one by one: 3 us for one, 100 us for any number together."""


@dataclass(frozen=True, slots=True)
class Directory:
    """What a manifest is a manifest of."""

    dir_id: int
    dataset: str
    source: str
    """URI of the dataset's root."""
    path: str
    """Path inside the dataset."""
    version: int
    listed_ns: int
    block_bytes: int
    hidden: int = 0
    """Entries of the source that a file system cannot show: shadowed by a directory, or with an impossible name."""
    changes: tuple[int, ...] = ()
    """The catalog's change number of each version from the second on; the catalog knows it and puts it in."""


class Piece(NamedTuple):
    """A range of one block."""

    block: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Columns:
    """What a manifest is made of: packed columns, and arrays of numbers."""

    names: Names
    times: Times
    etags: Etags
    index: Index | None
    """Made when it is first needed, where it is None: what is only kept needs none."""
    ends: NDArray[np.uint64]
    """Running total of the sizes: rows + 1."""
    cuts: NDArray[np.uint64]
    """See ``layout``."""
    dir_rows: NDArray[np.uint32]
    """Rows that are directories, ascending."""
    dir_ids: NDArray[np.uint64]
    """Their ids, alongside."""
    dead_rows: NDArray[np.uint32]
    """Tombstones, ascending."""
    dead_at: NDArray[np.uint32]
    """Alongside: the version in which each went."""
    version_rows: NDArray[np.uint64]
    """Rows that each version had, from version 1 on."""


class Manifest:
    """One version of one directory. Made by ``listing.build`` and ``listing.append``, or by ``archive``."""

    def __init__(self, directory: Directory, columns: Columns) -> None:
        self.directory = directory
        self.columns = columns
        self.row_count = int(columns.version_rows[-1])
        """Rows, tombstones included: row numbers go up to this."""
        self._ends = columns.ends.data
        self._dir_rows = columns.dir_rows.data
        self._dir_ids = columns.dir_ids.data
        self._dead_rows = columns.dead_rows.data
        self._cuts = columns.cuts.data
        self._block_ids: dict[int, bytes] = {}
        self._index = columns.index

    @property
    def index(self) -> Index:
        """Where names are found."""
        if self._index is None:
            self._index = Index.of(self.columns.names)
        return self._index

    def as_of(self, change: int) -> Manifest:
        """The directory as it was after the catalog's change number ``change``: row for row what a manifest of then
        said. One that was first listed later is shown as it was first listed."""
        changes = self.directory.changes
        version = self.directory.version - (len(changes) - bisect_right(changes, change))
        if version >= self.directory.version:
            return self
        now = self.columns
        rows = int(now.version_rows[version - 1])
        dirs, dead = bisect_left(self._dir_rows, rows), now.dead_at <= version
        then = replace(
            now,
            index=self._index,
            ends=now.ends[: rows + 1],
            cuts=now.cuts[: bisect_left(self._cuts, self._ends[rows]) + 1],
            dir_rows=now.dir_rows[:dirs],
            dir_ids=now.dir_ids[:dirs],
            dead_rows=now.dead_rows[dead],
            dead_at=now.dead_at[dead],
            version_rows=now.version_rows[:version],
        )
        return Manifest(replace(self.directory, version=version, changes=changes[: version - 1]), then)

    def column(self, name: str) -> Any:
        """A whole column as an Arrow array, for work on all rows at once: ``names`` and ``etags`` (packed), binary;
        ``mtimes_ns``, int64; or one of the arrays of ``Columns``."""
        if name == "names":
            return self.columns.names.slice(0, self.row_count)
        if name == "etags":
            return self.columns.etags.slice(0, self.row_count)
        if name == "mtimes_ns":
            return pa.array(self.columns.times.slice(0, self.row_count))
        return pa.array(getattr(self.columns, name))

    @property
    def live_count(self) -> int:
        """Entries, tombstones not counted."""
        return self.row_count - len(self._dead_rows)

    @property
    def file_count(self) -> int:
        """Live entries that are files."""
        return self.live_count - len(np.setdiff1d(self.columns.dir_rows, self.columns.dead_rows, assume_unique=True))

    @property
    def block_count(self) -> int:
        """Blocks, numbered from 0."""
        return len(self._cuts) - 1

    @property
    def size_bytes(self) -> int:
        """Bytes of all rows, tombstones included."""
        return int(self._ends[-1])

    def find(self, name: bytes) -> int | None:
        """Row of the live entry called ``name``, or None."""
        names = self.columns.names
        for row in (self._index or self.index).candidates(name):
            # A name that came back has tombstones under the same hash.
            if row < self.row_count and names[row] == name and not (self._dead_rows and self.is_dead(row)):
                return row
        return None

    def find_many(self, names: Sequence[bytes]) -> NDArray[np.int64]:
        """Row of the live entry of each name, -1 where there is none."""
        if len(names) <= FEW:
            rows = map(self.find, names)
            return np.fromiter((-1 if row is None else row for row in rows), np.int64, len(names))
        is_gone = None
        if len(self._dead_rows) or self.row_count < len(self.columns.names):
            is_gone = np.zeros(len(self.columns.names), bool)
            is_gone[self.columns.dead_rows] = True
            is_gone[self.row_count :] = True
        return self.index.first_match(self.columns.names, Wanted(names), is_gone)

    def name(self, row: int) -> bytes:
        """Name of a row."""
        return self.columns.names[row]

    def size(self, row: int) -> int:
        """Bytes of a row; 0 for a directory."""
        return self._ends[row + 1] - self._ends[row]

    def mtime_ns(self, row: int) -> int:
        """Modification time, nanoseconds since 1970; 0 where the source keeps none."""
        return self.columns.times[row]

    def etag(self, row: int) -> str:
        """Version of a row in the under file system, or ``""``."""
        return self.columns.etags[row]

    def child_id(self, row: int) -> int | None:
        """Directory id of a row that is a directory, else None."""
        if not self._dir_rows:
            return None
        at = bisect_left(self._dir_rows, row)
        if at < len(self._dir_rows) and self._dir_rows[at] == row:
            return self._dir_ids[at]
        return None

    def is_dead(self, row: int) -> bool:
        """Whether a row is a tombstone: gone from the source, or replaced by a later row."""
        at = bisect_left(self._dead_rows, row)
        return at < len(self._dead_rows) and self._dead_rows[at] == row

    def rows(self, start: int = 0) -> Iterator[int]:
        """Live rows from ``start`` on, in row order."""
        return (row for row in range(start, self.row_count) if not self.is_dead(row))

    def live_rows(self, start: int, count: int) -> NDArray[np.uint32]:
        """The first ``count`` live rows from ``start`` on, fewer at the end: uint32, in row order."""
        dead = self.columns.dead_rows
        stop, step = start, count
        while True:
            stop = min(self.row_count, stop + step)
            gone = dead[bisect_left(self._dead_rows, start) : bisect_left(self._dead_rows, stop)]
            if stop == self.row_count or stop - start - len(gone) >= count:
                break
            step *= 2
        rows = np.arange(start, stop, dtype=np.uint32)
        return np.delete(rows, gone - np.uint32(start))[:count] if len(gone) else rows[:count]

    def path(self, row: int) -> str:
        """Path of a row inside the dataset."""
        return paths.join(self.directory.path, self.name(row).decode("utf-8", "surrogateescape"))

    def pieces(self, row: int, offset: int, length: int) -> list[Piece]:
        """Where ``length`` bytes from ``offset`` of a row lie; shorter at the end of the file, empty beyond it."""
        start = self._ends[row] + offset
        stop = min(start + length, self._ends[row + 1])
        found: list[Piece] = []
        block = bisect_right(self._cuts, start) - 1
        while start < stop:
            cut = self._cuts[block + 1]
            until = min(stop, cut)
            found.append(Piece(block, start - self._cuts[block], until - start))
            start, block = until, block + 1
        return found

    def blocks_of(self, row: int) -> tuple[int, int]:
        """First and last block that hold bytes of a row; for an empty file, the one where it would begin."""
        start, stop = self._ends[row], self._ends[row + 1]
        first = min(bisect_right(self._cuts, start) - 1, max(0, self.block_count - 1))
        return first, max(first, bisect_left(self._cuts, stop) - 1)

    def block_size(self, block: int) -> int:
        """Bytes of a block."""
        return self._cuts[block + 1] - self._cuts[block]

    def block_id(self, block: int) -> bytes:
        """16 bytes that name a block by what it is made of: source, names, sizes, versions and the cut.

        The same files give the same id in another catalog or after a restart; a changed file gives another. Where
        the source has no version of a file, its mtime stands in.
        """
        known = self._block_ids.get(block)
        if known is None:
            known = self._block_ids[block] = self._digest(block)
        return known

    def plan(self, block: int) -> BlockPlan:
        """What to fetch to make a block: parts of at most PART_BYTES."""
        start, stop = self._cuts[block], self._cuts[block + 1]
        parts: list[Part] = []
        for row in self._block_rows(block):
            begin, end = max(start, self._ends[row]), min(stop, self._ends[row + 1])
            if begin == end:
                continue
            path, etag = self.path(row), self.etag(row)
            for at in range(begin, end, PART_BYTES):
                length = min(PART_BYTES, end - at)
                parts.append(Part(path, etag, at - self._ends[row], at - start, length))
        about = self.directory
        return BlockPlan(self.block_id(block), about.dataset, stop - start, tuple(parts), about.path)

    def _block_rows(self, block: int) -> range:
        start, stop = self._cuts[block], self._cuts[block + 1]
        first = bisect_right(self._ends, start) - 1
        return range(first, bisect_left(self._ends, stop))

    def _digest(self, block: int) -> bytes:
        rows = self._block_rows(block)
        first, last = rows.start, rows.stop
        sizes = np.diff(self.columns.ends[first : last + 1])
        # Directories and empty files that lie between have no part in the bytes, nor then in their name.
        filled = sizes > 0
        about = f"{self._cuts[block] - self._ends[first]} {self.block_size(block)} {np.count_nonzero(filled)}\0"
        digest = xxhash.xxh3_128(f"{self.directory.source}/{self.directory.path}\0".encode(errors="surrogateescape"))
        digest.update(about.encode())
        digest.update(sizes[filled].tobytes())
        for column in (self.columns.names.slice(first, last), self.columns.etags.slice(first, last)):
            at, data = binary_views(column.filter(pa.array(filled)))
            lengths = np.diff(np.asarray(at))
            digest.update(lengths.tobytes())
            digest.update(data[at[0] : at[-1]])
        unversioned = lengths == 0  # of the etags, which came last
        digest.update(self.columns.times.slice(first, last)[filled][unversioned].tobytes())
        return digest.digest()
