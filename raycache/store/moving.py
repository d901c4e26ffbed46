"""Blocks on their way to where they belong: a worker tells others what it holds for them, and moves what must move.

When the view changes it looks at all that it holds. A block that belongs to others now is offered to them: they fetch
it when it is asked for. What must not wait is moved by a few threads, one block each at a time: copies of datasets that
have several, and all that a draining worker holds. A block that its owners have got is a *surplus* where it does not
belong: the first to go when bytes are needed.

Threading: safe. Bounds: offers by what is held, moves by MOVERS.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from raycache.core.membership import Report, View
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import Fetch, Worker
from raycache.errors import RaycacheError, WorkerLost
from raycache.store.blocks import Answer, BlockStore
from raycache.store.peers import About, Peers
from raycache.store.tiers import Tiers

MOVERS = 2
OFFERS_AT_ONCE = 4096
OFFER_S = 5.0
TAKE_S = 60.0
RETRY_S = 1.0
"""Pause after an offer that could not be made."""
_log = logging.getLogger("raycache.store")


class Mover:
    """See the module. ``start`` before use; ``stop`` ends its threads with what they are at."""

    def __init__(
        self,
        store: BlockStore,
        tiers: Tiers,
        peers: Peers,
        identity: str | None,
        bytes_at: str = "",
        scheduler: Scheduler = THREADS,
    ) -> None:
        self._store = store
        self._tiers = tiers
        self._peers = peers
        self._identity = identity
        self._bytes_at = bytes_at
        self._scheduler = scheduler
        self._memory_bytes = tiers.memory_quota_bytes
        self._lock = scheduler.lock()
        self._work = scheduler.condition(self._lock)
        self._news: OrderedDict[bytes, str | None] = OrderedDict()
        """Blocks to tell others of, with their dataset where it is known."""
        self._moves: deque[tuple[str, bytes]] = deque()
        self._busy = 0
        self._stopping = False
        store.on_sealed = self.sealed

    def start(self) -> None:
        """Start the threads."""
        for number in range(MOVERS):
            self._scheduler.spawn(self._loop, f"move-{number}")

    def stop(self) -> None:
        """End the threads."""
        with self._lock:
            self._stopping = True
            self._work.notify_all()

    @property
    def view(self) -> View:
        """The view for clients: the newest that this worker knows."""
        return self._peers.view

    @property
    def settled(self) -> int:
        """Number of the newest view that all workers know: clients with an older one should ask for it."""
        return self._peers.settled

    def adopt(self, view: View, me: str | None, settled: int) -> Report:
        """Go on with a view in which this worker has the id ``me``; what has moved is offered before this returns.

        Not while it does not know yet what it holds: the master asks again.
        """
        if me is not None and not self._tiers.looking and self._peers.adopt(view, me):
            with self._lock:
                self._news.clear()
                self._moves.clear()
                self._busy += 1
            try:
                self._tell(self._tiers.held())
            finally:
                self._done()
        self._peers.settle(settled)
        return self.report()

    def report(self) -> Report:
        """What the master is to know."""
        with self._lock:
            moving = len(self._news) + len(self._moves) + self._busy
        return Report(
            self._identity,
            self._peers.incarnation or "",
            self._memory_bytes,
            self._tiers.capacity_bytes,
            self._peers.view.number,
            moving,
            self._bytes_at,
        )

    def sealed(self, block_id: bytes, dataset: str) -> None:
        """A block was filled: its other owners may want to know."""
        if any(owner.worker_id != self._peers.me for owner in self._peers.owners(block_id, dataset)):
            with self._lock:
                self._news[block_id] = dataset
                self._work.notify()

    def offered(self, giver: str, block_ids: Sequence[bytes]) -> list[bool]:
        """Another worker holds these for us; whether each is lacking here."""
        lacking = [not self._tiers.has(block_id) for block_id in block_ids]
        self._peers.offered(giver, (block_id for block_id, lacks in zip(block_ids, lacking, strict=True) if lacks))
        return lacking

    def read_for(self, request: Fetch, timeout_s: float) -> Answer | None:
        """A read for another worker; None when the block is neither here nor this worker's to fetch: to read it through
        a third one could lead back to who asks, and both would wait for each other."""
        if not self._tiers.has(request.block_id) and self._peers.first(request.block_id) is not None:
            return None
        return self._store.fetch([request], timeout_s, direct=True)[0][0]

    def _tell(self, blocks: Iterable[tuple[bytes, str | None]]) -> None:
        """Offer blocks to their owners, and note which have to be moved at once."""
        me = self._peers.me
        offers: dict[str, list[tuple[bytes, str | None]]] = {}
        for block_id, dataset in blocks:
            owners = {owner.worker_id for owner in self._peers.owners(block_id, dataset)}
            if me in owners:
                self._tiers.set_surplus(block_id, False)
            for owner in owners - {me}:
                offers.setdefault(owner, []).append((block_id, dataset))
        for owner, offered in offers.items():
            for start in range(0, len(offered), OFFERS_AT_ONCE):
                self._offer(owner, offered[start : start + OFFERS_AT_ONCE])

    def _offer(self, owner_id: str, blocks: list[tuple[bytes, str | None]]) -> None:
        view, me = self._peers.view, self._peers.me
        owner = view.find(owner_id)
        if owner is None:
            return  # the view has changed: all is told anew
        try:
            lacking = self._peers.calls.offer(owner, me, [block_id for block_id, _ in blocks], OFFER_S)
        except RaycacheError as error:
            _log.warning("cannot offer %d block(s) to worker %s: %s", len(blocks), owner_id[:8], error)
            with self._lock:
                self._news.update(blocks)
            return
        for (block_id, dataset), lacks in zip(blocks, lacking, strict=True):
            mine = self._peers.owns(block_id, dataset)
            if lacks and (self._is_draining() or view.copies(dataset) > 1):
                with self._lock:
                    self._moves.append((owner_id, block_id))
                    self._work.notify()
            elif not lacks and not mine:
                self._tiers.set_surplus(block_id, True)

    def _loop(self) -> None:
        while True:
            with self._lock:
                while not self._news and not self._moves and not self._stopping:
                    self._work.wait()
                if self._stopping:
                    return
                news, self._news = self._news, OrderedDict()
                move = None if news or not self._moves else self._moves.popleft()
                self._busy += 1
            try:
                self._tell(news.items())
                if move is not None:
                    self._move(*move)
            except Exception:  # noqa: BLE001 - this thread must outlive whatever one block brings
                _log.exception("cannot move blocks")
            finally:
                self._done()
            if news and self._news:  # somebody could not be reached
                self._scheduler.sleep(RETRY_S)

    def _done(self) -> None:
        with self._lock:
            self._busy -= 1

    def _move(self, owner_id: str, block_id: bytes) -> None:
        owner, about = self._peers.view.find(owner_id), self._about(block_id)
        if owner is None or about is None:
            return
        if self._peers.view.copies(about.dataset) > 1 or self._is_draining():
            try:
                taken = self._peers.calls.take(owner, self._peers.me, about, TAKE_S)
            except WorkerLost:
                self._peers.lost(owner_id)
                return  # the view will change, and all is told anew
            if taken and not self._peers.owns(block_id, about.dataset):
                self._tiers.set_surplus(block_id, True)

    def _is_draining(self) -> bool:
        me: Worker | None = self._peers.view.find(self._peers.me)
        return me is not None and me.draining

    def _about(self, block_id: bytes) -> About | None:
        found = self._tiers.about(block_id)
        return None if found is None else About(block_id, *found)
