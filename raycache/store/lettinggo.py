"""Keeps room for what will be written: segments that are left over are deleted, and, when much of the quota is used or
the worker is to leave, they are sooner, and so are those whose bytes the source has.

Responsible for: when. Not responsible for: what may go (``segments``, and the master).

Threading: one thread steps; one call to the master at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from raycache.core.scheduling import THREADS, Scheduler
from raycache.store.segments import LEFT_OVER_FULL_S, LEFT_OVER_S, SegmentStore

LOOK_S, SWEEP_S, SWEEP_FULL_S = 2.0, 60.0, 10.0
FULL, LOW = 0.6, 0.4
"""Shares of the quota: where letting go begins, and to which it goes on."""


class Master(Protocol):
    """Part of client.treeapi.TreeApi."""

    def known_segments(self, worker_id: str, segments: Sequence[str]) -> list[bool]: ...

    def let_go_segments(self, worker_id: str, segments: Sequence[str]) -> list[int]: ...

    def drop_segments(self, worker_id: str, segments: Sequence[str]) -> list[bool]: ...


class LettingGo:
    """See the module."""

    def __init__(self, segments: SegmentStore, master: Master, scheduler: Scheduler = THREADS) -> None:
        self._segments = segments
        self._master = master
        self._clock = scheduler.monotonic
        self._swept = self._clock()

    def step(self) -> None:
        """Look once. Raises what the master raises."""
        worker_id = self._segments.worker_id
        if not worker_id:
            return
        is_urgent = self._segments.leaving or self._segments.fullness > FULL
        now = self._clock()
        if now - self._swept >= (SWEEP_FULL_S if is_urgent else SWEEP_S):
            self._swept = now
            self._segments.sweep(
                lambda names: self._master.known_segments(worker_id, names),
                lambda names: self._master.drop_segments(worker_id, names),
                LEFT_OVER_FULL_S if is_urgent else LEFT_OVER_S,
            )
        if is_urgent:
            want_bytes = self._segments.surplus_bytes(0.0 if self._segments.leaving else LOW)
            self._segments.let_go(lambda names: self._master.let_go_segments(worker_id, names), want_bytes)
