"""In which order blocks go: policies over opaque ids. Pure: no I/O, no clock, no lock.

A policy is told of the blocks of one dataset in one tier, those that may go. Whether one has to, and of which dataset,
is for the ledger. A policy remembers nothing of what it does not hold, so that its memory is bounded by its tier.

* ``keep``: admit until full, then refuse. Right for epochs in random order: it hits exactly the share that fits. When a
  block has to go all the same, it is the last admitted.
* ``lru``: the least recently touched goes. Over shuffled epochs it hits only ``c + (1 - c) ln(1 - c)`` of a share c.
* ``sieve``: SIEVE, after Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024. A queue in order of arrival, a bit for
  "touched since the hand last passed", and a hand that goes from old to new and takes out the first without it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from raycache.config import Eviction


class Policy(Protocol):
    """An id that is not held is ignored by ``touch`` and ``remove``."""

    gives_way: bool
    """Whether a block goes for another one of the same dataset."""

    def add(self, block_id: bytes) -> None:
        """A block is here that was not."""
        ...

    def touch(self, block_id: bytes) -> None:
        """A block was read."""
        ...

    def remove(self, block_id: bytes) -> None:
        """A block is gone, or may not go any more."""
        ...

    def victims(self) -> Iterator[bytes]:
        """Blocks in the order in which they go, each once. Asking for one means that it goes: whoever asks removes them
        all when done."""
        ...

    def __len__(self) -> int:
        """Blocks held."""
        ...


class Keep:
    """Admit until full, then refuse."""

    gives_way = False

    def __init__(self) -> None:
        self._held: dict[bytes, None] = {}

    def add(self, block_id: bytes) -> None:
        """See Policy."""
        self._held[block_id] = None

    def touch(self, block_id: bytes) -> None:
        """See Policy."""

    def remove(self, block_id: bytes) -> None:
        """See Policy."""
        self._held.pop(block_id, None)

    def victims(self) -> Iterator[bytes]:
        """See Policy."""
        return reversed(self._held)

    def __len__(self) -> int:
        return len(self._held)


class Lru:
    """The least recently touched goes."""

    gives_way = True

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, None] = OrderedDict()

    def add(self, block_id: bytes) -> None:
        """See Policy."""
        self._held[block_id] = None

    def touch(self, block_id: bytes) -> None:
        """See Policy."""
        if block_id in self._held:
            self._held.move_to_end(block_id)

    def remove(self, block_id: bytes) -> None:
        """See Policy."""
        self._held.pop(block_id, None)

    def victims(self) -> Iterator[bytes]:
        """See Policy."""
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


@dataclass(eq=False, slots=True)
class _Node:
    """A block in SIEVE's queue."""

    block_id: bytes
    visited: bool = False
    newer: _Node | None = None
    older: _Node | None = None


class Sieve:
    """SIEVE. ``_hand`` is where the next search begins; None: at the oldest."""

    gives_way = True

    def __init__(self) -> None:
        self._nodes: dict[bytes, _Node] = {}
        self._oldest: _Node | None = None
        self._newest: _Node | None = None
        self._hand: _Node | None = None

    def add(self, block_id: bytes) -> None:
        """See Policy."""
        node = self._nodes[block_id] = _Node(block_id)
        node.older = self._newest
        if self._newest is not None:
            self._newest.newer = node
        else:
            self._oldest = node
        self._newest = node

    def victims(self) -> Iterator[bytes]:
        """See Policy."""
        named: set[bytes] = set()
        while len(named) < len(self._nodes) and (node := self._hand or self._oldest):
            self._hand = node.newer
            if node.visited:
                node.visited = False
            elif node.block_id not in named:
                named.add(node.block_id)
                yield node.block_id

    def touch(self, block_id: bytes) -> None:
        """See Policy."""
        if node := self._nodes.get(block_id):
            node.visited = True

    def remove(self, block_id: bytes) -> None:
        """See Policy."""
        node = self._nodes.pop(block_id, None)
        if node is None:
            return
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


def make_policy(eviction: Eviction) -> Policy:
    """A policy that holds nothing yet."""
    policies: dict[Eviction, Callable[[], Policy]] = {"keep": Keep, "lru": Lru, "sieve": Sieve}
    return policies[eviction]()
