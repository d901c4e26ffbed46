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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raycache.core.retention import Retention
from raycache.core.scheduling import THREADS, Condition, Scheduler
from raycache.core.values import BlockPlan, Buffer, Failed, Fetch, Filed, Worker
from raycache.errors import Changed, RaycacheError, Unavailable
from raycache.store.contents import WrittenFiles
from raycache.store.counters import Counters
from raycache.store.fetchqueue import NO_LIMITS, FetchQueue, Job, SourceLimits
from raycache.store.flight import Flight
from raycache.store.parts import Came, PartReader, Where
from raycache.store.peers import About, Peers
from raycache.store.tiers import Kept, Tiers
from raycache.ufs.sources import Sources

FILLS_MAX = 16
"""Blocks filled at once: half a gigabyte of parts on their way at the usual block size."""
FILLS_LEFT = 4  # of them, those that a load leaves to what readers ask for
PROBE_BYTES = 64 * 2**20
PROBES_MAX = 1024
HOLE_S = 5.0
"""How long a file that was gone is taken for gone without asking the source again."""
PULLERS, SEALERS = 4, 4
"""Threads that fetch whole blocks from others, and that put them away: a disk that syncs is kept busy by a few."""

Answer = Kept | Filed | Buffer | Failed


class BlockStore:
    """All blocks of one worker. ``start`` before use, ``stop`` after."""

    def __init__(
        self,
        tiers: Tiers,
        sources: Sources,
        fetchers: int,
        scheduler: Scheduler = THREADS,
        peers: Peers | None = None,
        written: WrittenFiles | None = None,
        limits: SourceLimits = NO_LIMITS,
    ) -> None:
        self._scheduler = scheduler
        self._peers = peers or Peers()
        self.on_sealed: Callable[[bytes, str], None] = lambda block_id, dataset: None
        """Told of each block that was filled, with its dataset. Set before ``start``."""
        self.tiers = tiers
        self._sources = sources
        self._parts = PartReader(sources, self._peers, written)
        self._counters = Counters()
        self._missed: dict[str, int] = {}
        self._flights: OrderedDict[bytes, Flight] = OrderedDict()
        self._queue = FetchQueue(limits)
        self._pulls: deque[Flight] = deque()
        self._complete: deque[Flight] = deque()
        self._filling = 0
        self._probe_bytes = 0
        self._lock = scheduler.lock()
        self._work = scheduler.condition(self._lock)
        self._arrival = scheduler.condition(self._lock)
        self._pulled = scheduler.condition(self._lock)
        self._seals = scheduler.condition(self._lock)
        self._stopping = False
        self._fetchers = fetchers

    def start(self) -> None:
        """Start the threads."""
        for number in range(self._fetchers):
            self._scheduler.spawn(self._fetch_loop, f"fetch-{number}")
        for number in range(PULLERS):
            self._scheduler.spawn(self._pull_loop, f"pull-{number}")
        for number in range(SEALERS):
            self._scheduler.spawn(self._seal_loop, f"seal-{number}")

    def stop(self) -> None:
        """Stop the threads and let go of the disks; requests under way end by their own deadline."""
        with self._lock:
            self._stopping = True
            for condition in (self._work, self._arrival, self._pulled, self._seals):
                condition.notify_all()
        self.tiers.close()

    def fetch(self, requests: Sequence[Fetch], timeout_s: float, *, direct: bool = False) -> tuple[list[Answer], float]:
        """Answer reads: a Kept block where it is held and wanted whole, a Filed one where it is on disk and the client
        may open it, the bytes of the range, or a Failed. With the seconds that this took if the source was waited for.

        All of them are asked for before the first is waited for. After ``timeout_s`` the rest fails as Unavailable.
        ``direct``: another worker asks; what is missing comes from the source, not from a third one.
        """
        began = self._scheduler.monotonic()
        if not self._peers.introduced and not all(self.tiers.has(request.block_id) for request in requests):
            self._peers.await_introduction(timeout_s)
        with self._lock:
            self._counters.reads += len(requests)
            self._counters.hedged += sum(request.hedged for request in requests)
            begun = [self._begin(request, direct) for request in requests]
            of_source = any(isinstance(step, Flight) and not step.pulling for step in begun)
        end = began + timeout_s
        answers = [self._finish(request, step, end, direct) for request, step in zip(requests, begun, strict=True)]
        return answers, self._scheduler.monotonic() - began if of_source else 0.0

    def lend(self, block_id: bytes) -> Kept | Buffer | None:
        """A whole block for another worker, which is a surplus here from now on where it belongs there. None when it is
        not here, and when it has holes: the source may have what they lack."""
        kept = self.tiers.in_memory(block_id)
        stored = self.tiers.find_stored(block_id) if kept is None else None
        found: Kept | Buffer | None = kept
        if kept is not None:
            holes, dataset = kept.holes, kept.origin.dataset
        elif stored is not None:
            header = stored.block.header
            holes, dataset = header.holes, header.dataset
            found = None if holes else stored.directory.read(stored.block, 0, header.size_bytes)
        else:
            return None
        if found is None or holes:
            return None
        if not self._peers.owns(block_id, dataset):
            self.tiers.set_surplus(block_id, True)
        with self._lock:
            self._counters.given_blocks += 1
        return found

    def take(self, giver: str, block: About, timeout_s: float) -> bool:
        """Take a block over from another worker, and return whether it is here; False too when no tier has room."""
        deadline = self._scheduler.monotonic() + timeout_s
        block_id = block.block_id
        plan = BlockPlan(block_id, block.dataset, block.size_bytes, (), block.directory)
        self._peers.offered(giver, [block_id])
        tried = False
        with self._lock:
            while not self.tiers.has(block_id):
                flight = self._flights.setdefault(block_id, Flight(plan))
                if not flight.filling:
                    # The giver could not give it after all, or it cannot be kept, or there is no room.
                    if tried or not self._peers.has_offer(block_id) or not self._fill(flight):
                        self._forget_unplanned(flight)
                        return False
                    tried = flight.filling
                left_s = deadline - self._scheduler.monotonic()
                if left_s <= 0 or self._stopping:
                    return False
                self._arrival.wait(left_s)
        return True

    def hint(self, packed_plans: Sequence[bytes]) -> None:
        """Fill blocks that are likely to be wanted, as far as there is room now; the rest is forgotten."""
        self.load(packed_plans)

    def load(self, packed_plans: Sequence[bytes]) -> list[str]:
        """Fill blocks. Of each: ``here``; ``begun`` or ``coming``, to be asked for again; ``wait``, as too many are
        under way, to be offered again; ``full``, as no tier has room for it. Some fills are left to readers."""
        with self._lock:
            found = [self._offer(BlockPlan.unpack(packed)) for packed in packed_plans]
            self._trim_probes()
        return found

    def _offer(self, plan: BlockPlan) -> str:
        if plan.block_id in self.tiers:
            return "here" if self.tiers.has(plan.block_id) else "wait"
        flight = self._flights.get(plan.block_id)
        if flight is not None and flight.filling:
            return "coming"
        if self._filling >= FILLS_MAX - FILLS_LEFT or not self._peers.introduced:
            return "wait"
        if flight is not None and flight.has_failed and flight.idle and not flight.waiters:
            self._probe_bytes -= flight.fetched_bytes  # to be tried anew as a whole
            flight = None
        if flight is None:
            flight = self._flights[plan.block_id] = Flight(plan)
        if not self._fill(flight):
            return "full"
        return "begun" if flight.filling else "wait"

    def configure(self, retentions: Mapping[str, Retention]) -> None:
        """See Tiers.configure."""
        self.tiers.configure(retentions)
        self._sources.keep(retentions)
        with self._lock:
            self._missed = {dataset: count for dataset, count in self._missed.items() if dataset in retentions}

    def status(self) -> dict[str, Any]:
        """Figures for ``raycache status``; ``missed`` are reads that waited for the source, by dataset."""
        with self._lock:
            about = {"filling": self._filling, "counters": asdict(self._counters), "missed": dict(self._missed)}
        return {**self.tiers.status(), **about}

    def settle(self, timeout_s: float) -> bool:
        """Wait until no fill is under way; False when the time was not enough."""
        with self._lock:
            return self._arrival.wait_for(lambda: not self._filling, timeout_s)

    def check(self) -> None:
        """Invariants, for tests: the books of the tiers, and those of fills and probes."""
        self.tiers.check()
        with self._lock:
            probes = sum(flight.fetched_bytes for flight in self._flights.values() if not flight.filling)
            assert self._probe_bytes == probes, (self._probe_bytes, probes)
            assert self._filling == sum(flight.filling for flight in self._flights.values())

    def _begin(self, request: Fetch, direct: bool) -> Answer | Flight | None:
        """Answer at once, or see to it that the wanted parts are on their way; None: a disk has the block."""
        kept = self.tiers.in_memory(request.block_id)
        if kept is not None and _meets(kept.holes, request):
            if self._scheduler.monotonic() - kept.sealed < HOLE_S:
                return Failed(self._hole_error(request))
            # The file may be back as it was: fetch the block anew.
            self.tiers.drop(request.block_id)
            kept = None
        if kept is not None:
            self._counters.hits += 1
            return kept if request.whole else kept.view[request.offset : request.offset + request.length]
        return None if self.tiers.on_disk(request.block_id) else self._begin_flight(request, direct)

    def _begin_flight(self, request: Fetch, direct: bool) -> Flight:
        flight = self._flights.get(request.block_id)
        if flight is None:
            flight = self._flights[request.block_id] = Flight(BlockPlan.unpack(request.packed_plan))
        elif not flight.is_planned:
            flight.adopt(BlockPlan.unpack(request.packed_plan))
        flight.direct = flight.direct or direct or request.hedged
        self._flights.move_to_end(request.block_id)
        numbers = flight.covering(request.offset, request.length)
        touched = flight.touched
        for number in numbers:
            flight.forget_failure(number)
        new = [number for number in numbers if flight.is_new(number)]
        if new and not flight.filling and not request.hedged and self._peers.has_offer(request.block_id):
            self._fill(flight)
        for number in new:
            flight.queue(number)
            if not flight.pulling:
                self._queue.demand(flight, number)
        if all(flight.is_settled(number) for number in numbers):
            self._counters.hits += 1
        else:
            self._counters.misses += 1
            self._missed[flight.plan.dataset] = self._missed.get(flight.plan.dataset, 0) + 1
        sweep = (touched and bool(new)) or len(numbers) * 2 > len(flight.plan.parts) or flight.is_complete
        if sweep and not request.hedged and not flight.filling and not self._fill(flight):
            self._counters.read_through += 1
        if new:
            self._work.notify(len(new))
        flight.waiters += 1
        return flight

    def _finish(self, request: Fetch, step: Answer | Flight | None, deadline: float, direct: bool) -> Answer:
        """Read from disk or wait for the source, where ``_begin`` could not answer."""
        answer = self._read_stored(request) if step is None else step
        if answer is None:  # what was here is here no more
            self._peers.await_introduction(deadline - self._scheduler.monotonic())
        with self._lock:
            if answer is None:
                answer = self._begin(request, direct)
                answer = self._begin_flight(request, direct) if answer is None else answer
            elif step is None and not isinstance(answer, Failed):
                self._counters.hits += 1
            return self._await(request, answer, deadline) if isinstance(answer, Flight) else answer

    def _read_stored(self, request: Fetch) -> Answer | None:
        """From a disk, or None when it has not got the block after all."""
        stored = self.tiers.find_stored(request.block_id)
        if stored is None:
            return None
        if _meets(stored.block.header.holes, request):
            if self._scheduler.monotonic() - stored.block.since < HOLE_S:
                with self._lock:
                    return Failed(self._hole_error(request))
            self.tiers.drop(request.block_id)
            return None
        return self.tiers.read(stored, request.offset, request.length, whole=request.whole, named=request.named)

    def _fill(self, flight: Flight) -> bool:
        """Turn a probe into a fill; False when no tier has room for it."""
        if self._filling >= FILLS_MAX:
            return True  # the next touch tries again
        plan = flight.plan
        mine = self._peers.owns(plan.block_id, plan.dataset)
        pull = self._peers.has_offer(plan.block_id) and not flight.can_be_kept
        nothing_to_ask = pull or flight.direct or (mine and flight.is_complete)
        if not nothing_to_ask and self._peers.first(plan.block_id) is not None:
            return True  # it is read through its first owner, who hands it over when it has it
        flight.claim = self.tiers.reserve(plan.block_id, plan.size_bytes, plan.origin, evict=mine)
        if flight.claim is None:
            return False
        self._filling += 1
        self._probe_bytes -= flight.fetched_bytes
        if pull:
            flight.pulling = True
            self._pulls.append(flight)
            self._pulled.notify()
        elif flight.is_complete:  # its parts came one by one while it was a probe
            flight.sealing = True
            self._complete.append(flight)
            self._seals.notify()
        else:
            self._queue.fill(flight)
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
                job = self._queue.next(self._scheduler.monotonic())
                while job is None:
                    if self._stopping:
                        return
                    self._work.wait(self._queue.pause_s)
                    job = self._queue.next(self._scheduler.monotonic())
                owner = None if job.flight.direct else self._parts.owner(job.flight.plan)
                numbers = [job.number] if owner is not None else self._with_written(job.flight, job.number)
            self._fetch_parts(job, owner, numbers)

    def _with_written(self, flight: Flight, number: int) -> list[int]:
        """A part, and with one of a written file the others of the block: they are one call to the master."""
        return [number, *flight.begin_written()] if flight.plan.parts[number].is_written else [number]

    def _next(self, flights: deque[Flight], there: Condition) -> Flight | None:
        """The next one of a queue, waited for; None at the end."""
        with self._lock:
            while not flights and not self._stopping:
                there.wait()
            return None if self._stopping else flights.popleft()

    def _pull_loop(self) -> None:
        while (flight := self._next(self._pulls, self._pulled)) is not None:
            block = self._peers.pull(flight.plan.block_id)
            with self._lock:
                self._end_pull(flight, block)

    def _end_pull(self, flight: Flight, block: Buffer | None) -> None:
        self._peers.forget(flight.plan.block_id)
        if block is not None and len(block) == flight.plan.size_bytes:
            self._counters.peer_blocks += 1
            self._counters.peer_bytes += len(block)
            before = flight.fetched_bytes
            flight.arrived_whole(block)
            self._probe_bytes += 0 if flight.filling else flight.fetched_bytes - before
            self._start_seal(flight)
        else:
            self._counters.peer_failures += 1
            queued = flight.pull_failed()
            if flight.is_planned:
                for number in queued:
                    self._queue.demand(flight, number)
                self._queue.fill(flight)
                self._work.notify_all()
                self._start_seal(flight)  # where all parts had come, and some as errors
            else:
                self._give_up(flight)
                self._forget_unplanned(flight)
        self._arrival.notify_all()

    def _forget_unplanned(self, flight: Flight) -> None:
        """A block that was to be taken over and did not come; a reader would have brought its plan."""
        if not flight.is_planned and self._flights.get(flight.plan.block_id) is flight:
            del self._flights[flight.plan.block_id]
            self._probe_bytes -= flight.fetched_bytes

    def _start_seal(self, flight: Flight) -> None:
        if flight.filling and not flight.sealing and flight.is_complete:
            flight.sealing = True
            self._complete.append(flight)
            self._seals.notify()

    def _fetch_parts(self, job: Job, owner: Worker | None, numbers: Sequence[int]) -> None:
        """Fetch parts that were begun: one through the worker that owns the block, or those that are one call."""
        flight, number, _ = job
        through = None if owner is None else self._parts.through(owner, flight.plan, number)
        if owner is not None and through is None:
            with self._lock:
                numbers = self._with_written(flight, number)
        came = [through] if through is not None else self._parts.read(flight.plan, numbers)
        with self._lock:
            self._queue.done(job, elsewhere=came[0].where is not Where.SOURCE)
            self._counters.peer_failures += owner is not None and through is None
            for each, one in zip(numbers, came, strict=True):
                self._took(flight, each, one)
            self._arrival.notify_all()
            if not flight.filling or flight.sealing:
                return
            has_failed = any(one.error is not None and not isinstance(one.error, Changed) for one in came)
            if flight.is_complete:
                self._start_seal(flight)
            elif has_failed and not (flight.is_whole or flight.pulling):
                self._give_up(flight)

    def _took(self, flight: Flight, number: int, came: Came) -> None:
        """A part has come, or has not."""
        self._count(came)
        if came.error is None:
            before = flight.fetched_bytes
            flight.arrived(number, came.data)  # adds nothing where the block has come whole meanwhile
            self._probe_bytes += 0 if flight.filling else flight.fetched_bytes - before
        else:
            flight.failed(number, came.error)

    def _count(self, came: Came) -> None:
        counters, size_bytes = self._counters, len(came.data)
        counters.ufs_requests += came.where is Where.SOURCE
        counters.ufs_errors += came.error is not None
        counters.changed += isinstance(came.error, Changed)
        counters.peer_bytes += size_bytes if came.where is Where.PEER else 0
        counters.ufs_bytes += size_bytes if came.where is Where.SOURCE else 0
        counters.written_bytes += size_bytes if came.where is Where.WRITTEN else 0

    def _give_up(self, flight: Flight) -> None:
        """The source failed in the middle of a fill: fetch no more of it than readers ask for."""
        self._counters.not_kept += 1
        if flight.claim is not None:
            self.tiers.cancel(flight.claim)
        self._end_fill(flight)
        self._probe_bytes += flight.fetched_bytes

    def _end_fill(self, flight: Flight) -> None:
        flight.claim = None
        self._filling -= 1
        self._arrival.notify_all()
        self._queue.end_fill(flight)

    def _seal_loop(self) -> None:
        while (flight := self._next(self._complete, self._seals)) is not None:
            self._seal(flight)

    def _seal(self, flight: Flight) -> None:
        with self._lock:
            claim, holes = flight.claim, flight.holes() if flight.can_be_kept else None
        kept = False
        if claim is not None and holes is not None:
            try:
                kept = self.tiers.keep(claim, flight.assemble(), holes, flight.ends())
            except BaseException:  # noqa: BLE001 - no room, or no answer: not kept, and this thread must live on
                kept = False
        with self._lock:
            flight.sealing = False
            if not kept:
                self._give_up(flight)
                return
            self._end_fill(flight)
            self._flights.pop(flight.plan.block_id, None)
            self._peers.forget(flight.plan.block_id)
        if not self._peers.owns(flight.plan.block_id, flight.plan.dataset):
            self.tiers.set_surplus(flight.plan.block_id, True)
        self.on_sealed(flight.plan.block_id, flight.plan.dataset)

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
        path = plan.path_at(request.offset, request.length)
        self._counters.changed += 1
        return Changed(f"{plan.dataset}: {path} changed since it was listed; refresh its directory")


def _meets(holes: Sequence[tuple[int, int]], request: Fetch) -> bool:
    """Whether a read wants bytes of a hole."""
    return any(start < request.offset + request.length and request.offset < stop for start, stop in holes)
