"""Calls that may never come back, such as those to a disk: a few threads make them, whoever asked waits to a deadline.

A call that is overdue is left to its thread, and the lane is *blocked*: it refuses all calls at once, until every
overdue one has come back. So a disk that hangs costs its callers one deadline, and those after them nothing. A caller
whose own thread may be left to hang saves the hand-over with ``here``.

Bounds: threads by ``threads``; calls waiting by their callers, each of whom waits. Threading: safe; a thread that has
had nothing to do for a while ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from raycache.core.scheduling import THREADS, Gate, Scheduler

IDLE_S = 10.0
_Result = TypeVar("_Result")


class Overdue(Exception):
    """A call did not come back before its deadline, or an earlier one has not come back yet. ``begun``: whether it has
    begun, and may come back still."""

    def __init__(self, begun: bool = False) -> None:
        super().__init__()
        self.begun = begun


@dataclass(eq=False, slots=True)
class _Call(Generic[_Result]):
    do: Callable[[], _Result]
    late: Callable[[], object] | None
    gate: Gate
    answer: _Result | BaseException | None = None
    begun: bool = False
    done: bool = False
    abandoned: bool = False


class Lane:
    """See the module."""

    def __init__(self, threads: int, deadline_s: float, name: str, scheduler: Scheduler = THREADS) -> None:
        self._threads = threads
        self._deadline_s = deadline_s
        self._name = name
        self._scheduler = scheduler
        self._lock = scheduler.lock()
        self._work = scheduler.condition(self._lock)
        self._calls: deque[_Call[Any]] = deque()
        self._running = 0
        self._idle = 0
        self._late = 0
        self._here: dict[object, float] = {}
        self.refused = 0
        """Calls that ended as Overdue, since the start."""

    @property
    def overdue(self) -> int:
        """Calls under way whose deadline has passed; while there are any, all others are refused."""
        if not self._here:
            return self._late
        begun_before = self._scheduler.monotonic() - self._deadline_s
        return self._late + sum(begun < begun_before for begun in list(self._here.values()))

    def here(self, do: Callable[[], _Result]) -> _Result:
        """What ``do`` returns or raises, in the caller's thread: it comes back when ``do`` does. Raises Overdue when
        another call is."""
        call = object()
        with self._lock:
            if self.overdue:
                self.refused += 1
                raise Overdue
            self._here[call] = self._scheduler.monotonic()
        try:
            return do()
        finally:
            with self._lock:
                del self._here[call]

    def call(self, do: Callable[[], _Result], late: Callable[[], object] | None = None) -> _Result:
        """What ``do`` returns or raises. Raises Overdue; where ``do`` had begun by then, ``late`` is called when it has
        come back after all: to undo what it did."""
        (found,) = self.call_all([do], late)
        if isinstance(found, BaseException):
            raise found
        return found

    def call_all(
        self, calls: Sequence[Callable[[], _Result]], late: Callable[[], object] | None = None
    ) -> Sequence[_Result | BaseException]:
        """The same for several side by side, under one deadline; what they raise is returned."""
        deadline = self._scheduler.monotonic() + self._deadline_s
        made: list[_Call[_Result]] = []
        with self._lock:
            if self.overdue:
                self.refused += len(calls)
                return [Overdue() for _ in calls]
            made = [_Call(do, late, self._scheduler.gate()) for do in calls]
            self._calls.extend(made)
            for _ in range(min(len(self._calls) - self._idle, self._threads - self._running)):
                self._running += 1
                self._scheduler.spawn(self._run, self._name)
            self._work.notify(len(made))
        return [self._await(call, deadline) for call in made]

    def _await(self, call: _Call[Any], deadline: float) -> Any:
        if not call.gate.wait(deadline - self._scheduler.monotonic()):
            with self._lock:
                if not call.done:
                    return self._abandon(call)
        return call.answer

    def _abandon(self, call: _Call[Any]) -> Overdue:
        self.refused += 1
        call.abandoned = True
        if call.begun:
            self._late += 1
        else:
            self._calls.remove(call)
        return Overdue(call.begun)

    def _run(self) -> None:
        while True:
            with self._lock:
                call = self._next()
            if call is None:
                return
            try:
                call.answer = call.do()
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the one who waits
                call.answer = error
            with self._lock:
                call.done = True
            call.gate.open()
            if call.abandoned:
                self._end_late(call)

    def _end_late(self, call: _Call[Any]) -> None:
        try:
            if call.late is not None:
                call.late()
        finally:
            with self._lock:
                self._late -= 1

    def _next(self) -> _Call[Any] | None:
        while not self._calls:
            self._idle += 1
            woken = self._work.wait(IDLE_S)
            self._idle -= 1
            if not woken and not self._calls:
                self._running -= 1
                return None
        call = self._calls.popleft()
        call.begun = True
        return call
