"""Which part is fetched next: readers first, sources in turn, within what each source may be asked for."""

from __future__ import annotations

from raycache.core.values import BlockPlan, Part
from raycache.store.fetchqueue import FetchQueue, Job, SourceLimits
from raycache.store.flight import Flight

SIZE = 1000


def flight(dataset: str, parts: int = 8) -> Flight:
    made = tuple(Part(str(number), "", 0, SIZE * number, SIZE) for number in range(parts))
    return Flight(BlockPlan(dataset.encode() + bytes(15), dataset, SIZE * parts, made))


def demand(queue: FetchQueue, block: Flight, *numbers: int) -> None:
    for number in numbers:
        block.queue(number)
        queue.demand(block, number)


def taken(queue: FetchQueue, now: float = 0.0) -> list[Job]:
    found = []
    while job := queue.next(now):
        found.append(job)
    return found


def names(jobs: list[Job]) -> list[tuple[str, int, bool]]:
    return [(job.flight.plan.dataset, job.number, job.background) for job in jobs]


def test_readers_go_before_fills_and_sources_take_turns() -> None:
    queue, one, other = FetchQueue(), flight("a", 5), flight("b", 2)
    queue.fill(one)
    demand(queue, one, 3, 4, 0)
    demand(queue, other, 1)
    assert names(taken(queue)) == [
        ("a", 3, False), ("b", 1, False), ("a", 4, False), ("a", 0, False), ("a", 1, True), ("a", 2, True),
    ]  # fmt: skip


def test_requests_to_a_source_are_bounded_and_fills_leave_room() -> None:
    queue, one, other = FetchQueue(SourceLimits(requests=4)), flight("a"), flight("b")
    queue.fill(one)
    queue.fill(other)
    fills = taken(queue)
    assert names(fills) == [
        ("a", 0, True),
        ("a", 1, True),
        ("a", 2, True),
        ("b", 0, True),
        ("b", 1, True),
        ("b", 2, True),
    ]
    demand(queue, one, 6, 7)
    (read,) = taken(queue)
    assert names([read]) == [("a", 6, False)], "the fourth is kept for readers"
    assert queue.pause_s is None
    queue.done(fills[0])
    assert names(taken(queue)) == [("a", 7, False)], "and the next one is a reader's, too"
    queue.done(read)
    assert names(taken(queue)) == [("a", 3, True)]


def test_one_request_at_a_time_is_enough_to_fill() -> None:
    queue, one = FetchQueue(SourceLimits(requests=1)), flight("a", 3)
    queue.fill(one)
    for number in range(3):
        (job,) = taken(queue)
        assert job.number == number
        queue.done(job)
    assert taken(queue) == []


def test_bytes_of_a_second_are_bounded() -> None:
    queue, one, other = FetchQueue(SourceLimits(bytes_per_s=2 * SIZE)), flight("a", 100), flight("b", 1)
    queue.fill(one)
    now, fetched = 100.0, 0
    while now < 110.0:
        for job in taken(queue, now):
            fetched += 1
            queue.done(job)
        assert queue.pause_s is not None
        now += queue.pause_s
    assert 19 <= fetched <= 22
    demand(queue, other, 0)
    assert names(taken(queue, now - 1e-3)) == [("b", 0, False)], "another source does not pay for it"


def test_what_came_from_elsewhere_costs_the_source_nothing() -> None:
    queue, one = FetchQueue(SourceLimits(bytes_per_s=SIZE)), flight("a", 20)
    queue.fill(one)
    for _ in range(20):
        (job,) = taken(queue, 5.0)
        queue.done(job, elsewhere=True)
