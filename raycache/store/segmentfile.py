"""One segment as it is written, and many as they are read: the files themselves, for any process that may open them.

Responsible for: names, locks, bytes and errors of the files. Not responsible for: where they lie, how much may be
written (``allow`` is asked), and which of them are still needed (``segments``).

Who writes holds the lock of the file until the commit that names it was acknowledged: what nobody holds and no commit
names is left over. Nothing is ever written in the place of other bytes that a commit has named.

Threading: safe. Reads of a disk that hangs end at a deadline (``core.lane``); writes last as long as the disk takes.
"""

from __future__ import annotations

import errno
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from raycache.core.inode import Segment
from raycache.core.lane import Lane, Overdue
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.segment import Home, SegmentRange, is_segment, new_segment
from raycache.core.values import Buffer, Failed
from raycache.errors import NoSpace, NotFound, RaycacheError, Unavailable
from raycache.store.fileops import FileOps

READS, READ_DEADLINE_S = 8, 10.0
"""Reads of the disk under way, and how long one may take."""
OPEN_SEGMENTS = 128
JOIN_BYTES = 8 * 2**20
"""Ranges that follow each other in a segment are read at once, up to this."""
SPLIT_BYTES = 1 << 20
"""A call for more than this is read by several threads."""
RESUME_S = 5.0
"""How long a segment may still be held by a process that was killed."""
DIRECTORIES_MAX = 64
"""Directories of workers that one process reads: a node has one, and a new one with each start of Ray at most."""
_NAMES_TRIED = 3
_FULL = {errno.ENOSPC, errno.EDQUOT}


class SegmentWriter:
    """A new segment. ``release`` or ``discard`` it; a process that dies lets go of it as well."""

    def __init__(
        self, path: Path, fd: int, worker_id: str, allow: Callable[[int], None], files: FileOps | None = None
    ) -> None:
        self.segment = path.name
        self.worker_id = worker_id
        self._path = path
        self._fd = fd
        self._allow = allow
        self._files = files or FileOps()
        self._lock = threading.Lock()
        self._size_bytes = self._files.size_bytes(fd)
        self._name_synced = False

    @staticmethod
    def make(
        directory: Path,
        worker_id: str,
        allow: Callable[[int], None],
        fresh: Callable[[], str],
        files: FileOps | None = None,
    ) -> SegmentWriter:
        """Make a segment in the directory of a worker, and lock it.

        ``allow``: asked before the file grows by so many bytes; raises NoSpace. ``fresh``: 32 hexadecimal digits.
        Raises NoSpace, Unavailable.
        """
        files = files or FileOps()
        for _ in range(_NAMES_TRIED):
            path = directory / new_segment(worker_id, fresh())
            try:
                return SegmentWriter(path, files.make_locked(path), worker_id, allow, files)
            except FileExistsError:
                continue
            except OSError as error:
                raise _failed(directory, "no file can be made in it", error, files) from error
        raise Unavailable(f"{directory}: names of new files are taken again and again; try again")

    @staticmethod
    def resume(
        path: Path,
        worker_id: str,
        allow: Callable[[int], None],
        files: FileOps | None = None,
        wait_s: float = RESUME_S,
    ) -> SegmentWriter:
        """Go on with a segment whose writer has died. Raises NotFound, Unavailable (somebody holds it)."""
        files = files or FileOps()
        if not is_segment(path.name):
            raise NotFound(f"{path.name!r} is no segment")
        try:
            return SegmentWriter(path, files.lock_file(path, wait_s), worker_id, allow, files)
        except FileNotFoundError:
            raise NotFound(f"segment {path.name} is gone; write the file anew") from None
        except OSError as error:
            raise _failed(path, "it cannot be written on", error, files) from error

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return self._size_bytes

    def about(self) -> Segment:
        """As a commit names it."""
        return Segment(self.segment, self.worker_id, self._size_bytes)

    def append(self, data: Buffer | bytearray) -> int:
        """Write at the end; the offset at which these bytes begin. Raises NoSpace, Unavailable."""
        length = memoryview(data).nbytes
        with self._lock:
            offset = self._size_bytes
            self._allow(length)
            self._size_bytes += length
        self._write(offset, data)
        return offset

    def pwrite(self, offset: int, data: Buffer | bytearray) -> None:
        """Write at an offset, also beyond the end: what lies between reads as zeros. Raises as ``append`` does."""
        with self._lock:
            growth = offset + memoryview(data).nbytes - self._size_bytes
            if growth > 0:
                self._allow(growth)
                self._size_bytes += growth
        self._write(offset, data)

    def pread(self, offset: int, length: int) -> Buffer:
        """Bytes that were written, fewer at the end. Raises Unavailable."""
        try:
            return memoryview(self._files.pread(self._fd, length, offset))
        except OSError as error:
            raise _failed(self._path, "cannot be read", error, self._files) from error

    def sync(self) -> None:
        """Return when all that was written is on the disk, and would be found there after the machine has failed.

        Raises NoSpace, Unavailable: then it is not known what is on the disk, and the bytes are to be written anew, in
        another segment.
        """
        try:
            self._files.sync_data(self._fd)
            if not self._name_synced:
                # A file whose directory was not synced may be there without a name, which is as good as not at all.
                self._files.sync_directory(self._path.parent)
                self._name_synced = True
        except OSError as error:
            raise _failed(self._path, "cannot be synced", error, self._files) from error

    def release(self) -> None:
        """Let go of it: a commit that names it was acknowledged, or it is not needed."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            self._files.close(fd)

    def discard(self) -> None:
        """Delete it: no commit names it."""
        try:
            self._files.remove(self._path)
        except OSError as error:
            raise _failed(self._path, "cannot be deleted", error, self._files) from error
        finally:
            self.release()

    def _write(self, offset: int, data: Buffer | bytearray) -> None:
        view = memoryview(data).cast("B")
        try:
            while view:
                count = self._files.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise _failed(self._path, "cannot be written", error, self._files) from error


class SegmentFiles:
    """Segments in some directories, to be read."""

    def __init__(
        self, directories: Sequence[Path], files: FileOps | None = None, scheduler: Scheduler = THREADS
    ) -> None:
        """``directories``: looked through in this order."""
        self._directories = tuple(directories)
        self._files = files or FileOps()
        self._lane = Lane(READS, READ_DEADLINE_S, "segment-read", scheduler)
        self._lock = scheduler.lock()
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()

    @property
    def hanging(self) -> bool:
        """Whether a read is overdue; until it has come back nothing is read."""
        return bool(self._lane.overdue)

    def read(self, ranges: Sequence[SegmentRange]) -> list[Buffer | Failed]:
        """Bytes of each range, in order. A Failed with NotFound where the segment is not here, with Unavailable where
        it cannot be read or is shorter than it should be."""
        total = sum(each.length for each in ranges)
        share = max(SPLIT_BYTES, -(-total // READS))
        slices: list[list[SegmentRange]] = [[]]
        size_bytes = 0
        for each in ranges:
            if size_bytes >= share:
                slices.append([])
                size_bytes = 0
            slices[-1].append(each)
            size_bytes += each.length
        found: list[Buffer | Failed] = []
        answers = self._lane.call_all([partial(self._read_slice, some) for some in slices])
        for some, answer in zip(slices, answers, strict=True):
            if isinstance(answer, Overdue):
                late = Unavailable(f"the disk of {self._directories[0]} does not answer; see that it works")
                found += [Failed(late)] * len(some)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += answer
        return found

    def size_bytes(self, segment: str) -> int | None:
        """The length of a segment, or None when it is not here. Raises OSError."""
        descriptor = self._descriptor(segment)
        return None if descriptor is None else self._files.size_bytes(descriptor.fd)

    def forget(self, segment: str) -> None:
        """A segment was deleted."""
        with self._lock:
            self._open.pop(segment, None)

    def _read_slice(self, ranges: list[SegmentRange]) -> list[Buffer | Failed]:
        """In the lane."""
        found: list[Buffer | Failed] = []
        start = 0
        while start < len(ranges):
            stop = _run_of(ranges, start)
            segment, offset, _ = ranges[start]
            length = sum(each.length for each in ranges[start:stop])
            try:
                data = self._read_one(segment, offset, length)
                found += [data[each.offset - offset :][: each.length] for each in ranges[start:stop]]
            except RaycacheError as error:
                found += [Failed(error)] * (stop - start)
            start = stop
        return found

    def _read_one(self, segment: str, offset: int, length: int) -> memoryview:
        try:
            for _ in range(2):
                descriptor = self._descriptor(segment)
                if descriptor is None:
                    break
                data = self._files.pread(descriptor.fd, length, offset)
                if len(data) == length:
                    return memoryview(data)
                if not self._files.is_gone(descriptor.fd):
                    raise Unavailable(
                        f"segment {segment} has no bytes {offset + len(data)} to {offset + length}, which were written "
                        "and not synced before its machine failed; write the file anew"
                    )
                self.forget(segment)
        except OSError as error:
            raise _failed(self._directories[0] / segment, "cannot be read", error, self._files) from error
        raise NotFound(f"segment {segment} is not here")

    def _descriptor(self, segment: str) -> _Descriptor | None:
        with self._lock:
            known = self._open.get(segment)
            if known is not None:
                self._open.move_to_end(segment)
                return known
        if not is_segment(segment):
            return None  # a name that leads elsewhere
        for directory in self._directories:
            try:
                descriptor = _Descriptor(self._files.open_to_read(directory / segment)[0], self._files)
            except FileNotFoundError:
                continue
            with self._lock:
                self._open[segment] = descriptor
                while len(self._open) > OPEN_SEGMENTS:
                    self._open.popitem(last=False)
            return descriptor
        return None


class NodeSegments:
    """Segments in the directories of workers of this node: see client.segments.LocalSegments."""

    def __init__(self, fresh: Callable[[], str] = lambda: uuid.uuid4().hex) -> None:
        self._fresh = fresh
        self._lock = threading.Lock()
        self._directories: dict[str, SegmentFiles] = {}

    def make(self, home: Home, allow: Callable[[int], None]) -> SegmentWriter:
        """A new segment in a worker's directory. Raises NoSpace, Unavailable."""
        return SegmentWriter.make(Path(home.directory), home.worker_id, allow, self._fresh)

    def resume(self, home: Home, segment: str, allow: Callable[[int], None]) -> SegmentWriter:
        """See SegmentWriter.resume."""
        return SegmentWriter.resume(Path(home.directory) / segment, home.worker_id, allow)

    def read(self, home: Home, ranges: Sequence[SegmentRange]) -> list[Buffer | Failed]:
        """See SegmentFiles.read."""
        with self._lock:
            files = self._directories.get(home.directory)
            if files is None:
                if len(self._directories) >= DIRECTORIES_MAX:
                    self._directories.clear()
                files = self._directories[home.directory] = SegmentFiles([Path(home.directory)])
        return files.read(ranges)


class _Descriptor:
    """Closed with the last reference: a read under way keeps its own."""

    def __init__(self, fd: int, files: FileOps) -> None:
        self.fd = fd
        self._files = files

    def __del__(self) -> None:
        self._files.close(self.fd)


def _run_of(ranges: Sequence[SegmentRange], start: int) -> int:
    """Where a run of ranges ends that follow each other in one segment."""
    segment, end, length = ranges[start].segment, ranges[start].offset, 0
    stop = start
    while stop < len(ranges):
        each = ranges[stop]
        if each.segment != segment or each.offset != end or (length and length + each.length > JOIN_BYTES):
            break
        end, length, stop = end + each.length, length + each.length, stop + 1
    return stop


def _failed(path: Path, what: str, error: OSError, files: FileOps) -> RaycacheError:
    if error.errno not in _FULL:
        return Unavailable(f"{path}: {what}: {error.strerror or error}; see that its disk works")
    try:
        free = f"{files.free_bytes(path.parent):,} bytes are free"
    except OSError:
        free = "it does not say how much is free"
    return NoSpace(f"{path}: {what}: its disk is full ({free}); free or persist what was written, then try again")
