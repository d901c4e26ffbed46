"""Bytes of rows: from views held here, from block files of this node, else from the workers that own the blocks.

Responsible for: holding views of blocks, batches, what is asked for ahead. Not responsible for: whom to ask and what to
do when that one is gone or slow (``asking``), filling blocks (``store``), or how a call travels (``actors``).

A view is a block mapped from the node's plasma store: as long as it is held, a read is a slice of memory. Views are
kept least recently used within a byte bound. A block of another node is read by ranges, and pulled whole when it is
being read through (``sweeps``).

Threading: safe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from raycache.client.asking import Asker, Want
from raycache.client.blockfiles import Begun, BlockFiles, Piece
from raycache.client.protocols import WorkerPool
from raycache.client.readahead import ReadAhead
from raycache.client.waiting import WaitLog
from raycache.core.manifest import Manifest
from raycache.core.placement import rank
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import Buffer, Failed, Filed, Sealed
from raycache.core.waits import FILE, VIEW

CALL_REQUESTS = 256
"""Reads in one call to a worker: enough to fill its fetch pool, little enough to answer soon."""
CALL_BYTES = 64 * 2**20


class Views:
    """Blocks mapped in this process, least recently used first out, bounded in bytes."""

    def __init__(self, limit_bytes: int, scheduler: Scheduler) -> None:
        self._limit_bytes = limit_bytes
        self._lock = scheduler.lock()
        self._held: OrderedDict[bytes, tuple[Sealed, str]] = OrderedDict()
        self._read: set[bytes] = set()
        self._size_bytes = 0

    def read(self, want: Want) -> memoryview | None:
        """The wanted range, or None when the block is not held or the range meets a hole."""
        with self._lock:
            held = self._held.get(want.block_id)
            if held is None:
                return None
            self._held.move_to_end(want.block_id)
            self._read.add(want.block_id)
        return readable(held[0], want.offset, want.length)

    def __contains__(self, block_id: bytes) -> bool:
        return block_id in self._held

    def hold(self, block_id: bytes, sealed: Sealed, worker_id: str) -> None:
        """Keep a view of a worker's block, and let go of the oldest ones beyond the bound."""
        with self._lock:
            if block_id in self._held:
                return
            self._held[block_id] = sealed, worker_id
            self._size_bytes += len(sealed.view)
            while self._size_bytes > self._limit_bytes and len(self._held) > 1:
                _, (old, _) = self._held.popitem(last=False)
                self._size_bytes -= len(old.view)

    def by_worker(self) -> dict[str, list[bytes]]:
        """Ids of the blocks held, by the worker that keeps them."""
        found: dict[str, list[bytes]] = {}
        with self._lock:
            for block_id, (_, worker_id) in self._held.items():
                found.setdefault(worker_id, []).append(block_id)
        return found

    def take_read(self) -> set[bytes]:
        """Ids of the blocks that were read since the last call."""
        with self._lock:
            read, self._read = self._read, set()
            return read

    def let_go(self, block_ids: Iterable[bytes]) -> None:
        """Hold these no more."""
        with self._lock:
            for block_id in block_ids:
                if held := self._held.pop(block_id, None):
                    self._size_bytes -= len(held[0].view)


def readable(sealed: Sealed, offset: int, length: int) -> memoryview | None:
    """A range of a block, or None when it meets a hole."""
    stop = offset + length
    if any(start < stop and offset < end for start, end in sealed.holes):
        return None
    return sealed.view[offset:stop]


class Reader:
    """Reads rows."""

    def __init__(
        self,
        pool: WorkerPool,
        view_bytes: int,
        timeout_s: float,
        scheduler: Scheduler = THREADS,
        files: BlockFiles | None = None,
        waits: WaitLog | None = None,
    ) -> None:
        self._pool = pool
        self.waits = waits or WaitLog(scheduler=scheduler)
        self.files = files or BlockFiles(scheduler=scheduler)
        self._timeout_s = timeout_s
        self._scheduler = scheduler
        self.asker = Asker(pool, self.files, view_bytes, timeout_s, scheduler, self.waits)
        self.views = Views(view_bytes, scheduler)
        self._lock = scheduler.lock()
        self._ahead = ReadAhead()

    def held(self, manifest: Manifest, row: int, offset: int, length: int) -> Buffer | None:
        """The bytes if views held here have them all, else None. Never waits."""
        found: list[memoryview] = []
        for want in _wants(manifest, row, offset, length):
            view = self.views.read(want)
            if view is None:
                return None
            found.append(view)
        return _joined(found)

    def begin(self, manifest: Manifest, row: int, offset: int, length: int) -> Buffer | Begun | None:
        """The bytes if views held here have them all; else a read of a block file, begun, see BlockFiles; None where
        ``read`` is needed. Never waits."""
        wants = list(_wants(manifest, row, offset, length))
        found = [self.views.read(want) for want in wants]
        if len(wants) == 1 and found[0] is None:
            (want,) = wants
            return self.files.begin(Piece(want.block_id, want.offset, want.length))
        held = [view for view in found if view is not None]
        return _joined(held) if len(held) == len(wants) else None

    def read(self, manifest: Manifest, row: int, offset: int, length: int) -> Buffer:
        """``length`` bytes from ``offset`` of a row, fewer at its end.

        Raises Changed when the file is no longer the one listed, AccessDenied, SourceUnavailable, and Unavailable
        when no worker answered before the deadline.
        """
        return self._read_wants([list(_wants(manifest, row, offset, length))])[0]

    def read_many(self, rows: Sequence[tuple[Manifest, int]]) -> list[Buffer]:
        """Whole rows, in order: one call per owner for what is not held. Raises as ``read`` does."""
        return self._read_wants([list(_wants(manifest, row, 0, manifest.size(row))) for manifest, row in rows])

    def expect(self, blocks: Sequence[tuple[Manifest, int]]) -> None:
        """Have blocks filled that are likely to be read soon. Waits for no block."""
        named = {manifest.block_id(block): (manifest, block) for manifest, block in blocks}
        here = [block_id for block_id in named if block_id in self.views or self.files.knows(block_id)]
        for block_id in here:
            del named[block_id]
        self._send_hints(named)

    def _read_wants(self, reads: list[list[Want]]) -> list[Buffer]:
        found: dict[Want, Buffer] = {}
        elsewhere: list[Want] = []
        for wants in reads:
            for want in wants:
                view = self.views.read(want)
                if view is None:
                    elsewhere.append(want)
                else:
                    found[want] = view
        if found:
            dataset = next(iter(found)).manifest.directory.dataset
            self.waits.add(dataset, VIEW, "", len(found), sum(map(len, found.values())), 0.0)
        missing, through = self._read_files(elsewhere, found)
        if missing:
            self._hint(missing)
        for batch in _batches(missing):
            self._fetch(batch, through, found)
        return [_joined([found[want] for want in wants]) for wants in reads]

    def _read_files(self, wants: list[Want], found: dict[Want, Buffer]) -> tuple[list[Want], set[Want]]:
        """Read what lies in block files known here. Returns what does not, and what could not be read so: that is for
        the worker to read, which sees what is wrong with the file."""
        known = [want for want in dict.fromkeys(wants) if self.files.knows(want.block_id)]
        if not known:
            return wants, set()
        pieces = [Piece(want.block_id, want.offset, want.length) for want in known]
        failed: set[Want] = set()
        began = self._scheduler.monotonic()
        read = self.files.read(pieces)
        took_s = self._scheduler.monotonic() - began
        size_bytes = sum(map(len, filter(None, read)))
        self.waits.add(known[0].manifest.directory.dataset, FILE, "", len(known), size_bytes, took_s)
        for want, data in zip(known, read, strict=True):
            if data is None:
                failed.add(want)
            else:
                found[want] = data
        return [want for want in wants if want not in found], failed

    def _hint(self, missing: Sequence[Want]) -> None:
        """Have filled what is likely to be wanted next, before waiting for what is wanted now."""
        with self._lock:
            ahead = {
                want.manifest.block_id(block): (want.manifest, block)
                for want in missing
                for block in self._ahead.touch(want.manifest, want.row, want.block)
            }
        self._send_hints(ahead)

    def _send_hints(self, ahead: Mapping[bytes, tuple[Manifest, int]]) -> None:
        workers = self._pool.workers() if ahead else ()
        calls: dict[str, list[bytes]] = {}
        for block_id, (manifest, block) in ahead.items():
            if workers:
                calls.setdefault(rank(block_id, workers)[0].worker_id, []).append(manifest.plan(block).pack())
        if calls:
            self._pool.hint(calls)

    def _fetch(self, wants: list[Want], through: set[Want], found: dict[Want, Buffer]) -> None:
        """Have all answered by workers. ``through``: wants to answer with bytes, not with the name of a file."""
        deadline = self._scheduler.monotonic() + self._timeout_s
        while wants:
            filed: list[Want] = []
            for want, (worker_id, fetched) in self.asker.ask(wants, through, deadline).items():
                if isinstance(fetched, Filed):
                    self.files.learn(worker_id, want.block_id, fetched)
                    filed.append(want)
                else:
                    found[want] = self._take(want, fetched, worker_id)
            wants, _ = self._read_files(filed, found)
            through.update(wants)

    def _take(self, want: Want, fetched: Sealed | Buffer | Failed, worker_id: str) -> Buffer:
        if isinstance(fetched, Failed):
            raise fetched.error
        if not isinstance(fetched, Sealed):
            return fetched
        self.views.hold(want.block_id, fetched, worker_id)
        self.asker.has_view(want.block_id)
        return fetched.view[want.offset : want.offset + want.length]


def _wants(manifest: Manifest, row: int, offset: int, length: int) -> Iterable[Want]:
    for piece in manifest.pieces(row, offset, length):
        yield Want(manifest, row, piece.block, manifest.block_id(piece.block), piece.offset, piece.length)


def _batches(wants: Sequence[Want]) -> Iterable[list[Want]]:
    batch: list[Want] = []
    size_bytes = 0
    for want in dict.fromkeys(wants):
        if batch and (len(batch) >= CALL_REQUESTS or size_bytes + want.length > CALL_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(want)
        size_bytes += want.length
    if batch:
        yield batch


def _joined(parts: Sequence[Buffer]) -> Buffer:
    return parts[0] if len(parts) == 1 else b"".join(parts)
