"""The books of one tier: who holds how many bytes, who is about to, and who must go first. Pure; its owner locks.

Bytes are reserved before they are used. A block that is to come in may take over the bytes of others that must go for
it, its *victims*: they stay, readable, until the newcomer is about to be written, and come back if it never is. So
``held_bytes + reserved_bytes <= quota_bytes`` at every moment, whatever the order in which reservations end.

A *spare* is a block that is held in a faster tier as well: it goes before the policy is asked.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from raycache.core.eviction import Policy


@dataclass(eq=False, slots=True)
class Reservation:
    """Bytes that one block will take. ``covered_bytes`` of them are still held by its victims."""

    block_id: bytes
    size_bytes: int
    victims: tuple[bytes, ...]
    covered_bytes: int

    @property
    def net_bytes(self) -> int:
        """What it needs beyond the bytes of its victims."""
        return max(0, self.size_bytes - self.covered_bytes)


class Ledger:
    """See the module."""

    def __init__(self, quota_bytes: int, policy: Policy) -> None:
        self.quota_bytes = quota_bytes
        self.held_bytes = 0
        self.reserved_bytes = 0
        """What reservations need beyond the bytes of their victims."""
        self._policy = policy
        self._held: dict[bytes, int] = {}
        self._spare: OrderedDict[bytes, None] = OrderedDict()
        self._reserved: dict[bytes, Reservation] = {}
        self._leaving: dict[bytes, Reservation] = {}

    def __contains__(self, block_id: bytes) -> bool:
        return block_id in self._held

    def held(self) -> list[bytes]:
        """All blocks that are here, those that are about to go included."""
        return list(self._held)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def free_bytes(self) -> int:
        """Neither held nor reserved."""
        return self.quota_bytes - self.held_bytes - self.reserved_bytes

    def touch(self, block_id: bytes) -> None:
        """A block was read."""
        self._policy.touch(block_id)

    def reserve(self, block_id: bytes, size_bytes: int, *, evict: bool = True) -> Reservation | None:
        """Bytes for a block, or None: it is here or on its way, or the policy has no room for it.

        With ``evict=False`` only free bytes count. The caller drops the victims, then calls ``commit``; or ``cancel``.
        """
        if block_id in self._held or block_id in self._reserved:
            return None
        room_bytes = self.free_bytes
        if not evict and room_bytes < size_bytes:
            return None
        victims: list[bytes] = []
        for spare in self._spare:
            if room_bytes >= size_bytes:
                break
            victims.append(spare)
            room_bytes += self._held[spare]
        more = self._policy.admit(block_id, size_bytes, room_bytes, self._reserved.keys())
        if more is None:
            return None
        for spare in victims:
            del self._spare[spare]
        victims += more
        reservation = Reservation(block_id, size_bytes, tuple(victims), sum(self._held[one] for one in victims))
        self._reserved[block_id] = reservation
        self._leaving.update(dict.fromkeys(victims, reservation))
        self.reserved_bytes += reservation.net_bytes
        return reservation

    def commit(self, reservation: Reservation) -> None:
        """The block is here. Its victims have been dropped."""
        assert not reservation.covered_bytes, "a victim still holds the bytes"
        del self._reserved[reservation.block_id]
        self.reserved_bytes -= reservation.net_bytes
        self._held[reservation.block_id] = reservation.size_bytes
        self.held_bytes += reservation.size_bytes

    def cancel(self, reservation: Reservation) -> None:
        """The block does not come; victims that are still here stay."""
        del self._reserved[reservation.block_id]
        self.reserved_bytes -= reservation.net_bytes
        self._policy.remove(reservation.block_id)
        for victim in reservation.victims:
            if self._leaving.get(victim) is reservation:
                del self._leaving[victim]
                self._enter(victim)

    def drop(self, block_id: bytes) -> None:
        """A block is gone; its bytes are free, or those of the reservation that it made way for."""
        size_bytes = self._held.pop(block_id, None)
        if size_bytes is None:
            return
        self.held_bytes -= size_bytes
        self._spare.pop(block_id, None)
        self._policy.remove(block_id)
        if reservation := self._leaving.pop(block_id, None):
            self.reserved_bytes -= reservation.net_bytes
            reservation.covered_bytes -= size_bytes
            self.reserved_bytes += reservation.net_bytes

    def set_spare(self, block_id: bytes, spare: bool) -> None:
        """Whether a faster tier holds the block too. Nothing for one that is not here, or is leaving."""
        if block_id not in self._held or block_id in self._leaving or (block_id in self._spare) == spare:
            return
        if spare:
            self._policy.remove(block_id)
            self._spare[block_id] = None
        else:
            del self._spare[block_id]
            self._enter(block_id)

    def clear(self) -> None:
        """Forget every block that is here; whoever made a reservation still ends it."""
        for block_id in list(self._held):
            self.drop(block_id)

    def check(self) -> None:
        """Invariants, for tests."""
        assert self.held_bytes == sum(self._held.values())
        assert self.reserved_bytes == sum(one.net_bytes for one in self._reserved.values())
        assert 0 <= self.held_bytes + self.reserved_bytes <= max(self.quota_bytes, 0), (self.held_bytes, self._reserved)
        assert len(self._policy) + len(self._spare) + len(self._leaving) == len(self._held) + len(self._reserved)

    def _enter(self, block_id: bytes) -> None:
        size_bytes = self._held[block_id]
        self._policy.admit(block_id, size_bytes, size_bytes)
