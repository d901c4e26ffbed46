"""A thread that drops, little by little, what a worker is not to keep any longer: reads come first.

It bounds its work: TEND_BLOCKS in each tier, every TEND_S.
"""

from __future__ import annotations

import logging

from raycache.core.scheduling import THREADS, Scheduler
from raycache.store.tiers import Tiers

TEND_S, TEND_BLOCKS = 1.0, 64
"""Blocks of 32 MiB are then freed at 2 GiB a second in each tier."""
_log = logging.getLogger("raycache.store")


class Tending:
    """See the module. ``start`` before use, ``stop`` after."""

    def __init__(self, tiers: Tiers, scheduler: Scheduler = THREADS) -> None:
        self._tiers = tiers
        self._scheduler = scheduler
        self._lock = scheduler.lock()
        self._ending = scheduler.condition(self._lock)
        self._stopping = False

    def start(self) -> None:
        """Start the thread."""
        self._scheduler.spawn(self._run, "tend")

    def stop(self) -> None:
        """End it, with what it is at."""
        with self._lock:
            self._stopping = True
            self._ending.notify_all()

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._ending.wait_for(lambda: self._stopping, TEND_S):
                    return
            try:
                self._tiers.tend(TEND_BLOCKS)
            except Exception:  # noqa: BLE001 - the thread must outlive whatever one block brings
                _log.exception("cannot drop what is not to be kept")
