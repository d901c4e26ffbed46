"""Requests that cannot be answered from memory: a bounded pool, a deadline for each, and who may still answer.

Responsible for: that a miss delays no hit, that each is answered once and in the end, and that memory stays bounded.
Not responsible for: what the answer is.

Invariants
* A request is in ``_open`` from ``submit`` until someone claims it; who claims it answers it, so there is one answer.
* ``_waiting`` is the part of ``_open`` that no thread has taken up. Both leave together, so both are bounded.
* A request whose thread hangs in a disk is taken up once more by another thread, which goes another way; threads that
  hang so are not counted, and end when they come back.
* Requests have one and the same time limit, so the first in ``_open`` is the next to expire.

A signal to a program that waits becomes an INTERRUPT. Most signals want nothing of a read (a data loader's SIGCHLD),
and EINTR from a plain file breaks programs; so a request is given up only when its thread is being killed. Until it is,
it cannot die: the kernel keeps it in D state.

Threading: ``submit`` and ``interrupt`` from the serving thread, the rest on threads of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

_log = logging.getLogger(__name__)

KILL_CHECK_S = 0.2
"""How often an interrupted thread is looked at again: the kernel says only once that a signal came."""
AGAIN_S = 6.0
"""How long a thread may be at a request before another one tries as well, if a disk hangs: longer than a disk takes
to be found hanging, so that the second goes another way."""
LOOK_S = 1.0
"""How often to look for what is overdue while requests come and go. To be woken for each of them costs a program that
makes one after the other more than the look is worth."""
_SIGKILL_BIT = 1 << 8


class Asked(Protocol):
    """A request, as far as it matters here."""

    @property
    def unique(self) -> int: ...
    @property
    def pid(self) -> int: ...


R = TypeVar("R", bound=Asked)


@dataclass(frozen=True)
class Limits:
    """How much may wait, and how long."""

    threads: int = 32
    requests: int = 1024
    """Waiting or under way. One more stays with the kernel, and everything behind it."""
    deadline_s: float = 120.0
    """After that the answer is EIO. Longer than a read's own deadline, which knows the cause better."""


@dataclass(eq=False)
class _Miss(Generic[R]):
    request: R
    deadline: float
    interrupted: bool = False
    begun: float | None = None
    """When a thread took it up."""
    again: bool = False
    """Whether a second one was sent."""


class Misses(Generic[R]):
    """Answers requests on threads of its own."""

    def __init__(
        self,
        answer: Callable[[R], None],
        expire: Callable[[R, bool], None],
        limits: Limits,
        killed: Callable[[int], bool] | None = None,
        hanging: Callable[[], bool] = lambda: False,
    ) -> None:
        """``answer`` works a request out and sends its result, if ``claim`` lets it. ``expire(request, killed)`` sends
        that there will be none. ``killed`` says whether a thread is about to die, ``hanging`` whether a disk hangs."""
        self._answer = answer
        self._expire = expire
        self._limits = limits
        self._killed = killed or is_killed
        self._hanging = hanging
        self._lock = threading.Lock()
        self._space = threading.Condition(self._lock)
        self._work = threading.Condition(self._lock)
        self._watch = threading.Condition(self._lock)
        self._open: OrderedDict[int, _Miss[R]] = OrderedDict()
        self._waiting: OrderedDict[int, _Miss[R]] = OrderedDict()
        self._threads = 0
        self._idle = 0
        self._hung = 0
        self._watched = False
        self._resting = False
        self._submitted = 0
        self._closed = False

    def submit(self, request: R) -> None:
        """Answer later. Blocks while too many are open, at most until the first of them expires."""
        miss = _Miss(request, time.monotonic() + self._limits.deadline_s)
        with self._lock:
            while len(self._open) >= self._limits.requests and not self._closed:
                self._space.wait()
            if self._closed:
                return
            self._open[request.unique] = self._waiting[request.unique] = miss
            self._start_threads()
            self._work.notify()
            self._submitted += 1
            if self._resting:
                self._watch.notify()

    def interrupt(self, unique: int) -> None:
        """Give a request up if the thread that waits for it is being killed, now or later."""
        with self._lock:
            miss = self._open.get(unique)
            if miss is not None:
                miss.interrupted = True
                self._watch.notify()

    def claim(self, unique: int) -> bool:
        """The right to answer a request; False when it was answered already."""
        with self._lock:
            if self._open.pop(unique, None) is None:
                return False
            self._waiting.pop(unique, None)
            self._space.notify()
            return True

    def close(self) -> None:
        """Take up nothing more. Threads end after what they are at; what is open is left to a successor."""
        with self._lock:
            self._closed = True
            self._open.clear()
            self._waiting.clear()
            for condition in (self._space, self._work, self._watch):
                condition.notify_all()

    def _start_threads(self) -> None:
        if not self._watched:
            self._watched = True
            threading.Thread(target=self._watch_deadlines, name="raycache-deadlines", daemon=True).start()
        if len(self._waiting) > self._idle and self._threads - self._hung < self._limits.threads:
            self._threads += 1
            threading.Thread(target=self._run, name=f"raycache-miss-{self._threads}", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._closed:
                    self._idle += 1
                    self._work.wait()
                    self._idle -= 1
                if self._closed:
                    return
                _, miss = self._waiting.popitem(last=False)
                first = miss.begun is None
                miss.begun = time.monotonic()
            self._answer(miss.request)
            if first and miss.again:
                with self._lock:
                    self._hung -= 1
                    self._threads -= 1
                return

    def _watch_deadlines(self) -> None:
        while True:
            with self._lock:
                while not self._open and not self._closed:
                    self._rest()
                if self._closed:
                    return
                ended = self._ended(time.monotonic())
                self._try_again(time.monotonic())
                if not ended:
                    self._watch.wait(self._pause_s(time.monotonic()))
                    continue
            for request, killed in ended:
                if self.claim(request.unique):
                    self._expire(request, killed)

    def _rest(self) -> None:
        """Wait while nothing is open, with the lock held: a while at first, for what begins meanwhile is not overdue
        before that is over; and once nothing has come for so long, until something does."""
        before = self._submitted
        self._watch.wait(min(LOOK_S, self._limits.deadline_s))
        if self._submitted == before and not self._closed:
            self._resting = True
            self._watch.wait()
            self._resting = False

    def _ended(self, now: float) -> list[tuple[R, bool]]:
        ended: list[tuple[R, bool]] = []
        for miss in self._open.values():
            killed = miss.interrupted and self._killed(miss.request.pid)
            if killed or miss.deadline <= now:
                ended.append((miss.request, killed))
        return ended

    def _try_again(self, now: float) -> None:
        """Send another thread after those that hang in a disk."""
        slow = [one for one in self._open.values() if one.begun is not None and now - one.begun > AGAIN_S]
        if not slow or not self._hanging():
            return
        for miss in slow:
            if not miss.again:
                miss.again = True
                self._hung += 1
                self._waiting[miss.request.unique] = miss
        self._start_threads()
        self._work.notify_all()

    def _pause_s(self, now: float) -> float:
        first = next(iter(self._open.values())).deadline - now
        interrupted = any(miss.interrupted for miss in self._open.values())
        return max(0.0, min(first, KILL_CHECK_S if interrupted else AGAIN_S))


def is_killed(pid: int) -> bool:
    """Whether a thread has SIGKILL pending, which is what every deadly signal becomes.

    One that cannot be seen (another pid namespace, hidepid) counts as alive, and waits for its answer.
    """
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("SigPnd:"):
                    return bool(int(line.split()[1], 16) & _SIGKILL_BIT)
    except (OSError, ValueError):
        return False
    return False
