"""What each dataset may hold on one worker and what it does, in all its tiers together: the ledgers share it.

A dataset's quota counts every copy: a block that is in memory and on disk counts twice. So a copy is made only within
the quota, and is the first to go when the quota is used up.

Until the worker was told what datasets may keep, nothing goes for another block: what was found on disk may be
pinned. A dataset that it was not told of then was removed, or is quite new: its blocks go before all others.

Threading: the ledgers of different tiers are used by different threads; they hold ``lock`` while they look and take.
"""

from __future__ import annotations

from collections.abc import Mapping

from raycache.config import Eviction
from raycache.core.retention import PRIORITY_MAX, Retention
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import Origin

_UNKNOWN = Retention("lru", priority=-PRIORITY_MAX)


class Accounts:
    """See the module."""

    def __init__(self, eviction: Eviction = "keep", *, wait: bool = False, scheduler: Scheduler = THREADS) -> None:
        """``eviction``: of datasets that chose none. ``wait``: until ``set`` is called nothing is to be evicted."""
        self.lock = scheduler.lock()
        self.may_evict = not wait
        self._eviction = eviction
        self._retentions: Mapping[str, Retention] | None = None
        self._used: dict[str, int] = {}

    def set(self, retentions: Mapping[str, Retention]) -> bool:
        """What all datasets may keep here: quotas are this worker's shares. Returns whether it differs."""
        if retentions == self._retentions:
            return False
        self._retentions = dict(retentions)
        self.may_evict = True
        return True

    def knows(self, dataset: str) -> bool:
        """Whether the worker was told of a dataset."""
        return self._retentions is None or dataset in self._retentions

    def retention(self, dataset: str) -> Retention:
        """What a dataset may keep here."""
        if self._retentions is None:
            return _NOTHING_CHOSEN
        return self._retentions.get(dataset, _UNKNOWN)

    def eviction(self, dataset: str) -> Eviction:
        """The policy of a dataset."""
        return self.retention(dataset).eviction or self._eviction

    def is_pinned(self, origin: Origin, block_id: bytes) -> bool:
        """Whether a block is not to be evicted."""
        return self.retention(origin.dataset).holds(origin.directory, block_id)

    def left_bytes(self, dataset: str) -> int | None:
        """What of its quota a dataset has left, less than nothing when it was lowered; None: no limit."""
        quota_bytes = self.retention(dataset).quota_bytes
        return None if quota_bytes is None else quota_bytes - self._used.get(dataset, 0)

    def add(self, dataset: str, size_bytes: int) -> None:
        """A dataset takes bytes (or, below nothing, gives them back). The ``lock`` is held."""
        self._used[dataset] = self._used.get(dataset, 0) + size_bytes
        if not self._used[dataset]:
            del self._used[dataset]

    def used(self) -> dict[str, int]:
        """Bytes held and reserved, by dataset."""
        with self.lock:
            return dict(self._used)


_NOTHING_CHOSEN = Retention()
