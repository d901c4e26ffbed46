"""Calls to workers that are under way, over Ray or by Arrow Flight, and waiting for the first of them to end.

Ray waits for any number of its own calls. Flight knows no such thing: a thread receives each of its answers, and where
both kinds are under way one for each of Ray's. Bound: CALLERS_MAX threads; calls beyond wait for one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from raycache.client.protocols import Call, Ended
from raycache.core.values import Served

CALLERS_MAX = 64


@dataclass(eq=False)
class RemoteCall:
    """A Call over Ray. ``receive`` makes its answers of the reference, when it has ended."""

    ref: Any
    receive: Callable[[Any], Served]
    timeout_s: float
    """After which it has ended in any case."""
    awaited: Future[Any] | None = None
    """Done when it has ended, where a thread looks."""

    def answers(self) -> Served:
        """See Call."""
        return self.receive(self.ref)


@dataclass(eq=False)
class ThreadCall:
    """A Call that a thread makes."""

    awaited: Future[Served]

    def answers(self) -> Served:
        """See Call."""
        return self.awaited.result()


class Callers:
    """Threads that make calls; they do not keep the process from ending, as those of an executor would."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._threads = 0
        self._free = 0
        """Threads that no job has been put in for."""
        self._waiting = 0
        """Jobs that wait for one of CALLERS_MAX threads."""

    def submit(self, do: Callable[[], Any]) -> Future[Any]:
        """Have something done."""
        future: Future[Any] = Future()
        self._jobs.put((do, future))
        with self._lock:
            if self._free:
                self._free -= 1
            elif self._threads < CALLERS_MAX:
                self._threads += 1
                threading.Thread(target=self._run, name="raycache-call", daemon=True).start()
            else:
                self._waiting += 1
        return future

    def first(self, calls: Sequence[Call], timeout_s: float) -> Sequence[Call]:
        """See WorkerPool.wait."""
        ended = [call for call in calls if isinstance(call, Ended)]
        if ended:
            return ended
        remote = {call.ref: call for call in calls if isinstance(call, RemoteCall)}
        if len(remote) == len(calls):
            done, _ = ray.wait(list(remote), num_returns=1, timeout=timeout_s)
            return [remote[ref] for ref in done]
        for call in remote.values():
            if call.awaited is None:
                call.awaited = self.submit(partial(ray.wait, [call.ref], timeout=call.timeout_s))
        futures = {call.awaited: call for call in calls if isinstance(call, RemoteCall | ThreadCall)}
        finished, _ = wait([future for future in futures if future is not None], timeout_s, FIRST_COMPLETED)
        return [futures[future] for future in finished]

    def _run(self) -> None:
        while True:
            do, future = self._jobs.get()
            say: Callable[[], None]
            try:
                say = partial(future.set_result, do())
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the one who waits
                say = partial(future.set_exception, error)
            # Before anybody hears of it: who then asks for the next call is given this thread, not one more.
            with self._lock:
                if self._waiting:
                    self._waiting -= 1
                else:
                    self._free += 1
            say()
