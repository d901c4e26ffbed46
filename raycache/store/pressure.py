"""How much memory the cache may take while others use the node's object store too: Ray is never made to spill.

Ray spills when four fifths of a store are taken. The cache gives way before: what it may keep is what others leave
below FULL, at most its quota. It gives way at once, by as much as it must, and comes back slowly: after CALM_S without
pressure, by STEP of the store at a time, so that a job which puts and frees does not make it refetch.

Whoever fills a quarter of the store within one look (LOOK_S; CLOSE_LOOK_S when half of it is taken) is faster than
that: then Ray may spill, and ``spilled_bytes`` in the worker's status says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raycache.core.scheduling import THREADS, Scheduler
from raycache.store.tiers import Tiers

FULL = 0.7
"""Share of the store beyond which the cache gives way; Ray spills at 0.8."""
URGENT = 0.75
"""Beyond this blocks are dropped without being written to a disk first."""
CALM_S = 10.0
STEP = 0.1
LOOK_S, CLOSE_LOOK_S = 1.0, 0.1


@dataclass(frozen=True, slots=True)
class StoreFigures:
    """A node's object store."""

    capacity_bytes: int
    used_bytes: int
    spilled_bytes: int
    """Since it started, by anybody."""


class Pressure:
    """The quota in force, from what the store says. Pure."""

    def __init__(self, configured_bytes: int) -> None:
        self._configured_bytes = configured_bytes
        self.quota_bytes = configured_bytes
        self._calm_since: float | None = None

    def step(self, store: StoreFigures, ours_bytes: int, now: float) -> int:
        """The quota from now on. ``ours_bytes`` of ``store.used_bytes`` are the cache's."""
        others_bytes = max(0, store.used_bytes - ours_bytes)
        fair_bytes = max(0, min(self._configured_bytes, int(FULL * store.capacity_bytes) - others_bytes))
        if fair_bytes <= self.quota_bytes:
            if fair_bytes < self.quota_bytes:
                self._calm_since = None
            self.quota_bytes = fair_bytes
        elif self._calm_since is None:
            self._calm_since = now
        elif now - self._calm_since >= CALM_S:
            self.quota_bytes = min(fair_bytes, self.quota_bytes + int(STEP * store.capacity_bytes))
            self._calm_since = now
        return self.quota_bytes


class MemoryWatch:
    """Looks at the store again and again, and has the memory tier give way."""

    def __init__(self, tiers: Tiers, figures: Callable[[], StoreFigures], scheduler: Scheduler = THREADS) -> None:
        """``figures`` may raise whatever its transport does: then the last ones stand, and it is counted."""
        self._tiers = tiers
        self._figures = figures
        self._scheduler = scheduler
        self._pressure = Pressure(tiers.memory_quota_bytes)
        self._first_spilled: int | None = None
        self._spilled_bytes = 0
        self._blind = 0

    def start(self) -> None:
        """Look for ever, beside the caller."""
        self._scheduler.spawn(self._run, "memory-watch")

    def status(self) -> dict[str, Any]:
        """Figures for ``raycache status``."""
        return {"ray_spilled_bytes": self._spilled_bytes, "looks_failed": self._blind}

    def look(self) -> float:
        """Once; seconds until the next look is due."""
        try:
            store = self._figures()
        except Exception:  # noqa: BLE001 - a raylet that does not answer: nothing is known, and nothing changes
            self._blind += 1
            return LOOK_S
        if self._first_spilled is None:
            self._first_spilled = store.spilled_bytes
        self._spilled_bytes = store.spilled_bytes - self._first_spilled
        quota_bytes = self._pressure.step(store, self._tiers.memory_bytes, self._scheduler.monotonic())
        urgent = store.used_bytes > URGENT * store.capacity_bytes
        self._tiers.set_memory_quota(quota_bytes, write_down=not urgent)
        return CLOSE_LOOK_S if 2 * store.used_bytes > store.capacity_bytes else LOOK_S

    def _run(self) -> None:
        while True:
            self._scheduler.sleep(self.look())
