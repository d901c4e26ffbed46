"""Policies: what they may never do, and what they hit over shuffled epochs."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.core.eviction import make_policy
from raycache.store.ledger import Ledger, Reservation

POLICIES = ["keep", "lru", "sieve"]
IDS = [bytes([number]) for number in range(12)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "touch", "remove"]),
        st.sampled_from(IDS),
        st.integers(1, 60),
        st.sets(st.sampled_from(IDS), max_size=4),
    ),
    max_size=80,
)


@pytest.mark.parametrize("name", POLICIES)
@given(steps=STEPS)
def test_never_over_the_quota_never_a_pinned_block_nothing_remembered(name, steps):
    policy, held, quota = make_policy(name), {}, 100
    for verb, block_id, size, pinned in steps:
        if verb == "touch":
            policy.touch(block_id)
        elif verb == "remove":
            policy.remove(block_id)
            held.pop(block_id, None)
        elif block_id not in held:
            room = quota - sum(held.values())
            before = dict(held)
            victims = policy.admit(block_id, size, room, pinned)
            if victims is None:
                pinned_bytes = sum(before[one] for one in pinned if one in before)
                assert name == "keep" or size > quota - pinned_bytes, "there was room to make"
                assert size > room
            else:
                assert not set(victims) & pinned
                assert name != "keep" or not victims
                assert size <= room or victims
                for victim in victims:
                    del held[victim]
                held[block_id] = size
        assert sum(held.values()) <= quota
        assert len(policy) == len(held)


def hit_rate(name: str, blocks: int, fraction: float, epochs: int = 5) -> float:
    """Hits per read after the first epoch."""
    policy, held, room, rng = make_policy(name), set(), int(blocks * fraction), random.Random(7)
    order, hits = list(range(blocks)), 0
    for epoch in range(epochs):
        rng.shuffle(order)
        for number in order:
            block_id = number.to_bytes(4, "big")
            if block_id in held:
                hits += epoch > 0
                policy.touch(block_id)
                continue
            victims = policy.admit(block_id, 1, room - len(held))
            if victims is not None:
                held.difference_update(victims)
                held.add(block_id)
    return hits / (blocks * (epochs - 1))


@pytest.mark.parametrize("c", [0.25, 0.5, 0.75])
def test_hit_rates_over_shuffled_epochs(c):
    assert hit_rate("keep", 4000, c) == c
    lru = c + (1 - c) * math.log(1 - c)
    assert hit_rate("lru", 4000, c) == pytest.approx(lru, abs=0.02)
    assert lru < hit_rate("sieve", 4000, c) <= c


def test_sieve_keeps_what_was_touched_since_the_hand_passed():
    policy = make_policy("sieve")
    for name in (b"a", b"b", b"c"):
        assert policy.admit(name, 1, 1) == []
    policy.touch(b"a")
    assert policy.admit(b"d", 1, 0) == [b"b"]
    assert policy.admit(b"e", 1, 0) == [b"c"], "the hand goes on from where it was"
    assert policy.admit(b"f", 1, 0) == [b"d"]


@pytest.mark.parametrize("name", POLICIES)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["reserve", "free", "land", "cancel", "drop", "spare", "no spare"]),
            st.sampled_from(IDS),
            st.integers(1, 60),
        ),
        max_size=60,
    )
)
def test_the_books_of_a_tier_balance_whatever_the_order(name, steps):
    ledger = Ledger(100, make_policy(name))
    open_ones: dict[bytes, Reservation] = {}
    for verb, block_id, size in steps:
        if verb in ("reserve", "free"):
            made = ledger.reserve(block_id, size, evict=verb == "reserve")
            if made is not None:
                assert verb == "reserve" or not made.victims
                assert not set(made.victims) & open_ones.keys()
                open_ones[block_id] = made
        elif verb == "land" and block_id in open_ones:
            made = open_ones.pop(block_id)
            for victim in made.victims:
                ledger.drop(victim)
                ledger.check()
            ledger.commit(made)
        elif verb == "cancel" and block_id in open_ones:
            ledger.cancel(open_ones.pop(block_id))
        elif verb == "drop":
            ledger.drop(block_id)
        elif "spare" in verb:
            ledger.set_spare(block_id, verb == "spare")
        ledger.check()
