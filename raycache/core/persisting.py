"""What is to be brought about in a source, and what became of it: values between the master and workers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from raycache.core.inode import Content, Extent

DONE = "done"
LATER = "later"
"""The source, or whoever has the bytes, did not answer: tried again, for ever, and what comes after it waits."""
REFUSED = "refused"
"""It will fail again unless somebody does something: tried again, seldom, and nothing waits for it."""
BLOCKED = "blocked"
"""A file is where a directory is to be, or the other way round: as REFUSED, and what is to go from there goes first,
whatever else it waits for."""
CONFLICT = "conflict"
"""The source has something that was put there by others: not tried again until somebody decides."""
KEPT = "kept"
TROUBLES_MAX = 20
"""Most paths that a report names."""


class Attempt(NamedTuple):
    """Contents that a worker was given to put under a path: they may be there, although nobody heard of it."""

    mark: str
    """Of this path and version alone; left with the file where the store can."""
    ino: int
    version: int
    size_bytes: int
    since_ns: int
    """When it was given out first."""
    etag: str
    """Of the file in the source that it may have been copied from."""


class Task(NamedTuple):
    """One path of a source, and what is to be there."""

    seq: int
    dataset: str
    path: str
    """Inside the dataset."""
    kind: str
    """put, delete, mkdir, rmdir or keep. All but put and keep begin by deleting the file that is known to be there.
    keep changes nothing: what the source has there is to be kept in a segment, as files here are made of it."""
    base_etag: str
    """The version that the source has there as far as is known; empty: none."""
    tried: tuple[Attempt, ...] = ()
    """What may be there instead; of a put, the last one is about this task."""
    content: Content | None = None
    """Of a put; of keep: ranges of the file that is there, ``at`` their offset in it."""
    origin: tuple[str, str] | None = None
    """Path and version of a file in the source that has the same bytes."""

    @property
    def key(self) -> tuple[str, str]:
        """What it is about."""
        return self.dataset, self.path


class Outcome(NamedTuple):
    """What became of a task."""

    seq: int
    dataset: str
    path: str
    result: str
    """DONE, LATER, REFUSED, BLOCKED or CONFLICT."""
    etag: str = ""
    """Done: the version that the source has now, empty for none. A conflict: the one that is in the way."""
    error: str = ""
    content: Content | None = None
    """Of a put that is done: what was put; of keep: the same ranges, and where in a segment they are."""
    mark: str = ""
    """Of a put that is done: that of its attempt; of keep: ``KEPT``."""


class Trouble(NamedTuple):
    """A path that is behind, and why."""

    path: str
    kind: str
    error: str
    conflict: bool
    tries: int


class Behind(NamedTuple):
    """What a source has not got yet, of a path and all below it."""

    files: int = 0
    """Files to be put."""
    size_bytes: int = 0
    others: int = 0
    """Deletions, and directories."""
    failing: int = 0
    """Of all these, how many have failed the last time that they were tried, conflicts too."""
    stuck: int = 0
    """Of those, how many have failed several times, and will again unless somebody does something."""
    conflicts: int = 0
    oldest_ns: int = 0
    """Since when the first of them is behind; 0: none is."""
    troubles: tuple[Trouble, ...] = ()
    """Some of those that fail, conflicts first."""

    def as_json(self) -> dict[str, Any]:
        """With the names of its parts."""
        return {**self._asdict(), "troubles": [trouble._asdict() for trouble in self.troubles]}

    @property
    def paths(self) -> int:
        """How many paths are behind."""
        return self.files + self.others

    def __str__(self) -> str:
        others = f", {self.others:,} deletion(s) and directories" if self.others else ""
        return f"{self.files:,} file(s) of {self.size_bytes:,} bytes{others}"


def relocated(extents: Iterable[Extent], put: Content, path: str, etag: str) -> list[Extent]:
    """The same bytes, now that ``put`` is a file in the source: extents of other objects that it was made of lie in
    that file too, and may not be anywhere else any more."""
    copies = [
        (each.path, each.etag, each.offset, Extent(0, each.length, offset=each.at, path=path, etag=etag))
        for each in put.extents
        if each.path
    ]
    return _replaced(extents, copies)


def kept(extents: Iterable[Extent], path: str, etag: str, segments: Content) -> list[Extent]:
    """The same bytes, now that ranges of an object of the source are in segments too; ``at``: their offset in it."""
    return _replaced(extents, [(path, etag, each.at, each) for each in segments.extents])


def _replaced(extents: Iterable[Extent], copies: Iterable[tuple[str, str, int, Extent]]) -> list[Extent]:
    """Extents of objects, where they are copied: path, version and offset of what was copied, and where that is."""
    known: dict[tuple[str, str], list[tuple[int, Extent]]] = {}
    for path, etag, offset, copy in copies:
        known.setdefault((path, etag), []).append((offset, copy))
    found: list[Extent] = []
    for extent in extents:
        some = known.get((extent.path, extent.etag), ()) if extent.path else ()
        found.extend(_pieces(extent, sorted(some)) if some else [extent])
    return found


def _pieces(extent: Extent, copies: Iterable[tuple[int, Extent]]) -> Iterator[Extent]:
    """An extent in pieces, each where it is copied, else as it is."""
    done, stop = extent.offset, extent.offset + extent.length
    for offset, copy in copies:
        start, end = max(done, offset), min(stop, offset + copy.length)
        if start >= end:
            continue
        if start > done:
            yield extent._replace(at=extent.at + done - extent.offset, length=start - done, offset=done)
        at = extent.at + start - extent.offset
        yield copy._replace(at=at, length=end - start, offset=copy.offset + start - offset)
        done = end
    if done < stop:
        yield extent._replace(at=extent.at + done - extent.offset, length=stop - done, offset=done)
