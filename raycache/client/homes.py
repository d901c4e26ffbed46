"""What workers said of their directories for what is written: where they are, and how much may be written.

Whoever writes asks here first, and the thread that serves a mount is one who does. So for those who cannot wait workers
are asked again in the background; they wait only where the last answer is of no use any more, or leaves no room.

Bounds: one question in the background. Threading: safe.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from raycache.core.scheduling import Scheduler
from raycache.core.segment import Home, no_room
from raycache.errors import NoSpace, RaycacheError, Unavailable

HOMES_S = 2.0
"""How old an answer gets before workers are asked again."""
HOMES_OLD_S = 10.0
"""How old it gets before somebody waits for the next one."""
_log = logging.getLogger("raycache.client")


class Homes:
    """See the module."""

    def __init__(self, ask: Callable[[], Sequence[Home]], scheduler: Scheduler) -> None:
        """``ask``: all workers that may keep something. Raises Unavailable."""
        self._ask = ask
        self._scheduler = scheduler
        self._clock = scheduler.monotonic
        self._lock = scheduler.lock()
        self.known: tuple[Home, ...] = ()
        """The last answer."""
        self._heard_at: float | None = None
        self._written: dict[str, int] = {}
        """Bytes that were allowed since, by worker."""
        self._asks = False

    def get(self, *, at_once: bool = False) -> tuple[Home, ...]:
        """What workers say, where they answer not older than HOMES_S, ``at_once`` than HOMES_OLD_S. Raises
        Unavailable."""
        with self._lock:
            age_s = self._age_s()
            if age_s < HOMES_S:
                return self.known
            in_background = at_once and age_s < HOMES_OLD_S
            begins = in_background and not self._asks
            self._asks |= begins
        if begins:
            self._scheduler.spawn(self._ask_aside, "raycache-homes")
        return self.known if in_background else self._ask_now()

    def is_at_hand(self) -> bool:
        """Whether ``get`` answers ``at_once``."""
        return self._age_s() < HOMES_OLD_S

    def doubt(self) -> None:
        """Ask before anything else is believed."""
        with self._lock:
            self._heard_at = None

    def room_bytes(self, home: Home) -> int:
        """What may be written there, as far as is known."""
        return max(0, home.room_bytes - self._written.get(home.worker_id, 0))

    def allow(self, worker_id: str, growth_bytes: int) -> None:
        """Count what is about to be written. Raises NoSpace, by an answer not older than HOMES_S, and Unavailable."""
        homes = self.get(at_once=True)
        if self._take(homes, worker_id, growth_bytes):
            return
        if self._age_s() >= HOMES_S:
            homes = self._ask_now()
            if self._take(homes, worker_id, growth_bytes):
                return
        self.doubt()  # what was freed counts from the next try on
        room_bytes = sum(self.room_bytes(home) for home in homes if home.worker_id == worker_id)
        raise NoSpace(no_room(worker_id, growth_bytes, room_bytes))

    def _take(self, homes: Sequence[Home], worker_id: str, growth_bytes: int) -> bool:
        with self._lock:
            room_bytes = next((self.room_bytes(home) for home in homes if home.worker_id == worker_id), 0)
            if growth_bytes <= room_bytes:
                self._written[worker_id] = self._written.get(worker_id, 0) + growth_bytes
            return growth_bytes <= room_bytes

    def _ask_now(self) -> tuple[Home, ...]:
        with self._lock:
            before = dict(self._written)
        try:
            homes = tuple(self._ask())
        except Unavailable:
            if not self.known:
                raise
            return self.known  # the files are there, whether the worker is or not
        with self._lock:
            self.known, self._heard_at = homes, self._clock()
            # What was allowed while the question was under way may be in its answer or not: it counts.
            left = {worker: count - before.get(worker, 0) for worker, count in self._written.items()}
            self._written = {worker: count for worker, count in left.items() if count > 0}
        return homes

    def _ask_aside(self) -> None:
        try:
            self._ask_now()
        except RaycacheError as error:
            _log.info("workers do not say how much may be written: %s", error)
        finally:
            with self._lock:
                self._asks = False

    def _age_s(self) -> float:
        return float("inf") if self._heard_at is None else self._clock() - self._heard_at
