"""Segments by name: files of new bytes, each written by one process, on the disk of one worker.

The name begins with digits made of the id of the worker on whose disk it was written, so that a reader knows whom to
ask first without asking the master. A copy elsewhere has the same name: who is asked in vain says so, and then the
master is asked who has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import xxhash

_ID = re.compile(r"[0-9a-f]{32}")
_HOME_DIGITS = 8


class Home(NamedTuple):
    """Where a worker keeps segments, as it tells clients."""

    worker_id: str
    node_id: str
    directory: str
    """Empty where it has none that can be written: then there is no room either."""
    device: int
    """Of the directory, with ``inode``: another one under the same name, as in a container, has others."""
    inode: int
    room_bytes: int
    """What may still be written there."""


def no_room(worker_id: str, wanted_bytes: int, room_bytes: int) -> str:
    """What a NoSpace says when the quota is full."""
    return (
        f"worker {worker_id[:8]} has room for {room_bytes:,} more bytes of what is written, not for {wanted_bytes:,}; "
        "free or persist what was written, or raise write_quota"
    )


class SegmentRange(NamedTuple):
    """Bytes of a segment."""

    segment: str
    offset: int
    length: int


class SourceRange(NamedTuple):
    """Bytes of an object of a source."""

    dataset: str
    path: str
    etag: str
    offset: int
    length: int


def new_segment(worker_id: str, fresh: str) -> str:
    """A name for a segment of a worker. ``fresh``: 32 hexadecimal digits, as of a random UUID."""
    return _home_digits(worker_id) + fresh[_HOME_DIGITS:]


def is_segment(name: str) -> bool:
    """Whether a file of this name can be a segment."""
    return _ID.fullmatch(name) is not None


def likely_homes(segment: str, worker_ids: Iterable[str]) -> list[str]:
    """Workers on whose disk it was written: one, but for a coincidence, or none of these."""
    return [worker_id for worker_id in worker_ids if segment.startswith(_home_digits(worker_id))]


def _home_digits(worker_id: str) -> str:
    return xxhash.xxh32_hexdigest(worker_id.encode())
