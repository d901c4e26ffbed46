"""A block on its way in: which of its parts are here, under way, failed or not asked for yet.

A flight begins as a *probe* that fetches just the parts readers ask for; it becomes a *fill* when the store decides
that the whole block is wanted. It may also come whole from another worker. Pure bookkeeping: no I/O, no clock, no
lock - the store calls it under its own.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import Enum, auto

from raycache.core.blockfile import Ends, chunk_ends
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
    pulling       another worker is asked for the whole block; parts that readers want wait for the outcome
    direct        another worker reads through this one: it is not to be asked in turn
    sealing       one fetcher is turning the parts into a block
    waiters       readers that wait for a part
    fetched_bytes bytes that have arrived, held here until the block is sealed
    """

    def __init__(self, plan: BlockPlan) -> None:
        self.plan = plan
        self.claim: Claim | None = None
        self.pulling = False
        self.direct = False
        self.sealing = False
        self.waiters = 0
        self.fetched_bytes = 0
        self._starts = [part.block_offset for part in plan.parts]
        self._states: dict[int, _Part] = {}
        self._data: dict[int, Buffer] = {}
        self._errors: dict[int, Exception] = {}
        self._whole: Buffer | None = None
        self._next_fill = 0

    def adopt(self, plan: BlockPlan) -> None:
        """Take the plan that a reader brought, where the block came up without one. Nothing was asked for yet."""
        self.plan = plan
        self._starts = [part.block_offset for part in plan.parts]

    @property
    def is_planned(self) -> bool:
        """Whether it is known where the parts come from."""
        return bool(self.plan.parts) or not self.plan.size_bytes

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
        return not self.is_settled(number) and number not in self._states

    @property
    def has_failed(self) -> bool:
        """Whether a part could not be had."""
        return bool(self._errors)

    @property
    def touched(self) -> bool:
        """Whether any part was asked for."""
        return bool(self._states or self._data or self._errors or self._whole is not None)

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or running."""
        return not self._states and not self.pulling

    def queue(self, number: int) -> None:
        """A reader wants a part that is new."""
        self._states[number] = _Part.QUEUED

    def begin(self, number: int) -> bool:
        """A fetcher takes a part; False when another one has it or it is here."""
        if self._states.get(number) is _Part.RUNNING or self.is_settled(number):
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

    def begin_written(self) -> list[int]:
        """Begin the parts of written files that readers wait for; where the whole block is wanted, all that nobody
        took."""
        if self.pulling:
            return []
        wanted = range(len(self.plan.parts)) if self.filling else list(self._states)
        return [number for number in wanted if self.plan.parts[number].is_written and self.begin(number)]

    def arrived(self, number: int, data: Buffer) -> None:
        """A part is here."""
        del self._states[number]
        if self._whole is not None:
            return
        self._data[number] = data
        self.fetched_bytes += len(data)

    def arrived_whole(self, block: Buffer) -> None:
        """All of it is here, from another worker."""
        self.pulling = False
        self._whole = block
        self._data.clear()
        self._errors.clear()
        self._states = {number: state for number, state in self._states.items() if state is _Part.RUNNING}
        self.fetched_bytes = len(block)

    def pull_failed(self) -> list[int]:
        """No worker had it; the parts that readers wait for are to be fetched now."""
        self.pulling = False
        return [number for number, state in self._states.items() if state is _Part.QUEUED]

    def failed(self, number: int, error: Exception) -> None:
        """A part could not be fetched."""
        del self._states[number]
        if self._whole is None:
            self._errors[number] = error

    def forget_failure(self, number: int) -> None:
        """Let a part that failed for a passing reason be asked for again."""
        error = self._errors.get(number)
        if error is not None and not isinstance(error, Changed):
            del self._errors[number]

    def is_settled(self, number: int) -> bool:
        """Whether waiting for a part is over: it arrived or failed."""
        return self._whole is not None or number in self._data or number in self._errors

    @property
    def is_whole(self) -> bool:
        """Whether it came whole from another worker."""
        return self._whole is not None

    @property
    def is_complete(self) -> bool:
        """Whether every part arrived or failed."""
        if self._whole is not None:
            return not self._states
        return self.is_planned and len(self._data) + len(self._errors) == len(self.plan.parts)

    @property
    def can_be_kept(self) -> bool:
        """Whether what is missing will never come: then it is a hole, else the block must be fetched again."""
        return self.is_complete and all(isinstance(error, Changed) for error in self._errors.values())

    def read(self, offset: int, length: int) -> Buffer:
        """A range whose parts are settled. Raises the error of a part that failed."""
        if self._whole is not None:
            return memoryview(self._whole)[offset : offset + length]
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
        if self._whole is not None:
            return bytearray(self._whole)
        block = bytearray(self.plan.size_bytes)
        view = memoryview(block)
        for number, data in self._data.items():
            start = self._starts[number]
            view[start : start + len(data)] = data
        return block

    def ends(self) -> Ends | None:
        """See blockfile.encode."""
        return chunk_ends(self.plan.size_bytes, self._starts) if self.is_planned else None

    def holes(self) -> tuple[tuple[int, int], ...]:
        """Ranges of the parts that are gone from the source."""
        parts = (self.plan.parts[number] for number in sorted(self._errors))
        return tuple((part.block_offset, part.block_offset + part.length) for part in parts)
