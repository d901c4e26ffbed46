"""Values that cross process borders. Frozen; no behaviour beyond naming their parts."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from raycache.core.inode import parse_content_etag
from raycache.core.retention import Retention

Buffer = bytes | memoryview
MANIFESTS_AT_ONCE = 256
"""Most directories that one call to the master may ask for."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named source. Holds no secret: credentials stay in master and workers."""

    name: str
    source: str
    """URI without a trailing slash, e.g. ``s3://bucket/train``."""
    root_id: int
    """Directory id of its root."""
    attached_ns: int
    """When it was attached; stands in as the mtime of its directories."""
    refresh_every_s: float = 0.0
    """How often the master lists its directories anew; 0 is never."""
    retention: Retention = field(default_factory=Retention)
    """What of it is kept; without ``pinned_blocks``."""
    write_type: str = "async"
    """When what is written gets to the source: ``cache`` (never), ``through`` (before close returns) or ``async``."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A live worker as placement sees it."""

    worker_id: str
    """Kept in its directories where it has any, so that what they hold stays its own; else the Ray node id."""
    capacity_bytes: int
    """What it may keep, in memory and on disks; its weight."""
    local: bool = False
    """On the node of whoever asked: its blocks can be mapped without a copy."""
    node_id: str = ""
    """Ray node id, hexadecimal: where it is, which changes with every start of Ray."""
    memory_bytes: int = 0
    """What of ``capacity_bytes`` is memory."""
    draining: bool = False
    """About to leave: asked last, and given nothing new."""
    incarnation: str = ""
    """Changes when its process does: what it had in memory is gone then."""
    bytes_at: str = ""
    """Where it sends ranges from, other than through Ray."""


class Origin(NamedTuple):
    """Where the bytes of a block come from: it holds files of one directory."""

    dataset: str
    directory: str = ""
    """Path inside the dataset."""


@dataclass(frozen=True, slots=True)
class Part:
    """A contiguous piece of one file inside a block: the unit of a request to the under file system."""

    path: str
    """Path inside the dataset."""
    etag: str
    """Version that was listed; empty when the under file system has none."""
    file_offset: int
    block_offset: int
    length: int

    @property
    def is_written(self) -> bool:
        """Whether it is of a file that was written through the cache: then ``etag`` names its contents."""
        return parse_content_etag(self.etag) is not None


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """All that a worker needs to make a block, so that it needs no manifest."""

    block_id: bytes
    dataset: str
    size_bytes: int
    parts: tuple[Part, ...]
    """Ordered by ``block_offset``, without gaps. Empty files have no part."""
    directory: str = ""
    """Path inside the dataset of the directory whose files these are."""

    @property
    def origin(self) -> Origin:
        """Where its bytes come from."""
        return Origin(self.dataset, self.directory)

    def path_at(self, offset: int, length: int) -> str:
        """The first file with bytes in a range."""
        stop = offset + length
        return next(
            part.path for part in self.parts if offset < part.block_offset + part.length and part.block_offset < stop
        )

    def pack(self) -> bytes:
        """Bytes to send. A client packs a plan once and a worker unpacks it once, however many reads carry it."""
        return pickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def unpack(packed: bytes) -> BlockPlan:
        """The plan that ``pack`` packed."""
        plan: BlockPlan = pickle.loads(packed)
        return plan


@dataclass(frozen=True, slots=True)
class Fetch:
    """One read from a block."""

    block_id: bytes
    packed_plan: bytes
    """A packed BlockPlan, in case the worker has not got the block yet."""
    offset: int
    length: int
    whole: bool
    """The client can map the block or wants all of it; else only the range is sent."""
    named: bool = False
    """The client may be able to open the worker's block files: it can be told which one instead of being sent bytes."""
    hedged: bool = False
    """Asked as the block's owner is slow: the answer comes from here or from the source, and nothing is kept for it."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A complete block."""

    view: memoryview
    """All of its bytes, read-only, without a copy where the block lies on this node."""
    holes: tuple[tuple[int, int], ...] = ()
    """``(start, stop)`` ranges whose file changed or vanished since it was listed: not readable."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An answer that is an error, among others of one call that are not."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Filed:
    """A block in a file of the worker's node, for a client that can open it."""

    path: str
    header: bytes
    """As ``core.blockfile`` decodes it; checked."""


Fetched = Sealed | Filed | Buffer | Failed


class Served(NamedTuple):
    """What a worker says to a call."""

    answers: Sequence[Fetched]
    """In the order of the requests."""
    source_s: float = 0.0
    """How long it waited for the under file system."""


@dataclass(frozen=True, slots=True)
class Freed:
    """What was dropped because a user asked, copies counted."""

    blocks: int = 0
    size_bytes: int = 0
    pinned_bytes: int = 0
    """Of blocks that stay because they are pinned."""
    unreached: int = 0
    """Workers that did not answer: what they have on disk stays."""


@dataclass(frozen=True, slots=True)
class ListingJob:
    """A recursive listing: how far it is, or how it ended."""

    job_id: int
    dataset: str
    path: str
    """Directory inside the dataset whose tree is listed."""
    state: str
    """``running``, ``done``, ``failed`` or ``cancelled``."""
    files: int
    """Entries found so far that are no directories, hidden ones included."""
    directories: int
    """Directories found so far."""
    changed: int
    """Directories that got a new version; known when it is done."""
    started_ns: int
    updated_ns: int
    """Last sign of life; when it ended, if it did."""
    error_kind: str = ""
    """Class in ``raycache.errors`` of what made it fail."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Stat:
    """What is known of one file or directory."""

    path: str
    is_dir: bool
    size_bytes: int
    mtime_ns: int
    etag: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
