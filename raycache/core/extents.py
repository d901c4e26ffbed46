"""What a file is made of while it is being written: a sequence of extents that writes lie down over. Pure.

Invariant: extents are in order and cover the file from 0 to its size without gaps; neighbours that continue each other
are one. Threading: none of its own; whoever writes to a file holds its lock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from raycache.core.inode import Content, Extent, pieces


class Extents:
    """The contents of a file, to be changed."""

    def __init__(self, content: Content | None = None) -> None:
        """``content``: what the file has so far; None for nothing."""
        self.size_bytes = 0
        self._extents: list[Extent] = []
        self._starts: list[int] = []
        if content is not None:
            self._splice(0, 0, content.extents)
            self.size_bytes = content.size_bytes

    def __len__(self) -> int:
        return len(self._extents)

    def put(self, extent: Extent) -> None:
        """Lay an extent over what is there; a gap before it becomes a hole."""
        if extent.length <= 0:
            return
        if extent.at > self.size_bytes:
            self.resize(extent.at)
        stop = extent.at + extent.length
        if extent.at == self.size_bytes:  # the way of nearly all writes
            self._append(extent)
        else:
            self._replace(extent.at, stop, extent)
        self.size_bytes = max(self.size_bytes, stop)

    def resize(self, size_bytes: int) -> None:
        """Cut the file, or make it longer with a hole."""
        if size_bytes < self.size_bytes:
            self._replace(size_bytes, self.size_bytes, None)
        elif size_bytes > self.size_bytes:
            self._append(Extent(self.size_bytes, size_bytes - self.size_bytes))
        self.size_bytes = size_bytes

    def pieces(self, offset: int, length: int) -> list[Extent]:
        """The extents of a range, cut to it; shorter at the end of the file."""
        stop = min(offset + length, self.size_bytes)
        if stop <= offset:
            return []
        first, last = self._around(offset), self._around(stop - 1)
        return [_cut(extent, offset, stop) for extent in self._extents[first : last + 1]]

    def content(self) -> Content:
        """As it is to be committed."""
        return Content(self.size_bytes, tuple(self._extents))

    def _around(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1

    def _append(self, extent: Extent) -> None:
        last = self._extents[-1] if self._extents else None
        if last is not None and _continues(last, extent):
            self._extents[-1] = last._replace(length=last.length + extent.length)
        else:
            self._extents.append(extent)
            self._starts.append(extent.at)

    def _replace(self, start: int, stop: int, extent: Extent | None) -> None:
        """Put one extent, or nothing, in the place of a range that begins inside the file."""
        first, last = self._around(start), self._around(min(stop, self.size_bytes) - 1)
        before, after = self._extents[first], self._extents[last]
        new = [_cut(before, before.at, start)] if before.at < start else []
        if extent is not None:
            new.append(extent)
        if stop < after.at + after.length:
            new.append(_cut(after, stop, after.at + after.length))
        # With both neighbours, so that what continues them is joined to them.
        start, stop = max(0, first - 1), last + 2
        self._splice(start, stop, [*self._extents[start:first], *new, *self._extents[last + 1 : stop]])

    def _splice(self, first: int, stop: int, extents: Iterable[Extent]) -> None:
        joined: list[Extent] = []
        for extent in extents:
            if joined and _continues(joined[-1], extent):
                joined[-1] = joined[-1]._replace(length=joined[-1].length + extent.length)
            else:
                joined.append(extent)
        self._extents[first:stop] = joined
        self._starts[first:stop] = [extent.at for extent in joined]


def found_anew(wanted: Iterable[Extent], content: Content) -> list[Extent]:
    """Pieces of a file, with those that lay in the source where ``content``, the same bytes, says that they lie now."""
    return [
        each
        for piece in wanted
        for each in (pieces(content.extents, piece.at, piece.length) if piece.path else [piece])
    ]


def _is_hole(extent: Extent) -> bool:
    return not extent.segment and not extent.path


def _continues(first: Extent, second: Extent) -> bool:
    """Whether the bytes of ``second`` follow those of ``first`` where they lie, too."""
    if first.at + first.length != second.at or first[2] != second[2] or first[4:] != second[4:]:
        return False
    return _is_hole(first) or first.offset + first.length == second.offset


def _cut(extent: Extent, start: int, stop: int) -> Extent:
    start, stop = max(start, extent.at), min(stop, extent.at + extent.length)
    offset = extent.offset if _is_hole(extent) else extent.offset + start - extent.at
    return extent._replace(at=start, length=stop - start, offset=offset)
