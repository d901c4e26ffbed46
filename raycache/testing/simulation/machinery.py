"""Greenlets as threads: the scheduler of a simulation, its virtual time, and processes that can die.

A task gives way where it waits, sleeps or does simulated I/O, and now and then before it takes a lock, as if it had
been preempted there. Who goes on is drawn from the seed. When nobody can, time moves to when somebody can.

A task of a process that was killed gets Killed from whatever it asks of the scheduler, again and again: code that
catches everything still ends. What such a process held in memory is nobody's then.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

import xxhash
from greenlet import getcurrent, greenlet


class Killed(BaseException):
    """The process of this task is dead."""


class Simulation:
    """Virtual time and whose turn it is. ``now`` is in seconds."""

    def __init__(self, seed: int, preemption: float = 0.0, keep_trace: bool = False) -> None:
        """``preemption``: how probable it is that a task gives way before it takes a lock."""
        self.random = Random(seed)
        self.now = 0.0
        self.steps = 0
        self.preemption = preemption
        self.after_step: Callable[[Process], None] = lambda process: None
        self.trace: list[str] | None = [] if keep_trace else None
        self.current: Task | None = None
        self._hash = xxhash.xxh3_64()
        self.hub: greenlet = getcurrent()
        self._ready: list[Task] = []
        self._timers: list[tuple[float, int, Task | Callable[[], object], int]] = []
        self._count = 0
        self._failure: BaseException | None = None

    @property
    def digest(self) -> str:
        """A hash of all that happened so far: equal for equal runs."""
        return self._hash.hexdigest()

    def note(self, what: str) -> None:
        """Put something into the trace."""
        where = self.current.name if self.current else "-"
        line = f"{self.now:10.4f} {where}: {what}"
        self._hash.update(line.encode())
        if self.trace is not None:
            self.trace.append(line)

    def at(self, delay_s: float, run: Callable[[], object]) -> None:
        """Call something after a while. It must not wait."""
        self._push(self.now + delay_s, run, 0)

    def run(self, until_s: float) -> None:
        """Run to a moment. Raises what a task raised."""
        while self._step(until_s):
            pass
        self.now = max(self.now, until_s)

    def fail(self, error: BaseException) -> None:
        """End the run with an error."""
        self._failure = self._failure or error

    def require(self, holds: bool, what: str) -> None:
        """End the run unless something holds, whatever the code that runs now does with errors."""
        if not holds:
            error = AssertionError(what)
            self.fail(error)
            raise error

    def begin(self, task: Task) -> None:
        """Let a new task run."""
        self._ready.append(task)

    def wait(self, task: Task, timeout_s: float | None) -> bool:
        """Let others run until the task, which runs now, is woken, or for a while; False when the while was over."""
        task.waits = True
        if timeout_s is not None:
            self._push(self.now + max(0.0, timeout_s), task, task.turn)
        return self._switch(task)

    def give_way(self, task: Task) -> None:
        """Let others run before the task goes on."""
        self._ready.append(task)
        self._switch(task)

    def wake(self, task: Task, woken: bool = True) -> None:
        """Let a task that waits go on. One whose time is over already goes on as if nobody had woken it."""
        if task.waits:
            task.waits = False
            task.turn += 1
            task.woken = woken
            self._ready.append(task)

    def _switch(self, task: Task) -> bool:
        self.require(not task.held, f"{task.name} waits while it holds a lock")
        self.hub.switch()
        if not task.process.alive:
            raise Killed
        return task.woken

    def _push(self, when: float, what: Task | Callable[[], object], turn: int) -> None:
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, what, turn))

    def _step(self, until_s: float) -> bool:
        timers, ready = self._timers, self._ready
        while timers and (timers[0][0] <= self.now or not ready):
            if timers[0][0] > until_s:
                break
            when, _, what, turn = heapq.heappop(timers)
            self.now = max(self.now, when)
            if not isinstance(what, Task):
                what()
            elif what.turn == turn and what.process.alive:
                self.wake(what, woken=False)
        if self._failure is not None:
            raise self._failure
        if not ready:
            return False
        at = int(self.random.random() * len(ready))
        ready[at], ready[-1] = ready[-1], ready[at]
        task = ready.pop()
        pause_s = task.process.paused_until - self.now
        if pause_s > 0:
            self.at(pause_s, lambda: ready.append(task))
        elif task.process.alive:
            self.steps += 1
            self._hash.update(task.name.encode())
            self._run(task)
            self.after_step(task.process)
        return True

    def _run(self, task: Task) -> None:
        self.current = task
        try:
            task.greenlet.switch()
        finally:
            self.current = None
        if self._failure is not None:
            raise self._failure


class Task:
    """Something that runs in a process, as a thread would."""

    __slots__ = ("greenlet", "held", "name", "process", "turn", "waits", "woken")

    def __init__(self, process: Process, run: Callable[[], None], name: str) -> None:
        self.process = process
        self.name = name
        self.turn = 0
        """How often it was woken: a timer of an earlier turn is void."""
        self.waits = False
        self.woken = False
        self.held = 0
        """Locks it holds."""
        self.greenlet = greenlet(lambda: self._main(run), process.simulation.hub)

    def _main(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - nothing may leave a task: it ends the whole run
            self.process.simulation.fail(error)
        finally:
            self.process.tasks.pop(self, None)


class Process:
    """A process of the cluster: a core.scheduling.Scheduler for the code in it, until it is killed."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation = simulation
        self.name = name
        self.alive = True
        self.paused_until = 0.0
        """None of its tasks runs before, as if it had been stopped by a signal."""
        self.tasks: dict[Task, None] = {}
        self.on_death: dict[Any, Callable[[], None]] = {}
        """Called when it is killed: by whom it was to answer."""

    def monotonic(self) -> float:
        """See Scheduler."""
        return self.simulation.now

    def sleep(self, seconds: float) -> None:
        """See Scheduler."""
        self.wait(seconds)

    def lock(self) -> SimulatedLock:
        """See Scheduler."""
        return SimulatedLock(self)

    def condition(self, lock: Any) -> SimulatedCondition:
        """See Scheduler."""
        return SimulatedCondition(self, lock)

    def gate(self) -> SimulatedGate:
        """See Scheduler."""
        return SimulatedGate(self)

    def spawn(self, run: Callable[[], None], name: str) -> None:
        """See Scheduler."""
        if not self.alive:
            raise Killed
        task = Task(self, run, f"{self.name}/{name}")
        self.tasks[task] = None
        self.simulation.begin(task)

    def wait(self, timeout_s: float | None) -> bool:
        """Give way until woken or for a while; False when the while was over."""
        return self.simulation.wait(self.task(), timeout_s)

    def task(self) -> Task:
        """Who runs now, which is a task of this process."""
        task = self.simulation.current
        if not self.alive:
            raise Killed
        assert task is not None, f"{self.name} is to wait outside a task"
        self.simulation.require(task.process is self, f"{task.name} runs code of {self.name}")
        return task

    def kill(self) -> None:
        """End it in the middle of whatever it does. Not from one of its own tasks."""
        if not self.alive:
            return
        self.alive = False
        before, simulation = getcurrent(), self.simulation
        mine, simulation.current = simulation.current, None
        for task in list(self.tasks):
            if task.greenlet:  # begun, and not at its end
                task.greenlet.parent = before
                task.greenlet.throw(Killed)
        self.tasks.clear()
        simulation.current = mine
        for tell in list(self.on_death.values()):
            tell()


class SimulatedLock:
    """A lock that is never waited for: whoever holds one does not give way."""

    __slots__ = ("holder", "process")

    def __init__(self, process: Process) -> None:
        self.process = process
        self.holder: Task | None = None

    def __enter__(self) -> None:
        process = self.process
        simulation = process.simulation
        task = simulation.current
        if task is None:
            if not process.alive:
                raise Killed
            return  # the simulation itself looks at something, between two steps
        if not task.held and simulation.preemption and simulation.random.random() < simulation.preemption:
            simulation.give_way(process.task())
        elif not process.alive:
            raise Killed
        self.take(task)

    def take(self, task: Task) -> None:
        """Without giving way."""
        self.process.simulation.require(self.holder is None, f"{task.name} waits for a lock for ever")
        self.holder = task
        task.held += 1

    def __exit__(self, *_: object) -> None:
        holder, self.holder = self.holder, None
        if holder is not None:
            holder.held -= 1


class SimulatedGate:
    """See core.scheduling.Gate."""

    __slots__ = ("_is_open", "_process", "_waiter")

    def __init__(self, process: Process) -> None:
        self._process = process
        self._is_open = False
        self._waiter: Task | None = None

    def open(self) -> None:
        """See Gate."""
        self._is_open = True
        if self._waiter is not None:
            self._process.simulation.wake(self._waiter)

    def wait(self, timeout: float) -> bool:
        """See Gate."""
        if not self._is_open:
            self._waiter = self._process.task()
            self._process.wait(timeout)
            self._waiter = None
        return self._is_open


class SimulatedCondition:
    """As threading.Condition. A waiter that is told goes on in its own time."""

    __slots__ = ("_lock", "_process", "_waiters")

    def __init__(self, process: Process, lock: SimulatedLock) -> None:
        self._process = process
        self._lock = lock
        self._waiters: deque[Task] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        """See Condition."""
        process = self._process
        task = process.task()
        process.simulation.require(self._lock.holder is task, f"{task.name} waits without the lock")
        self._lock.__exit__()
        self._waiters.append(task)
        woken = process.wait(timeout)
        if not woken and task in self._waiters:
            self._waiters.remove(task)
        self._lock.take(task)
        return woken

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """See Condition."""
        deadline = None if timeout is None else self._process.monotonic() + timeout
        while not predicate():
            left_s = None if deadline is None else deadline - self._process.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            self.wait(left_s)
        return True

    def notify(self, n: int = 1) -> None:
        """See Condition."""
        for _ in range(min(n, len(self._waiters))):
            self._process.simulation.wake(self._waiters.popleft())

    def notify_all(self) -> None:
        """See Condition."""
        self.notify(len(self._waiters))
