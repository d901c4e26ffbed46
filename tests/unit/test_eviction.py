"""Policies and the books of a tier: hit rates over shuffled epochs, and what SIEVE and keep let go of first."""

from __future__ import annotations

import math
import random
from itertools import islice

import pytest

from raycache.core.eviction import make_policy
from raycache.core.values import Origin
from raycache.store.accounts import Accounts
from raycache.store.ledger import Ledger

HERE = Origin("data")


def admit(ledger: Ledger, block_id: bytes, size_bytes: int = 1) -> tuple[bytes, ...] | None:
    """The victims of a block that has come in, None when it was refused."""
    made = ledger.reserve(block_id, size_bytes, HERE)
    if made is None:
        return None
    for victim in made.victims:
        ledger.drop(victim)
    ledger.commit(made, 0.0)
    return made.victims


def hit_rate(name: str, blocks: int, fraction: float, epochs: int = 5) -> float:
    """Hits per read after the first epoch."""
    ledger, rng = Ledger(int(blocks * fraction), Accounts(name)), random.Random(7)
    order, hits = list(range(blocks)), 0
    for epoch in range(epochs):
        rng.shuffle(order)
        for number in order:
            block_id = number.to_bytes(4, "big")
            if block_id in ledger:
                hits += epoch > 0
                ledger.touch(block_id, 0.0)
            else:
                admit(ledger, block_id)
    ledger.check()
    return hits / (blocks * (epochs - 1))


@pytest.mark.parametrize("c", [0.25, 0.5, 0.75])
def test_hit_rates_over_shuffled_epochs(c):
    assert hit_rate("keep", 4000, c) == c
    lru = c + (1 - c) * math.log(1 - c)
    assert hit_rate("lru", 4000, c) == pytest.approx(lru, abs=0.02)
    assert lru < hit_rate("sieve", 4000, c) <= c


def test_sieve_keeps_what_was_touched_since_the_hand_passed():
    ledger = Ledger(3, Accounts("sieve"))
    for name in (b"a", b"b", b"c"):
        assert admit(ledger, name) == ()
    ledger.touch(b"a", 0.0)
    assert admit(ledger, b"d") == (b"b",)
    assert admit(ledger, b"e") == (b"c",), "the hand goes on from where it was"
    assert admit(ledger, b"f") == (b"d",)


@pytest.mark.parametrize("name", ["keep", "lru", "sieve"])
def test_each_block_is_named_once(name):
    policy = make_policy(name)
    for number in range(5):
        policy.add(bytes([number]))
    for number in (0, 3, 9):
        policy.touch(bytes([number]))
    policy.remove(bytes([2]))
    policy.remove(bytes([9]))
    first = {"keep": [4, 3], "lru": [1, 4], "sieve": [1, 4]}[name]
    assert list(islice(policy.victims(), 2)) == [bytes([one]) for one in first]
    assert sorted(policy.victims()) == [bytes([number]) for number in (0, 1, 3, 4)]
    assert len(policy) == 4
