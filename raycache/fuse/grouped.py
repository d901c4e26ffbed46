"""Calls to the master that wait at the same time travel together.

A thread that finds nobody calling calls at once, for itself; what others want until its answer comes goes with the next
call. So one program pays no more than a call, and many together pay little more than one.

Responsible for: who calls when. Not responsible for: the call itself (``TreeApi.apply`` waits while the master is away,
and ends at a deadline).

Bounds: VERBS_AT_ONCE verbs in a call, CALLS calls under way. Threading: safe.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from raycache.client.treeapi import VERBS_AT_ONCE, TreeApi
from raycache.core.inode import Verb
from raycache.core.values import Failed
from raycache.fuse.beside import CALLS, Steps, T


class _Group:
    """Verbs of one thread."""

    def __init__(self, verbs: Sequence[Verb]) -> None:
        self.verbs = verbs
        self.taken = False
        """Whether a call has them."""
        self.calls = False
        """Whether it is this thread's turn to call."""
        self.turn = threading.Event()
        """Set when this thread is to call, or need not any more."""
        self.done = threading.Event()
        self.answers: list[Any | Failed] = []
        self.error: BaseException | None = None


class Grouped:
    """The master, asked by many threads."""

    def __init__(self, tree: TreeApi) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._waiting: deque[_Group] = deque()
        self._callers = 0
        self.calls = 0
        """Calls made, for counting what a program costs."""

    def ask(self, name: str, *args: Any, request_id: str | None = None) -> Any:
        """One verb. Raises what it raises."""
        return self.ask_all([Verb(name, args, request_id)])[0]

    def run(self, steps: Steps[T]) -> T:
        """Go through steps, waiting for each answer. Raises what they raise, and what ``TreeApi.apply`` itself does."""
        with closing(steps):
            try:
                verbs = next(steps)
                while True:
                    verbs = steps.send(self.try_all(verbs))
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]

    def ask_all(self, verbs: Sequence[Verb]) -> list[Any]:
        """Several verbs, in order, in one transaction. Raises the first error, when the others have been done."""
        answers = self.try_all(verbs)
        for answer in answers:
            if isinstance(answer, Failed):
                raise answer.error
        return answers

    def try_all(self, verbs: Sequence[Verb]) -> list[Any | Failed]:
        """The same, errors in their places. Raises what ``TreeApi.apply`` itself raises."""
        group = _Group(verbs)
        with self._lock:
            self._waiting.append(group)
            group.calls = self._callers < CALLS
            self._callers += group.calls
        if not group.calls:
            group.turn.wait()  # whoever calls has a deadline, and passes the turn on whatever happens
        if group.calls:
            self._call_for(group)
        if group.error is not None:
            raise group.error
        return group.answers

    def _call_for(self, group: _Group) -> None:
        """Call until there is an answer for a group, then let the next one call."""
        try:
            while groups := self._take(group):
                self._call(groups)
            group.done.wait()  # another caller may have taken it
        finally:
            with self._lock:
                following = next((one for one in self._waiting if not one.calls), None)
                if following is None:
                    self._callers -= 1
                else:
                    following.calls = True
            if following is not None:
                following.turn.set()

    def _take(self, group: _Group) -> list[_Group]:
        """What is to go with the next call; nothing once a group has been taken."""
        groups: list[_Group] = []
        count = 0
        with self._lock:
            if group.taken:
                return []
            while self._waiting and (not groups or count + len(self._waiting[0].verbs) <= VERBS_AT_ONCE):
                groups.append(self._waiting.popleft())
                groups[-1].taken = True
                count += len(groups[-1].verbs)
        return groups

    def _call(self, groups: Sequence[_Group]) -> None:
        try:
            self.calls += 1
            answers = self._tree.apply([verb for group in groups for verb in group.verbs])
            at = 0
            for group in groups:
                group.answers = answers[at : at + len(group.verbs)]
                at += len(group.verbs)
        except BaseException as error:  # noqa: BLE001 - whatever it is, others wait for the same call
            for group in groups:
                group.error = error
        for group in groups:
            group.done.set()
            group.turn.set()
