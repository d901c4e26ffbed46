"""New bytes as a writer sees them: segments on the disk of this node's worker, and contents read back.

Responsible for: where to write (the worker of this node, by its directory where this process may open it, else through
a worker), room, and reading extents from wherever they lie. Not responsible for: the files (``local`` is given in: see
``store.segmentfile``), what a file is made of (the master knows), and blocks of what is published (``reader``).

Threading: safe. Every read ends at ``timeout_s``; a worker that is away is asked again until then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from raycache.client.homes import Homes
from raycache.client.namespace import Namespace
from raycache.client.patience import ask_until_there
from raycache.client.reader import Reader
from raycache.core.inode import Content, Extent, Segment, pieces, split_ino
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.segment import Home, SegmentRange, SourceRange
from raycache.core.segmentsearch import Holders, find_ranges
from raycache.core.values import Buffer, Failed
from raycache.errors import Changed, NotFound, Unavailable, WorkerLost

RENEW_S = 60.0
"""How often a worker is told that segments which it holds open for us are still wanted."""
_PREAD_S = 30.0


class Writer(Protocol):
    """A segment that is being written. ``release`` or ``discard`` it when it was committed or is not needed."""

    segment: str
    worker_id: str

    @property
    def size_bytes(self) -> int:
        """Its length."""
        ...

    def about(self) -> Segment:
        """As a commit names it."""
        ...

    def append(self, data: Buffer | bytearray) -> int:
        """Write at the end; the offset at which these bytes begin. Raises NoSpace, Unavailable."""
        ...

    def pwrite(self, offset: int, data: Buffer | bytearray) -> None:
        """Write at an offset, also beyond the end. Raises as ``append`` does."""
        ...

    def pread(self, offset: int, length: int) -> Buffer:
        """Bytes that were written, fewer at the end. Raises Unavailable."""
        ...

    def sync(self) -> None:
        """Return when all of it would survive the end of the machine. Raises NoSpace, Unavailable: then it is to be
        written anew in another segment."""
        ...

    def release(self) -> None:
        """Let go of it, after the commit that names it was acknowledged."""
        ...

    def discard(self) -> None:
        """Delete it: no commit names it."""
        ...


class LocalSegments(Protocol):
    """Segment files of this node."""

    def make(self, home: Home, allow: Callable[[int], None]) -> Writer:
        """A new segment in a worker's directory. ``allow``: raises NoSpace. Raises NoSpace, Unavailable."""
        ...

    def resume(self, home: Home, segment: str, allow: Callable[[int], None]) -> Writer:
        """A segment that another process wrote, and holds no more. Raises NotFound, Unavailable (it is held still)."""
        ...

    def read(self, home: Home, ranges: Sequence[SegmentRange]) -> list[Buffer | Failed]:
        """Bytes in order; a Failed with NotFound for what is not there."""
        ...


class SegmentCalls(Holders, Protocol):
    """Calls to master and workers. All raise WorkerLost, and Unavailable where the master is away."""

    def homes(self) -> Sequence[Home]:
        """Where the workers of this node keep segments; of all nodes when none here can be written to."""
        ...

    def moved(self, dataset: str, extents: Sequence[Extent]) -> Sequence[Sequence[Extent]]:
        """See TreeApi.moved_segments."""
        ...

    def read_source(self, worker_id: str, ranges: Sequence[SourceRange], timeout_s: float) -> Sequence[Buffer | Failed]:
        """Bytes that a worker fetches from sources."""
        ...

    def make(self, worker_id: str) -> str:
        """A new segment on the disk of a worker, held open by it."""
        ...

    def resume(self, worker_id: str, segment: str) -> int:
        """Have a worker hold one open again that it has; its length."""
        ...

    def write(self, worker_id: str, segment: str, offset: int, data: Buffer) -> None:
        """Write into it."""
        ...

    def sync(self, worker_id: str, segment: str) -> None:
        """Sync it."""
        ...

    def hold(self, worker_id: str, segments: Sequence[str]) -> None:
        """Segments that are still wanted open."""
        ...

    def release(self, worker_id: str, segment: str, discard: bool) -> None:
        """Let go of it, or delete it."""
        ...


class Segments:
    """See the module."""

    def __init__(
        self,
        calls: SegmentCalls,
        local: LocalSegments,
        namespace: Namespace,
        reader: Reader,
        timeout_s: float,
        scheduler: Scheduler = THREADS,
    ) -> None:
        self._calls = calls
        self._local = local
        self._namespace = namespace
        self._reader = reader
        self._timeout_s = timeout_s
        self._scheduler = scheduler
        self._clock = scheduler.monotonic
        self._lock = scheduler.lock()
        self._homes = Homes(calls.homes, scheduler)
        self._held: dict[str, str] = {}
        """Segments that workers hold open for us, with the worker."""

    def writer(self, *, at_once: bool = False) -> Writer:
        """A new segment, on the disk of this node's worker where there is one. Raises NoSpace, Unavailable.

        A worker that is gone or has just started is waited for. ``at_once``: without waiting, where it ``is_at_hand``.
        """
        begin = partial(self._begin, at_once)
        return ask_until_there(begin, "a worker to write to", self._timeout_s, self._clock, self._scheduler.sleep)

    def _begin(self, at_once: bool) -> Writer:
        homes = self._homes.get(at_once=at_once)
        for home in homes:
            if _is_open_to_us(home):
                return self._local.make(home, partial(self._homes.allow, home.worker_id))
        usable = [home for home in homes if home.directory]
        if not usable:
            if not all(home.worker_id for home in homes):
                self._homes.doubt()
                raise WorkerLost("a worker has just started and was not told yet who it is")
            raise Unavailable("no worker can keep what is written; `raycache status` says why")
        home = max(usable, key=self._homes.room_bytes)
        segment = self._calls.make(home.worker_id)
        self._hold(segment, home.worker_id)
        return _RemoteWriter(segment, home.worker_id, 0, self._calls, self._forget)

    def resume(self, segment: str, worker_id: str) -> Writer:
        """A segment that another process wrote and has not released, to go on with: that process has died.

        Raises NotFound (it is gone), Unavailable (it is held still; or its worker is away).
        """
        for home in self._homes.get():
            if home.worker_id == worker_id and _is_open_to_us(home):
                return self._local.resume(home, segment, partial(self._homes.allow, worker_id))
        size_bytes = self._calls.resume(worker_id, segment)
        self._hold(segment, worker_id)
        return _RemoteWriter(segment, worker_id, size_bytes, self._calls, self._forget)

    def room_bytes(self) -> int:
        """What may be written now, as far as is known. Raises Unavailable."""
        return sum(map(self._homes.room_bytes, self._homes.get()))

    def is_at_hand(self) -> bool:
        """Whether a segment is made and written to without asking anybody: of a worker of this node that was heard of
        a moment ago."""
        return self._homes.is_at_hand() and any(map(_is_open_to_us, self._homes.known))

    def read(self, dataset: str, content: Content, offset: int, length: int) -> Buffer:
        """Bytes of a file, fewer at its end. Raises what ``read_many`` raises."""
        return self.read_many([(dataset, content, offset, length)])[0]

    def read_many(self, wanted: Sequence[tuple[str, Content, int, int]]) -> list[Buffer]:
        """Bytes of several files: dataset, contents, offset and length of each. One call to each worker that has some.

        Raises Changed (an object of the source has another version now), Unavailable.
        """
        cut = [
            pieces(content.extents, offset, max(0, min(length, content.size_bytes - offset)))
            for _, content, offset, length in wanted
        ]
        flat = [(dataset, piece) for (dataset, *_), some in zip(wanted, cut, strict=True) for piece in some]
        found = iter(self._read_pieces(flat))
        return [_joined([next(found) for _ in some]) for some in cut]

    def _read_pieces(self, wanted: Sequence[tuple[str, Extent]]) -> list[Buffer]:
        try:
            return self._read_where(wanted)
        except Changed:
            # A segment may have been let go since the contents were asked for: the master knows where they are now.
            where = [self._calls.moved(dataset, [extent])[0] for dataset, extent in wanted]
            if where == [[extent] for _, extent in wanted]:
                raise
            flat = [(dataset, piece) for (dataset, _), some in zip(wanted, where, strict=True) for piece in some]
            found = iter(self._read_where(flat))
            return [_joined([next(found) for _ in some]) for some in where]

    def _read_where(self, wanted: Sequence[tuple[str, Extent]]) -> list[Buffer]:
        found: dict[int, Buffer] = {}
        segments: dict[int, SegmentRange] = {}
        sources: dict[int, SourceRange] = {}
        for at, (dataset, extent) in enumerate(wanted):
            if extent.segment:
                segments[at] = SegmentRange(extent.segment, extent.offset, extent.length)
            elif not extent.path:
                found[at] = bytes(extent.length)
            elif (data := self._read_row(extent)) is not None:
                found[at] = data
            else:
                sources[at] = SourceRange(dataset, extent.path, extent.etag, extent.offset, extent.length)
        self._read_segments(segments, found)
        self._read_sources(sources, found)
        return [found[at] for at in range(len(wanted))]

    def _read_row(self, extent: Extent) -> Buffer | None:
        """Through the blocks of a listed file with the same bytes, where there is one that is known here."""
        dir_id, row = split_ino(extent.row)
        if not dir_id or row is None:
            return None
        try:
            manifest = self._namespace.manifest(dir_id)
        except NotFound:
            return None
        if row >= manifest.row_count or manifest.etag(row) != extent.etag:
            return None
        if manifest.path(row) != extent.path:  # the directory was moved, and in the source it is where it was
            return None
        return self._reader.read(manifest, row, extent.offset, extent.length)

    def _read_segments(self, wanted: Mapping[int, SegmentRange], found: dict[int, Buffer]) -> None:
        missing = self._read_local(wanted, found)
        for at, answer in find_ranges(self._calls, missing, self._timeout_s, self._scheduler).items():
            if isinstance(answer, Failed):
                raise answer.error
            found[at] = answer

    def _read_local(self, wanted: Mapping[int, SegmentRange], found: dict[int, Buffer]) -> dict[int, SegmentRange]:
        """Read what is in directories of this node; what is not."""
        missing = dict(wanted)
        homes: Sequence[Home] = ()
        with suppress(Unavailable):  # those that are asked below may be there by then
            homes = self._homes.known or (self._homes.get() if missing else ())
        for home in homes:
            if not missing or not _is_open_to_us(home):
                continue
            answers = self._local.read(home, list(missing.values()))
            for (at, _), answer in zip(list(missing.items()), answers, strict=True):
                if not isinstance(answer, Failed):
                    found[at] = answer
                    del missing[at]
        return missing

    def _read_sources(self, wanted: Mapping[int, SourceRange], found: dict[int, Buffer]) -> None:
        deadline = self._clock() + self._timeout_s
        missing = dict(wanted)
        lost: set[str] = set()
        while missing:
            workers = [worker for worker in self._calls.workers(refresh=bool(lost)) if worker.worker_id not in lost]
            if not workers or self._clock() >= deadline:
                raise Unavailable(f"{next(iter(missing.values())).path}: no worker answered in time; try again")
            worker_id = min(workers, key=lambda worker: not worker.local).worker_id
            try:
                answers = self._calls.read_source(worker_id, list(missing.values()), deadline - self._clock())
            except WorkerLost:
                lost.add(worker_id)
                continue
            for (at, _), answer in zip(list(missing.items()), answers, strict=True):
                if isinstance(answer, Failed):
                    raise answer.error
                found[at] = answer
                del missing[at]

    def _hold(self, segment: str, worker_id: str) -> None:
        with self._lock:
            if not self._held:
                self._scheduler.spawn(self._keep_holding, "raycache-segments")
            self._held[segment] = worker_id

    def _keep_holding(self) -> None:
        """Tell workers, as long as they hold any, of the segments that they hold open for us."""
        while True:
            self._scheduler.sleep(RENEW_S)
            held: dict[str, list[str]] = {}
            with self._lock:
                for segment, worker_id in self._held.items():
                    held.setdefault(worker_id, []).append(segment)
            if not held:
                return
            for worker_id, segments in held.items():
                with suppress(Unavailable):  # it hears the next time
                    self._calls.hold(worker_id, segments)

    def _forget(self, segment: str) -> None:
        with self._lock:
            self._held.pop(segment, None)


class _RemoteWriter:
    """A Writer through a worker."""

    def __init__(
        self, segment: str, worker_id: str, size_bytes: int, calls: SegmentCalls, forget: Callable[[str], None]
    ) -> None:
        self.segment = segment
        self.worker_id = worker_id
        self._calls = calls
        self._forget = forget
        self._lock = THREADS.lock()
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        """See Writer."""
        return self._size_bytes

    def about(self) -> Segment:
        """See Writer."""
        return Segment(self.segment, self.worker_id, self._size_bytes)

    def append(self, data: Buffer | bytearray) -> int:
        """See Writer."""
        with self._lock:
            offset = self._size_bytes
            self._size_bytes += memoryview(data).nbytes
        self._calls.write(self.worker_id, self.segment, offset, memoryview(data))
        return offset

    def pwrite(self, offset: int, data: Buffer | bytearray) -> None:
        """See Writer."""
        with self._lock:
            self._size_bytes = max(self._size_bytes, offset + memoryview(data).nbytes)
        self._calls.write(self.worker_id, self.segment, offset, memoryview(data))

    def pread(self, offset: int, length: int) -> Buffer:
        """See Writer."""
        length = max(0, min(length, self._size_bytes - offset))
        (answer,) = self._calls.read(self.worker_id, [SegmentRange(self.segment, offset, length)], _PREAD_S)
        if isinstance(answer, Failed):
            raise answer.error
        return answer

    def sync(self) -> None:
        """See Writer."""
        self._calls.sync(self.worker_id, self.segment)

    def release(self) -> None:
        """See Writer."""
        self._end(False)

    def discard(self) -> None:
        """See Writer."""
        self._end(True)

    def _end(self, discard: bool) -> None:
        self._forget(self.segment)
        try:
            self._calls.release(self.worker_id, self.segment, discard)
        except Unavailable:
            return  # a worker that is gone has let go of it; left over, it is swept


def _is_open_to_us(home: Home) -> bool:
    """Whether a directory is the one that the worker means, and may be written by this process."""
    if not home.directory:
        return False
    try:
        about = os.stat(home.directory)
    except OSError:
        return False
    return (about.st_dev, about.st_ino) == (home.device, home.inode) and os.access(home.directory, os.W_OK | os.X_OK)


def _joined(found: Sequence[Buffer]) -> Buffer:
    return found[0] if len(found) == 1 else b"".join(found)
