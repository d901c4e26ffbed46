"""Bytes of rows: from views held here, from block files of this node, else from the workers that own the blocks.

Responsible for: choosing whom to ask, one call per owner for a batch, holding views of blocks, going on when a worker
dies. Not responsible for: filling blocks (``store``), or how a call travels (``actors``).

A view is a block mapped from the node's plasma store: as long as it is held, a read is a slice of memory. Views are
kept least recently used within a byte bound. A block of another node is read by ranges, and pulled whole when it is
being read through (``sweeps``).

Threading: safe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from raycache.client.blockfiles import BlockFiles, Piece
from raycache.client.protocols import WorkerPool
from raycache.client.readahead import ReadAhead
from raycache.client.sweeps import Sweeps
from raycache.core.manifest import Manifest
from raycache.core.placement import choose, rank
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import Buffer, Failed, Fetch, Filed, Sealed, Worker
from raycache.errors import RaycacheError, Unavailable, WorkerLost

CALL_REQUESTS = 256
"""Reads in one call to a worker: enough to fill its fetch pool, little enough to answer soon."""
CALL_BYTES = 64 * 2**20
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
"""Pauses before asking anew when no worker answered; the first time there is none, as the master may know better."""
REFRESH_S = 2.0
PLANS_HELD = 256
"""Packed plans of blocks not yet held, 10-30 KB each, a third of a megabyte where files are tiny."""


class Want(NamedTuple):
    """A range of one block that a read needs."""

    manifest: Manifest
    row: int
    block: int
    block_id: bytes
    offset: int
    length: int


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
    ) -> None:
        self._pool = pool
        self.files = files or BlockFiles(scheduler=scheduler)
        self._timeout_s = timeout_s
        self._scheduler = scheduler
        self.views = Views(view_bytes, scheduler)
        self._lock = scheduler.lock()
        self._ahead = ReadAhead()
        self._renewed = scheduler.condition(self._lock)
        self._renewing = False
        self._renewed_at = 0.0
        self._renewal_error: RaycacheError | None = None
        self._sweeps = Sweeps(view_bytes)
        self._plans: OrderedDict[bytes, bytes] = OrderedDict()

    def held(self, manifest: Manifest, row: int, offset: int, length: int) -> Buffer | None:
        """The bytes if views held here have them all, else None. Never waits."""
        found: list[memoryview] = []
        for want in _wants(manifest, row, offset, length):
            view = self.views.read(want)
            if view is None:
                return None
            found.append(view)
        return _joined(found)

    def read(self, manifest: Manifest, row: int, offset: int, length: int) -> Buffer:
        """``length`` bytes from ``offset`` of a row, fewer at its end.

        Raises Changed when the file is no longer the one listed, AccessDenied, SourceUnavailable, and Unavailable
        when no worker answered before the deadline.
        """
        return self._read_wants([list(_wants(manifest, row, offset, length))])[0]

    def read_many(self, rows: Sequence[tuple[Manifest, int]]) -> list[Buffer]:
        """Whole rows, in order: one call per owner for what is not held. Raises as ``read`` does."""
        return self._read_wants([list(_wants(manifest, row, 0, manifest.size(row))) for manifest, row in rows])

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
        for want, data in zip(known, self.files.read(pieces), strict=True):
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
        workers = self._pool.workers() if ahead else ()
        calls: dict[str, list[bytes]] = {}
        for block_id, (manifest, block) in ahead.items():
            if workers:
                calls.setdefault(rank(block_id, workers)[0].worker_id, []).append(manifest.plan(block).pack())
        if calls:
            self._pool.hint(calls)

    def _fetch(self, wants: list[Want], through: set[Want], found: dict[Want, Buffer]) -> None:
        """Ask until all are answered: owners first, then second choices, then what the master has replaced.

        ``through``: wants that a worker is to answer with bytes, not with the name of a file.
        """
        deadline = self._scheduler.monotonic() + self._timeout_s
        pauses = _pauses()
        lost: set[str] = set()
        while wants:
            workers = [worker for worker in self._pool.workers() if worker.worker_id not in lost]
            if workers:
                known = len(lost)
                wants = self._ask(wants, workers, deadline, lost, through, found)
                if len(lost) > known:
                    self._renew(REFRESH_S, wait_s=0)
                continue
            pause_s = next(pauses)
            if self._scheduler.monotonic() + pause_s >= deadline:
                source = wants[0].manifest.directory.source
                raise Unavailable(
                    f"{source}: no worker answered within {self._timeout_s:g} s; see `raycache status`"
                ) from self._renewal_error
            if pause_s:
                self._scheduler.sleep(pause_s)
            self._renew(0, wait_s=deadline - self._scheduler.monotonic())
            lost.clear()

    def _renew(self, age_s: float, wait_s: float) -> None:
        """Have the master asked who there is by now, if its last answer is older than ``age_s``: not at every loss of a
        burst. Beside the reads, which do not end with a master that is away; waits up to ``wait_s`` for the answer."""
        with self._lock:
            if not self._renewing and self._scheduler.monotonic() - self._renewed_at >= age_s:
                self._renewing = True
                self._scheduler.spawn(self._ask_master, "workers")
            if wait_s > 0:
                self._renewed.wait_for(lambda: not self._renewing, wait_s)

    def _ask_master(self) -> None:
        error: RaycacheError | None = None
        try:
            self._pool.workers(refresh=True)
        except RaycacheError as known:
            error = known
        finally:
            with self._lock:
                self._renewing, self._renewal_error, self._renewed_at = False, error, self._scheduler.monotonic()
                self._renewed.notify_all()

    def _ask(
        self,
        wants: list[Want],
        workers: list[Worker],
        deadline: float,
        lost: set[str],
        through: set[Want],
        found: dict[Want, Buffer],
    ) -> list[Want]:
        """One round: returns what is still unanswered because its worker was lost, or its file could not be read."""
        calls: dict[str, list[tuple[Want, Fetch]]] = {}
        for want in wants:
            owner = choose(want.block_id, workers, self._pool.replicas(want.manifest.directory.dataset))
            calls.setdefault(owner.worker_id, []).append((want, self._request(want, owner, want in through)))
        timeout_s = max(0.1, deadline - self._scheduler.monotonic())
        answers = self._pool.fetch(
            {worker: [fetch for _, fetch in asked] for worker, asked in calls.items()}, timeout_s
        )
        unanswered: list[Want] = []
        filed: list[Want] = []
        for worker_id, asked in calls.items():
            answer = answers[worker_id]
            if isinstance(answer, WorkerLost):
                lost.add(worker_id)
                unanswered.extend(want for want, _ in asked)
                continue
            for (want, _), fetched in zip(asked, answer, strict=True):
                if isinstance(fetched, Filed):
                    self.files.learn(worker_id, want.block_id, fetched)
                    filed.append(want)
                else:
                    found[want] = self._take(want, fetched, worker_id)
        left, _ = self._read_files(filed, found)
        through.update(left)
        return unanswered + left

    def _request(self, want: Want, owner: Worker, through: bool) -> Fetch:
        whole = owner.local
        if not whole:
            with self._lock:
                whole = self._sweeps.touch(want.block_id, want.length, want.manifest.block_size(want.block))
        named = owner.local and not through and self.files.usable(owner.worker_id)
        return Fetch(want.block_id, self._plan(want), want.offset, want.length, whole, named)

    def _take(self, want: Want, fetched: Sealed | Buffer | Failed, worker_id: str) -> Buffer:
        if isinstance(fetched, Failed):
            raise fetched.error
        if not isinstance(fetched, Sealed):
            return fetched
        self.views.hold(want.block_id, fetched, worker_id)
        with self._lock:
            self._plans.pop(want.block_id, None)
        return fetched.view[want.offset : want.offset + want.length]

    def _plan(self, want: Want) -> bytes:
        """Packed plan of a block that is being filled: made once, sent with each read until a view is held."""
        with self._lock:
            packed = self._plans.get(want.block_id)
        if packed is None:
            packed = want.manifest.plan(want.block).pack()
            with self._lock:
                self._plans[want.block_id] = packed
                if len(self._plans) > PLANS_HELD:
                    self._plans.popitem(last=False)
        return packed


def _pauses() -> Iterator[float]:
    yield 0.0
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


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
