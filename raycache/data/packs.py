"""Files of the cache as a Ray Data source whose read tasks are packs, and run where the packs are kept.

What a task carries is numbers: directories, rows and the change that they are of; a path is made where a file is read.
To start reading costs the driver an array of rows, whatever the number of files; Ray's own readers list, sort and hand
out a path for each.

On several nodes there is one source per worker, united (``sources``). Whose a block is follows from its id, which is
made of the names of what is in it: for millions of files that is too much for the driver. So the tasks of each worker
go through the same packs, and each reads those that the workers of *when the read was made* give to its own. They agree
whatever joins or leaves meanwhile, so that each file is read once; a task whose node is gone runs elsewhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from ray.data.block import BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource.datasource import Datasource, ReadTask

from raycache.actors.cluster import Cluster
from raycache.actors.connection import current_for
from raycache.client.namespace import Namespace
from raycache.core import paths
from raycache.core.entries import Rows, first_blocks_of, names_of, sizes_of
from raycache.core.manifest import Manifest
from raycache.core.placement import rank
from raycache.core.values import Buffer, Worker
from raycache.data.routes import Files, Wanted

READ_BYTES = 32 * 2**20
READ_FILES = 4096
"""What one call reads, and one table holds, at most, but for a single larger file."""
TASKS_MAX = 512
"""Read tasks of one read. Each costs the driver some 2 ms before the first one starts."""
AHEAD_PACKS = 2
_BINARY_BYTES = 2**31 - 1
"""As much as Arrow's ``binary`` holds in one array."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one directory."""

    dir_id: int
    first: int
    stop: int
    picked: Rows | None
    """Those from ``first`` up to ``stop`` that are meant; None for all."""

    @staticmethod
    def of(dir_id: int, rows: Rows) -> Part:
        """From rows that ascend."""
        first, stop = int(rows[0]), int(rows[-1]) + 1
        return Part(dir_id, first, stop, None if stop - first == len(rows) else np.array(rows))

    @property
    def rows(self) -> Rows:
        """The rows."""
        return np.arange(self.first, self.stop, dtype=np.uint32) if self.picked is None else self.picked


@dataclass(frozen=True)
class PackRead:
    """One read task: called in a Ray task, gives tables. Its packs are those that ``workers`` give to ``owner``; all
    of them where that is None."""

    wanted: Wanted
    parts: tuple[Part, ...]
    include_paths: bool
    owner: str | None = None
    workers: tuple[Worker, ...] = ()

    @property
    def __name__(self) -> str:  # Ray puts it into messages
        return "read_packs"

    def __call__(self) -> Iterator[pa.Table]:
        """Tables of ``bytes``, and ``path`` if asked for. Raises what ``Reader.read`` raises."""
        cluster = current_for(self.wanted.settings)
        for manifest, packs in self.packs():
            blocks = [block for block, _ in packs]
            for block, rows in packs:
                self.expect(cluster, manifest, blocks, block)
                yield from self.tables(cluster, manifest, rows)

    def packs(self) -> Iterator[tuple[Manifest, list[tuple[int, Rows]]]]:
        """Directories, and of each the blocks in which files begin, with their rows, as far as they are the owner's."""
        namespace = _namespace_of(self.wanted)
        for part in self.parts:
            manifest = namespace.manifest(part.dir_id)
            yield manifest, list(self.packs_of(manifest, part.rows))

    def expect(self, cluster: Cluster, manifest: Manifest, blocks: Sequence[int], now: int) -> None:
        """Have fetched what follows one of ``blocks``, which ascend."""
        start = bisect_right(blocks, now)
        ahead = [block for block in blocks[start : start + AHEAD_PACKS] if block < manifest.block_count]
        cluster.reader.expect([(manifest, block) for block in ahead])

    def tables(self, cluster: Cluster, manifest: Manifest, rows: Rows) -> Iterator[pa.Table]:
        """Files of one pack: one table, or several of READ_BYTES."""
        for some in _in_reads(manifest, rows):
            data = cluster.reader.read_many([(manifest, row) for row in some.tolist()])
            yield self._table(manifest, some, data)

    def below(self, manifest: Manifest) -> str:
        """A directory, by its path below the one that was asked for."""
        return manifest.directory.path.removeprefix(self.wanted.path).lstrip("/")

    def row_count(self, files: int) -> int | None:
        """Rows that so many files make, where that is known before."""
        return files if self.owner is None else None

    def schema(self) -> pa.Schema | None:
        """Of the tables, where it is known before."""
        columns = [("bytes", pa.binary())]
        return pa.schema([*columns, ("path", pa.string())] if self.include_paths else columns)

    def packs_of(self, manifest: Manifest, rows: Rows) -> Iterator[tuple[int, Rows]]:
        """Blocks in which files begin, and their rows, as far as they are the owner's."""
        blocks = first_blocks_of(manifest, rows)
        starts = np.flatnonzero(np.diff(blocks, prepend=-1))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
            block = int(blocks[start])
            if self.owner is None or self._owner_of(manifest, block) == self.owner:
                yield block, rows[start:stop]

    def _owner_of(self, manifest: Manifest, block: int) -> str:
        if block >= manifest.block_count:  # nothing but empty files: the bytes are nowhere, and one has to read them
            return min(worker.worker_id for worker in self.workers)
        return rank(manifest.block_id(block), self.workers)[0].worker_id

    def _table(self, manifest: Manifest, rows: Rows, data: Sequence[Buffer]) -> pa.Table:
        columns = {"bytes": _binary_array(data)}
        if self.include_paths:
            inside = self.below(manifest)
            columns["path"] = pa.array([paths.join(inside, name) for name in names_of(manifest, rows)], pa.string())
        return pa.table(columns)


class PackSource(Datasource):
    """Files as a Ray Data source: all of them, or one worker's."""

    def __init__(self, files: Files, read: PackRead) -> None:
        """``read``: what its tasks are to be, but for their parts."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._files = files
        self._read = read
        self._share = 1.0
        if read.owner is not None:
            capacity = {worker.worker_id: worker.capacity_bytes for worker in read.workers}
            self._share = capacity[read.owner] / max(1, sum(capacity.values()))
        self._size_bytes = files.selection.size_bytes

    def get_name(self) -> str:
        """Shown in plans and progress bars."""
        return "Raycache"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of the files; of one worker's, its share of them."""
        return int(self._size_bytes * self._share)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """At most ``parallelism`` tasks with equally many files, cut between packs."""
        packs = self._files.packs
        ends = np.cumsum(packs.files)
        if not len(ends):
            return []
        count = max(1, min(parallelism, TASKS_MAX, len(ends)))
        cuts = np.unique(np.searchsorted(ends, np.arange(1, count + 1) * ends[-1] / count) + 1).clip(max=len(ends))
        bounds = [0, *ends[cuts - 1].tolist()]
        return [self._task(start, stop, per_task_row_limit) for start, stop in pairwise(bounds) if start < stop]

    def _task(self, start: int, stop: int, row_limit: int | None) -> ReadTask:
        selection = self._files.selection
        parts = [(selection.manifests[part], rows) for part, rows in selection.between(start, stop)]
        size_bytes = sum(int(sizes_of(manifest, rows).sum()) for manifest, rows in parts)
        read = replace(self._read, parts=tuple(Part.of(manifest.directory.dir_id, rows) for manifest, rows in parts))
        about = BlockMetadata(
            num_rows=read.row_count(stop - start),
            size_bytes=int(size_bytes * self._share),
            input_files=None,
            exec_stats=None,
        )
        return ReadTask(read, about, schema=read.schema(), per_task_row_limit=row_limit)


@lru_cache(maxsize=4)
def _listings(namespace: str, change: int, master: object) -> Namespace:
    return Namespace(master, change)  # type: ignore[arg-type]


def _namespace_of(wanted: Wanted) -> Namespace:
    """Listings as of a change, kept for the next task of this process."""
    return _listings(wanted.settings.namespace, wanted.change, current_for(wanted.settings).master)


def _in_reads(manifest: Manifest, rows: Rows) -> Iterator[Rows]:
    """Rows in runs that are read at once."""
    ends: NDArray[np.uint64] = np.cumsum(sizes_of(manifest, rows))
    start = 0
    while start < len(rows):
        before = ends[start - 1] if start else np.uint64(0)
        stop = int(np.searchsorted(ends, before + np.uint64(READ_BYTES), side="right"))
        stop = min(max(stop, start + 1), start + READ_FILES)
        yield rows[start:stop]
        start = stop


def _binary_array(data: Sequence[Buffer]) -> pa.Array:
    """Buffers as one Arrow array: one copy, no object per file beyond what it was read as."""
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in data], dtype=np.int64)])
    kind, width = (pa.binary(), np.int32) if offsets[-1] <= _BINARY_BYTES else (pa.large_binary(), np.int64)
    buffers = [None, pa.py_buffer(offsets.astype(width)), pa.py_buffer(b"".join(data))]
    return pa.Array.from_buffers(kind, len(data), buffers)
