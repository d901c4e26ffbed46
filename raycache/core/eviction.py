"""Which blocks stay: policies over opaque ids and sizes in bytes. Pure: no I/O, no clock, no lock.

A policy is told of the blocks that one tier holds and, when one more is to come in, names those that must go. It never
names a pinned one, and it remembers nothing of what it does not hold, so that its memory is bounded by its tier.

* ``keep``: admit until full, then refuse. Right for epochs in random order: it hits exactly the share that fits.
* ``lru``: the least recently touched goes. Over shuffled epochs it hits only ``c + (1 - c) ln(1 - c)`` of a share c.
* ``sieve``: SIEVE, after Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024. A queue in order of arrival, a bit for
  "touched since the hand last passed", and a hand that goes from old to new and takes out the first without it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from raycache.config import Eviction


class Policy(Protocol):
    """What the blocks of one tier are to a policy. An id that is not held is ignored by ``touch`` and ``remove``."""

    def admit(
        self, block_id: bytes, size_bytes: int, room_bytes: int, pinned: Collection[bytes] = ()
    ) -> list[bytes] | None:
        """Take in a block that is not held. ``room_bytes``: what is free now.

        Returns the blocks that must go for it, which the policy has forgotten by then; or None, with nothing changed
        that is held, when it must not come in: it is read through.
        """
        ...

    def touch(self, block_id: bytes) -> None:
        """A block was read."""
        ...

    def remove(self, block_id: bytes) -> None:
        """A block is gone for another reason."""
        ...

    def __len__(self) -> int:
        """Blocks held."""
        ...


class Keep:
    """Admit until full, then refuse."""

    def __init__(self) -> None:
        self._held: set[bytes] = set()

    def admit(
        self, block_id: bytes, size_bytes: int, room_bytes: int, pinned: Collection[bytes] = ()
    ) -> list[bytes] | None:
        """See Policy. Never names a block to evict."""
        if size_bytes > room_bytes:
            return None
        self._held.add(block_id)
        return []

    def touch(self, block_id: bytes) -> None:
        """See Policy."""

    def remove(self, block_id: bytes) -> None:
        """See Policy."""
        self._held.discard(block_id)

    def __len__(self) -> int:
        return len(self._held)


class Lru:
    """The least recently touched goes."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[bytes, int] = OrderedDict()

    def admit(
        self, block_id: bytes, size_bytes: int, room_bytes: int, pinned: Collection[bytes] = ()
    ) -> list[bytes] | None:
        """See Policy."""
        victims: list[bytes] = []
        for victim, victim_bytes in self._sizes.items():
            if room_bytes >= size_bytes:
                break
            if victim not in pinned:
                victims.append(victim)
                room_bytes += victim_bytes
        if room_bytes < size_bytes:
            return None
        for victim in victims:
            del self._sizes[victim]
        self._sizes[block_id] = size_bytes
        return victims

    def touch(self, block_id: bytes) -> None:
        """See Policy."""
        if block_id in self._sizes:
            self._sizes.move_to_end(block_id)

    def remove(self, block_id: bytes) -> None:
        """See Policy."""
        self._sizes.pop(block_id, None)

    def __len__(self) -> int:
        return len(self._sizes)


@dataclass(eq=False, slots=True)
class _Node:
    """A block in SIEVE's queue."""

    block_id: bytes
    size_bytes: int
    visited: bool = False
    newer: _Node | None = None
    older: _Node | None = None


class Sieve:
    """SIEVE. ``_hand`` is where the next search begins; None: at the oldest."""

    def __init__(self) -> None:
        self._nodes: dict[bytes, _Node] = {}
        self._oldest: _Node | None = None
        self._newest: _Node | None = None
        self._hand: _Node | None = None
        self._held_bytes = 0

    def admit(
        self, block_id: bytes, size_bytes: int, room_bytes: int, pinned: Collection[bytes] = ()
    ) -> list[bytes] | None:
        """See Policy."""
        pinned_bytes = sum(self._nodes[one].size_bytes for one in pinned if one in self._nodes)
        if room_bytes + self._held_bytes - pinned_bytes < size_bytes:
            return None
        victims: list[bytes] = []
        while room_bytes < size_bytes and (node := self._hand or self._oldest):
            self._hand = node.newer
            if node.block_id in pinned:
                continue
            if node.visited:
                node.visited = False
                continue
            victims.append(node.block_id)
            room_bytes += node.size_bytes
            self.remove(node.block_id)
        self._append(_Node(block_id, size_bytes))
        return victims

    def touch(self, block_id: bytes) -> None:
        """See Policy."""
        if node := self._nodes.get(block_id):
            node.visited = True

    def remove(self, block_id: bytes) -> None:
        """See Policy."""
        node = self._nodes.pop(block_id, None)
        if node is None:
            return
        self._held_bytes -= node.size_bytes
        if self._hand is node:
            self._hand = node.newer
        if node.older is not None:
            node.older.newer = node.newer
        else:
            self._oldest = node.newer
        if node.newer is not None:
            node.newer.older = node.older
        else:
            self._newest = node.older

    def __len__(self) -> int:
        return len(self._nodes)

    def _append(self, node: _Node) -> None:
        self._nodes[node.block_id] = node
        self._held_bytes += node.size_bytes
        node.older = self._newest
        if self._newest is not None:
            self._newest.newer = node
        else:
            self._oldest = node
        self._newest = node


def make_policy(eviction: Eviction) -> Policy:
    """A policy that holds nothing yet."""
    policies: dict[Eviction, Callable[[], Policy]] = {"keep": Keep, "lru": Lru, "sieve": Sieve}
    return policies[eviction]()
