"""What code that waits asks of the machine it runs on: the time, pauses, locks, conditions and threads.

Workers and clients get it as an argument. It is ``THREADS`` everywhere but in ``testing/simulation``, which runs a
whole cluster in one thread, in an order drawn from a seed: whatever waits, waits through here or through its own I/O.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Lock(AbstractContextManager[object], Protocol):
    """As threading.Lock, by ``with`` alone."""


class Condition(Protocol):
    """As threading.Condition; its lock is held by whoever calls."""

    def wait(self, timeout: float | None = None) -> bool:
        """Let go of the lock until notified, or for ``timeout`` seconds; False when they were over."""
        ...

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until a predicate holds; returns whether it does."""
        ...

    def notify(self, n: int = 1) -> None:
        """Wake ``n`` of those that wait."""
        ...

    def notify_all(self) -> None:
        """Wake all that wait."""
        ...


class Gate(Protocol):
    """Shut at first, opened once."""

    def open(self) -> None:
        """Let the one who waits go on."""
        ...

    def wait(self, timeout: float) -> bool:
        """Wait until it is open; whether it is. For one waiter; needs no lock, which a condition's waiter must queue
        for when it wakes: between two threads that hand over to each other this is three times as quick."""
        ...


class Scheduler(Protocol):
    """See the module. Nobody does I/O or sleeps while holding a lock that was made here: the simulation checks it."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let others run for so long."""
        ...

    def lock(self) -> Lock:
        """A lock of its own."""
        ...

    def condition(self, lock: Lock) -> Condition:
        """A condition on a lock that was made here."""
        ...

    def gate(self) -> Gate:
        """One that is shut."""
        ...

    def spawn(self, run: Callable[[], None], name: str) -> None:
        """Run something beside the caller. It ends by itself, or with the process."""
        ...


class _LockGate:
    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """See Gate."""
        self._lock.release()

    def wait(self, timeout: float) -> bool:
        """See Gate."""
        return self._lock.acquire(timeout=max(0.0, timeout))


class Threads:
    """The Scheduler of real programs."""

    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)
    lock = staticmethod(threading.Lock)
    gate = staticmethod(_LockGate)

    def condition(self, lock: Lock) -> Condition:
        """See Scheduler."""
        return threading.Condition(lock)  # type: ignore[arg-type]

    def spawn(self, run: Callable[[], None], name: str) -> None:
        """See Scheduler."""
        threading.Thread(target=run, name=name, daemon=True).start()


THREADS: Scheduler = Threads()
