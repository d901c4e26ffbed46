"""Calls between the processes of a simulation: they take a while, get lost, and end with the process that was asked.

Hosts are names. Of two hosts that are cut from each other nothing arrives; a cut that ``breaks`` tells the caller, as a
closed connection does, else only its own deadline ends the call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raycache.errors import WorkerLost
from raycache.testing.simulation.machinery import Process, Simulation, Task

NOTICED_S = 0.05
"""After which a caller knows that whom it asked is dead."""


class Reply:
    """An answer that is to come. The first one counts."""

    def __init__(self) -> None:
        self.done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._waiters: list[Task] = []

    def answers(self) -> Any:
        """The answer that came. Raises what the callee raised, or WorkerLost."""
        assert self.done
        if self._error is not None:
            raise self._error
        return self._value

    def set(self, value: Any, error: BaseException | None = None) -> None:
        """Answer."""
        if self.done:
            return
        self.done, self._value, self._error = True, value, error
        for task in self._waiters:
            task.process.simulation.wake(task)
        self._waiters.clear()

    def await_by(self, task: Task, awaited: bool) -> None:
        """Whether to wake a task when the answer comes."""
        if awaited:
            self._waiters.append(task)
        elif task in self._waiters:
            self._waiters.remove(task)


def first(process: Process, replies: Sequence[Reply], timeout_s: float) -> Reply | None:
    """Wait for one of several answers; None when none came in time."""
    deadline = process.monotonic() + timeout_s
    while True:
        found = next((reply for reply in replies if reply.done), None)
        left_s = deadline - process.monotonic()
        if found is not None or left_s <= 0:
            return found
        task = process.task()
        for reply in replies:
            reply.await_by(task, True)
        process.wait(left_s)
        for reply in replies:
            reply.await_by(task, False)


class Network:
    """Who reaches whom, and how fast."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.delay_s = 0.001
        self.loss = 0.0
        """How probable it is that a message is lost."""
        self.cuts: dict[frozenset[str], bool] = {}
        """Pairs of hosts, and whether the connection breaks."""
        self.slow: dict[str, float] = {}
        """Seconds that messages to and from a host take longer."""

    def begin(
        self, caller: tuple[str, Process], callee: tuple[str, Process | None], run: Callable[[], Any], what: str
    ) -> Reply:
        """Have ``run`` run in the callee. Hosts and processes; no process: nobody is there any more."""
        reply = Reply()
        pair = frozenset((caller[0], callee[0]))

        def lost() -> None:
            self._simulation.at(NOTICED_S, lambda: reply.set(None, WorkerLost(f"{callee[0]} is gone")))

        def arrive() -> None:
            process = callee[1]
            if process is None or not process.alive:
                lost()
                return
            process.on_death[reply] = lost
            process.spawn(lambda: serve(process), what)

        def serve(process: Process) -> None:
            value, error = None, None
            try:
                value = run()
            except Exception as raised:  # noqa: BLE001 - whatever it is, the caller gets it
                error = raised
            process.on_death.pop(reply, None)
            self._send(pair, lambda: reply.set(value, error), lost)

        self._send(pair, arrive, lost)
        return reply

    def call(
        self,
        caller: tuple[str, Process],
        callee: tuple[str, Process | None],
        run: Callable[[], Any],
        what: str,
        timeout_s: float,
    ) -> Any:
        """The same, waited for. Raises WorkerLost when nothing came in time."""
        reply = self.begin(caller, callee, run, what)
        if first(caller[1], [reply], timeout_s) is None:
            raise WorkerLost(f"{what}: {callee[0]} did not answer within {timeout_s:g} s")
        return reply.answers()

    def _send(self, pair: frozenset[str], arrive: Callable[[], None], lost: Callable[[], None]) -> None:
        random = self._simulation.random
        delay_s = self.delay_s * (0.5 + random.random()) if len(pair) > 1 else 0.0002
        delay_s += sum(self.slow.get(host, 0.0) for host in sorted(pair))
        is_lost = len(pair) > 1 and random.random() < self.loss

        def deliver() -> None:
            breaks = self.cuts.get(pair)
            if breaks:
                lost()
            elif breaks is None and not is_lost:
                arrive()

        self._simulation.at(delay_s, deliver)
