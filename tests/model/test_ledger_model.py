"""The books of two tiers against a naive reading of their rules: random datasets, policies, priorities, quotas, pins.

After every step, and between any two of the drops that a reservation asks for: no tier is over its quota, no dataset
goes over its own, no pinned block was named, and the victims are those that the rules name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raycache.core.eviction import Sieve
from raycache.core.retention import Retention
from raycache.core.values import Origin
from raycache.store.accounts import Accounts
from raycache.store.ledger import Ledger, Reservation

IDS = [bytes([number]) for number in range(14)]
DATASETS = ["a", "b", "c"]
PATHS = ["", "x", "x/y", "z"]
RETENTIONS = st.builds(
    Retention,
    eviction=st.sampled_from(["keep", "lru", "sieve", None]),
    quota_bytes=st.sampled_from([None, None, 0, 30, 60, 120]),
    ttl_s=st.sampled_from([0, 0, 10]),
    priority=st.sampled_from([-1, 0, 0, 1]),
    pins=st.sets(st.sampled_from(PATHS), max_size=1).map(tuple),
    pinned_blocks=st.sets(st.sampled_from(IDS), max_size=2).map(frozenset),
)
UNKNOWN = Retention("lru", priority=-1000)
DEFAULT = "sieve"


@dataclass
class Block:
    size: int
    origin: Origin
    read_at: float
    spare: bool = False
    leaving: bytes | None = None
    visited: bool = False


@dataclass
class Tier:
    """What the rules say of one tier. ``order``: per dataset its evictable blocks as they came in or, with lru, were
    read last; ``recent``: all of them as they were read; ``spares``: as they became spare."""

    quota: int
    ledger: Ledger
    blocks: dict[bytes, Block] = field(default_factory=dict)
    order: dict[str, list[bytes]] = field(default_factory=lambda: {name: [] for name in DATASETS})
    recent: dict[str, list[bytes]] = field(default_factory=lambda: {name: [] for name in DATASETS})
    spares: list[bytes] = field(default_factory=list)
    hand: dict[str, bytes | None] = field(default_factory=dict)
    open_ones: dict[bytes, Reservation] = field(default_factory=dict)


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.retentions: dict[str, Retention] | None = None
        self.used: dict[str, int] = {}
        self.now = 0.0

    @initialize(memory=st.sampled_from([50, 100]), disk=st.sampled_from([0, 100, 200]), told=st.booleans())
    def start(self, memory: int, disk: int, told: bool) -> None:
        self.accounts = Accounts(DEFAULT, wait=not told)
        self.told = told
        self.tiers = [Tier(quota, Ledger(quota, self.accounts)) for quota in (memory, disk)]

    def retention(self, dataset: str) -> Retention:
        return Retention() if self.retentions is None else self.retentions.get(dataset, UNKNOWN)

    def eviction(self, dataset: str) -> str:
        return self.retention(dataset).eviction or DEFAULT

    def pinned(self, block_id: bytes, origin: Origin) -> bool:
        return self.retention(origin.dataset).holds(origin.directory, block_id)

    @rule(chosen=st.dictionaries(st.sampled_from(DATASETS), RETENTIONS))
    def configure(self, chosen: dict[str, Retention]) -> None:
        before = {name: self.retention(name) for name in DATASETS}
        self.retentions, self.told = chosen, True
        self.accounts.set(chosen)
        for tier in self.tiers:
            tier.ledger.apply()
            for name in DATASETS:
                if before[name] == self.retention(name):
                    continue
                tier.hand[name] = None
                tier.order[name] = []
                for block_id in tier.recent[name]:
                    block = tier.blocks[block_id]
                    block.visited = False
                    if not block.leaving and not block.spare and not self.pinned(block_id, block.origin):
                        tier.order[name].append(block_id)

    @rule(
        at=st.integers(0, 1),
        block_id=st.sampled_from(IDS),
        size=st.integers(1, 60),
        dataset=st.sampled_from(DATASETS),
        path=st.sampled_from(PATHS),
        evict=st.sampled_from([True, True, False]),
    )
    def reserve(self, at: int, block_id: bytes, size: int, dataset: str, path: str, evict: bool) -> None:
        self.begin(at, block_id, size, dataset, path, evict)

    def begin(self, at: int, block_id: bytes, size: int, dataset: str, path: str, evict: bool) -> None:
        tier, origin = self.tiers[at], Origin(dataset, path)
        expected = self.expect(tier, block_id, size, origin, evict)
        made = tier.ledger.reserve(block_id, size, origin, evict=evict)
        assert (None if made is None else list(made.victims)) == expected
        if made is None:
            return
        tier.open_ones[block_id] = made
        for victim in made.victims:
            block = tier.blocks[victim]
            assert block.spare or not self.pinned(victim, block.origin)
            self.withdraw(tier, victim)
            block.leaving = block_id

    @rule(
        at=st.integers(0, 1),
        fills=st.lists(
            st.tuples(st.sampled_from(IDS), st.integers(8, 30), st.sampled_from(DATASETS), st.sampled_from(PATHS)),
            min_size=1,
            max_size=8,
        ),
    )
    def fill(self, at: int, fills: list[tuple[bytes, int, str, str]]) -> None:
        for block_id, size, dataset, path in fills:
            before = set(self.tiers[at].open_ones)
            self.begin(at, block_id, size, dataset, path, evict=True)
            self.books_are_right()
            for made in self.tiers[at].open_ones.keys() - before:
                self.finish(self.tiers[at], self.tiers[at].open_ones[made], steps=99)

    def expect(self, tier: Tier, block_id: bytes, size: int, origin: Origin, evict: bool) -> list[bytes] | None:
        if block_id in tier.blocks or block_id in tier.open_ones:
            return None
        mine = self.retention(origin.dataset)
        free = tier.quota - sum(block.size for block in tier.blocks.values())
        free -= sum(self.net(tier, one, own=False) for one in tier.open_ones.values())
        over = 0 if mine.quota_bytes is None else size - (mine.quota_bytes - self.used_of(origin.dataset))
        wanted = max(size - free, over)
        if wanted <= 0:
            return []
        if not evict or not self.told:
            return None
        pinned = self.pinned(block_id, origin)
        gives = pinned or self.eviction(origin.dataset) != "keep"
        own = [(True, origin.dataset), *([(False, origin.dataset)] if gives else [])]
        if over > 0:
            return self.take(tier, own, wanted)

        def size_of(name: str) -> int:
            return sum(block.size for block in tier.blocks.values() if block.origin.dataset == name)

        ranked = sorted(DATASETS, key=lambda name: (self.retention(name).priority, -size_of(name), name))
        lower = [name for name in ranked if self.retention(name).priority < mine.priority]
        others = [name for name in ranked if name not in lower and name != origin.dataset]
        if not pinned:
            others = [
                name
                for name in others
                if self.retention(name).priority == mine.priority and self.eviction(name) != "keep"
            ]
        chain = [*lower, *([origin.dataset] if gives else []), *others]
        return self.take(tier, [*((True, name) for name in ranked), *((False, name) for name in chain)], wanted)

    def take(self, tier: Tier, chain: list[tuple[bool, str]], wanted: int) -> list[bytes] | None:
        there = 0
        for spare, name in chain:
            blocks = self.spares_of(tier, name) if spare else tier.order[name]
            there += sum(tier.blocks[one].size for one in blocks)
        if there < wanted:
            return None
        victims: list[bytes] = []
        for spare, name in chain:
            while wanted > 0:
                blocks = self.spares_of(tier, name) if spare else list(tier.order[name])
                blocks = [one for one in blocks if one not in victims]
                if not blocks:
                    break
                victims.append(blocks[0] if spare else self.next_victim(tier, name, blocks))
                wanted -= tier.blocks[victims[-1]].size
        return victims

    def spares_of(self, tier: Tier, name: str) -> list[bytes]:
        return [one for one in tier.spares if tier.blocks[one].origin.dataset == name]

    def next_victim(self, tier: Tier, name: str, blocks: list[bytes]) -> bytes:
        eviction = self.eviction(name)
        if eviction == "keep":
            return blocks[-1]
        if eviction == "lru":
            return blocks[0]
        queue = tier.order[name]
        while True:
            hand = tier.hand.get(name) or queue[0]
            at = queue.index(hand)
            tier.hand[name] = queue[at + 1] if at + 1 < len(queue) else None
            if hand in blocks and not tier.blocks[hand].visited:
                return hand
            tier.blocks[hand].visited = False

    def net(self, tier: Tier, made: Reservation, *, own: bool) -> int:
        covered = [block for block in tier.blocks.values() if block.leaving == made.block_id]
        if own:
            covered = [block for block in covered if block.origin.dataset == made.origin.dataset]
        return max(0, made.size_bytes - sum(block.size for block in covered))

    def used_of(self, dataset: str) -> int:
        total = 0
        for tier in self.tiers:
            total += sum(block.size for block in tier.blocks.values() if block.origin.dataset == dataset)
            mine = (one for one in tier.open_ones.values() if one.origin.dataset == dataset)
            total += sum(self.net(tier, one, own=True) for one in mine)
        return total

    def enter(self, tier: Tier, block_id: bytes) -> None:
        block = tier.blocks[block_id]
        if block.spare:
            tier.spares.append(block_id)
        elif not self.pinned(block_id, block.origin):
            tier.order[block.origin.dataset].append(block_id)
            block.visited = False

    def withdraw(self, tier: Tier, block_id: bytes) -> None:
        name = tier.blocks[block_id].origin.dataset
        if block_id in tier.spares:
            tier.spares.remove(block_id)
        queue = tier.order[name]
        if block_id in queue:
            at = queue.index(block_id)
            if tier.hand.get(name) == block_id:
                tier.hand[name] = queue[at + 1] if at + 1 < len(queue) else None
            queue.remove(block_id)

    @rule(data=st.data(), at=st.integers(0, 1), steps=st.sampled_from([0, 1, 99, 99]))
    def land(self, data: Any, at: int, steps: int) -> None:
        tier = self.tiers[at]
        if not tier.open_ones:
            return
        self.finish(tier, tier.open_ones[data.draw(st.sampled_from(sorted(tier.open_ones)))], steps)

    def finish(self, tier: Tier, made: Reservation, steps: int) -> None:
        """Drop its victims and let it come in; or, before victim number ``steps``, have it come to nothing."""
        for number, victim in enumerate(made.victims):
            if victim in tier.blocks and tier.blocks[victim].leaving == made.block_id:
                if number == steps:
                    self.end(tier, made)
                    return
                self.remove(tier, victim)
                self.books_are_right()
        tier.ledger.commit(made, self.now)
        del tier.open_ones[made.block_id]
        tier.blocks[made.block_id] = Block(made.size_bytes, made.origin, self.now)
        tier.recent[made.origin.dataset].append(made.block_id)
        self.enter(tier, made.block_id)

    def end(self, tier: Tier, made: Reservation) -> None:
        """It comes to nothing in the middle: what still stands comes back."""
        tier.ledger.cancel(made)
        del tier.open_ones[made.block_id]
        for victim in made.victims:
            if victim in tier.blocks and tier.blocks[victim].leaving == made.block_id:
                tier.blocks[victim].leaving = None
                self.enter(tier, victim)

    def remove(self, tier: Tier, block_id: bytes) -> None:
        tier.ledger.drop(block_id)
        if block_id in tier.blocks:
            self.withdraw(tier, block_id)
            tier.recent[tier.blocks.pop(block_id).origin.dataset].remove(block_id)

    @rule(at=st.integers(0, 1), block_id=st.sampled_from(IDS))
    def drop(self, at: int, block_id: bytes) -> None:
        self.remove(self.tiers[at], block_id)

    @rule(at=st.integers(0, 1), block_id=st.sampled_from(IDS), spare=st.booleans())
    def set_spare(self, at: int, block_id: bytes, spare: bool) -> None:
        tier = self.tiers[at]
        tier.ledger.set_spare(block_id, spare)
        block = tier.blocks.get(block_id)
        if block and not block.leaving and block.spare != spare:
            self.withdraw(tier, block_id)
            block.spare = spare
            self.enter(tier, block_id)

    @rule(at=st.integers(0, 1), block_id=st.sampled_from(IDS))
    def touch(self, at: int, block_id: bytes) -> None:
        tier = self.tiers[at]
        tier.ledger.touch(block_id, self.now)
        if block := tier.blocks.get(block_id):
            name = block.origin.dataset
            block.read_at = self.now
            tier.recent[name].remove(block_id)
            tier.recent[name].append(block_id)
            if block_id in tier.order[name]:
                block.visited = True
                if self.eviction(name) == "lru":
                    tier.order[name].remove(block_id)
                    tier.order[name].append(block_id)

    @rule(seconds=st.sampled_from([1, 5, 20]))
    def wait(self, seconds: int) -> None:
        """Time goes by, and what is not to be kept any longer goes: nothing else, and in the end all of it."""
        self.now += seconds
        for tier in self.tiers:
            due = {
                block_id
                for block_id, block in tier.blocks.items()
                if (ttl := self.retention(block.origin.dataset).ttl_s)
                and self.now - block.read_at >= ttl
                and not block.leaving
                and not self.pinned(block_id, block.origin)
            }
            mixed = {tier.blocks[block_id].origin.dataset for block_id in due}
            gone: set[bytes] = set()
            while named := tier.ledger.surplus(self.now, 3):
                assert len(named) == len(set(named)) <= 3
                for block_id in named:
                    block = tier.blocks[block_id]
                    name = block.origin.dataset
                    quota = self.retention(name).quota_bytes
                    is_over = quota is not None and self.used_of(name) > quota
                    assert block_id in due or is_over
                    assert block.spare or not self.pinned(block_id, block.origin)
                    if name not in mixed and not block.spare:
                        assert block_id == self.next_victim(tier, name, tier.order[name])
                    self.remove(tier, block_id)
                    gone.add(block_id)
            assert due <= gone
            for block in tier.blocks.values():  # what stays was looked at, and is looked at again a ttl later
                if (ttl := self.retention(block.origin.dataset).ttl_s) and self.now - block.read_at >= ttl:
                    block.read_at = self.now
            for name in DATASETS:
                tier.recent[name] = self.order_in(tier, name)
                if name in mixed:
                    self.follow_hand(tier, name)
            self.after_surplus(tier)

    def follow_hand(self, tier: Tier, name: str) -> None:
        """Where some blocks go as they are too old and others as they are too many, the order is the ledger's own."""
        group = tier.ledger._groups.get(name)
        if group is not None and isinstance(group.policy, Sieve):
            tier.hand[name] = group.policy._hand.block_id if group.policy._hand else None
            for block_id, node in group.policy._nodes.items():
                tier.blocks[block_id].visited = node.visited

    def order_in(self, tier: Tier, name: str) -> list[bytes]:
        """What the ledger looked at and left is behind the rest."""
        group = tier.ledger._groups.get(name)
        return list(group.blocks) if group else []

    def after_surplus(self, tier: Tier) -> None:
        for name in DATASETS:
            left = self.accounts.left_bytes(name)
            if left is not None and left < 0:
                assert not tier.order[name]
                assert not self.spares_of(tier, name)

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "tiers"):
            return
        used = self.accounts.used()
        for tier in self.tiers:
            tier.ledger.check()
            assert {block_id for block_id, _, _ in tier.ledger.held()} == tier.blocks.keys()
        for name in DATASETS:
            mine = used.get(name, 0)
            assert mine == sum(tier.ledger.used_bytes(name) for tier in self.tiers) == self.used_of(name)
            quota = self.retention(name).quota_bytes
            assert quota is None or mine <= max(quota, self.used.get(name, 0)), "it went over its quota"
        self.used = used


TestLedgerModel = LedgerMachine.TestCase
TestLedgerModel.settings = settings(
    max_examples=int(os.environ.get("RAYCACHE_MODEL_EXAMPLES", "100")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
