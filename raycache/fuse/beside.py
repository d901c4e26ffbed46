"""Requests that wait for the master without a thread each: the serving thread asks, and answers when it has heard.

What a request asks and makes of the answers is written down as *steps*: a generator that gives verbs and is given their
answers. A thread may run them (``Grouped.run``), waiting each time; here many are under way at once. Verbs that are
asked before the serving thread rests travel in one call, and so do those that come while calls are under way.

Responsible for: who is told what when an answer is there, and giving back what takes too long. Not responsible for:
the connection (``actors.verbstream``), answers to the kernel (``writesession``).

Invariants
* Each request that was begun comes back once: with what its steps returned or raised, or with WouldBlock, which means
  that nothing is known of what the master did, and that a thread is to go through all its steps again. So changes among
  the verbs carry the id of their request, and steps have no effect before their last answer that they do not undo.
* Steps never wait; where they would have to, they raise WouldBlock.

Bounds: OPEN_MAX requests, VERBS_TOGETHER verbs in a call, CALLS calls under way, LATE_S for each.
Threading: one thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from raycache.client.namespace import WouldBlock
from raycache.core.inode import Verb
from raycache.core.values import Buffer, Failed

CALLS = 2
"""Calls under way at once: while one is on its way back, the master does the next."""
VERBS_TOGETHER = 128
"""In a call; what comes meanwhile goes with the next."""
OPEN_MAX = 1024
LATE_S = 2.0
"""After that threads take over: the master is away, or lists a directory of a source."""

R = TypeVar("R")
T = TypeVar("T")
Steps: TypeAlias = Generator[Sequence[Verb], list[Any], T]
"""What a request asks of the master, in one transaction each time, and what it makes of it. Answers may be Failed."""


class VerbStream(Protocol):
    """A connection to the master for one thread that does not wait."""

    fd: int
    """Can be read when there are answers, or none will come."""

    def send(self, verbs: Sequence[Verb]) -> bool:
        """Ask; False where that is not possible now. Then nothing more is heard of what was asked before."""
        ...

    def answers(self) -> list[list[Any | Failed] | Failed] | None:
        """What has come, in the order of calls; None where no more will."""
        ...

    def abandon(self) -> None:
        """Hear no more of what was asked."""
        ...


def given(answer: Any | Failed) -> Any:
    """An answer of the master. Raises what it was refused for."""
    if isinstance(answer, Failed):
        raise answer.error
    return answer


@dataclass(eq=False, slots=True)
class _Asked(Generic[R]):
    request: R
    steps: Steps[Buffer]
    verbs: Sequence[Verb]
    is_over: bool = False
    """Whether it was given back; an answer that comes is nobody's."""


@dataclass(eq=False, slots=True)
class _Call(Generic[R]):
    since: float
    asked: list[_Asked[R]] = field(default_factory=list)


class Beside(Generic[R]):
    """See the module."""

    def __init__(
        self,
        stream: VerbStream,
        done: Callable[[R, Buffer | Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``done``: told what has come of each request; raises nothing."""
        self._stream = stream
        self._done = done
        self._clock = clock
        self._waiting: deque[_Asked[R]] = deque()
        self._calls: deque[_Call[R]] = deque()
        self.fd = stream.fd
        self.calls = 0
        """Calls made, for counting what a program costs."""

    @property
    def is_busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._calls or self._waiting)

    def begin(self, request: R, steps: Steps[Buffer]) -> None:
        """Go through the steps of a request."""
        if len(self._waiting) >= OPEN_MAX:
            self._done(request, WouldBlock())
        else:
            self._go_on(request, steps, None)

    def send(self) -> None:
        """Ask what has come together."""
        while self._waiting and len(self._calls) < CALLS:
            call: _Call[R] = _Call(self._clock())
            count = 0
            while self._waiting and (not call.asked or count + len(self._waiting[0].verbs) <= VERBS_TOGETHER):
                asked = self._waiting.popleft()
                if not asked.is_over:
                    call.asked.append(asked)
                    count += len(asked.verbs)
            if not call.asked:
                return
            self._calls.append(call)
            self.calls += 1
            if not self._stream.send([verb for asked in call.asked for verb in asked.verbs]):
                self._give_all_back()
                return

    def receive(self) -> bool:
        """Go on with those whose answers have come; whether there were any."""
        found = self._stream.answers()
        for answers in found or ():
            self._take(self._calls.popleft(), answers)
        is_late = bool(self._calls) and self._clock() - self._calls[0].since > LATE_S
        if found is None or is_late:
            self._give_all_back()
        return found is None or bool(found) or is_late

    def give_back(self, wanted: Callable[[R], bool]) -> None:
        """Have requests answered by threads, those of them that are under way."""
        for asked in self._all():
            if wanted(asked.request):
                self._end(asked)

    def _all(self) -> list[_Asked[R]]:
        every = [*(asked for call in self._calls for asked in call.asked), *self._waiting]
        return [asked for asked in every if not asked.is_over]

    def _take(self, call: _Call[R], answers: list[Any | Failed] | Failed) -> None:
        at = 0
        for asked in call.asked:
            count = len(asked.verbs)
            share = [answers] * count if isinstance(answers, Failed) else answers[at : at + count]
            at += count
            if not asked.is_over:
                self._go_on(asked.request, asked.steps, share)

    def _go_on(self, request: R, steps: Steps[Buffer], answers: list[Any | Failed] | None) -> None:
        try:
            verbs = next(steps) if answers is None else steps.send(answers)
        except StopIteration as done:
            self._done(request, done.value)
        except Exception as error:  # noqa: BLE001 - whatever it is, someone waits for an answer
            self._done(request, error)
        else:
            self._waiting.append(_Asked(request, steps, verbs))

    def _give_all_back(self) -> None:
        self._stream.abandon()
        every = self._all()
        self._calls.clear()
        self._waiting.clear()
        for asked in every:
            self._end(asked)

    def _end(self, asked: _Asked[R]) -> None:
        asked.is_over = True
        asked.steps.close()
        self._done(asked.request, WouldBlock())
