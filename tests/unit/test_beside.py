"""Requests that wait for the master without a thread: each comes back once, with what came of it or to be done anew."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from raycache.client.namespace import WouldBlock
from raycache.core.inode import Verb
from raycache.core.values import Failed
from raycache.errors import Exists, NotFound
from raycache.fuse.beside import CALLS, LATE_S, OPEN_MAX, VERBS_TOGETHER, Beside, Steps, given


class Stream:
    """A connection to a master that answers what it is told to."""

    fd = -1

    def __init__(self) -> None:
        self.is_open = True
        self.asked: deque[list[Verb]] = deque()
        """Calls that have no answer."""
        self.calls: list[list[str]] = []
        self.ready: list[list[Any | Failed] | Failed] = []
        self.is_lost = False

    def send(self, verbs: Sequence[Verb]) -> bool:
        if self.is_open:
            self.asked.append(list(verbs))
            self.calls.append([verb.name for verb in verbs])
        return self.is_open

    def answers(self) -> list[list[Any | Failed] | Failed] | None:
        found, self.ready = self.ready, []
        return None if self.is_lost else found

    def abandon(self) -> None:
        self.asked.clear()
        self.ready.clear()
        self.is_lost = False

    def answer(self, error: Exception | None = None) -> None:
        """The oldest call."""
        verbs = self.asked.popleft()
        self.ready.append(Failed(error) if error else [verb.name.upper() for verb in verbs])


class Made:
    """What is under test, with a clock that stands still."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stream = Stream()
        self.came: dict[str, Any] = {}
        self.count: Counter[str] = Counter()
        self.running: set[str] = set()
        self.beside: Beside[str] = Beside(self.stream, self._done, lambda: self.now)

    def _done(self, request: str, outcome: Any) -> None:
        self.came[request] = outcome
        self.count[request] += 1

    def steps(self, name: str, asks: int = 1, verbs: int = 1) -> Steps[bytes]:
        self.running.add(name)
        try:
            heard: list[Any] = []
            for number in range(asks):
                heard += yield [Verb(f"{name}{number}", ())] * verbs
            return ",".join(given(each) for each in heard).encode()
        finally:
            self.running.discard(name)

    def begin(self, *names: str, asks: int = 1) -> None:
        for name in names:
            self.beside.begin(name, self.steps(name, asks))


@pytest.fixture
def made() -> Made:
    return Made()


def test_what_comes_together_is_asked_together_and_each_is_given_its_own(made: Made) -> None:
    made.begin("a", "b", asks=2)
    made.begin("c")
    assert made.stream.calls == []
    made.beside.send()
    assert made.stream.calls == [["a0", "b0", "c0"]]
    assert not made.beside.receive()
    made.stream.answer()
    assert made.beside.receive()
    assert made.came == {"c": b"C0"}
    assert made.beside.is_busy
    made.beside.send()
    made.stream.answer()
    made.beside.receive()
    assert made.came == {"a": b"A0,A1", "b": b"B0,B1", "c": b"C0"}
    assert not made.beside.is_busy
    assert made.beside.calls == 2
    assert made.stream.calls[1] == ["a1", "b1"]


def test_while_calls_are_under_way_the_others_gather(made: Made) -> None:
    for name in "abcd":
        made.begin(name)
        made.beside.send()
    assert made.stream.calls == [["a0"], ["b0"]]
    assert CALLS == 2
    made.stream.answer()
    made.beside.receive()
    made.beside.send()
    assert made.stream.calls[2:] == [["c0", "d0"]]


def test_a_call_has_a_bound(made: Made) -> None:
    for number in range(3):
        made.beside.begin(str(number), made.steps(str(number), verbs=VERBS_TOGETHER // 2))
    made.beside.send()
    assert [len(call) for call in made.stream.calls] == [VERBS_TOGETHER, VERBS_TOGETHER // 2]


def test_beyond_the_bound_threads_take_over(made: Made) -> None:
    names = [str(number) for number in range(OPEN_MAX + 1)]
    made.begin(*names)
    assert [name for name, outcome in made.came.items() if isinstance(outcome, WouldBlock)] == names[-1:]


def test_what_need_not_ask_is_answered_and_what_would_wait_comes_back(made: Made) -> None:
    def refuses() -> Steps[bytes]:
        yield from ()
        raise Exists("there")

    def waits() -> Steps[bytes]:
        yield from ()
        raise WouldBlock

    made.begin("nothing", asks=0)
    made.beside.begin("refuses", refuses())
    made.beside.begin("waits", waits())
    assert made.came["nothing"] == b""
    assert isinstance(made.came["refuses"], Exists)
    assert isinstance(made.came["waits"], WouldBlock)


@pytest.mark.parametrize("how", ["cannot be sent", "is lost", "is late"])
def test_what_has_no_answer_comes_back_whole(made: Made, how: str) -> None:
    made.begin("a")
    made.beside.send()
    made.begin("b")
    if how == "cannot be sent":
        made.stream.is_open = False
        made.beside.send()
    elif how == "is lost":
        made.stream.is_lost = True
        assert made.beside.receive()
    else:
        made.now = LATE_S
        assert not made.beside.receive()
        made.now = LATE_S + 0.1
        assert made.beside.receive()
    assert [type(outcome) for outcome in made.came.values()] == [WouldBlock, WouldBlock]
    assert made.running == set(), "what was held meanwhile is let go"
    assert not made.beside.is_busy
    made.stream.is_open = True
    made.begin("c")
    made.beside.send()
    made.stream.answer()
    made.beside.receive()
    assert made.came["c"] == b"C0"


def test_one_that_is_given_back_does_not_take_the_answer_of_another(made: Made) -> None:
    made.begin("a", "b", "c")
    made.beside.send()
    made.begin("d", "e")
    made.beside.give_back(lambda name: name in "bd")
    assert [name for name, outcome in made.came.items() if isinstance(outcome, WouldBlock)] == ["b", "d"]
    assert made.running == {"a", "c", "e"}
    made.stream.answer()
    made.beside.receive()
    made.beside.send()
    made.stream.answer()
    made.beside.receive()
    assert [made.came[name] for name in "ace"] == [b"A0", b"C0", b"E0"]
    assert max(made.count.values()) == 1


def test_a_call_that_fails_fails_for_each(made: Made) -> None:
    made.begin("a", "b")
    made.beside.send()
    made.stream.answer(NotFound("gone"))
    made.beside.receive()
    assert [type(outcome) for outcome in made.came.values()] == [NotFound, NotFound]


@drawn(st.lists(st.sampled_from(["begin", "send", "answer", "receive", "lose", "refuse", "late", "back"]), max_size=60))
def test_each_comes_back_once_whatever_happens(events: list[str]) -> None:
    made = Made()
    begun = 0
    for at, event in enumerate(events):
        made.stream.is_open = event != "refuse"
        if event == "begin":
            made.begin(f"{begun}:", asks=at % 3)
            begun += 1
        elif event in ("send", "refuse"):
            made.beside.send()
        elif event == "answer" and made.stream.asked:
            made.stream.answer()
        elif event == "receive":
            made.beside.receive()
        elif event == "lose":
            made.stream.is_lost = True
        elif event == "late":
            made.now += LATE_S + 1
        elif event == "back":
            made.beside.give_back(lambda name: int(name[:-1]) % 2 == at % 2)  # noqa: B023
    while made.beside.is_busy:
        made.beside.send()
        while made.stream.asked:
            made.stream.answer()
        made.beside.receive()
    assert made.count == Counter(f"{number}:" for number in range(begun))
    assert made.running == set()
    for name, outcome in made.came.items():
        assert isinstance(outcome, WouldBlock) or all(
            each == f"{name}{number}" for number, each in enumerate(filter(None, outcome.decode().split(",")))
        )
