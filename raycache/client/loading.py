"""Loading: a tree, or a file, is brought into the cache by the workers that own its blocks, without reading it.

A job walks the listings, offers blocks to their owners, and asks again until each is here, cannot be had, or has no
room. A worker takes a bounded number at a time and says of each what becomes of it, so that nothing is lost by being
too much at once; demand reads go first there. A worker that dies loses its offers to whoever owns them then.

Bounds: OFFERED blocks per worker are on offer, and as many plans held; listings are asked for MANIFESTS_AT_ONCE at a
time. Threading: one thread per job; ``progress``, ``wait`` and ``cancel`` from any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from raycache.client.namespace import Namespace
from raycache.client.protocols import KeepingPool
from raycache.core.entries import directory_rows
from raycache.core.manifest import Manifest
from raycache.core.placement import rank
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import MANIFESTS_AT_ONCE, Failed
from raycache.errors import Unavailable, WorkerLost

OFFERED = 64
TRIES = 3
"""How often a block whose fill came to nothing is offered."""
PAUSE_S = 0.1
STALLED_S = 300.0
"""How long a job goes on when no block moves."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """How far a load is, or how it ended. Bytes and files are those of the blocks that were looked at so far."""

    uri: str
    state: str = "running"
    """``running``, ``done``, ``failed`` or ``cancelled``."""
    files: int = 0
    """Files in what was listed so far, empty ones included."""
    bytes: int = 0
    """Bytes that are in the cache."""
    failed: int = 0
    """Files whose blocks the source did not give; reading one says why."""
    beyond_bytes: int = 0
    """Bytes that no tier has room for, or that are beyond the dataset's quota: they are read through."""
    seconds: float = 0.0
    error: str = ""
    """Why it failed as a whole."""


class LoadJob:
    """A load that runs in a thread of this process, and ends with it. See the module."""

    def __init__(self, namespace: Namespace, pool: KeepingPool, uri: str, scheduler: Scheduler = THREADS) -> None:
        """Begins at once. Raises NotFound, InvalidInput when there is nothing of that name."""
        self._scheduler = scheduler
        self._pool = pool
        self._lock = scheduler.lock()
        self._ended = scheduler.condition(self._lock)
        self._began = scheduler.monotonic()
        self._report = LoadReport(uri)
        self._cancelled = False
        self._error: BaseException | None = None
        blocks = blocks_of(namespace, uri, self._listed)
        first = next(blocks, None)  # what cannot be found is an error of the caller
        scheduler.spawn(lambda: self._run(first, blocks), "load")

    def progress(self) -> LoadReport:
        """How far it is."""
        with self._lock:
            if self._report.state != "running":
                return self._report
            return replace(self._report, seconds=self._scheduler.monotonic() - self._began)

    @property
    def report(self) -> LoadReport:
        """The same: after ``wait``, how it ended."""
        return self.progress()

    def wait(self, timeout_s: float | None = None) -> LoadReport:
        """Wait for its end. Raises Unavailable when it has not come in time (the job goes on), and what made the job
        fail as a whole: the source could not be listed, no worker answered."""
        with self._lock:
            if not self._ended.wait_for(lambda: self._report.state != "running", timeout_s):
                raise Unavailable(f"loading {self._report.uri} takes longer than {timeout_s:g} s; it goes on")
        if self._error is not None:
            raise self._error
        return self._report

    def cancel(self) -> None:
        """Offer no more; what workers have begun they end."""
        with self._lock:
            self._cancelled = True

    def _listed(self, files: int) -> None:
        with self._lock:
            self._report = replace(self._report, files=self._report.files + files)

    def _run(self, first: Block | None, rest: Iterator[Block]) -> None:
        state, error = "done", ""
        try:
            _Offers(self._pool, self._scheduler, self._add, lambda: self._cancelled).run(first, rest)
            state = "cancelled" if self._cancelled else "done"
        except BaseException as failure:  # noqa: BLE001 - whatever it is, it is for the one who waits
            state, error, self._error = "failed", str(failure), failure
        with self._lock:
            seconds = self._scheduler.monotonic() - self._began
            self._report = replace(self._report, state=state, error=error, seconds=seconds)
            self._ended.notify_all()

    def _add(self, loaded: int, failed: int, beyond: int) -> None:
        with self._lock:
            was = self._report
            self._report = replace(
                was, bytes=was.bytes + loaded, failed=was.failed + failed, beyond_bytes=was.beyond_bytes + beyond
            )


class Block(NamedTuple):
    """A block of a listed directory."""

    manifest: Manifest
    number: int

    @property
    def size_bytes(self) -> int:
        """Its bytes."""
        return self.manifest.block_size(self.number)


class _Offers:
    """Blocks on offer to workers, until each has come to an end."""

    def __init__(
        self, pool: KeepingPool, scheduler: Scheduler, add: Callable[[int, int, int], None], stop: Callable[[], bool]
    ) -> None:
        """``add``: bytes loaded, files failed, bytes beyond what there is room for."""
        self._pool = pool
        self._scheduler = scheduler
        self._add = add
        self._stop = stop
        self._open: dict[bytes, tuple[Block, bytes]] = {}
        self._tries: dict[bytes, int] = {}
        self._moved = scheduler.monotonic()

    def run(self, first: Block | None, rest: Iterator[Block]) -> None:
        """Until all have ended."""
        waiting = deque([first] if first is not None else [])
        while not self._stop():
            room = OFFERED * max(1, len(self._pool.workers())) - len(self._open)
            while room > 0 and (block := waiting.popleft() if waiting else next(rest, None)) is not None:
                block_id = block.manifest.block_id(block.number)
                if block_id not in self._open:
                    self._open[block_id] = (block, block.manifest.plan(block.number).pack())
                    room -= 1
            if not self._open:
                return
            before = len(self._open)
            self._round()
            if self._scheduler.monotonic() - self._moved > STALLED_S:
                raise Unavailable(f"no worker took or finished a block for {STALLED_S:g} s; see `raycache status`")
            if len(self._open) == before:
                self._scheduler.sleep(PAUSE_S)

    def _round(self) -> None:
        """Offer what is open."""
        workers = self._pool.workers()
        calls: dict[str, list[bytes]] = {}
        for block_id in self._open if workers else ():
            calls.setdefault(rank(block_id, workers)[0].worker_id, []).append(block_id)
        plans = {worker: [self._open[one][1] for one in blocks] for worker, blocks in calls.items()}
        answers = self._pool.load(plans)
        lost = [worker for worker, answer in answers.items() if isinstance(answer, WorkerLost)]
        for worker, answer in answers.items():
            if not isinstance(answer, WorkerLost):
                for block_id, outcome in zip(calls[worker], answer, strict=True):
                    self._settle(block_id, outcome)
        if lost or not workers:
            self._pool.workers(refresh=True)

    def _settle(self, block_id: bytes, outcome: str) -> None:
        block, _ = self._open[block_id]
        if outcome == "begun":
            self._moved = self._scheduler.monotonic()
            self._tries[block_id] = self._tries.get(block_id, 0) + 1
            if self._tries[block_id] <= TRIES:
                return
            self._add(0, len({part.path for part in block.manifest.plan(block.number).parts}), 0)
        elif outcome in ("coming", "wait"):
            return
        elif outcome == "here":
            self._add(block.size_bytes, 0, 0)
        else:
            self._add(0, 0, block.size_bytes)
        del self._open[block_id]
        self._moved = self._scheduler.monotonic()
        self._tries.pop(block_id, None)


def blocks_of(namespace: Namespace, uri: str, listed: Callable[[int], None] = lambda files: None) -> Iterator[Block]:
    """Blocks with files of a tree, or of one file; ``listed`` is told of the files of each directory. Lazy.

    Raises what listing a source raises.
    """
    manifest, row = namespace.entry(uri)
    if row is not None:
        listed(1)
        pieces = manifest.pieces(row, 0, manifest.size(row))
        yield from (Block(manifest, piece.block) for piece in pieces)
        return
    todo = [manifest.directory.dir_id]
    while todo:
        some, todo = todo[-MANIFESTS_AT_ONCE:], todo[:-MANIFESTS_AT_ONCE]
        for found in namespace.manifests(some).values():
            if isinstance(found, Failed):
                raise found.error
            children = (found.child_id(row) for row in directory_rows(found).tolist())
            todo.extend(child for child in children if child is not None)
            listed(found.file_count)
            yield from (Block(found, number) for number in _live_blocks(found))


def _live_blocks(manifest: Manifest) -> list[int]:
    """Blocks with bytes of files that are still there."""
    if not len(manifest.columns.dead_rows):
        return list(range(manifest.block_count))
    rows = manifest.live_rows(0, manifest.row_count).astype(np.int64)
    rows = rows[manifest.columns.ends[rows + 1] > manifest.columns.ends[rows]]
    return sorted({block for row in rows.tolist() for block in range(*_span(manifest, row))})


def _span(manifest: Manifest, row: int) -> tuple[int, int]:
    first, last = manifest.blocks_of(row)
    return first, last + 1
