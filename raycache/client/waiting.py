"""What this process waited for when it read, counted as it happens and told now and then. See ``core.waits``.

Counted per call and not per file, but for what lies in views, where a read costs one addition. Threading: safe.
"""

from __future__ import annotations

import os
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence

from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.waits import ReaderName, ReaderWaits, Wait

TELL_S = 5.0
"""How often a process that reads tells what it waited for."""
NAMES_MAX = 64
"""Names that are remembered, of epochs for the most part."""
Tell = Callable[[Sequence[ReaderWaits]], None]
_JOB_VARIABLES = ("RAYCACHE_JOB", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")


class _Counted:
    """Of one name."""

    def __init__(self, now: float) -> None:
        self.since = self.until = now
        self.by_cause: dict[tuple[str, str, str], tuple[int, int, float]] = {}


class WaitLog:
    """See the module."""

    def __init__(
        self,
        job: str = "",
        tell: Tell = lambda told: None,
        scheduler: Scheduler = THREADS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``tell`` must not wait. ``clock``: seconds since 1970."""
        self.name = ReaderName(job)
        """Who this process is at the moment."""
        self._tell = tell
        self._clock = clock
        self._process = uuid.uuid4().hex[:12]
        self._lock = scheduler.lock()
        self._counted: OrderedDict[ReaderName, _Counted] = OrderedDict()
        self._changed: set[ReaderName] = set()

    def begin(self, name: ReaderName) -> None:
        """Be this one from now on."""
        if name == self.name:
            return
        with self._lock:
            self.name = name
            if name not in self._counted:
                self._counted[name] = _Counted(self._clock())
            self._counted.move_to_end(name)
            if len(self._counted) > NAMES_MAX:
                oldest, _ = self._counted.popitem(last=False)
                self._changed.discard(oldest)

    def add(self, dataset: str, kind: str, where: str, reads: int, size_bytes: int, seconds: float) -> None:
        """So much was read, after so long."""
        with self._lock:
            counted = self._counted.get(self.name)
            if counted is None:
                counted = self._counted[self.name] = _Counted(self._clock() - seconds)
            cause = dataset, kind, where
            before = counted.by_cause.get(cause, (0, 0, 0.0))
            counted.by_cause[cause] = before[0] + reads, before[1] + size_bytes, before[2] + seconds
            counted.until = self._clock()
            self._changed.add(self.name)

    def tell(self) -> None:
        """Tell of the names that anything is new of since the last time."""
        with self._lock:
            news = [self._waits(name) for name in self._changed]
            self._changed.clear()
        if news:
            self._tell(news)

    def _waits(self, name: ReaderName) -> ReaderWaits:
        counted = self._counted[name]
        waits = tuple(Wait(*cause, *figures) for cause, figures in counted.by_cause.items())
        return ReaderWaits(name, self._process, counted.since, counted.until, waits)


def keep_telling(log: WaitLog, scheduler: Scheduler) -> None:
    """Tell beside the caller, for as long as somebody uses the log."""
    used = weakref.ref(log)

    def run() -> None:
        while (known := used()) is not None:
            known.tell()
            del known
            scheduler.sleep(TELL_S)

    scheduler.spawn(run, "raycache-waits")


def job_name(ray_job: str) -> str:
    """What the job of this process is called: as its launcher calls it, else as Ray does."""
    return next((os.environ[name] for name in _JOB_VARIABLES if os.environ.get(name)), ray_job)
