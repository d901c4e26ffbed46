"""Which part is fetched next: what readers wait for before what is filled in the background, each source in its turn,
and none asked for more at once, or per second, than it may be. Pure bookkeeping; the store calls it under its lock.

Bounds: demands by the readers that wait for them, fills by the store's FILLS_MAX.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from raycache.store.flight import Flight

BURST_S = 0.25
"""How much of a source's bandwidth that was not used may be used later: so much of a second's bytes."""


class SourceLimits(NamedTuple):
    """What one worker may ask of one source. None: as much as it can."""

    requests: int | None = None
    """At once. A quarter of them, if there are four, is kept from background fills."""
    bytes_per_s: int | None = None


NO_LIMITS = SourceLimits()


class Job(NamedTuple):
    """A part that a fetcher has taken."""

    flight: Flight
    number: int
    background: bool

    @property
    def size_bytes(self) -> int:
        """Of the part."""
        return self.flight.plan.parts[self.number].length


@dataclass(slots=True)
class _Source:
    demands: deque[tuple[Flight, int]] = field(default_factory=deque)
    running: int = 0
    background: int = 0
    free_at: float = 0.0
    """When the bytes that were asked for have had their time."""


class FetchQueue:
    """See the module."""

    def __init__(self, limits: SourceLimits = NO_LIMITS) -> None:
        self._limits = limits
        self._sources: dict[str, _Source] = {}
        self._fills: deque[Flight] = deque()
        self.pause_s: float | None = None
        """After ``next`` said None: when to ask again, if nothing happens before. None: not before something does."""

    def demand(self, flight: Flight, number: int) -> None:
        """A reader waits for a part."""
        self._sources.setdefault(flight.plan.dataset, _Source()).demands.append((flight, number))

    def fill(self, flight: Flight) -> None:
        """All of a block is wanted."""
        self._fills.append(flight)

    def end_fill(self, flight: Flight) -> None:
        """No more."""
        if flight in self._fills:
            self._fills.remove(flight)

    def next(self, now: float) -> Job | None:
        """Take the next part, or None when there is none that may be asked for now."""
        self.pause_s = None
        for dataset, source in list(self._sources.items()):
            while source.demands and self._may(source, now, background=False):
                flight, number = source.demands.popleft()
                if flight.begin(number):
                    self._sources[dataset] = self._sources.pop(dataset)  # the others are asked before it next time
                    return self._begin(source, Job(flight, number, False), now)
            if not source.demands and not source.running and source.free_at + BURST_S <= now:
                del self._sources[dataset]
        for flight in list(self._fills):
            source = self._sources.setdefault(flight.plan.dataset, _Source())
            if not self._may(source, now, background=True):
                continue
            part = flight.next_fill()
            if part is not None:
                return self._begin(source, Job(flight, part, True), now)
            self._fills.remove(flight)
        return None

    def done(self, job: Job, *, elsewhere: bool = False) -> None:
        """A part has come, or will not. ``elsewhere``: its source was not asked."""
        source = self._sources[job.flight.plan.dataset]
        source.running -= 1
        source.background -= job.background
        if elsewhere and self._limits.bytes_per_s:
            source.free_at -= job.size_bytes / self._limits.bytes_per_s

    def _may(self, source: _Source, now: float, *, background: bool) -> bool:
        requests = self._limits.requests
        if requests is not None:
            if source.running >= requests:
                return False
            if background and source.background >= requests - requests // 4:
                return False
        if source.free_at > now:
            wait_s = source.free_at - now
            self.pause_s = wait_s if self.pause_s is None else min(self.pause_s, wait_s)
            return False
        return True

    def _begin(self, source: _Source, job: Job, now: float) -> Job:
        source.running += 1
        source.background += job.background
        if self._limits.bytes_per_s:
            source.free_at = max(source.free_at, now - BURST_S) + job.size_bytes / self._limits.bytes_per_s
        return job
