"""A connection to the master for one thread that does not wait, against the master's own socket."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from raycache.actors import verblink
from raycache.actors.verblink import VerbLink, VerbServer
from raycache.actors.verbstream import VerbStream
from raycache.core.inode import Verb
from raycache.core.values import Failed
from raycache.errors import NotFound


class Master:
    """Answers each verb with its arguments, when it may."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.server = VerbServer("127.0.0.1", self.apply)
        self.server.start()

    def apply(self, verbs: Sequence[Verb]) -> list[Any]:
        self.may_answer.wait(20)
        if any(verb.name == "fail" for verb in verbs):
            raise NotFound("no such thing")
        return [verb.args for verb in verbs]


@pytest.fixture
def master() -> Iterator[Master]:
    made = Master()
    yield made
    made.may_answer.set()


@pytest.fixture
def link(master: Master) -> VerbLink:
    return VerbLink(lambda: master.server.address)


def verbs(*args: Any) -> list[Verb]:
    return [Verb("verb", (arg,)) for arg in args]


def heard(stream: VerbStream, calls: int = 1) -> list[Any]:
    """So many answers; looked for when the descriptor says that there are any."""
    found: list[Any] = []
    while len(found) < calls:
        assert select.select([stream.fd], [], [], 20)[0]
        answers = stream.answers()
        assert answers is not None
        found += answers
    return found


def test_it_takes_connections_that_are_open_and_makes_none(link: VerbLink) -> None:
    stream = VerbStream(link)
    assert not stream.send(verbs(1))
    assert stream.answers() == []
    link.apply(verbs(1), 10)
    assert stream.send(verbs(2, 3))
    assert heard(stream) == [[(2,), (3,)]]
    assert link.take_idle() is None, "nobody else uses it meanwhile"


def test_answers_come_in_the_order_of_calls(link: VerbLink) -> None:
    link.apply([], 10)
    stream = VerbStream(link)
    for number in range(20):
        assert stream.send(verbs(number))
    assert heard(stream, 20) == [[(number,)] for number in range(20)]


def test_a_call_that_fails_is_told_as_such(link: VerbLink) -> None:
    link.apply([], 10)
    stream = VerbStream(link)
    assert stream.send([Verb("fail", ())])
    (failed,) = heard(stream)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, NotFound)


def test_what_does_not_go_out_at_once_goes_out_later(master: Master, link: VerbLink) -> None:
    link.apply([], 10)
    stream = VerbStream(link)
    long = bytes(8_000_000)
    master.may_answer.clear()
    for _ in range(3):
        assert stream.send(verbs(long))
    master.may_answer.set()
    assert heard(stream, 3) == [[(long,)]] * 3
    assert not select.select([stream.fd], [], [], 0)[0], "it does not wake for room that nothing needs"


def test_what_is_abandoned_is_not_heard_of_by_who_comes_next(master: Master, link: VerbLink) -> None:
    link.apply([], 10)
    stream = VerbStream(link)
    master.may_answer.clear()
    assert stream.send(verbs("old"))
    stream.abandon()
    assert not stream.send(verbs("new")), "there is no other connection yet"
    master.may_answer.set()
    link.apply([], 10)
    assert stream.send(verbs("new"))
    assert heard(stream) == [[("new",)]]


def test_a_connection_that_ends_is_told_of_and_the_link_is_not_used_for_a_while(
    link: VerbLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verblink, "MESSAGE_BYTES_MAX", 0)  # the server hangs up on whoever says more
    monkeypatch.setattr(verblink._receive, "__defaults__", (0,))
    stream = VerbStream(link)
    with pytest.raises(verblink.LinkLost):
        link.apply(verbs(1), 10)
    monkeypatch.setattr(link, "_avoid_until", 0.0)
    link._idle.append(link._connected())
    assert stream.send(verbs(1))
    assert select.select([stream.fd], [], [], 20)[0]
    assert stream.answers() is None
    with pytest.raises(verblink.LinkLost):
        link.apply(verbs(2), 10)
    assert stream.answers() == []
