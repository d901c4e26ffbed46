"""Which blocks of other nodes are worth to be pulled whole: those that are being read through, not here and there.

A block is pulled when a quarter of it was asked for while it stayed among the blocks touched last, as many as views may
be held of. A view pays only if it is read again before it goes, and that is what this measures: the reuse distance of
Mattson et al., "Evaluation techniques for storage hierarchies", 1970. So a sweep pulls each block once, and an epoch in
random order over more than the views can hold asks for ranges.

Not thread-safe: its owner locks.
"""

from __future__ import annotations

from collections import OrderedDict

PULL_SHARE = 0.25


class Sweeps:
    """See the module."""

    def __init__(self, view_bytes: int) -> None:
        """``view_bytes``: what views of blocks may take."""
        self._view_bytes = view_bytes
        self._touched: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        """Bytes asked for, and size, least recently touched first."""
        self._size_bytes = 0

    def touch(self, block_id: bytes, length: int, size_bytes: int) -> bool:
        """A range of a block is wanted that is not held here; whether to pull the block whole."""
        asked, known_bytes = self._touched.pop(block_id, (0, 0))
        self._size_bytes -= known_bytes
        asked += length
        if size_bytes <= self._view_bytes and asked >= PULL_SHARE * size_bytes:
            return True
        self._touched[block_id] = asked, size_bytes
        self._size_bytes += size_bytes
        while self._size_bytes > self._view_bytes and self._touched:
            _, (_, old_bytes) = self._touched.popitem(last=False)
            self._size_bytes -= old_bytes
        return False
