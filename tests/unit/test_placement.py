from __future__ import annotations

import hashlib
import random

import pytest

from raycache.core import placement
from raycache.core.placement import rank
from raycache.core.values import Worker

BLOCKS = [hashlib.md5(str(number).encode()).digest() for number in range(20_000)]
GIB = 2**30


def workers(*capacities):
    return [Worker(f"{number:028x}", capacity) for number, capacity in enumerate(capacities)]


def owners(fleet):
    return [rank(block, fleet)[0] for block in BLOCKS]


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1, 1, 1), (1, 2, 3, 10), (1000, 1)])
def test_load_follows_capacity(weights):
    capacities = [weight * GIB for weight in weights]
    fleet = workers(*capacities)
    owned = owners(fleet)
    for worker in fleet:
        share = worker.capacity_bytes / sum(capacities)
        expected = share * len(BLOCKS)
        # Four standard deviations of a fair draw, which is under 3 % for all but the smallest worker.
        assert abs(owned.count(worker) - expected) < 4 * (expected * (1 - share)) ** 0.5


def test_second_choices_follow_capacity_too():
    fleet = workers(GIB, GIB, GIB, GIB)
    seconds = [rank(block, fleet)[1] for block in BLOCKS]
    for worker in fleet:
        assert seconds.count(worker) == pytest.approx(len(BLOCKS) / 4, rel=0.05)


def test_worker_that_leaves_moves_only_its_share_to_the_second_choice():
    fleet = workers(GIB, 2 * GIB, 3 * GIB, 4 * GIB)
    gone = fleet[2]
    rest = [worker for worker in fleet if worker != gone]
    for block in BLOCKS[:5000]:
        before, after = rank(block, fleet), rank(block, rest)
        assert after == [worker for worker in before if worker != gone]


def test_worker_that_joins_takes_only_its_share():
    old = workers(GIB, GIB, GIB)
    new = Worker("new", GIB)
    moved = 0
    for block, before in zip(BLOCKS, owners(old), strict=True):
        after = rank(block, [*old, new])[0]
        assert after in (before, new)
        moved += after == new
    assert moved == pytest.approx(len(BLOCKS) / 4, rel=0.05)


def test_worker_that_grows_only_gains():
    before = workers(GIB, GIB, GIB)
    after = [Worker(before[0].worker_id, 2 * GIB), *before[1:]]
    for block in BLOCKS[:5000]:
        old, new = rank(block, before)[0], rank(block, after)[0]
        assert new.worker_id in (old.worker_id, before[0].worker_id)


def test_order_depends_on_nothing_but_ids_and_capacities():
    fleet = workers(GIB, 2 * GIB, 3 * GIB, GIB, 0)
    shuffled = [Worker(worker.worker_id, worker.capacity_bytes, local=True) for worker in fleet]
    random.Random(1).shuffle(shuffled)
    for block in BLOCKS[:1000]:
        assert [each.worker_id for each in rank(block, fleet)] == [each.worker_id for each in rank(block, shuffled)]


def test_placement_is_the_same_in_every_release():
    """A change of this order empties every running cache: let it be on purpose."""
    fleet = workers(GIB, 2 * GIB, 3 * GIB, GIB)
    found = ["".join(each.worker_id[-1] for each in rank(block, fleet)) for block in BLOCKS[:6]]
    assert found == ["1203", "1230", "1203", "2130", "3201", "2130"]


def test_worker_without_capacity_comes_last_and_no_workers_is_no_order():
    fleet = workers(0, GIB, 0, GIB)
    for block in BLOCKS[:1000]:
        assert [each.capacity_bytes for each in rank(block, fleet)] == [GIB, GIB, 0, 0]
    assert rank(BLOCKS[0], []) == []


@pytest.mark.parametrize("digest", [0, 1, 2**64 - 1, 2**64 - 2, 2**63])
def test_no_hash_breaks_the_score(monkeypatch, digest):
    monkeypatch.setattr(placement.xxhash, "xxh3_64_intdigest", lambda _: digest)
    assert len(rank(b"block", workers(GIB, GIB))) == 2
