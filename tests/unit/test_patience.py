"""Asking again: how long, how often, and what is not asked again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raycache.client.patience import FIRST_PAUSE_S, LONGEST_PAUSE_S, ask_until_there
from raycache.errors import ClusterUnavailable, InvalidInput, WorkerLost


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def ask(answers: Iterator[object], time: Time, timeout_s: float = 120, jitter: float = 1.0) -> object:
    def call() -> object:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask_until_there(call, "the master", timeout_s, lambda: time.now, time.sleep, lambda: jitter)


def test_an_answer_needs_no_pause() -> None:
    assert ask(iter([5]), time := Time()) == 5
    assert time.pauses == []


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_pauses_grow_up_to_a_bound(jitter: float) -> None:
    assert ask(iter([*[WorkerLost("away")] * 9, "there"]), time := Time(), jitter=jitter) == "there"
    assert time.pauses[0] == FIRST_PAUSE_S * (0.5 + 0.5 * jitter)
    assert time.pauses == sorted(time.pauses)
    assert max(time.pauses) == LONGEST_PAUSE_S * (0.5 + 0.5 * jitter)


@pytest.mark.parametrize("timeout_s", [0.0, 0.05, 7.0])
def test_the_time_is_kept_and_the_error_says_what_to_do(timeout_s: float) -> None:
    time = Time()
    with pytest.raises(ClusterUnavailable, match=r"killed.*raycache start"):
        ask(iter([WorkerLost("killed")] * 1000), time, timeout_s)
    assert time.now == pytest.approx(1000 + timeout_s)


def test_the_time_counts_from_when_it_was_missed_not_from_a_long_call() -> None:
    time = Time()

    def answers() -> Iterator[object]:
        time.now += 500  # a listing, and then the master dies
        yield WorkerLost("died")
        yield "there"

    assert ask(answers(), time, timeout_s=10) == "there"


def test_other_errors_are_answers() -> None:
    with pytest.raises(InvalidInput):
        ask(iter([WorkerLost("away"), InvalidInput("no"), "never"]), Time())
