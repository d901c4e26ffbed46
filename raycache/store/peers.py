"""What a worker knows of the others: who owns which block by the view it was given, and what they offered to it.

A block that has moved lies at a former owner. That one says so when the view changes (``store/moving.py``): an *offer*.
A miss on a block that was offered is answered from there, whole, before the source is asked; a block that nobody ever
had costs no question. Of the workers that a block lies on only the first asks the source; the others, and those whose
client has an old view, read through it.

A worker that has just started knows nothing of this: it is *introduced* when all workers know a view with it in, and so
have told it what they hold for it. Until then it asks no source; not for long, as whoever tells it may have died too.

Threading: safe. Calls are made outside the lock.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from raycache.core.membership import View
from raycache.core.placement import owners, rank
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import Buffer, Fetch, Worker
from raycache.errors import RaycacheError, WorkerLost

OFFERS_MAX = 1 << 20
"""Blocks that others offered and that were not asked for yet; the oldest are forgotten, and come from the source."""
PEER_S = 5.0
"""Deadline of one question to another worker; then the source is asked."""
GONE_S = 10.0
"""How long a worker that was gone or silent is not asked again."""
INTRODUCTION_S = 5.0
"""How long after its start a worker waits to be introduced; then it asks the source for what it lacks."""
_log = logging.getLogger("raycache.store")


@dataclass(frozen=True, slots=True)
class About:
    """A block that one worker wants another one to take over."""

    block_id: bytes
    dataset: str
    size_bytes: int
    directory: str
    """Path inside the dataset of the directory whose files are in it."""


class PeerCalls(Protocol):
    """How other workers are reached. Each call raises WorkerLost when that one is gone or silent, Unavailable else."""

    def offer(self, to: Worker, giver: str, block_ids: Sequence[bytes], timeout_s: float) -> list[bool]:
        """Tell an owner what is held for it; whether it lacks each."""
        ...

    def hand_over(self, giver: Worker, block_id: bytes, timeout_s: float) -> Buffer | None:
        """A whole block of another worker, None when it has not got it."""
        ...

    def take(self, taker: Worker, giver: str, block: About, timeout_s: float) -> bool:
        """Have a block taken over now; False when there is no room for it."""
        ...

    def read(self, owner: Worker, request: Fetch, timeout_s: float) -> Buffer | None:
        """A range, through another worker; None when it has not got it. Raises what the read raises there."""
        ...


class NoPeers:
    """The PeerCalls of a worker that is alone."""

    def offer(self, to: Worker, giver: str, block_ids: Sequence[bytes], timeout_s: float) -> list[bool]:
        """See PeerCalls."""
        raise WorkerLost(f"worker {to.worker_id} cannot be reached")

    def hand_over(self, giver: Worker, block_id: bytes, timeout_s: float) -> Buffer | None:
        """See PeerCalls."""
        raise WorkerLost(f"worker {giver.worker_id} cannot be reached")

    def take(self, taker: Worker, giver: str, block: About, timeout_s: float) -> bool:
        """See PeerCalls."""
        raise WorkerLost(f"worker {taker.worker_id} cannot be reached")

    def read(self, owner: Worker, request: Fetch, timeout_s: float) -> Buffer | None:
        """See PeerCalls."""
        raise WorkerLost(f"worker {owner.worker_id} cannot be reached")


class Peers:
    """See the module. Until a view is adopted every block is this worker's own."""

    def __init__(
        self, calls: PeerCalls | None = None, scheduler: Scheduler = THREADS, incarnation: str | None = None
    ) -> None:
        """``incarnation``: of this worker, by which it finds itself in views; None where nobody introduces it."""
        self.calls: PeerCalls = calls or NoPeers()
        self.me = ""
        self.view = View()
        self.settled = 0
        """Number of the newest view that all workers know, as far as this one knows it as well."""
        self.incarnation = incarnation
        self._scheduler = scheduler
        self._lock = scheduler.lock()
        self._introduction = scheduler.condition(self._lock)
        self._introduced = incarnation is None
        self._introduced_by = scheduler.monotonic() + INTRODUCTION_S
        self._known_since: int | None = None
        """Number of the first view with this incarnation in."""
        self._offers: OrderedDict[bytes, str] = OrderedDict()
        self._gone: dict[str, float] = {}

    def adopt(self, view: View, me: str) -> bool:
        """Go on with a later view, in which this worker has the id ``me``. False when it is known already."""
        with self._lock:
            found = view.find(me)
            if view.number <= self.view.number or found is None:
                return False
            old, self.view, self.me = self.view, view, me
            if self._known_since is None and found.incarnation == self.incarnation:
                self._known_since = view.number
            self._gone = {gone: until for gone, until in self._gone.items() if old.find(gone) == view.find(gone)}
            return True

    def settle(self, number: int) -> None:
        """All workers know the view of this number, and have said what they hold for others."""
        with self._lock:
            self.settled = max(self.settled, min(number, self.view.number))
            if self._known_since is not None and self.settled >= self._known_since:
                self._introduced = True
                self._introduction.notify_all()

    @property
    def introduced(self) -> bool:
        """Whether this worker knows what others have for it, or should have been told by now. Quick."""
        return self._introduced or self._scheduler.monotonic() >= self._introduced_by

    def await_introduction(self, timeout_s: float) -> None:
        """Wait until it is introduced, or for so long."""
        if self._introduced:
            return
        with self._lock:
            left_s = self._introduced_by - self._scheduler.monotonic()
            self._introduction.wait_for(lambda: self.introduced, min(timeout_s, left_s))
            if self._introduced or not self.introduced:
                return
            self._introduced = True
        _log.warning("nobody has said within %g s what others hold: the source is asked for all of it", INTRODUCTION_S)

    def owners(self, block_id: bytes, dataset: str | None) -> list[Worker]:
        """The workers that a block lies on; None for ``dataset``: not known."""
        view = self.view
        return owners(block_id, view.workers, view.copies(dataset))

    def owns(self, block_id: bytes, dataset: str | None) -> bool:
        """Whether a block lies on this worker."""
        view = self.view
        return not view.workers or any(worker.worker_id == self.me for worker in self.owners(block_id, dataset))

    def first(self, block_id: bytes) -> Worker | None:
        """Through whom to read a block that is not here: its first owner that is not known to be gone. None: the
        source is this worker's to ask."""
        view = self.view
        for worker in rank(block_id, view.workers) if len(view.workers) > 1 else ():
            if worker.worker_id == self.me:
                return None
            if not self._is_gone(worker.worker_id):
                return worker
        return None

    def reads_through(self, block_id: bytes) -> Worker | None:
        """Whom to ask for a range of a block that is not here: who offered it, else its first owner; None: nobody."""
        giver = self.view.find(self._offers.get(block_id, ""))
        if giver is not None and not self._is_gone(giver.worker_id):
            return giver
        return self.first(block_id)

    def offered(self, giver: str, block_ids: Iterable[bytes]) -> None:
        """Another worker has these blocks for us."""
        with self._lock:
            for block_id in block_ids:
                self._offers[block_id] = giver
                self._offers.move_to_end(block_id)
            while len(self._offers) > OFFERS_MAX:
                self._offers.popitem(last=False)

    def has_offer(self, block_id: bytes) -> bool:
        """Whether another worker is known to have a block."""
        return block_id in self._offers

    def forget(self, block_id: bytes) -> None:
        """A block is here now, or could not be had."""
        with self._lock:
            self._offers.pop(block_id, None)

    def pull(self, block_id: bytes) -> Buffer | None:
        """A block that was offered, whole; None when it cannot be had."""
        giver = self.view.find(self._offers.get(block_id, ""))
        if giver is None or self._is_gone(giver.worker_id):
            return None
        try:
            return self.calls.hand_over(giver, block_id, PEER_S)
        except WorkerLost:
            self.lost(giver.worker_id)
        except RaycacheError:  # it has it and could not give it: the source has it too
            pass
        return None

    def read(self, owner: Worker, request: Fetch) -> Buffer | None:
        """A range through another worker; None when it is gone, or has lost a block that it offered. Raises what the
        read raises there."""
        try:
            data = self.calls.read(owner, request, PEER_S)
        except WorkerLost:
            self.lost(owner.worker_id)
            return None
        if data is None:
            self.forget(request.block_id)
        return data

    def lost(self, worker_id: str) -> None:
        """A worker did not answer: it is not asked again for a while."""
        with self._lock:
            self._gone[worker_id] = self._scheduler.monotonic() + GONE_S

    def _is_gone(self, worker_id: str) -> bool:
        return self._gone.get(worker_id, 0.0) > self._scheduler.monotonic()
