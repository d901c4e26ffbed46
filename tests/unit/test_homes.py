"""What workers said of their directories: how long it is believed, who waits for a new answer, and what is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from raycache.client.homes import HOMES_OLD_S, HOMES_S, Homes
from raycache.core.scheduling import THREADS
from raycache.core.segment import Home
from raycache.errors import NoSpace, Unavailable


class Workers:
    """One worker that is asked, on a clock that stands still; what runs in the background runs when told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.asked = 0
        self.room_bytes = 1000
        self.is_away = False
        self.meanwhile: Callable[[], None] = lambda: None
        self.background: list[Callable[[], None]] = []
        self.lock = THREADS.lock

    def ask(self) -> Sequence[Home]:
        self.asked += 1
        if self.is_away:
            raise Unavailable("away")
        said = [Home("worker", "node", "/somewhere", 1, 2, self.room_bytes)]
        self.meanwhile()
        return said

    def monotonic(self) -> float:
        return self.now

    def spawn(self, run: Callable[[], None], name: str) -> None:
        self.background.append(run)

    def run_background(self) -> None:
        self.background.pop()()


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def homes(workers: Workers) -> Homes:
    scheduler: Any = workers
    return Homes(workers.ask, scheduler)


def test_who_comes_first_asks_and_the_answer_is_believed_for_a_while(workers: Workers, homes: Homes) -> None:
    assert not homes.is_at_hand()
    assert [home.worker_id for home in homes.get()] == ["worker"]
    assert homes.is_at_hand()
    workers.now += HOMES_S - 0.1
    homes.get()
    assert workers.asked == 1
    assert workers.background == []


def test_then_it_is_asked_in_the_background_and_once_for_who_cannot_wait(workers: Workers, homes: Homes) -> None:
    homes.get()
    workers.now += HOMES_S
    workers.room_bytes = 5
    for _ in range(3):
        assert homes.get(at_once=True)[0].room_bytes == 1000
    assert (workers.asked, len(workers.background)) == (1, 1)
    workers.run_background()
    assert homes.get(at_once=True)[0].room_bytes == 5
    workers.now += HOMES_S
    homes.get(at_once=True)
    assert len(workers.background) == 1


def test_who_can_wait_is_told_what_is_so_now(workers: Workers, homes: Homes) -> None:
    homes.get()
    workers.now += HOMES_S
    workers.room_bytes = 5
    assert homes.get()[0].room_bytes == 5
    assert workers.background == []


def test_an_old_answer_is_waited_for(workers: Workers, homes: Homes) -> None:
    homes.get()
    workers.now += HOMES_OLD_S
    workers.room_bytes = 5
    assert not homes.is_at_hand()
    assert homes.get(at_once=True)[0].room_bytes == 5
    homes.doubt()
    assert not homes.is_at_hand()


def test_the_files_are_there_whether_the_worker_is_or_not(workers: Workers, homes: Homes) -> None:
    workers.is_away = True
    with pytest.raises(Unavailable):
        homes.get()
    workers.is_away = False
    homes.get()
    workers.is_away = True
    workers.now += HOMES_S
    homes.get(at_once=True)
    workers.run_background()
    assert homes.get()[0].room_bytes == 1000
    assert homes.is_at_hand()
    workers.now += HOMES_OLD_S
    assert not homes.is_at_hand()
    assert homes.get(at_once=True)[0].room_bytes == 1000
    workers.is_away = False
    homes.get()
    assert homes.is_at_hand()


def test_no_more_is_allowed_than_there_is_room_for(workers: Workers, homes: Homes) -> None:
    homes.allow("worker", 600)
    assert homes.room_bytes(homes.known[0]) == 400
    with pytest.raises(NoSpace, match="room for 400 more bytes of what is written, not for 401"):
        homes.allow("worker", 401)
    assert workers.asked == 1, "its own count of what is there may be as old as the answer"
    with pytest.raises(NoSpace):
        homes.allow("another", 1)


def test_what_was_freed_counts_from_the_next_try_on(workers: Workers, homes: Homes) -> None:
    homes.allow("worker", 1000)
    with pytest.raises(NoSpace):
        homes.allow("worker", 1)
    workers.room_bytes = 300
    homes.allow("worker", 300)
    assert workers.asked == 2


def test_nothing_is_refused_by_an_answer_that_is_old(workers: Workers, homes: Homes) -> None:
    homes.allow("worker", 1000)
    workers.now += HOMES_S
    homes.allow("worker", 1000)
    assert workers.asked == 2


def test_what_is_allowed_while_a_question_is_under_way_counts_after_it(workers: Workers, homes: Homes) -> None:
    homes.allow("worker", 600)
    workers.now += HOMES_S
    homes.get(at_once=True)
    workers.room_bytes = 400
    workers.meanwhile = lambda: homes.allow("worker", 300)
    workers.run_background()
    assert homes.room_bytes(homes.known[0]) == 100
