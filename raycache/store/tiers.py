"""Where the blocks of one worker lie: memory first, then directories in their order.

* A block that was filled goes to memory; when the policy has no room there, to the first directory that has.
* A block that the policy takes out of memory goes down to a directory, or is gone when none has room for it.
* A block read from a directory comes up again while memory has free bytes. The copy below stays, as the first to go
  when bytes are needed: a worker that is killed has lost nothing by it, and going down again is free.

Threading: safe; one lock for the books of the memory, blocks are copied and written outside it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raycache.core.blockfile import Ends, Hole
from raycache.core.retention import Retention, is_within
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import Buffer, Filed, Freed, Origin
from raycache.errors import Unavailable
from raycache.store.accounts import Accounts
from raycache.store.directory import Directory
from raycache.store.ledger import Ledger, Reservation
from raycache.store.openblock import OpenBlock

TEND_S, TEND_BLOCKS = 1.0, 64
"""How often what is not to be kept is dropped, and how much of it in each tier: 2 GiB a second of blocks of 32 MiB."""


class BlockMemory(Protocol):
    """Where sealed blocks lie: plasma in a worker, plain memory in tests."""

    def put(self, block: bytearray) -> tuple[Any, memoryview]:
        """Keep a block until the returned handle is dropped. Raises Unavailable when there is no room."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """A sealed block in memory. Dropping the last reference to ``handle`` frees it."""

    handle: Any
    view: memoryview
    holes: tuple[Hole, ...]
    ends: Ends | None
    """See blockfile.encode."""
    origin: Origin
    sealed: float
    """When, on the monotonic clock."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A block in a directory."""

    directory: Directory
    block: OpenBlock


@dataclass(frozen=True, slots=True)
class Claim:
    """Bytes reserved for a block: in memory, or in a directory."""

    reservation: Reservation
    directory: Directory | None


class Tiers:
    """See the module."""

    def __init__(
        self,
        memory: BlockMemory,
        quota_bytes: int,
        directories: Sequence[Directory] = (),
        accounts: Accounts | None = None,
        scheduler: Scheduler = THREADS,
    ) -> None:
        """``directories``: open, with the same ``accounts``; ``close`` closes them. ``quota_bytes``: of the memory."""
        self.memory_quota_bytes = quota_bytes
        self._memory = memory
        self._directories = tuple(directories)
        self._scheduler = scheduler
        self._lock = scheduler.lock()
        self._accounts = accounts or Accounts(scheduler=scheduler)
        self._ledger = Ledger(quota_bytes, self._accounts)
        self._kept: dict[bytes, Kept] = {}
        self._surplus: set[bytes] = set()
        self._hits = 0
        self._shrunk_bytes = 0

    def close(self) -> None:
        """Let go of the directories; their blocks stay."""
        for directory in self._directories:
            directory.close()

    def about(self, block_id: bytes) -> tuple[str, int, str] | None:
        """Dataset, size and directory of a block that is here. May read its header."""
        with self._lock:
            kept = self._kept.get(block_id)
        if kept is not None:
            return kept.origin.dataset, len(kept.view), kept.origin.directory
        stored = self.find_stored(block_id)
        if stored is None:
            return None
        origin = stored.block.origin
        return origin.dataset, stored.block.header.size_bytes, origin.directory

    @property
    def capacity_bytes(self) -> int:
        """Quotas of the memory and of the directories in service."""
        return self.memory_quota_bytes + sum(one.quota_bytes for one in self._directories if one.in_service)

    def held(self) -> list[tuple[bytes, str | None]]:
        """All blocks that are here, with their dataset."""
        found: dict[bytes, str | None] = {}
        for tier in (None, *self._directories):
            found.update((block_id, origin.dataset) for block_id, origin, _ in self._held_in(tier))
        with self._lock:
            self._surplus &= found.keys()
        return list(found.items())

    def set_surplus(self, block_id: bytes, surplus: bool) -> None:
        """Whether a block has its place on another worker, which has it: then it is the first to go. Nothing for one
        that is not here."""
        with self._lock:
            if surplus == (block_id in self._surplus) or (surplus and not self._holds(block_id)):
                return
            (self._surplus.add if surplus else self._surplus.discard)(block_id)
            self._ledger.set_spare(block_id, surplus)
            spare_below = surplus or block_id in self._kept
        for directory in self._directories:
            directory.set_spare(block_id, spare_below)

    @property
    def looking(self) -> bool:
        """Whether there may be blocks on disk that were not found yet."""
        return any(directory.looking for directory in self._directories)

    def _holds(self, block_id: bytes) -> bool:
        return block_id in self._kept or any(directory.has(block_id) for directory in self._directories)

    def __contains__(self, block_id: bytes) -> bool:
        with self._lock:
            kept = block_id in self._kept
        return kept or any(block_id in directory for directory in self._directories)

    def has(self, block_id: bytes) -> bool:
        """Whether a block is known to be here."""
        with self._lock:
            kept = block_id in self._kept
        return kept or any(directory.has(block_id) for directory in self._directories)

    def in_memory(self, block_id: bytes) -> Kept | None:
        """A block that is in memory. Quick."""
        with self._lock:
            kept = self._kept.get(block_id)
            if kept is not None:
                self._hits += 1
                self._ledger.touch(block_id, self._scheduler.monotonic())
            return kept

    def on_disk(self, block_id: bytes) -> bool:
        """Whether a directory has the block, as far as is known without looking. Quick."""
        return any(block_id in directory for directory in self._directories)

    def find_stored(self, block_id: bytes) -> Stored | None:
        """A block in a directory. May read its header."""
        for directory in self._directories:
            block = directory.find(block_id)
            if block is not None:
                return Stored(directory, block)
        return None

    def read(
        self, stored: Stored, offset: int, length: int, *, whole: bool, named: bool = False
    ) -> Kept | Filed | Buffer | None:
        """The block, brought up where it is wanted whole and memory has free bytes, else the bytes of a range; with
        ``named`` the name of its file in their place.

        None when the directory failed or the bytes were not those that were written.
        """
        header = stored.block.header
        reservation = None
        if whole and header.block_id not in self._surplus:
            with self._lock:
                reservation = self._ledger.reserve(header.block_id, header.size_bytes, stored.block.origin, evict=False)
        if reservation is None and named:
            return stored.directory.name(stored.block)
        if reservation is None:
            return stored.directory.read(stored.block, offset, length)
        kept = None
        try:
            data = stored.directory.read(stored.block, 0, header.size_bytes)
            if data is None:
                return None
            try:
                kept = self._put(bytearray(data), header.holes, header.ends, stored.block.origin)
            except Unavailable:
                return data[offset : offset + length]
        finally:
            self._settle(reservation, kept)
        stored.directory.set_spare(header.block_id, True)
        return kept

    def reserve(self, block_id: bytes, size_bytes: int, origin: Origin, *, evict: bool = True) -> Claim | None:
        """Bytes for a block that is to be filled, in the first tier that has them. ``keep`` it, or ``cancel``.

        With ``evict=False`` no other block goes for it.
        """
        with self._lock:
            reservation = self._ledger.reserve(block_id, size_bytes, origin, evict=evict)
        if reservation is not None:
            return Claim(reservation, None)
        for directory in self._directories:
            reservation = directory.reserve(block_id, size_bytes, origin, evict=evict)
            if reservation is not None:
                return Claim(reservation, directory)
        return None

    def keep(self, claim: Claim, block: bytearray, holes: tuple[Hole, ...], ends: Ends | None = None) -> bool:
        """Put a block where its bytes are reserved. False, or whatever the memory raises: then ``cancel``."""
        reservation = claim.reservation
        with self._lock:
            self._surplus.discard(reservation.block_id)
        if claim.directory is not None:
            return claim.directory.write(reservation, block, holes, ends)
        for victim in reservation.victims:
            self._demote(victim)
        kept = self._put(block, holes, ends, reservation.origin)
        self._settle(reservation, kept)
        return True

    def cancel(self, claim: Claim) -> None:
        """The block does not come."""
        if claim.directory is None:
            self._settle(claim.reservation, None)
        else:
            claim.directory.cancel(claim.reservation)

    def drop(self, block_id: bytes) -> None:
        """Forget a block wherever it is."""
        self._drop_from_memory(block_id)
        for directory in self._directories:
            if block_id in directory:
                directory.drop(block_id)

    def configure(self, retentions: Mapping[str, Retention]) -> None:
        """What all datasets may keep here, quotas as this worker's shares. Quick when nothing has changed."""
        if not self._accounts.set(retentions):
            return
        with self._lock:
            self._ledger.apply()
        for directory in self._directories:
            directory.apply()

    def tend(self, limit: int) -> int:
        """Drop blocks that are not to be kept any longer: not read for their dataset's ttl, or beyond a quota that was
        lowered. At most ``limit`` per tier at a time; returns how many."""
        with self._lock:
            dropped = self._ledger.surplus(self._scheduler.monotonic(), limit)
        for block_id in dropped:
            self.drop(block_id)
        for directory in self._directories:
            with self._lock:  # reads of what is in memory too are known there
                below = [block_id for block_id in directory.surplus(limit) if block_id not in self._kept]
            for block_id in below:
                directory.drop(block_id)
            dropped += below
        return len(dropped)

    def free(self, dataset: str, path: str, blocks: Collection[bytes] | None = None) -> Freed:
        """Drop a dataset's blocks of a directory and all below it, or those of ``blocks`` among them. Pinned ones stay.

        A block that is on its way in comes all the same.
        """
        wanted = [
            (tier, block_id, size_bytes, self._accounts.is_pinned(origin, block_id))
            for tier in (None, *self._directories)
            for block_id, origin, size_bytes in self._held_in(tier)
            if origin.dataset == dataset
            and is_within(origin.directory, path)
            and (blocks is None or block_id in blocks)
        ]
        gone = [
            size_bytes for tier, block_id, size_bytes, pinned in wanted if not pinned and self._leave(tier, block_id)
        ]
        return Freed(len(gone), sum(gone), sum(size_bytes for _, _, size_bytes, pinned in wanted if pinned))

    def _held_in(self, tier: Directory | None) -> list[tuple[bytes, Origin, int]]:
        if tier is not None:
            return tier.held()
        with self._lock:
            return self._ledger.held()

    def _leave(self, tier: Directory | None, block_id: bytes) -> bool:
        """Drop a block from one tier; None is the memory."""
        if tier is not None:
            return tier.drop(block_id)
        self._drop_from_memory(block_id)
        return True

    @property
    def memory_bytes(self) -> int:
        """What blocks in memory take."""
        return self._ledger.held_bytes

    def set_memory_quota(self, quota_bytes: int, *, write_down: bool) -> None:
        """Keep no more than this in memory from now on. What must go is written to a directory that has room, unless
        ``write_down`` is False; blocks on their way in are let in still."""
        while True:
            with self._lock:
                self._ledger.set_quota(quota_bytes)
                block_id = self._ledger.first_to_go() if self._ledger.quota_bytes > quota_bytes else None
                if block_id is None:
                    return
                held_bytes = self._ledger.held_bytes
            if write_down:
                self._demote(block_id)
            else:
                self._drop_from_memory(block_id)
            with self._lock:
                self._shrunk_bytes += max(0, held_bytes - self._ledger.held_bytes)

    def renew(self, block_ids: Sequence[bytes], read: Sequence[bytes]) -> list[bool]:
        """Which blocks are in memory. ``read``: blocks that a client has read without asking."""
        with self._lock:
            now = self._scheduler.monotonic()
            for block_id in read:
                self._ledger.touch(block_id, now)
            kept = [block_id in self._kept for block_id in block_ids]
        for directory in self._directories:
            directory.touch(read)
        return kept

    def status(self) -> dict[str, Any]:
        """Figures for ``raycache status``."""
        used = self._accounts.used()
        over = {dataset: left for dataset in used if (left := self._accounts.left_bytes(dataset) or 0) < 0}
        with self._lock:
            memory = {
                "directory": None,
                "medium": "memory",
                "quota_bytes": self._ledger.quota_bytes,
                "configured_bytes": self.memory_quota_bytes,
                "shrunk_bytes": self._shrunk_bytes,
                "used_bytes": self._ledger.held_bytes,
                "blocks": len(self._kept),
                "hits": self._hits,
                "corrupt": 0,
                "datasets": self._ledger.datasets(),
                "out_of_service": None,
            }
        return {
            "mem_bytes": memory["used_bytes"],
            "mem_quota_bytes": memory["quota_bytes"],
            "blocks": memory["blocks"],
            "over_quota_bytes": {dataset: -left for dataset, left in over.items()},
            "tiers": [memory, *(directory.status() for directory in self._directories)],
        }

    def check(self) -> None:
        """Invariants, for tests: bytes held and reserved are what they should be, and within each quota."""
        with self._lock:
            self._ledger.check()
            assert self._ledger.held_bytes == sum(len(kept.view) for kept in self._kept.values())
        for directory in self._directories:
            directory.check()

    def _put(self, block: bytearray, holes: tuple[Hole, ...], ends: Ends | None, origin: Origin) -> Kept:
        handle, view = self._memory.put(block)
        return Kept(handle, view, holes, ends, origin, self._scheduler.monotonic())

    def _settle(self, reservation: Reservation, kept: Kept | None) -> None:
        with self._lock:
            if kept is None:
                self._ledger.cancel(reservation)
            else:
                self._ledger.commit(reservation, self._scheduler.monotonic())
                self._kept[reservation.block_id] = kept

    def _demote(self, block_id: bytes) -> None:
        """Take a block out of memory, once it is in a directory or none has room for it."""
        with self._lock:
            kept = self._kept.get(block_id)
        if kept is not None and not self.on_disk(block_id) and block_id not in self._surplus:
            self._write_down(block_id, kept)
        self._drop_from_memory(block_id)

    def _write_down(self, block_id: bytes, kept: Kept) -> None:
        for directory in self._directories:
            reservation = directory.reserve(block_id, len(kept.view), kept.origin)
            if reservation is None:
                continue
            written = False
            try:
                written = directory.write(reservation, kept.view, kept.holes, kept.ends)
            finally:
                if not written:
                    directory.cancel(reservation)
            if written:
                return

    def _drop_from_memory(self, block_id: bytes) -> None:
        with self._lock:
            if self._kept.pop(block_id, None) is not None:
                self._ledger.drop(block_id)
            if not self.on_disk(block_id):
                self._surplus.discard(block_id)
            spare = block_id in self._surplus
        for directory in self._directories:
            directory.set_spare(block_id, spare)
