"""Manifest: one listed directory as an immutable columnar table, mapped by every process that reads it.

Responsible for: rows (one per entry), lookup by name, which block holds which bytes of a row, block ids.
Not responsible for: where a manifest comes from or is kept.

Invariants
* A row, once published, never moves and never changes. A newer version of the directory only appends rows and
  tombstones old ones, so a row number is valid in every later version, and so is a block number.
* ``ends`` is the running total of the row sizes: size and position of a row in one column (see ``layout``).
* ``hashes`` is sorted and ``slots[i]`` is the row of ``hashes[i]``; names are compared, so that equal hashes are fine.
* Nothing holds a Python object per file: columns are buffers, and a scalar is made when it is asked for.

Threading: immutable; the lazily computed block ids may be computed twice, with the same result.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from raycache.core import paths
from raycache.core.values import BlockPlan, Part
from raycache.errors import InvalidInput

FORMAT = "1"
PART_BYTES = 4 * 2**20
"""Longest request to an under file system: large files are fetched as concurrent ranges of this size."""

_COLUMNS = {
    "names": pa.binary(),
    "ends": pa.uint64(),
    "mtimes_ns": pa.int64(),
    "etags": pa.binary(),
    "dir_rows": pa.uint32(),
    "dir_ids": pa.uint64(),
    "dead_rows": pa.uint32(),
    "cuts": pa.uint64(),
    "hashes": pa.uint32(),
    "slots": pa.uint32(),
}
_SCHEMA = pa.schema([(name, pa.large_list(kind)) for name, kind in _COLUMNS.items()])


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


class Piece(NamedTuple):
    """A range of one block."""

    block: int
    offset: int
    length: int


class Manifest:
    """One version of one directory. Made by ``listing.build`` and ``listing.append``, or mapped by ``from_buffer``."""

    def __init__(self, directory: Directory, columns: dict[str, Any]) -> None:
        self.directory = directory
        self._columns = columns
        self._name_at, self._name_bytes = binary_views(columns["names"])
        self._etag_at, self._etag_bytes = binary_views(columns["etags"])
        self._ends = numbers(columns["ends"]).data
        self._mtimes_ns = numbers(columns["mtimes_ns"]).data
        self._dir_rows = numbers(columns["dir_rows"]).data
        self._dir_ids = numbers(columns["dir_ids"]).data
        self._dead_rows = numbers(columns["dead_rows"]).data
        self._cuts = numbers(columns["cuts"]).data
        self._hashes = numbers(columns["hashes"]).data
        self._slots = numbers(columns["slots"]).data
        self._block_ids: dict[int, bytes] = {}

    def column(self, name: str) -> Any:
        """A whole column as an Arrow array, for work on all rows at once."""
        return self._columns[name]

    @property
    def row_count(self) -> int:
        """Rows, tombstones included: row numbers go up to this."""
        return len(self._name_at) - 1

    @property
    def live_count(self) -> int:
        """Entries, tombstones not counted."""
        return self.row_count - len(self._dead_rows)

    @property
    def file_count(self) -> int:
        """Live entries that are files."""
        return self.row_count - len(self._dead_rows) - sum(1 for row in self._dir_rows if not self.is_dead(row))

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
        wanted = name_hash(name)
        at = bisect_left(self._hashes, wanted)
        while at < len(self._hashes) and self._hashes[at] == wanted:
            row = self._slots[at]
            # A name that came back has tombstones under the same hash.
            if self.name(row) == name and not self.is_dead(row):
                return row
            at += 1
        return None

    def find_many(self, names: Sequence[bytes]) -> NDArray[np.int64]:
        """Row of the live entry of each name, in order; -1 where there is none."""
        found = (self.find(name) for name in names)
        return np.fromiter((-1 if row is None else row for row in found), np.int64, len(names))

    def as_of(self, change: int) -> Manifest:
        """The directory as it was after the catalog's change number ``change``. A stub: it is always the newest."""
        return self

    def name(self, row: int) -> bytes:
        """Name of a row."""
        return bytes(self._name_bytes[self._name_at[row] : self._name_at[row + 1]])

    def size(self, row: int) -> int:
        """Bytes of a row; 0 for a directory."""
        return self._ends[row + 1] - self._ends[row]

    def mtime_ns(self, row: int) -> int:
        """Modification time, nanoseconds since 1970; 0 where the source keeps none."""
        return self._mtimes_ns[row]

    def etag(self, row: int) -> str:
        """Version of a row in the under file system, or ``""``."""
        return _etag_text(bytes(self._etag_bytes[self._etag_at[row] : self._etag_at[row + 1]]))

    def child_id(self, row: int) -> int | None:
        """Directory id of a row that is a directory, else None."""
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
        dead = np.asarray(self._dead_rows)
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
        return BlockPlan(self.block_id(block), self.directory.dataset, stop - start, tuple(parts))

    def _block_rows(self, block: int) -> range:
        start, stop = self._cuts[block], self._cuts[block + 1]
        first = bisect_right(self._ends, start) - 1
        return range(first, bisect_left(self._ends, stop))

    def _digest(self, block: int) -> bytes:
        rows = self._block_rows(block)
        first, last = rows.start, rows.stop
        sizes = np.diff(np.asarray(self._ends[first : last + 1]))
        # Directories and empty files that lie between have no part in the bytes, nor then in their name.
        filled = sizes > 0
        about = f"{self._cuts[block] - self._ends[first]} {self.block_size(block)} {np.count_nonzero(filled)}\0"
        digest = xxhash.xxh3_128(f"{self.directory.source}/{self.directory.path}\0".encode(errors="surrogateescape"))
        digest.update(about.encode())
        digest.update(sizes[filled].tobytes())
        for name in ("names", "etags"):
            at, data = binary_views(self._columns[name].slice(first, last - first).filter(pa.array(filled)))
            lengths = np.diff(np.asarray(at))
            digest.update(lengths.tobytes())
            digest.update(data[at[0] : at[-1]])
        unversioned = lengths == 0  # of the etags, which came last
        digest.update(np.asarray(self._mtimes_ns[first:last])[filled][unversioned].tobytes())
        return digest.digest()

    def to_buffer(self, compression: str | None = None) -> pa.Buffer:
        """The manifest as an Arrow IPC stream of one row; ``compression="zstd"`` for the disk, None to be mapped."""
        arrays = [
            pa.LargeListArray.from_arrays([0, len(column)], column)
            for column in (self._columns[name] for name in _COLUMNS)
        ]
        about = self.directory
        meta = {
            "format": FORMAT,
            "dir_id": str(about.dir_id),
            "dataset": about.dataset,
            "source": about.source.encode("utf-8", "surrogateescape"),
            "path": about.path.encode("utf-8", "surrogateescape"),
            "version": str(about.version),
            "listed_ns": str(about.listed_ns),
            "block_bytes": str(about.block_bytes),
            "hidden": str(about.hidden),
        }
        batch = pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA.with_metadata(meta))
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
            writer.write_batch(batch)
        return sink.getvalue()

    @staticmethod
    def from_buffer(buffer: Any) -> Manifest:
        """A manifest over ``buffer``, without copying an uncompressed one.

        Raises InvalidInput when the buffer is no manifest, or one of another format.
        """
        try:
            with pa.ipc.open_stream(pa.py_buffer(buffer)) as reader:
                meta = {key.decode(): value for key, value in (reader.schema.metadata or {}).items()}
                if meta["format"].decode() != FORMAT:
                    raise InvalidInput(f"manifest of format {meta['format'].decode()}; this raycache reads {FORMAT}")
                if not reader.schema.equals(_SCHEMA):
                    raise InvalidInput("not a manifest: its columns are others")
                batch = reader.read_next_batch()
            batch.validate()
            columns = {name: batch.column(name)[0].values for name in _COLUMNS}
            directory = Directory(
                dir_id=int(meta["dir_id"]),
                dataset=meta["dataset"].decode(),
                source=meta["source"].decode("utf-8", "surrogateescape"),
                path=meta["path"].decode("utf-8", "surrogateescape"),
                version=int(meta["version"]),
                listed_ns=int(meta["listed_ns"]),
                block_bytes=int(meta["block_bytes"]),
                hidden=int(meta["hidden"]),
            )
        except InvalidInput:
            raise
        # What Arrow raises depends on where a buffer ends too early or is damaged.
        except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, StopIteration) as error:
            raise InvalidInput(f"not a manifest: {error}") from error
        rows = len(columns["names"])
        lengths = {name: len(column) for name, column in columns.items()}
        per_row = {lengths["ends"] - 1, *(lengths[name] for name in ("mtimes_ns", "etags", "hashes", "slots"))}
        if per_row != {rows} or lengths["dir_rows"] != lengths["dir_ids"] or not lengths["cuts"]:
            raise InvalidInput("not a manifest: its columns differ in length")
        return Manifest(directory, columns)


def name_hash(name: bytes) -> int:
    """32-bit hash under which a name is filed."""
    return xxhash.xxh3_64_intdigest(name) >> 32


def numbers(column: Any) -> NDArray[Any]:
    """A column of numbers, without a copy."""
    values: NDArray[Any] = column.to_numpy(zero_copy_only=True)
    return values


def binary_views(column: Any) -> tuple[memoryview, memoryview]:
    """Offsets (int32, length + 1) and bytes of a binary column."""
    _, offsets, data = column.buffers()
    if offsets is None or not len(column):
        return np.zeros(1, np.int32).data, memoryview(b"")
    at = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    return at.data, memoryview(b"" if data is None else data)


def _etag_text(packed: bytes) -> str:
    if len(packed) == 16:
        return f'"{packed.hex()}"'
    return packed.removeprefix(b"\0").decode()
