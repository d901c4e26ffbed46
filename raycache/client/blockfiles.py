"""Block files of this node, read by the client itself: a block on disk costs its worker one call, not one per read.

Responsible for: knowing where a block lies once its worker has said so, reading and checking its bytes. Not
responsible for: what to do when that fails. Every failure is the same answer, None: the worker is asked for the bytes,
looks at the file itself and draws the consequence - a block that is damaged is dropped, counted and fetched again.

* A file that was deleted, or made anew, is noticed: it is open no longer or has another inode. What was deleted is cut
  short as well (``store.fileops``), so that a descriptor held here keeps no bytes from the worker's quota.
* Large reads go past the page cache (O_DIRECT): they are read once per epoch, the kernel keeps them for the mount
  anyway, and they are faster. Small ones go through it, as their neighbours are likely to be read next.
* All calls to the disk are made in a Lane. One that hangs is left alone, and reads go on through the worker.

Bounds: headers in bytes, descriptors in number, least recently used out first. Threading: safe.
"""

from __future__ import annotations

import errno
import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from raycache.core import blockfile
from raycache.core.blockfile import PAGE_BYTES, BadFile, Header
from raycache.core.lane import Lane
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import Filed

HEADERS_BYTES = 128 * 2**20
"""Headers held: those of half a terabyte in blocks of 32 MiB."""
OPEN_BLOCKS = 512
"""Blocks whose file is held open; fewer where this process may open fewer than 4096 files."""
DIRECT_BYTES = 64 * 1024
"""Reads of this size go past the page cache."""
READS_AT_ONCE = 16
"""Reads under way: enough to keep an SSD busy."""
DEADLINE_S = 5.0
"""A disk that takes longer is taken to hang."""
PAUSE_S = 10.0
"""How long a worker is not asked for names after one of its files could not be opened, as from another container."""


class Piece(NamedTuple):
    """A range of a block."""

    block_id: bytes
    offset: int
    length: int


@dataclass(eq=False)
class _Descriptor:
    """Closed with the last reference: a read under way keeps its own."""

    fd: int

    def __del__(self) -> None:
        os.close(self.fd)


@dataclass(eq=False, slots=True)
class _Known:
    path: str
    header: Header
    worker_id: str
    identity: tuple[int, int] | None = None
    """Inode and time of change of the file when it was first opened: another file of that name has others."""
    direct: _Descriptor | None = None
    plain: _Descriptor | None = None


class BlockFiles:
    """See the module."""

    def __init__(
        self,
        lane: Lane | None = None,
        preadv: Callable[[int, list[memoryview], int], int] = os.preadv,
        scheduler: Scheduler = THREADS,
    ) -> None:
        self._lane = lane or Lane(READS_AT_ONCE, DEADLINE_S, "raycache-disk", scheduler)
        self._preadv = preadv
        self._clock = scheduler.monotonic
        self._lock = scheduler.lock()
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._header_bytes = 0
        self._open: OrderedDict[bytes, _Known] = OrderedDict()
        self._open_max = min(OPEN_BLOCKS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 8)
        self._paused: dict[str, float] = {}
        self._read_of: dict[str, set[bytes]] = {}
        self.callers_may_hang = False
        """Whether those who read are threads that can be left to a disk that hangs, as a gateway's: then reads of one
        range are made in them, without a hand-over to the lane's."""
        self.reads = 0
        """Ranges read here, for figures; a lost update under contention does not matter."""

    def usable(self, worker_id: str) -> bool:
        """Whether to ask a worker of this node for names of its files."""
        return not self.hanging and self._paused.get(worker_id, 0.0) <= self._clock()

    def learn(self, worker_id: str, block_id: bytes, filed: Filed) -> None:
        """A worker said where a block lies."""
        known = _Known(filed.path, blockfile.decode(filed.header), worker_id)
        with self._lock:
            self._forget(block_id)
            self._known[block_id] = known
            self._header_bytes += known.header.header_bytes
            while self._header_bytes > HEADERS_BYTES and len(self._known) > 1:
                self._forget(next(iter(self._known)))

    def take_read(self) -> dict[str, set[bytes]]:
        """Ids of the blocks that were read since the last call, by worker."""
        with self._lock:
            read, self._read_of = self._read_of, {}
            return read

    @property
    def hanging(self) -> bool:
        """Whether a read of the disk is overdue; until it has come back, all others go through the worker."""
        return bool(self._lane.overdue)

    def knows(self, block_id: bytes) -> bool:
        """Whether a worker said where a block lies."""
        return block_id in self._known

    def read(self, pieces: Sequence[Piece]) -> list[memoryview | None]:
        """Checked bytes of each range, side by side; None where the worker has to be asked."""
        found: list[memoryview | None] = [None] * len(pieces)
        asked: list[tuple[int, _Known]] = []
        with self._lock:
            for at, piece in enumerate(pieces):
                known = self._known.get(piece.block_id)
                if known is not None and not known.header.meets_hole(piece.offset, piece.length):
                    self._known.move_to_end(piece.block_id)
                    self._read_of.setdefault(known.worker_id, set()).add(piece.block_id)
                    asked.append((at, known))
        calls = [partial(self._read, known, pieces[at]) for at, known in asked]
        answers = [self._here(calls[0])] if self.callers_may_hang and len(calls) == 1 else self._lane.call_all(calls)
        for (at, known), answer in zip(asked, answers, strict=True):
            if isinstance(answer, memoryview):
                found[at] = answer
                self.reads += 1
            else:
                self._give_up(pieces[at].block_id, known, answer)
        return found

    def _here(self, call: Callable[[], memoryview]) -> memoryview | Exception:
        try:
            return self._lane.here(call)
        except Exception as error:  # noqa: BLE001 - whatever it is, the worker is asked next
            return error

    def _read(self, known: _Known, piece: Piece) -> memoryview:
        """In the lane. Raises BadFile, OSError."""
        header = known.header
        start, stop = header.chunks(piece.offset, piece.length)
        direct = stop - start >= DIRECT_BYTES
        descriptor = (known.direct if direct else known.plain) or self._open_file(known, piece.block_id, direct)
        data = _page_aligned(stop - start)
        done = 0
        while done < stop - start:
            count = self._preadv(descriptor.fd, [data[done:]], header.header_bytes + start + done)
            if not count:
                raise BadFile("it was cut short")
            done += count
        data = data[: stop - start]
        header.check(start, data)
        return data[piece.offset - start : piece.offset - start + piece.length]

    def _open_file(self, known: _Known, block_id: bytes, direct: bool) -> _Descriptor:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = _Descriptor(os.open(known.path, flags | (os.O_DIRECT if direct else 0)))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            descriptor = _Descriptor(os.open(known.path, flags))  # a file system that knows no O_DIRECT
        about = os.fstat(descriptor.fd)
        identity = about.st_ino, about.st_ctime_ns
        if about.st_size != known.header.file_bytes or (known.identity or identity) != identity:
            raise BadFile("it is another file by now")
        known.identity = identity
        with self._lock:
            if direct:
                known.direct = descriptor
            else:
                known.plain = descriptor
            self._open[block_id] = known
            while len(self._open) > self._open_max:
                _, oldest = self._open.popitem(last=False)
                oldest.direct = oldest.plain = None
        return descriptor

    def _give_up(self, block_id: bytes, known: _Known, error: object) -> None:
        """Forget a file that could not be read. Where none can be opened, ask for no more of them for a while."""
        foreign = isinstance(error, PermissionError) or (
            isinstance(error, FileNotFoundError) and not os.path.isdir(os.path.dirname(known.path))
        )
        with self._lock:
            if foreign:
                self._paused[known.worker_id] = self._clock() + PAUSE_S
            if self._known.get(block_id) is known:
                self._forget(block_id)

    def _forget(self, block_id: bytes) -> None:
        known = self._known.pop(block_id, None)
        if known is not None:
            self._header_bytes -= known.header.header_bytes
            self._open.pop(block_id, None)


def _page_aligned(size_bytes: int) -> memoryview:
    """Memory for whole pages, as O_DIRECT wants it; not cleared."""
    whole = -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
    memory = np.empty(whole + PAGE_BYTES, np.uint8)
    skip = -memory.ctypes.data % PAGE_BYTES
    return memory.data[skip : skip + whole]
