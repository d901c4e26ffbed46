"""Asking the workers that own blocks, until all is answered: the second when the first is gone, or slow.

Responsible for: whom to ask, one call per worker for a batch, going on when a worker dies, falls silent or is slow, the
deadline of a read. Not responsible for: what is done with answers (``reader``), or how a call travels (``actors``).

Bounds: calls under way by the batch's workers, twice; calls made again by ``hedging``. Threading: safe.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raycache.client.blockfiles import BlockFiles
from raycache.client.hedging import Hedging
from raycache.client.protocols import Call, WorkerPool
from raycache.client.sweeps import Sweeps
from raycache.client.waiting import WaitLog
from raycache.core.manifest import Manifest
from raycache.core.placement import preference
from raycache.core.scheduling import Scheduler
from raycache.core.values import Failed, Fetch, Fetched, Worker
from raycache.core.waits import NODE, SOURCE, WORKER
from raycache.errors import RaycacheError, Unavailable, WorkerLost

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
"""Pauses before asking anew when no worker answered; the first time there is none, as the master may know better."""
REFRESH_S = 2.0
SILENT_SHARE = 1 / 3
"""Share of a read's time after which a worker that has not answered is taken for one that will not."""
GRACE_S = 1.0
"""A worker gives up at the deadline and says why: so long its answer may be on the way."""
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


class Answered(NamedTuple):
    """What a worker said to a want."""

    worker_id: str
    fetched: Fetched


@dataclass(eq=False, slots=True)
class _Asked:
    """A call under way."""

    call: Call
    worker_id: str
    wants: list[Want]
    since: float
    size_bytes: int
    slow_at: float
    """When to ask somebody else as well, if that may be."""
    silent_at: float
    """When to do so in any case: whoever says nothing for so long says nothing at all."""
    instead_of: str | None = None
    """The worker that was slow, where this is that call."""


class Asker:
    """See the module."""

    def __init__(
        self,
        pool: WorkerPool,
        files: BlockFiles,
        view_bytes: int,
        timeout_s: float,
        scheduler: Scheduler,
        waits: WaitLog | None = None,
    ) -> None:
        self._waits = waits or WaitLog(scheduler=scheduler)
        self.hedging = Hedging()
        self.pool = pool
        self.clock = scheduler.monotonic
        self.sleep = scheduler.sleep
        self._files = files
        self._timeout_s = timeout_s
        self._scheduler = scheduler
        self._lock = scheduler.lock()
        self._renewed = scheduler.condition(self._lock)
        self._renewing = False
        self._renewed_at = 0.0
        self._renewal_error: RaycacheError | None = None
        self._sweeps = Sweeps(view_bytes)
        self._plans: OrderedDict[bytes, bytes] = OrderedDict()

    def ask(self, wants: Sequence[Want], through: set[Want], deadline: float) -> dict[Want, Answered]:
        """An answer to each want. ``through``: those to answer with bytes, not with the name of a file.

        Raises Unavailable when no worker answered by the deadline.
        """
        began = self.clock()
        round_ = _Round(self, wants, through, deadline)
        while round_.step():
            pass
        self._count(wants, round_, self.clock() - began)
        return round_.answers

    def _count(self, wants: Sequence[Want], round_: _Round, seconds: float) -> None:
        """What was waited for is what came last, and that waited for the source first of all."""
        dataset = wants[0].manifest.directory.dataset
        source_s = min(seconds, round_.source_s)
        worker = next((each for each in self.pool.workers() if each.worker_id == round_.last), None)
        kind, where = (WORKER, "") if worker is not None and worker.local else (NODE, round_.last)
        size_bytes = sum(want.length for want in wants)
        if round_.source_s > 0:
            self._waits.add(dataset, SOURCE, "", len(wants), size_bytes, source_s)
            self._waits.add(dataset, kind, where, 0, 0, seconds - source_s)
        else:
            self._waits.add(dataset, kind, where, len(wants), size_bytes, seconds)

    def has_view(self, block_id: bytes) -> None:
        """The plan of a block is not needed again soon."""
        with self._lock:
            self._plans.pop(block_id, None)

    def begin(self, worker: Worker, wants: list[Want], through: set[Want], timeout_s: float, hedged: bool) -> _Asked:
        """Make a call. ``hedged``: to another worker than the one that should have them."""
        requests = [self._request(want, worker, want in through, hedged) for want in wants]
        size_bytes, now = sum(want.length for want in wants), self.clock()
        silent_at = now + SILENT_SHARE * self._timeout_s
        with self._lock:
            self.hedging.begun()
            slow_s = self.hedging.slow_s(size_bytes)
        slow_at = silent_at if slow_s is None else min(silent_at, now + slow_s)
        call = self.pool.begin(worker.worker_id, requests, timeout_s)
        return _Asked(call, worker.worker_id, wants, now, size_bytes, slow_at, silent_at)

    def may_hedge(self) -> bool:
        """Whether one more call may be made for one that is slow; counts it."""
        with self._lock:
            return self.hedging.allow()

    def tell_answered(self, asked: _Asked) -> None:
        """A call has been answered."""
        with self._lock:
            self.hedging.answered(asked.worker_id, asked.size_bytes, self.clock() - asked.since)

    def tell_beaten(self, asked: _Asked) -> None:
        """What was asked for a second time was answered first."""
        with self._lock:
            self.hedging.beaten(asked.worker_id, asked.size_bytes, self.clock() - asked.since, self.clock())

    def plan_calls(self, wants: Sequence[Want], avoid: set[str]) -> dict[tuple[Worker, bool], list[Want]]:
        """Which worker to ask for which wants, and whether in the place of one that is slow. Empty: there is none."""
        workers, now = self.pool.workers(), self.clock()
        with self._lock:
            slow = {each.worker_id for each in workers if self.hedging.is_gone_round(each.worker_id, now)}
        calls: dict[tuple[Worker, bool], list[Want]] = {}
        for want in wants:
            order = preference(want.block_id, workers, self.pool.replicas(want.manifest.directory.dataset))
            there = [worker for worker in order if worker.worker_id not in avoid]
            if there:
                asked = next((worker for worker in there if worker.worker_id not in slow), there[0])
                calls.setdefault((asked, asked is not there[0]), []).append(want)
        return calls

    def renew(self, age_s: float, wait_s: float) -> None:
        """Have the master asked who there is by now, if its last answer is older than ``age_s``: not at every loss of a
        burst. Beside the reads, which do not end with a master that is away; waits up to ``wait_s`` for the answer."""
        with self._lock:
            if not self._renewing and self.clock() - self._renewed_at >= age_s:
                self._renewing = True
                self._scheduler.spawn(self._ask_master, "workers")
            if wait_s > 0:
                self._renewed.wait_for(lambda: not self._renewing, wait_s)

    def give_up(self, want: Want) -> Unavailable:
        """The error of a read that nobody answered."""
        error = Unavailable(
            f"{want.manifest.directory.source}: no worker answered within {self._timeout_s:g} s; see `raycache status`"
        )
        error.__cause__ = self._renewal_error
        return error

    def _ask_master(self) -> None:
        error: RaycacheError | None = None
        try:
            known = {worker.worker_id for worker in self.pool.workers(refresh=True)}
            with self._lock:
                self.hedging.keep(known)
        except RaycacheError as raised:
            error = raised
        finally:
            with self._lock:
                self._renewing, self._renewal_error, self._renewed_at = False, error, self.clock()
                self._renewed.notify_all()

    def _request(self, want: Want, worker: Worker, through: bool, hedged: bool) -> Fetch:
        whole = worker.local
        if not whole and not hedged:
            with self._lock:
                whole = self._sweeps.touch(want.block_id, want.length, want.manifest.block_size(want.block))
        named = worker.local and not through and self._files.usable(worker.worker_id)
        return Fetch(want.block_id, self._plan(want), want.offset, want.length, whole, named, hedged)

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


class _Round:
    """One batch of wants on its way to being answered."""

    def __init__(self, asker: Asker, wants: Sequence[Want], through: set[Want], deadline: float) -> None:
        self.answers: dict[Want, Answered] = {}
        self.last = ""
        """Id of the worker that answered last."""
        self.source_s = 0.0
        """How long that one waited for the source."""
        self._asker = asker
        self._wants = wants
        self._through = through
        self._deadline = deadline
        self._unasked = list(wants)
        self._under_way: dict[Call, _Asked] = {}
        self._lost: set[str] = set()
        self._pauses = _pauses()

    def step(self) -> bool:
        """Go on until something has happened; False when all is answered. Raises Unavailable at the deadline."""
        if len(self.answers) == len(self._wants):
            return False
        if self._unasked:
            self._ask()
        if not self._under_way:
            self._wait_for_workers()
            return True
        clock, end = self._asker.clock, self._deadline + GRACE_S
        slow_at = min(asked.slow_at for asked in self._under_way.values())
        ended = self._asker.pool.wait(list(self._under_way), max(0.0, min(slow_at, end) - clock()))
        for call in ended:
            asked = self._under_way.pop(call, None)  # None: another answer of this very step was enough
            if asked is not None:
                self._take(asked)
        if not ended:
            if clock() >= end:
                raise self._asker.give_up(next(want for want in self._wants if want not in self.answers))
            self._hedge()
        return True

    def _ask(self) -> None:
        for (worker, hedged), wants in self._asker.plan_calls(self._unasked, self._lost).items():
            self._begin(worker, wants, hedged, None)
            self._unasked = []

    def _begin(self, worker: Worker, wants: list[Want], hedged: bool, instead_of: str | None) -> None:
        timeout_s = max(0.1, self._deadline - self._asker.clock())
        asked = self._asker.begin(worker, wants, self._through, timeout_s, hedged)
        asked.instead_of = instead_of
        if instead_of is not None:
            asked.slow_at = asked.silent_at
        self._under_way[asked.call] = asked

    def _wait_for_workers(self) -> None:
        """Nobody is left to ask: ask the master who there is by now, after a pause that grows."""
        pause_s = next(self._pauses)
        if self._asker.clock() + pause_s >= self._deadline:
            raise self._asker.give_up(self._unasked[0])
        if pause_s:
            self._asker.sleep(pause_s)
        self._asker.renew(0, wait_s=self._deadline - self._asker.clock())
        self._lost.clear()

    def _take(self, asked: _Asked) -> None:
        """A call has ended."""
        try:
            found, self.source_s = asked.call.answers()
            self.last = asked.worker_id
        except WorkerLost:
            self._lost.add(asked.worker_id)
            self._unasked += [want for want in asked.wants if want not in self.answers and not self._is_asked(want)]
            self._asker.renew(REFRESH_S, wait_s=0)
            return
        self._asker.tell_answered(asked)
        for want, fetched in zip(asked.wants, found, strict=True):
            if want not in self.answers and not (isinstance(fetched, Failed) and self._is_asked(want)):
                self.answers[want] = Answered(asked.worker_id, fetched)
        for call, other in list(self._under_way.items()):
            if all(want in self.answers for want in other.wants):
                del self._under_way[call]  # its answer is not waited for
                if asked.instead_of == other.worker_id:
                    self._asker.tell_beaten(other)

    def _is_asked(self, want: Want) -> bool:
        return any(want in other.wants for other in self._under_way.values())

    def _hedge(self) -> None:
        """Ask somebody else, too, for what a worker is slow to answer."""
        now = self._asker.clock()
        for asked in [one for one in self._under_way.values() if one.slow_at <= now]:
            if now < asked.silent_at and not self._asker.may_hedge():
                asked.slow_at = asked.silent_at
                continue
            asked.slow_at = math.inf
            wants = [want for want in asked.wants if want not in self.answers]
            asked_already = {one.worker_id for one in self._under_way.values() if not set(wants).isdisjoint(one.wants)}
            for (worker, _), part in self._asker.plan_calls(wants, self._lost | asked_already).items():
                self._begin(worker, part, True, asked.worker_id)


def _pauses() -> Iterator[float]:
    yield 0.0
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
