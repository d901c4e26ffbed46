"""Memory for reads past the page cache: whole pages, aligned, and used again.

Fresh memory costs a fault for each page that a read fills, more than the read's own work; and what lies in few large
pages is described to a disk in few pieces.

Bounds: SLOTS pieces of SLOT_BYTES, of which only those are real memory that were in use at the same time; more, and
longer ones, are fresh memory. Threading: one thread.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from raycache.core.blockfile import CHUNK_BYTES, PAGE_BYTES

SLOTS = 32
SLOT_BYTES = 2**20 + 4 * CHUNK_BYTES
"""The longest read that a kernel asks for, the chunks that it begins and ends in, and its first page."""


class Pages(NamedTuple):
    """Memory to read into."""

    memory: memoryview
    address: int
    slot: int | None = None
    """What to give back when nobody looks into it any more."""


def fresh(size_bytes: int) -> Pages:
    """Memory for whole pages, as O_DIRECT wants it; not cleared."""
    whole = _whole(size_bytes)
    memory = np.empty(whole + PAGE_BYTES, np.uint8)
    address = memory.ctypes.data
    skip = -address % PAGE_BYTES
    return Pages(memory.data[skip : skip + whole], address + skip)


class PageMemory:
    """See the module."""

    def __init__(self) -> None:
        mapped = mmap.mmap(-1, SLOTS * SLOT_BYTES)
        with suppress(OSError):  # a kernel without large pages
            mapped.madvise(mmap.MADV_HUGEPAGE)
        self._memory = memoryview(mapped)
        self._address = np.frombuffer(mapped, np.uint8).ctypes.data
        self._free = list(range(SLOTS))

    def take(self, size_bytes: int) -> Pages:
        """Memory for whole pages. What it held before is still there."""
        whole = _whole(size_bytes)
        if whole > SLOT_BYTES or not self._free:
            return fresh(size_bytes)
        slot = self._free.pop()
        start = slot * SLOT_BYTES
        return Pages(self._memory[start : start + whole], self._address + start, slot)

    def give_back(self, pieces: Iterable[Pages]) -> None:
        """Nobody looks into these any more, and no disk writes to them."""
        self._free += [pages.slot for pages in pieces if pages.slot is not None]


def _whole(size_bytes: int) -> int:
    """Bytes of the pages that hold so many."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
