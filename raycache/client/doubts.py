"""What is held here says that there is no such name, but others may have made it since: whether to ask the master.

Bounds: one question per ASK_S, so that who looks in vain for many names is held up by few of them; none while an
earlier one has not been answered for WAIT_S: the master is away, and what is held counts. Threading: safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from raycache.core.scheduling import THREADS, Scheduler

ASK_S = 0.05
WAIT_S = 1.0


class Doubts:
    """See the module."""

    def __init__(self, scheduler: Scheduler = THREADS) -> None:
        self._clock = scheduler.monotonic
        self._lock = scheduler.lock()
        self._asked_s = self._clock() - ASK_S
        self._waiting: set[float] = set()
        """Since when questions wait for their answers."""

    @contextmanager
    def asking(self, *, anyway: bool = False) -> Iterator[bool]:
        """Whether to ask: then within this. ``anyway``: however short ago the last time was."""
        now = self._clock()
        with self._lock:
            is_away = any(since + WAIT_S < now for since in self._waiting)
            if is_away or not (anyway or now >= self._asked_s + ASK_S):
                allowed = False
            else:
                allowed = True
                self._asked_s = now
                self._waiting.add(now)
        try:
            yield allowed
        finally:
            with self._lock:
                if allowed:
                    self._waiting.discard(now)
