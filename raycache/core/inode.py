"""What was written or changed through the cache, as values: inodes, where their bytes lie, verbs upon them.

Numbers. A directory, listed or made, is ``dir_id << 32``. A listed file is ``dir_id << 32 | row + 1``, and keeps that
number when it is changed or renamed. What was made through the cache is a number from 2 to ``MADE_MAX``: no directory
has id 0. So a number says by itself which of the three it is.

Contents. The bytes of a version of a written file are *extents*: ranges of segments (files of new bytes, each on the
disk of one worker, see ``store.segments``), ranges of objects in the source, and holes, which read as zeros. The pair
of inode number and version names these bytes for ever; ``content_etag`` is its form in a manifest, in the place where
a listed file has the version that its source gave it.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import Any, NamedTuple

ROW_BITS = 32
MADE_MAX = (1 << ROW_BITS) - 1
"""Largest number of what was made through the cache."""
FIRST_MADE = 2
"""1 is what the kernel calls the root of a mount."""
MOUNT_OWNER = -1
"""uid and gid of what nobody has given an owner: whoever mounted is shown."""
LISTED_FILE, LISTED_DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
"""Modes of what was only listed."""
VERBS_AT_ONCE = 1024
"""Most verbs of one call."""
NOREPLACE, EXCHANGE = 1, 2
"""Flags of ``rename``, as of renameat2(2)."""
NLINK_MAX = 65_000
"""Most names of a file."""
TREE_MAX = 1_000_000
"""Most listed files and directories in a tree that is moved or removed in one step."""
Place = int | tuple[str, str]
"""What a verb is about: an inode number, or a dataset and a path inside it (links on the way are not followed)."""
EXTENTS_MAX = 4096
"""Most extents of one file; who writes more scattered than that copies what lies between."""
CONTENT_MARK = "rc:"
"""How the version of a written file begins, in manifests and plans."""


class Attr(NamedTuple):
    """What ``stat`` shows of an inode."""

    ino: int
    mode: int
    """Kind and permissions, as ``st_mode``."""
    nlink: int
    uid: int
    gid: int
    size_bytes: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int = 0
    version: int = 0
    """Of the contents: higher with each commit and each change of size. 0 for what was only listed."""

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


class Extent(NamedTuple):
    """A range of a file, and where its bytes lie. Neither segment nor path: a hole."""

    at: int
    """Offset in the file, bytes."""
    length: int
    segment: str = ""
    """Id of a segment."""
    offset: int = 0
    """In the segment, or in the object of the source."""
    path: str = ""
    """Of an object, inside the dataset."""
    etag: str = ""
    """Its version."""
    row: int = 0
    """The number of a listed file with the same bytes at ``offset``, which may be cached; 0 where there is none."""


class Segment(NamedTuple):
    """A file of new bytes on the disk of a worker; immutable from the commit on that first names it."""

    segment: str
    worker_id: str
    size_bytes: int


class Content(NamedTuple):
    """A version of a written file: what it is made of, in order, without gaps."""

    size_bytes: int
    extents: tuple[Extent, ...]


class Name(NamedTuple):
    """An entry of a directory: what verbs and listings speak of."""

    name: bytes
    attr: Attr


class Verb(NamedTuple):
    """One change or question of several that go to the master in one call."""

    name: str
    """A method of ``client.protocols.TreeApi``."""
    args: tuple[Any, ...]
    request_id: str | None = None
    """The same each time it is asked again, so that nothing is done twice. None for questions."""


def directory_ino(dir_id: int) -> int:
    """Number of a directory."""
    return dir_id << ROW_BITS


def row_ino(dir_id: int, row: int) -> int:
    """Number of a listed file."""
    return dir_id << ROW_BITS | (row + 1)


def split_ino(ino: int) -> tuple[int, int | None]:
    """Directory id and row of a number; row None for a directory. The directory id is 0 for what was made here."""
    low = ino & MADE_MAX
    return ino >> ROW_BITS, (low - 1 if low else None)


def content_etag(ino: int, version: int) -> str:
    """Version of a written file as manifests and plans have it."""
    return f"{CONTENT_MARK}{ino:x}:{version:x}"


def parse_content_etag(etag: str) -> tuple[int, int] | None:
    """Number and version, or None for a version of a source."""
    if not etag.startswith(CONTENT_MARK):
        return None
    ino, _, version = etag[len(CONTENT_MARK) :].partition(":")
    return int(ino, 16), int(version, 16)


def pieces(extents: Sequence[Extent], offset: int, length: int) -> list[Extent]:
    """The extents of a range of a file, cut to it; ``at`` stays the offset in the file."""
    stop = offset + length
    found: list[Extent] = []
    for extent in extents:
        start, end = max(offset, extent.at), min(stop, extent.at + extent.length)
        if start < end:
            is_hole = not extent.segment and not extent.path
            moved = extent.offset if is_hole else extent.offset + start - extent.at
            found.append(extent._replace(at=start, length=end - start, offset=moved))
    return found
