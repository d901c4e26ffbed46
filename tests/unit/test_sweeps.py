from __future__ import annotations

import random

from raycache.client.sweeps import Sweeps

BLOCK = 1000


def pulls(order: list[int], view_blocks: int, length: int = 10) -> list[int]:
    """Blocks pulled by reads of an order of blocks; what is pulled stays."""
    sweeps, pulled = Sweeps(view_blocks * BLOCK), []
    for block in order:
        if block not in pulled and sweeps.touch(bytes([block]), length, BLOCK):
            pulled.append(block)
    return pulled


def test_a_sweep_pulls_each_block_once_a_quarter_of_it_was_read() -> None:
    sweeps = Sweeps(10 * BLOCK)
    assert [sweeps.touch(b"a", 100, BLOCK) for _ in range(5)] == [False, False, True, False, False]
    assert pulls([block for block in range(50) for _ in range(30)], 2) == list(range(50))


def test_a_large_read_pulls_at_once() -> None:
    assert Sweeps(BLOCK).touch(b"a", 250, BLOCK)


def test_random_reads_over_more_than_can_be_held_pull_nothing() -> None:
    order = [block for block in range(100) for _ in range(100)]
    random.Random(1).shuffle(order)
    assert pulls(order, 10) == []


def test_random_reads_over_what_can_be_held_pull_all_of_it() -> None:
    order = [block for block in range(20) for _ in range(100)]
    random.Random(1).shuffle(order)
    assert sorted(pulls(order, 20)) == list(range(20))


def test_without_room_for_views_nothing_is_pulled() -> None:
    assert pulls([0] * 200, 0) == []


def test_memory_is_bounded_by_the_views() -> None:
    sweeps = Sweeps(5 * BLOCK)
    for number in range(1000):
        sweeps.touch(number.to_bytes(2, "big"), 1, BLOCK)
    assert len(sweeps._touched) == 5
    assert sweeps._size_bytes == 5 * BLOCK
