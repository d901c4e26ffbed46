"""The blocks of one worker: answers reads and fills blocks. Where they lie is for ``tiers``.

A read that misses is answered as soon as its own bytes are there. A block touched once is only probed; touched in a
second place, or asked for by a large part, it is filled in the background, once, whoever waits for it. When no tier has
room, reads go through to the source and are counted.

Bounds: bytes kept by the tiers' quotas (reserved before the first byte of a fill is fetched), fills under way by
FILLS_MAX, bytes of probes by PROBE_BYTES, requests under way by the number of fetchers. Readers wait in their callers'
threads, which the actor bounds.

Threading: one lock for all state; sources, memory and disks are used outside it. Whole blocks are put away by a few
threads of their own, so that a slow disk takes no fetcher from the readers.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import BlockPlan, Buffer, Failed, Fetch, Filed, Part
from raycache.errors import Changed, RaycacheError, SourceUnavailable, Unavailable
from raycache.store.flight import Flight
from raycache.store.tiers import Kept, Tiers
from raycache.ufs.sources import Sources

FILLS_MAX = 16
"""Blocks filled at once: half a gigabyte of parts on their way at the usual block size."""
PROBE_BYTES = 64 * 2**20
PROBES_MAX = 1024
HOLE_S = 5.0
"""How long a file that was gone is taken for gone without asking the source again."""
SEALERS = 4
"""Threads that put filled blocks away: a disk that syncs is kept busy by a few."""


@dataclass
class Counters:
    """What a worker did since it started. Reads are ranges asked for; a miss waited for the source."""

    reads: int = 0
    hits: int = 0
    misses: int = 0
    read_through: int = 0
    """Misses on a block that did not fit into the quota."""
    ufs_requests: int = 0
    ufs_bytes: int = 0
    ufs_errors: int = 0
    changed: int = 0
    """Parts whose file was no longer the one listed."""
    not_kept: int = 0
    """Blocks fetched whole and not kept: the store had no room, or the source failed."""


Answer = Kept | Filed | Buffer | Failed


class BlockStore:
    """All blocks of one worker. ``start`` before use, ``stop`` after."""

    def __init__(self, tiers: Tiers, sources: Sources, fetchers: int, scheduler: Scheduler = THREADS) -> None:
        self._scheduler = scheduler
        self._tiers = tiers
        self._sources = sources
        self._counters = Counters()
        self._flights: OrderedDict[bytes, Flight] = OrderedDict()
        self._demands: deque[tuple[Flight, int]] = deque()
        self._fills: deque[Flight] = deque()
        self._complete: deque[Flight] = deque()
        self._filling = 0
        self._probe_bytes = 0
        self._lock = scheduler.lock()
        self._work = scheduler.condition(self._lock)
        self._arrival = scheduler.condition(self._lock)
        self._seals = scheduler.condition(self._lock)
        self._stopping = False
        self._fetchers = fetchers

    def start(self) -> None:
        """Start the threads."""
        for number in range(self._fetchers):
            self._scheduler.spawn(self._fetch_loop, f"fetch-{number}")
        for number in range(SEALERS):
            self._scheduler.spawn(self._seal_loop, f"seal-{number}")

    def stop(self) -> None:
        """Stop the threads and let go of the disks; requests under way end by their own deadline."""
        with self._lock:
            self._stopping = True
            for condition in (self._work, self._arrival, self._seals):
                condition.notify_all()
        self._tiers.close()

    def fetch(self, requests: Sequence[Fetch], timeout_s: float) -> list[Answer]:
        """Answer reads: a Kept block where it is held and wanted whole, a Filed one where it is on disk and the client
        may open it, the bytes of the range, or a Failed.

        All of them are asked for before the first is waited for. After ``timeout_s`` the rest fails as Unavailable.
        """
        deadline = self._scheduler.monotonic() + timeout_s
        with self._lock:
            self._counters.reads += len(requests)
            begun = [self._begin(request) for request in requests]
        return [self._finish(request, step, deadline) for request, step in zip(requests, begun, strict=True)]

    def hint(self, packed_plans: Sequence[bytes]) -> None:
        """Fill blocks that are likely to be wanted, as far as quota and FILLS_MAX allow now; the rest is forgotten."""
        with self._lock:
            for packed in packed_plans:
                plan = BlockPlan.unpack(packed)
                if plan.block_id in self._tiers:
                    continue
                flight = self._flights.setdefault(plan.block_id, Flight(plan))
                if not flight.filling:
                    self._fill(flight)
            self._trim_probes()

    def status(self) -> dict[str, Any]:
        """Figures for ``raycache status``."""
        with self._lock:
            return {**self._tiers.status(), "filling": self._filling, "counters": asdict(self._counters)}

    def settle(self, timeout_s: float) -> bool:
        """Wait until no fill is under way; False when the time was not enough."""
        with self._lock:
            return self._arrival.wait_for(lambda: not self._filling, timeout_s)

    def check(self) -> None:
        """Invariants, for tests: the books of the tiers, and those of fills and probes."""
        self._tiers.check()
        with self._lock:
            probes = sum(flight.fetched_bytes for flight in self._flights.values() if not flight.filling)
            assert self._probe_bytes == probes, (self._probe_bytes, probes)
            assert self._filling == sum(flight.filling for flight in self._flights.values())

    def _begin(self, request: Fetch) -> Answer | Flight | None:
        """Answer at once, or see to it that the wanted parts are on their way; None: a disk has the block."""
        kept = self._tiers.in_memory(request.block_id)
        if kept is not None and _meets(kept.holes, request):
            if self._scheduler.monotonic() - kept.sealed < HOLE_S:
                return Failed(self._hole_error(request))
            # The file may be back as it was: fetch the block anew.
            self._tiers.drop(request.block_id)
            kept = None
        if kept is not None:
            self._counters.hits += 1
            return kept if request.whole else kept.view[request.offset : request.offset + request.length]
        return None if self._tiers.on_disk(request.block_id) else self._begin_flight(request)

    def _begin_flight(self, request: Fetch) -> Flight:
        flight = self._flights.get(request.block_id)
        if flight is None:
            flight = self._flights[request.block_id] = Flight(BlockPlan.unpack(request.packed_plan))
        self._flights.move_to_end(request.block_id)
        numbers = flight.covering(request.offset, request.length)
        touched = flight.touched
        for number in numbers:
            flight.forget_failure(number)
        new = [number for number in numbers if flight.is_new(number)]
        for number in new:
            flight.queue(number)
            self._demands.append((flight, number))
        if all(flight.is_settled(number) for number in numbers):
            self._counters.hits += 1
        else:
            self._counters.misses += 1
        sweep = (touched and bool(new)) or len(numbers) * 2 > len(flight.plan.parts) or flight.is_complete
        if sweep and not flight.filling and not self._fill(flight):
            self._counters.read_through += 1
        if new:
            self._work.notify(len(new))
        flight.waiters += 1
        return flight

    def _finish(self, request: Fetch, step: Answer | Flight | None, deadline: float) -> Answer:
        """Read from disk or wait for the source, where ``_begin`` could not answer."""
        answer = self._read_stored(request) if step is None else step
        with self._lock:
            if answer is None:
                answer = self._begin(request)
                answer = self._begin_flight(request) if answer is None else answer
            elif step is None and not isinstance(answer, Failed):
                self._counters.hits += 1
            return self._await(request, answer, deadline) if isinstance(answer, Flight) else answer

    def _read_stored(self, request: Fetch) -> Answer | None:
        """From a disk, or None when it has not got the block after all."""
        stored = self._tiers.find_stored(request.block_id)
        if stored is None:
            return None
        if _meets(stored.block.header.holes, request):
            if self._scheduler.monotonic() - stored.block.since < HOLE_S:
                with self._lock:
                    return Failed(self._hole_error(request))
            self._tiers.drop(request.block_id)
            return None
        return self._tiers.read(stored, request.offset, request.length, whole=request.whole, named=request.named)

    def _fill(self, flight: Flight) -> bool:
        """Turn a probe into a fill; False when no tier has room for it."""
        if self._filling >= FILLS_MAX:
            return True  # the next touch tries again
        plan = flight.plan
        flight.claim = self._tiers.reserve(plan.block_id, plan.size_bytes, plan.dataset)
        if flight.claim is None:
            return False
        self._filling += 1
        self._probe_bytes -= flight.fetched_bytes
        if flight.is_complete:  # its parts came one by one while it was a probe
            flight.sealing = True
            self._complete.append(flight)
            self._seals.notify()
        else:
            self._fills.append(flight)
            self._work.notify_all()
        return True

    def _await(self, request: Fetch, flight: Flight, deadline: float) -> Answer:
        numbers = flight.covering(request.offset, request.length)
        try:
            while not all(flight.is_settled(number) for number in numbers):
                left_s = deadline - self._scheduler.monotonic()
                if left_s <= 0 or self._stopping:
                    path = flight.plan.parts[numbers[0]].path
                    return Failed(Unavailable(f"{flight.plan.dataset}: {path} did not arrive in time from its source"))
                self._arrival.wait(left_s)
            return flight.read(request.offset, request.length)
        except RaycacheError as error:
            return Failed(error)
        finally:
            flight.waiters -= 1
            self._trim_probes()

    def _fetch_loop(self) -> None:
        while True:
            with self._lock:
                job = self._next_job()
                while job is None:
                    if self._stopping:
                        return
                    self._work.wait()
                    job = self._next_job()
            self._fetch_part(*job)

    def _next_job(self) -> tuple[Flight, int] | None:
        """Demands first, then the fill that has been waiting longest."""
        while self._demands:
            flight, number = self._demands.popleft()
            if flight.begin(number):
                return flight, number
        while self._fills:
            flight = self._fills[0]
            part = flight.next_fill()
            if part is not None:
                return flight, part
            self._fills.popleft()
        return None

    def _fetch_part(self, flight: Flight, number: int) -> None:
        part = flight.plan.parts[number]
        error: Exception | None = None
        data: Any = b""
        try:
            data = self._sources.call(
                flight.plan.dataset, lambda ufs: ufs.get(part.path, part.file_offset, part.length, part.etag)
            )
            if len(data) != part.length:  # a store or a proxy between that says it sent all
                error = SourceUnavailable(
                    f"{flight.plan.dataset}: {part.path}: {len(data)} bytes came of {part.length}; read it again"
                )
        except RaycacheError as known:
            error = known
        except BaseException as unknown:  # noqa: BLE001 - a fetcher that died would leave its readers waiting
            error = SourceUnavailable(f"{flight.plan.dataset}: {part.path}: {type(unknown).__name__}: {unknown}")
        with self._lock:
            self._counters.ufs_requests += 1
            if error is None:
                self._counters.ufs_bytes += part.length
                self._probe_bytes += 0 if flight.filling else part.length
                flight.arrived(number, data)
            else:
                self._counters.ufs_errors += 1
                self._counters.changed += isinstance(error, Changed)
                flight.failed(number, error)
            self._arrival.notify_all()
            if not flight.filling or flight.sealing:
                return
            if flight.is_complete:
                flight.sealing = True
                self._complete.append(flight)
                self._seals.notify()
            elif error is not None and not isinstance(error, Changed):
                self._give_up(flight)

    def _give_up(self, flight: Flight) -> None:
        """The source failed in the middle of a fill: fetch no more of it than readers ask for."""
        self._counters.not_kept += 1
        if flight.claim is not None:
            self._tiers.cancel(flight.claim)
        self._end_fill(flight)
        self._probe_bytes += flight.fetched_bytes

    def _end_fill(self, flight: Flight) -> None:
        flight.claim = None
        self._filling -= 1
        self._arrival.notify_all()
        if flight in self._fills:
            self._fills.remove(flight)

    def _seal_loop(self) -> None:
        while True:
            with self._lock:
                while not self._complete and not self._stopping:
                    self._seals.wait()
                if self._stopping:
                    return
                flight = self._complete.popleft()
            self._seal(flight)

    def _seal(self, flight: Flight) -> None:
        with self._lock:
            claim, holes = flight.claim, flight.holes() if flight.can_be_kept else None
        kept = False
        if claim is not None and holes is not None:
            try:
                kept = self._tiers.keep(claim, flight.assemble(), holes)
            except BaseException:  # noqa: BLE001 - no room, or no answer: not kept, and this thread must live on
                kept = False
        with self._lock:
            flight.sealing = False
            if not kept:
                self._give_up(flight)
                return
            self._end_fill(flight)
            self._flights.pop(flight.plan.block_id, None)

    def _trim_probes(self) -> None:
        """Let go of probes, oldest first, beyond their bounds; none that somebody waits for."""
        while self._probe_bytes > PROBE_BYTES or len(self._flights) > PROBES_MAX:
            flights = self._flights.values()
            oldest = next((one for one in flights if not one.filling and not one.waiters and one.idle), None)
            if oldest is None:
                return
            del self._flights[oldest.plan.block_id]
            self._probe_bytes -= oldest.fetched_bytes

    def _hole_error(self, request: Fetch) -> Exception:
        plan = BlockPlan.unpack(request.packed_plan)
        stop = request.offset + request.length
        path = next(part.path for part in plan.parts if request.offset < _end(part) and part.block_offset < stop)
        self._counters.changed += 1
        return Changed(f"{plan.dataset}: {path} changed since it was listed; refresh its directory")


def _meets(holes: Sequence[tuple[int, int]], request: Fetch) -> bool:
    """Whether a read wants bytes of a hole."""
    return any(start < request.offset + request.length and request.offset < stop for start, stop in holes)


def _end(part: Part) -> int:
    return part.block_offset + part.length
