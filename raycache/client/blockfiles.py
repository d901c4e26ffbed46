"""Block files of this node, read by the client itself: a block on disk costs its worker one call, not one per read.

Responsible for: knowing where a block lies once its worker has said so, reading and checking its bytes. Not
responsible for: what to do when that fails. Every failure is the same answer, None: the worker is asked for the bytes,
looks at the file itself and draws the consequence - a block that is damaged is dropped, counted and fetched again.

* A file that was deleted, or made anew, is noticed: it is open no longer or has another inode. What was deleted is cut
  short as well (``store.fileops``), so that a descriptor held here keeps no bytes from the worker's quota.
* Large reads go past the page cache (O_DIRECT): they are read once per epoch, the kernel keeps them for the mount
  anyway, and they are faster. Small ones go through it, as their neighbours are likely to be read next.
* Calls to the disk are made in a Lane, or by the kernel beside the caller (``diskreads``), who polls for their end. One
  that hangs is left alone, and reads go on through the worker.

Bounds: headers in bytes, descriptors in number, least recently used out first; reads under way. Threading: safe, but
for ``begin`` and ``ended``, which belong to one thread.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from raycache.client.diskreads import DiskReads
from raycache.client.pagememory import PageMemory, Pages, fresh
from raycache.core import blockfile
from raycache.core.blockfile import PAGE_BYTES, BadFile, Header
from raycache.core.lane import Lane, Overdue
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
BEGUN_AT_ONCE = 64
"""Reads begun and not ended: as many as readers wait for, and a few megabytes each at most."""
DEADLINE_S = 5.0
"""A disk that takes longer is taken to hang."""
PAUSE_S = 10.0
"""How long a worker is not asked for names after one of its files could not be opened, as from another container."""
_log = logging.getLogger("raycache.client")


class Piece(NamedTuple):
    """A range of a block."""

    block_id: bytes
    offset: int
    length: int


@dataclass(eq=False)
class _Descriptor:
    """Closed with the last reference: a read under way keeps its own."""

    fd: int
    direct: bool = False
    """Whether it goes past the page cache: some file systems know no O_DIRECT."""

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


@dataclass(eq=False, slots=True)
class Begun:
    """A read under way, for the caller to tell from others."""

    piece: Piece
    since: float
    _known: _Known
    _descriptor: _Descriptor
    _start: int
    pages: Pages
    _length: int
    _skip: int
    """How many of its bytes come before the ``_start``."""
    _late: bool = False

    def checked(self, outcome: int) -> memoryview | None:
        """The bytes, if all of them came and are those that were written."""
        if outcome < self._length:
            return None
        data = self.pages.memory[self._skip : self._length]
        try:
            self._known.header.check(self._start, data)
        except BadFile:
            return None
        return data[self.piece.offset - self._start : self.piece.offset - self._start + self.piece.length]


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
        self._reads: DiskReads | None = None
        self._beside = False
        """Whether reads are begun: the kernel makes them, and so does the file system."""
        self._begun: dict[int, Begun] = {}
        self._late = 0
        """Of them, those that did not end in time."""
        self._pages: PageMemory | None = None
        self._shown: list[Pages] = []
        """Memory of what the last call of ``ended`` told of."""
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
            self._header_bytes += known.header.used_bytes
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
        return bool(self._lane.overdue or self._late)

    def begin_beside(self) -> int | None:
        """Have reads begun from now on, by one thread: the descriptor that can be read when some have ended. None where
        the kernel makes no such reads."""
        try:
            self._reads = self._reads or DiskReads(BEGUN_AT_ONCE)
            self._pages = self._pages or PageMemory()
        except OSError as error:
            self._stop_beginning(error)
            return None
        self._beside = True
        return self._reads.fd

    def begin(self, piece: Piece) -> Begun | None:
        """Begin to read a range, where that needs no waiting; ``ended`` has it later. None: it is to be ``read``."""
        with self._lock:
            known = self._known.get(piece.block_id)
            descriptor = None if known is None else known.direct
            if not self._beside or known is None or descriptor is None or not descriptor.direct or self.hanging:
                return None
            if known.header.meets_hole(piece.offset, piece.length):
                return None
            self._known.move_to_end(piece.block_id)
            if piece.block_id in self._open:
                self._open.move_to_end(piece.block_id)
            self._read_of.setdefault(known.worker_id, set()).add(piece.block_id)
        start, stop = known.header.chunks(piece.offset, piece.length)
        if stop - start < DIRECT_BYTES:
            return None
        at, skip = _place(known.header, start)
        assert self._reads is not None
        assert self._pages is not None
        pages = self._pages.take(skip + stop - start)
        try:
            ticket = self._reads.begin(descriptor.fd, pages.memory, pages.address, at)
        except OSError as error:
            self._stop_beginning(error)
            ticket = None
        if ticket is None:
            self._pages.give_back([pages])
            return None
        begun = Begun(piece, self._clock(), known, descriptor, start, pages, skip + stop - start, skip)
        self._begun[ticket] = begun
        return begun

    def ended(self) -> list[tuple[Begun, memoryview | None]]:
        """Reads that have ended, each once, with checked bytes, which are there until the next call; None where it is
        to be ``read``, as it did not end in time or not well: that will show what is wrong."""
        if self._pages is not None:
            self._pages.give_back(self._shown)
        self._shown.clear()
        found: list[tuple[Begun, memoryview | None]] = []
        for ticket, outcome in self._reads.ended() if self._reads is not None else ():
            begun = self._begun.pop(ticket)
            self._shown.append(begun.pages)
            self._late -= begun._late
            if outcome in (-errno.EOPNOTSUPP, -errno.EINVAL):
                self._stop_beginning(OSError(-outcome, os.strerror(-outcome)))
            if not begun._late:
                data = begun.checked(outcome)
                self.reads += data is not None
                found.append((begun, data))
        for begun in self._begun.values():  # oldest first
            if self._clock() - begun.since <= DEADLINE_S:
                break
            if not begun._late:
                begun._late = True
                self._late += 1
                found.append((begun, None))
        return found

    def _stop_beginning(self, error: OSError) -> None:
        _log.info("each read of a block file takes a thread, as the kernel makes none beside it: %s", error)
        self._beside = False

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
        if self._late:
            answers: Sequence[memoryview | BaseException] = [Overdue() for _ in calls]
        elif self.callers_may_hang and len(calls) == 1:
            answers = [self._here(calls[0])]
        else:
            answers = self._lane.call_all(calls)
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
        at, skip = _place(header, start)
        memory = fresh(skip + stop - start).memory
        done = 0
        while done < skip + stop - start:
            count = self._preadv(descriptor.fd, [memory[done:]], at + done)
            if not count:
                raise BadFile("it was cut short")
            done += count
        data = memory[skip : skip + stop - start]
        header.check(start, data)
        return data[piece.offset - start : piece.offset - start + piece.length]

    def _open_file(self, known: _Known, block_id: bytes, direct: bool) -> _Descriptor:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = _Descriptor(os.open(known.path, flags | (os.O_DIRECT if direct else 0)), direct)
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
            self._header_bytes -= known.header.used_bytes
            self._open.pop(block_id, None)


def _place(header: Header, start: int) -> tuple[int, int]:
    """Where in its file to begin to read, for a place in the block: at a page, and how far before it that is."""
    at = header.header_bytes + start
    return at - at % PAGE_BYTES, at % PAGE_BYTES
