"""Bringing what was written to its source: a worker's threads that ask the master for work, do it, and say what became
of it.

One thread talks to the master: it tells what is done, what is under way, and how much more there is room for. The
others do one task each. A call costs the master as much as several files do, so it tells of as many as were done within
GATHER_S; and so that no thread waits for it, HELD times as many tasks are held as there are threads.

While the master does not answer, nothing is begun for longer than BEGIN_S: it may have given it to another worker.

Threading: as above. Bounds: tasks held by HELD times ``concurrency``.
"""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from raycache.core.inode import Content, Extent
from raycache.core.persisting import DONE, KEPT, LATER, REFUSED, Outcome, Task
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import Buffer
from raycache.errors import RaycacheError, Unavailable
from raycache.store.carrying import READ_BYTES, ReadExtents, carry_out
from raycache.ufs.sources import Sources

IDLE_S = 0.5
"""How often the master is asked when there was nothing to do."""
GATHER_S, HELD = 0.05, 8
"""See the module."""
AWAY_S = 2.0
"""Pause after the master did not answer."""
BEGIN_S = 20.0
"""How long after a call to the master tasks may begin: well below the lease that it gives."""
ERROR_MAX = 500
_log = logging.getLogger("raycache.store")


Exchange = Callable[[str, str, int, Sequence[Outcome], Sequence[tuple[str, str]], int], list[Task]]
"""See meta.handout.Handout.exchange."""


class Keeper(Protocol):
    """Segments of this worker: see store.segments.SegmentStore."""

    def make(self) -> str: ...

    def write(self, segment: str, offset: int, data: Buffer) -> None: ...

    def sync(self, segment: str) -> None: ...

    def release(self, segment: str, discard: bool = False) -> None: ...


class Persister:
    """See the module. ``start`` before use, ``stop`` after."""

    def __init__(
        self,
        exchange: Exchange,
        sources: Sources,
        read: ReadExtents,
        keeper: Keeper,
        concurrency: int,
        scheduler: Scheduler = THREADS,
        fresh: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        """``concurrency``: tasks done at once."""
        self.worker_id = ""
        """As the master knows this worker; nothing is asked for before it is known."""
        self._exchange = exchange
        self._sources = sources
        self._read = read
        self._keeper = keeper
        self._concurrency = concurrency
        self._scheduler = scheduler
        self._process = fresh()
        self._turn = 0
        self._lock = scheduler.lock()
        self._work = scheduler.condition(self._lock)
        self._talk = scheduler.condition(self._lock)
        self._waiting: deque[Task] = deque()
        self._heard = scheduler.monotonic()
        """When the last call began that the master answered."""
        self._under_way: set[tuple[str, str]] = set()
        self._outcomes: list[Outcome] = []
        self._done, self._done_bytes, self._failed = 0, 0, 0
        self._stopping = False

    def start(self) -> None:
        """Start the threads."""
        self._scheduler.spawn(self._talk_to_master, "persist")
        for number in range(self._concurrency):
            self._scheduler.spawn(self._do_tasks, f"persist-{number}")

    def stop(self) -> None:
        """End the threads, with what they are at."""
        with self._lock:
            self._stopping = True
            self._work.notify_all()
            self._talk.notify_all()

    def status(self) -> dict[str, Any]:
        """Figures for ``raycache status``."""
        with self._lock:
            return {
                "concurrency": self._concurrency,
                "under_way": len(self._under_way),
                "done": self._done,
                "done_bytes": self._done_bytes,
                "failed": self._failed,
            }

    def _talk_to_master(self) -> None:
        pause_s = 0.0
        while True:
            with self._lock:
                if pause_s:
                    self._talk.wait_for(lambda: self._stopping or bool(self._outcomes), pause_s)
                if self._outcomes:
                    self._talk.wait_for(self._has_much_to_say, GATHER_S)
                if self._stopping:
                    return
            if not self.worker_id:
                pause_s = IDLE_S
                continue
            try:
                pause_s = IDLE_S if self._talk_once() else 0.0
            except RaycacheError as error:
                _log.warning("the master cannot be asked what is to be persisted: %s", error)
                self._scheduler.sleep(AWAY_S)
            except Exception:  # noqa: BLE001 - the thread must outlive whatever one call brings
                _log.exception("cannot ask what is to be persisted")
                self._scheduler.sleep(AWAY_S)

    def _has_much_to_say(self) -> bool:
        """With the lock held: or all of it, as nothing else is to be done."""
        is_last = not self._waiting and not self._under_way
        return self._stopping or is_last or len(self._outcomes) >= HELD * self._concurrency // 4

    def _talk_once(self) -> bool:
        """One call; whether there is nothing to say before something is done, or some time is over."""
        now = self._scheduler.monotonic()
        with self._lock:
            outcomes, self._outcomes = self._outcomes, []
            held = [task.key for task in self._waiting]
            want = HELD * self._concurrency - len(held) - len(self._under_way)
            self._turn += 1
            turn, under_way = self._turn, [*held, *self._under_way]
        try:
            tasks = self._exchange(self.worker_id, self._process, turn, outcomes, under_way, max(0, want))
        except BaseException:  # whatever it was, the master has not heard of them
            with self._lock:
                self._outcomes = outcomes + self._outcomes  # told with the next call
            raise
        for outcome in outcomes:
            if outcome.mark == KEPT and outcome.content is not None:
                for segment in {extent.segment for extent in outcome.content.extents}:
                    self._keeper.release(segment)  # the master knows of it now
        with self._lock:
            self._heard = now
            self._waiting.extend(tasks)
            self._work.notify_all()
            return not self._outcomes

    def _do_tasks(self) -> None:
        while True:
            with self._lock:
                while not self._stopping and not self._waiting:
                    self._work.wait()
                if self._stopping:
                    return
                task = self._waiting.popleft()
                if self._heard < self._scheduler.monotonic() - BEGIN_S or task.key in self._under_way:
                    continue  # given back: the master hears with the next call that it is not under way
                self._under_way.add(task.key)
            outcome = self._do(task)
            with self._lock:
                self._under_way.remove(task.key)
                self._outcomes.append(outcome)
                self._count(task, outcome)
                self._talk.notify_all()

    def _count(self, task: Task, outcome: Outcome) -> None:
        if outcome.error:
            self._failed += 1
        else:
            self._done += 1
            self._done_bytes += task.content.size_bytes if task.content is not None else 0

    def _do(self, task: Task) -> Outcome:
        about = (task.seq, task.dataset, task.path)
        try:
            if task.kind == "keep":
                outcome = self._keep(task)
            else:
                outcome = self._sources.call(task.dataset, partial(carry_out, task, read=self._read))
        except RaycacheError as error:
            outcome = Outcome(*about, LATER if isinstance(error, Unavailable) else REFUSED, error=str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the row must say so and the thread go on
            _log.exception("cannot persist %s of dataset %s", task.path, task.dataset)
            outcome = Outcome(*about, REFUSED, error=f"{type(error).__name__}: {error}")
        return outcome._replace(error=outcome.error[:ERROR_MAX])

    def _keep(self, task: Task) -> Outcome:
        """Keep what files are made of that the source is about to lose. Raises NoSpace, Changed, Unavailable."""
        assert task.content is not None
        segment, end = self._keeper.make(), 0
        found: list[Extent] = []
        try:
            for extent in task.content.extents:
                found.append(extent._replace(segment=segment, offset=end, path="", etag="", row=0))
                for start in range(0, extent.length, READ_BYTES):
                    piece = extent._replace(offset=extent.offset + start, length=min(READ_BYTES, extent.length - start))
                    (data,) = self._read(task.dataset, [piece])
                    self._keeper.write(segment, end, data)
                    end += piece.length
            self._keeper.sync(segment)
        except BaseException:  # whatever it was, nothing refers to the segment
            self._keeper.release(segment, discard=True)
            raise
        content = Content(task.content.size_bytes, tuple(found))
        return Outcome(task.seq, task.dataset, task.path, DONE, content=content, mark=KEPT)
