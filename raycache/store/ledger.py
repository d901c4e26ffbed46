"""The books of one tier: who holds how many bytes, who is about to, and who must go first. Pure; its owner locks.

Bytes are reserved before they are used. A block that is to come in may take over the bytes of others that must go for
it, its *victims*: they stay, readable, until the newcomer is about to be written, and come back if it never is. So
``held_bytes + reserved_bytes <= quota_bytes`` at every moment, whatever the order in which reservations end; and so it
is with the quota of each dataset, of which the ``accounts`` know what other tiers hold.

A *spare* is a block that is held elsewhere as well, in a faster tier or by the worker that it belongs to: it goes
before any policy is asked, pinned or not. A *pinned* block that is no spare never goes for another.

A block for which there are not enough free bytes takes, in this order: spares; blocks of datasets with a lower
priority, lowest first; blocks of its own dataset, if its policy lets them go; blocks of datasets with the same priority
whose policy lets them go, those of the largest first. Within a dataset its policy says which. One that would exceed the
quota of its dataset takes blocks of its own dataset only. One that is pinned may take any that is not: its own
dataset's whatever their policy, and at last those of any other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from raycache.core.eviction import Policy, make_policy
from raycache.core.retention import Retention
from raycache.core.values import Origin
from raycache.store.accounts import Accounts


@dataclass(eq=False, slots=True)
class Reservation:
    """Bytes that one block will take. ``covered_bytes`` of them are still held by its victims, ``own_bytes`` of these
    by victims of the same dataset."""

    block_id: bytes
    size_bytes: int
    origin: Origin
    victims: tuple[bytes, ...]
    covered_bytes: int
    own_bytes: int

    @property
    def net_bytes(self) -> int:
        """What it needs beyond the bytes of its victims."""
        return max(0, self.size_bytes - self.covered_bytes)

    @property
    def net_own_bytes(self) -> int:
        """What its dataset needs beyond the bytes of those victims that are its own."""
        return max(0, self.size_bytes - self.own_bytes)


@dataclass(eq=False, slots=True)
class _Block:
    size_bytes: int
    origin: Origin
    read_at: float
    spare: bool = False
    pinned: bool = False
    leaving: Reservation | None = None


@dataclass(eq=False, slots=True)
class _Group:
    """The blocks of one dataset. Each is in ``blocks``, least recently read first; and, unless it is pinned or leaving,
    among the spares or with the policy."""

    dataset: str
    retention: Retention
    policy: Policy
    blocks: OrderedDict[bytes, _Block] = field(default_factory=OrderedDict)
    spares: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    held_bytes: int = 0
    spare_bytes: int = 0
    open_bytes: int = 0
    """Of the blocks that the policy holds."""
    hits: int = 0


Source = tuple[int, Iterator[bytes]]
"""Bytes to be had, and the blocks that have them in the order in which they go."""


class Ledger:
    """See the module."""

    def __init__(self, quota_bytes: int, accounts: Accounts) -> None:
        self.quota_bytes = quota_bytes
        self.held_bytes = 0
        self.reserved_bytes = 0
        """What reservations need beyond the bytes of their victims."""
        self._accounts = accounts
        self._groups: dict[str, _Group] = {}
        self._held: dict[bytes, _Block] = {}
        self._reserved: dict[bytes, Reservation] = {}

    def __contains__(self, block_id: bytes) -> bool:
        return block_id in self._held

    def __len__(self) -> int:
        return len(self._held)

    @property
    def free_bytes(self) -> int:
        """Neither held nor reserved."""
        return self.quota_bytes - self.held_bytes - self.reserved_bytes

    def held(self) -> list[tuple[bytes, Origin, int]]:
        """All blocks that are here with their bytes, those that are about to go included."""
        return [(block_id, block.origin, block.size_bytes) for block_id, block in self._held.items()]

    def origin(self, block_id: bytes) -> Origin | None:
        """Where a block that is here comes from."""
        block = self._held.get(block_id)
        return None if block is None else block.origin

    def touch(self, block_id: bytes, now: float) -> None:
        """A block was read."""
        block = self._held.get(block_id)
        if block is None:
            return
        group = self._groups[block.origin.dataset]
        block.read_at = now
        group.blocks.move_to_end(block_id)
        group.policy.touch(block_id)
        group.hits += 1

    def reserve(self, block_id: bytes, size_bytes: int, origin: Origin, *, evict: bool = True) -> Reservation | None:
        """Bytes for a block, or None: it is here or on its way, or there is no room for it.

        With ``evict=False`` only free bytes count. The caller drops the victims, then calls ``commit``; or ``cancel``.
        """
        if block_id in self._held or block_id in self._reserved:
            return None
        group = self._group(origin.dataset)
        with self._accounts.lock:
            victims = self._choose(block_id, size_bytes, origin, group, evict and self._accounts.may_evict)
            if victims is None:
                self._forget_empty(group)
                return None
            covered = sum(self._held[one].size_bytes for one in victims)
            own = sum(self._held[one].size_bytes for one in victims if self._held[one].origin.dataset == origin.dataset)
            reservation = Reservation(block_id, size_bytes, origin, tuple(victims), covered, own)
            self._accounts.add(origin.dataset, reservation.net_own_bytes)
        self._reserved[block_id] = reservation
        self.reserved_bytes += reservation.net_bytes
        for victim in victims:
            self._withdraw(victim)
            self._held[victim].leaving = reservation
        return reservation

    def set_quota(self, quota_bytes: int) -> None:
        """Another quota; not below what is held and reserved now. Drop the ``first_to_go`` and call again."""
        self.quota_bytes = max(quota_bytes, self.held_bytes + self.reserved_bytes)

    def first_to_go(self) -> bytes | None:
        """The block that is needed least, or None when all are pinned or leaving."""
        groups = sorted(self._groups.values(), key=lambda one: (one.retention.priority, -one.held_bytes, one.dataset))
        spares = (iter(group.spares) for group in groups)
        return next(chain(*spares, *(group.policy.victims() for group in groups)), None)

    def commit(self, reservation: Reservation, now: float) -> None:
        """The block is here, as if it had been read ``now``. Its victims have been dropped."""
        assert not reservation.covered_bytes, "a victim still holds the bytes"
        block_id, size_bytes, origin = reservation.block_id, reservation.size_bytes, reservation.origin
        del self._reserved[block_id]
        self.reserved_bytes -= reservation.net_bytes
        self.held_bytes += size_bytes
        group = self._group(origin.dataset)
        block = _Block(size_bytes, origin, now, pinned=self._accounts.is_pinned(origin, block_id))
        self._held[block_id] = group.blocks[block_id] = block
        group.held_bytes += size_bytes
        self._enter(block_id)

    def cancel(self, reservation: Reservation) -> None:
        """The block does not come; victims that are still here stay."""
        del self._reserved[reservation.block_id]
        self.reserved_bytes -= reservation.net_bytes
        with self._accounts.lock:
            self._accounts.add(reservation.origin.dataset, -reservation.net_own_bytes)
        for victim in reservation.victims:
            block = self._held.get(victim)
            if block is not None and block.leaving is reservation:
                block.leaving = None
                self._enter(victim)
        self._forget_empty(self._group(reservation.origin.dataset))

    def drop(self, block_id: bytes) -> None:
        """A block is gone; its bytes are free, or those of the reservation that it made way for."""
        block = self._held.get(block_id)
        if block is None:
            return
        self._withdraw(block_id)
        group = self._groups[block.origin.dataset]
        del self._held[block_id], group.blocks[block_id]
        self.held_bytes -= block.size_bytes
        group.held_bytes -= block.size_bytes
        with self._accounts.lock:
            self._accounts.add(group.dataset, -block.size_bytes)
            if reservation := block.leaving:
                self._uncover(reservation, block)
        self._forget_empty(group)

    def set_spare(self, block_id: bytes, spare: bool) -> None:
        """Whether the block is held elsewhere too. Nothing for one that is not here, or is leaving."""
        block = self._held.get(block_id)
        if block is None or block.leaving or block.spare == spare:
            return
        self._withdraw(block_id)
        block.spare = spare
        self._enter(block_id)

    def clear(self) -> None:
        """Forget every block that is here; whoever made a reservation still ends it."""
        for block_id in list(self._held):
            self.drop(block_id)

    def apply(self) -> None:
        """What datasets may keep has changed: see the accounts. Takes time in proportion to the blocks."""
        for group in list(self._groups.values()):
            retention = self._accounts.retention(group.dataset)
            if not group.blocks and not self._accounts.knows(group.dataset):
                del self._groups[group.dataset]
            if group.retention == retention:
                continue
            group.retention = retention
            for block_id, block in group.blocks.items():
                if not block.leaving:
                    self._withdraw(block_id)
                block.pinned = self._accounts.is_pinned(block.origin, block_id)
            group.policy = make_policy(self._accounts.eviction(group.dataset))
            for block_id, block in group.blocks.items():
                if not block.leaving:
                    self._enter(block_id)

    def surplus(self, now: float, limit: int) -> list[bytes]:
        """Some blocks, at most ``limit``, that are to go though nobody needs their bytes: not read for their dataset's
        ttl, or beyond its quota, which was lowered. Costs little when there are none."""
        found: list[bytes] = []
        for group in self._groups.values():
            found.extend(self._expired(group, now, limit - len(found)))
            left_bytes = self._accounts.left_bytes(group.dataset)
            if left_bytes is not None and left_bytes < 0:
                over = -left_bytes - sum(self._held[one].size_bytes for one in found if one in group.blocks)
                blocks = chain(group.spares, group.policy.victims())
                # Not one more than is needed is asked for: a policy takes whom it names for gone.
                while over > 0 and len(found) < limit and (block_id := next(blocks, None)) is not None:
                    if block_id not in found:
                        found.append(block_id)
                        over -= group.blocks[block_id].size_bytes
        return found

    def datasets(self) -> dict[str, dict[str, int]]:
        """Per dataset: bytes and blocks here, those of them that are pinned, and reads that found their block."""
        return {
            group.dataset: {
                "bytes": group.held_bytes,
                "blocks": len(group.blocks),
                "pinned_bytes": sum(block.size_bytes for block in group.blocks.values() if block.pinned),
                "spare_bytes": group.spare_bytes,
                "hits": group.hits,
            }
            for group in self._groups.values()
        }

    def check(self) -> None:
        """Invariants, for tests."""
        assert self.held_bytes == sum(block.size_bytes for block in self._held.values())
        assert self.reserved_bytes == sum(one.net_bytes for one in self._reserved.values())
        assert 0 <= self.held_bytes + self.reserved_bytes <= max(self.quota_bytes, 0), (self.held_bytes, self._reserved)
        assert sum(len(group.blocks) for group in self._groups.values()) == len(self._held)
        for group in self._groups.values():
            blocks = group.blocks.items()
            spares = {one for one, block in blocks if block.spare and not block.leaving}
            opened = {one for one, block in blocks if not (block.spare or block.pinned or block.leaving)}
            assert spares == set(group.spares)
            assert len(opened) == len(group.policy)
            assert group.held_bytes == sum(block.size_bytes for _, block in blocks)
            assert group.spare_bytes == sum(group.blocks[one].size_bytes for one in spares)
            assert group.open_bytes == sum(group.blocks[one].size_bytes for one in opened)

    def used_bytes(self, dataset: str) -> int:
        """What a dataset holds and has reserved here; for tests."""
        group = self._groups.get(dataset)
        reserved = sum(one.net_own_bytes for one in self._reserved.values() if one.origin.dataset == dataset)
        return reserved + (group.held_bytes if group else 0)

    def _choose(
        self, block_id: bytes, size_bytes: int, origin: Origin, group: _Group, evict: bool
    ) -> list[bytes] | None:
        """The victims that a block needs, or None when there are not enough; nothing is changed then."""
        left_bytes = self._accounts.left_bytes(origin.dataset)
        over_bytes = 0 if left_bytes is None else size_bytes - left_bytes
        wanted_bytes = max(size_bytes - self.free_bytes, over_bytes)
        if wanted_bytes <= 0:
            return []
        if not evict:
            return None
        pinned = self._accounts.is_pinned(origin, block_id)
        sources = self._own(group, pinned) if over_bytes > 0 else self._all(group, pinned)
        if sum(there for there, _ in sources) < wanted_bytes:
            return None
        victims: list[bytes] = []
        for _, blocks in sources:
            for victim in blocks:
                victims.append(victim)
                wanted_bytes -= self._held[victim].size_bytes
                if wanted_bytes <= 0:
                    return victims
        raise AssertionError("the bytes that were counted are not there")

    def _own(self, group: _Group, pinned: bool) -> list[Source]:
        spares: Source = (group.spare_bytes, iter(group.spares))
        return [spares, _opened(group)] if pinned or group.policy.gives_way else [spares]

    def _all(self, group: _Group, pinned: bool) -> list[Source]:
        groups = sorted(self._groups.values(), key=lambda one: (one.retention.priority, -one.held_bytes, one.dataset))
        mine = group.retention.priority
        lower = [one for one in groups if one.retention.priority < mine]
        own = [group] if pinned or group.policy.gives_way else []
        others = [one for one in groups if one is not group and one.retention.priority >= mine]
        if not pinned:
            others = [one for one in others if one.retention.priority == mine and one.policy.gives_way]
        spares: Iterable[Source] = ((one.spare_bytes, iter(one.spares)) for one in groups)
        return [*spares, *(_opened(one) for one in (*lower, *own, *others))]

    def _expired(self, group: _Group, now: float, limit: int) -> list[bytes]:
        ttl_s = group.retention.ttl_s
        found: list[bytes] = []
        for _ in range(min(limit, len(group.blocks)) if ttl_s else 0):
            block_id, block = next(iter(group.blocks.items()))
            if now - block.read_at < ttl_s:
                break
            if not block.pinned and not block.leaving:
                found.append(block_id)
            # Looked at once per ttl: what is pinned stays, and what is to go may not be gone by the next time.
            block.read_at = now
            group.blocks.move_to_end(block_id)
        return found

    def _uncover(self, reservation: Reservation, victim: _Block) -> None:
        """A victim is gone: the reservation needs its bytes by itself now."""
        dataset = reservation.origin.dataset
        self.reserved_bytes -= reservation.net_bytes
        self._accounts.add(dataset, -reservation.net_own_bytes)
        reservation.covered_bytes -= victim.size_bytes
        reservation.own_bytes -= victim.size_bytes if victim.origin.dataset == dataset else 0
        self.reserved_bytes += reservation.net_bytes
        self._accounts.add(dataset, reservation.net_own_bytes)

    def _enter(self, block_id: bytes) -> None:
        """A block may go for others, unless it is pinned."""
        block = self._held[block_id]
        group = self._groups[block.origin.dataset]
        if block.spare:
            group.spares[block_id] = None
            group.spare_bytes += block.size_bytes
        elif not block.pinned:
            group.policy.add(block_id)
            group.open_bytes += block.size_bytes

    def _withdraw(self, block_id: bytes) -> None:
        """Undo ``_enter``; nothing for a block that is leaving."""
        block = self._held[block_id]
        group = self._groups[block.origin.dataset]
        if block.leaving:
            return
        if block.spare:
            del group.spares[block_id]
            group.spare_bytes -= block.size_bytes
        elif not block.pinned:
            group.policy.remove(block_id)
            group.open_bytes -= block.size_bytes

    def _group(self, dataset: str) -> _Group:
        group = self._groups.get(dataset)
        if group is None:
            policy = make_policy(self._accounts.eviction(dataset))
            group = self._groups[dataset] = _Group(dataset, self._accounts.retention(dataset), policy)
        return group

    def _forget_empty(self, group: _Group) -> None:
        """Datasets come and go; one with blocks, or hits to tell of, stays."""
        if not group.blocks and not group.hits:
            self._groups.pop(group.dataset, None)


def _opened(group: _Group) -> Source:
    return group.open_bytes, group.policy.victims()
