"""Requests that wait: answered once, bounded, ended by a deadline or with the thread that asked."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from raycache.fuse.misses import Limits, Misses, is_killed
from raycache.fuse.wire import Op, Request


def request(unique: int, pid: int = 7) -> Request:
    return Request(Op.READ, unique, 1, pid)


class Session:
    """Answers when told to, and keeps what happened in order."""

    def __init__(self, limits: Limits, killed: Callable[[int], bool]) -> None:
        self.may_answer = threading.Event()
        self.seen: queue.Queue[tuple[str, int]] = queue.Queue()
        self.under_way = 0
        self.misses = Misses(self._answer, self._expire, limits, killed)

    def nothing_within(self, seconds: float) -> bool:
        try:
            self.seen.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def _answer(self, asked: Request) -> None:
        self.under_way += 1
        self.may_answer.wait(20)
        if self.misses.claim(asked.unique):
            self.seen.put(("answered", asked.unique))

    def _expire(self, asked: Request, killed: bool) -> None:
        self.seen.put(("killed" if killed else "expired", asked.unique))


@contextmanager
def session(killed: Callable[[int], bool] = lambda _: False, **limits: float) -> Iterator[Session]:
    made = Session(Limits(**{"threads": 2, "requests": 4, "deadline_s": 20.0, **limits}), killed)
    yield made
    made.misses.close()
    made.may_answer.set()


def test_each_is_answered_once() -> None:
    with session(requests=100) as made:
        for unique in range(50):
            made.misses.submit(request(unique))
        made.may_answer.set()
        seen = [made.seen.get(timeout=10) for _ in range(50)]
        assert sorted(seen) == [("answered", unique) for unique in range(50)]
        assert made.seen.empty()
        assert not made.misses.claim(3)


def test_the_deadline_ends_what_waits_and_what_is_under_way() -> None:
    with session(deadline_s=0.3) as made:
        started = time.monotonic()
        for unique in range(4):  # two under way, two waiting
            made.misses.submit(request(unique))
        assert [made.seen.get(timeout=10) for _ in range(4)] == [("expired", unique) for unique in range(4)]
        assert 0.25 < time.monotonic() - started < 5
        made.may_answer.set()
        made.misses.submit(request(9))
        assert made.seen.get(timeout=10) == ("answered", 9)  # and nothing for those that expired


def test_a_full_queue_blocks_until_one_ends() -> None:
    with session(requests=3, deadline_s=0.5) as made:
        for unique in range(3):
            made.misses.submit(request(unique))
        started = time.monotonic()
        made.misses.submit(request(3))
        assert time.monotonic() - started > 0.3
        assert made.under_way == 2
        assert len(made.misses._open) <= 3


def test_closing_lets_a_blocked_submit_go() -> None:
    with session(requests=1) as made:
        made.misses.submit(request(0))
        blocked = threading.Thread(target=made.misses.submit, args=(request(1),))
        blocked.start()
        blocked.join(0.1)
        assert blocked.is_alive()
        made.misses.close()
        blocked.join(5)
        assert not blocked.is_alive()
        made.may_answer.set()
        assert made.nothing_within(0.1)  # left to a successor


def test_an_interrupted_request_ends_when_its_thread_dies_and_not_before() -> None:
    dying: set[int] = set()
    with session(killed=dying.__contains__) as made:
        made.misses.submit(request(1, pid=11))
        made.misses.submit(request(2, pid=12))
        made.misses.interrupt(1)
        made.misses.interrupt(99)  # answered long ago
        assert made.nothing_within(0.3)
        dying.update((11, 12))
        assert made.seen.get(timeout=5) == ("killed", 1)
        assert made.nothing_within(0.3)  # 2 was not interrupted


@pytest.mark.parametrize("pid", [0, -1, os.getpid(), 2**22 + 1])
def test_who_lives_or_cannot_be_seen_is_not_killed(pid: int) -> None:
    assert not is_killed(pid)


def test_threads_that_hang_in_a_disk_are_followed_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycache.fuse.misses.AGAIN_S", 0.05)
    back, answered = threading.Event(), queue.Queue[int]()
    tries: list[int] = []

    def answer(asked: Request) -> None:
        tries.append(asked.unique)
        if tries.count(asked.unique) == 1 and asked.unique < 2:
            back.wait(20)
        if misses.claim(asked.unique):
            answered.put(asked.unique)

    misses = Misses(answer, lambda *_: None, Limits(threads=2, requests=9), lambda _: False, lambda: not back.is_set())
    for unique in range(4):  # the first two take both threads
        misses.submit(request(unique))
    assert {answered.get(timeout=20) for _ in range(4)} == {0, 1, 2, 3}
    back.set()
    assert sorted(tries) == [0, 0, 1, 1, 2, 3]
    misses.submit(request(5))
    assert answered.get(timeout=20) == 5
    misses.close()
