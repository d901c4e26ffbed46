"""A block on its way in: which of its parts are here, under way, failed or not asked for yet.

A flight begins as a *probe* that fetches just the parts readers ask for; it becomes a *fill* when the store decides
that the whole block is wanted. Pure bookkeeping: no I/O, no clock, no lock - the store calls it under its own.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import Enum, auto

from raycache.core.values import BlockPlan, Buffer
from raycache.errors import Changed
from raycache.store.tiers import Claim


class _Part(Enum):
    QUEUED = auto()
    RUNNING = auto()


class Flight:
    """Progress of one block.

    plan          what the block is made of
    claim         the bytes that are reserved for it, once the whole block is wanted
    sealing       one fetcher is turning the parts into a block
    waiters       readers that wait for a part
    fetched_bytes bytes that have arrived, held here until the block is sealed
    """

    def __init__(self, plan: BlockPlan) -> None:
        self.plan = plan
        self.claim: Claim | None = None
        self.sealing = False
        self.waiters = 0
        self.fetched_bytes = 0
        self._starts = [part.block_offset for part in plan.parts]
        self._states: dict[int, _Part] = {}
        self._data: dict[int, Buffer] = {}
        self._errors: dict[int, Exception] = {}
        self._next_fill = 0

    @property
    def filling(self) -> bool:
        """Whether the whole block is wanted."""
        return self.claim is not None

    def covering(self, offset: int, length: int) -> range:
        """Numbers of the parts that a range touches."""
        if not length:
            return range(0)
        first = bisect_right(self._starts, offset) - 1
        return range(first, bisect_right(self._starts, offset + length - 1))

    def is_new(self, number: int) -> bool:
        """Whether nobody has asked for a part yet, or it failed for a reason that may pass."""
        return number not in self._data and number not in self._errors and number not in self._states

    @property
    def touched(self) -> bool:
        """Whether any part was asked for."""
        return bool(self._states or self._data or self._errors)

    @property
    def idle(self) -> bool:
        """Whether no part is queued or running."""
        return not self._states

    def queue(self, number: int) -> None:
        """A reader wants a part that is new."""
        self._states[number] = _Part.QUEUED

    def begin(self, number: int) -> bool:
        """A fetcher takes a part; False when another one has it or it is here."""
        if self._states.get(number) is _Part.RUNNING or number in self._data or number in self._errors:
            return False
        self._states[number] = _Part.RUNNING
        return True

    def next_fill(self) -> int | None:
        """Begin the next part that nobody took, or None when all are taken."""
        while self._next_fill < len(self.plan.parts):
            number = self._next_fill
            self._next_fill += 1
            if self.begin(number):
                return number
        return None

    def arrived(self, number: int, data: Buffer) -> None:
        """A part is here."""
        del self._states[number]
        self._data[number] = data
        self.fetched_bytes += len(data)

    def failed(self, number: int, error: Exception) -> None:
        """A part could not be fetched."""
        del self._states[number]
        self._errors[number] = error

    def forget_failure(self, number: int) -> None:
        """Let a part that failed for a passing reason be asked for again."""
        error = self._errors.get(number)
        if error is not None and not isinstance(error, Changed):
            del self._errors[number]

    def is_settled(self, number: int) -> bool:
        """Whether waiting for a part is over: it arrived or failed."""
        return number in self._data or number in self._errors

    @property
    def is_complete(self) -> bool:
        """Whether every part arrived or failed."""
        return len(self._data) + len(self._errors) == len(self.plan.parts)

    @property
    def can_be_kept(self) -> bool:
        """Whether what is missing will never come: then it is a hole, else the block must be fetched again."""
        return self.is_complete and all(isinstance(error, Changed) for error in self._errors.values())

    def read(self, offset: int, length: int) -> Buffer:
        """A range whose parts are settled. Raises the error of a part that failed."""
        pieces: list[memoryview] = []
        for number in self.covering(offset, length):
            if number in self._errors:
                raise self._errors[number]
            start = self._starts[number]
            part = memoryview(self._data[number])
            pieces.append(part[max(0, offset - start) : offset + length - start])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def assemble(self) -> bytearray:
        """All bytes of the block; zeros where there is a hole."""
        block = bytearray(self.plan.size_bytes)
        view = memoryview(block)
        for number, data in self._data.items():
            start = self._starts[number]
            view[start : start + len(data)] = data
        return block

    def holes(self) -> tuple[tuple[int, int], ...]:
        """Ranges of the parts that are gone from the source."""
        parts = (self.plan.parts[number] for number in sorted(self._errors))
        return tuple((part.block_offset, part.block_offset + part.length) for part in parts)
