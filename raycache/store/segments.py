"""The segments of one worker: where they lie, how much may be written, which are still needed.

Responsible for: a directory that is this worker's alone, room, reads for other processes, writers of clients that
cannot open the directory, deleting what is left over. Not responsible for: the files themselves (``segmentfile``) and
what a commit names (the master knows).

What is neither locked by its writer nor known to the master is deleted, when that has been so for a while: the server
of a mount that was killed has a successor, which goes on with it. A commit that comes later still is refused.

Bounds: writers of clients by CLIENT_WRITERS. Threading: safe.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from raycache.core.inode import Segment
from raycache.core.segment import Home, SegmentRange, is_segment, no_room
from raycache.core.values import Buffer, Failed
from raycache.errors import NoSpace, NotFound, Unavailable
from raycache.store.fileops import FileOps
from raycache.store.segmentfile import SegmentFiles, SegmentWriter

NAME = "segments"
NODE = "node"
"""File that says which node had a directory last."""
LOCK_WAIT_S = 5.0
"""A worker that was killed holds its lock until the kernel has taken it apart."""
LEFT_OVER_S, LEFT_OVER_FULL_S = 600.0, 30.0
"""How long a segment that nobody holds and no commit names is kept: that long where there is room, and at least."""
CLIENT_WRITERS = 1024
CLIENT_IDLE_S = 600.0
"""How long a writer is held open for a client that says nothing; clients that live say something more often."""
USED_S = 1.0
"""How long the sum of all segments is believed."""
KNOWN_AT_ONCE = 10_000
_log = logging.getLogger("raycache.store")
CALM_S = 10.0
"""How long a segment must have no writer before it is let go: a gateway that was killed has a successor sooner."""
LET_GO_AT_ONCE = 256
Known = Callable[[Sequence[str]], Sequence[bool]]
"""Whether the master knows of segments of this worker."""
LetGo = Callable[[Sequence[str]], Sequence[int]]
"""See client.treeapi.TreeApi.let_go_segments."""
Drop = Callable[[Sequence[str]], Sequence[bool]]
"""See client.treeapi.TreeApi.drop_segments."""


@dataclass
class _ClientWriter:
    writer: SegmentWriter
    heard: float


class Claim(NamedTuple):
    """A directory that is this worker's alone for as long as ``fd`` is open."""

    path: Path
    fd: int


def claim_directory(
    base: Path, fresh: Callable[[], str], node_id: str, files: FileOps | None = None, wait_s: float = LOCK_WAIT_S
) -> Claim | None:
    """A directory below ``base`` for a worker without a disk tier; its name is an id, the worker's from now on.

    One that an earlier worker left is taken before one is made, so that what it holds is found again: first the one
    that this node had last, for which its last worker is waited for as long as ``wait_s``. None when none can be had.
    """
    files = files or FileOps()
    try:
        files.make_private(base)
        there = [name for name in sorted(files.names(base)) if is_segment(name)]
        mine = {name for name in there if files.read(base / name / NODE) == node_id.encode()}
        for name in [*sorted(there, key=lambda name: name not in mine), fresh()]:
            files.make_private(base / name)
            try:
                fd = files.take_lock(base / name / "lock", wait_s if name in mine else 0.0)
            except BlockingIOError:
                continue
            files.write_synced(base / name / NODE, node_id.encode())
            return Claim(base / name, fd)
    except OSError as error:
        _log.warning("%s cannot keep what is written: %s", base, error)
    return None


class SegmentStore:
    """See the module. ``open`` before use."""

    def __init__(
        self,
        directories: Sequence[Path],
        quota_bytes: int | None = None,
        node_id: str = "",
        files: FileOps | None = None,
        clock: Callable[[], float] = time.monotonic,
        fresh: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        """``directories``: written to is the first one, the others are read. ``quota_bytes``: None for half of what the
        disk has free."""
        self.worker_id = ""
        """As the others know this worker; nothing can be written before it is known."""
        self.node_id = node_id
        self._directories = tuple(directories)
        self._quota_bytes = quota_bytes
        self._files = files or FileOps()
        self._segments = SegmentFiles(directories, self._files)
        self._clock = clock
        self._fresh = fresh
        self._lock = threading.Lock()
        self._used: tuple[float, int, int] = (-USED_S, 0, 0)
        self._clients: OrderedDict[str, _ClientWriter] = OrderedDict()
        self._suspects: dict[str, float] = {}
        self._swept_bytes, self._let_go_bytes = 0, 0
        self._calm: dict[str, float] = {}
        """Since when segments have no writer, as far as was seen."""
        self.leaving = False
        """Whether this worker is to go: then nothing new is written to it."""
        self._out_of_service = "" if directories else "there is no directory to write to"

    def open(self) -> None:
        """Make the directory. One that cannot be used is out of service, and says why."""
        try:
            for directory in self._directories:
                self._files.make_private(directory)
            if self._directories and self._quota_bytes is None:
                self._quota_bytes = (self._files.free_bytes(self._directories[0]) + self._usage()[1]) // 2
        except OSError as error:
            self._out_of_service = f"{error.strerror or error}; see that it works, then restart the worker"
            _log.error("%s cannot be written to: %s", self._directories[0], error)

    def home(self) -> Home:
        """What clients are told."""
        nowhere = Home(self.worker_id, self.node_id, "", 0, 0, 0)
        if self._out_of_service or not self.worker_id or self.leaving:
            return nowhere
        directory = self._directories[0]
        try:
            about = directory.stat()
        except OSError:
            return nowhere
        return nowhere._replace(
            directory=str(directory), device=about.st_dev, inode=about.st_ino, room_bytes=self.room_bytes()
        )

    def room_bytes(self) -> int:
        """What may be written now."""
        try:
            free_bytes = self._files.free_bytes(self._directories[0])
        except OSError:
            return 0
        return max(0, min((self._quota_bytes or 0) - self._usage()[1], free_bytes))

    def read(self, ranges: Sequence[SegmentRange]) -> list[Buffer | Failed]:
        """See SegmentFiles.read."""
        if not self._directories:
            return [Failed(NotFound(f"segment {each.segment} is not here")) for each in ranges]
        return self._segments.read(ranges)

    # For clients that cannot open the directory.

    def make(self) -> str:
        """A new segment. Raises NoSpace, Unavailable."""
        if self._out_of_service or not self.worker_id or self.leaving:
            why = self._out_of_service or ("it is to leave" if self.leaving else "it is starting")
            raise Unavailable(f"this worker cannot take what is written: {why}")
        writer = SegmentWriter.make(self._directories[0], self.worker_id, self._allow, self._fresh, self._files)
        with self._lock:
            self._clients[writer.segment] = _ClientWriter(writer, self._clock())
            oldest = next(iter(self._clients)) if len(self._clients) > CLIENT_WRITERS else None
        if oldest is not None:
            self.release(oldest)
        return writer.segment

    def resume(self, segment: str) -> int:
        """Hold a segment open that is here; its length. Raises NotFound, Unavailable."""
        return self._client(segment).size_bytes

    def write(self, segment: str, offset: int, data: Buffer) -> None:
        """Write into a segment that ``make`` made. Raises NoSpace, Unavailable, NotFound (it was given up)."""
        self._client(segment).pwrite(offset, data)

    def sync(self, segment: str) -> None:
        """See SegmentWriter.sync. Raises NotFound as well."""
        self._client(segment).sync()

    def hold(self, segments: Sequence[str]) -> None:
        """Clients that have these open live."""
        for segment in segments:
            with suppress(NotFound):
                self._client(segment)

    def release(self, segment: str, discard: bool = False) -> None:
        """Let go of a segment, or delete it; nothing happens when that was done already."""
        with self._lock:
            client = self._clients.pop(segment, None)
        if client is not None:
            if discard:
                client.writer.discard()
            else:
                client.writer.release()

    # Upkeep.

    def sweep(self, known: Known, drop: Drop, patience_s: float = LEFT_OVER_S) -> int:
        """Delete what has been left over for so long; how many bytes that were. Raises what the master raises."""
        self._release_idle()
        now = self._clock()
        found = self._found()
        needed: set[str] = set()
        for start in range(0, len(found), KNOWN_AT_ONCE):
            names = [path.name for path, _ in found[start : start + KNOWN_AT_ONCE]]
            needed.update(name for name, is_known in zip(names, known(names), strict=True) if is_known)
        unknown = [path for path, _ in found if path.name not in needed]
        self._suspects = {path.name: self._suspects.get(path.name, now) for path in unknown}
        swept = sum(
            self._drop(unknown[start : start + LET_GO_AT_ONCE], drop, now - patience_s)
            for start in range(0, len(unknown), LET_GO_AT_ONCE)
        )
        self._swept_bytes += swept
        return swept

    def _drop(self, unknown: Sequence[Path], drop: Drop, before: float) -> int:
        """Delete those that nobody holds, and that have been suspects since earlier; how many bytes that were."""
        held: dict[Path, int] = {}
        gone = 0
        try:
            for path in unknown:
                try:
                    fd = self._files.lock_file(path, 0.0)
                except (BlockingIOError, FileNotFoundError):
                    del self._suspects[path.name]  # it is being written, or was discarded
                    continue
                if self._suspects[path.name] > before:
                    self._files.close(fd)
                else:
                    held[path] = fd  # nobody begins to write it meanwhile
            names = [path.name for path in held]
            for (path, fd), is_dropped in zip(held.items(), drop(names) if names else (), strict=True):
                if is_dropped:
                    gone += self._files.size_bytes(fd)
                    self._files.remove(path)
                    self._segments.forget(path.name)
                    del self._suspects[path.name]
        finally:
            for fd in held.values():
                self._files.close(fd)
        return gone

    def let_go(self, ask: LetGo, want_bytes: int) -> int:
        """Delete segments that nobody writes and whose bytes are all in the source, oldest first, until so many bytes
        have gone or none is left; how many went. Raises what ``ask`` raises.

        One must have been seen without a writer for CALM_S: a mount whose server was killed goes on with its segments.
        """
        now, gone = self._clock(), 0
        found = sorted(self._found(), key=lambda each: _changed_ns(each[0]))
        there = {path.name for path, _ in found}
        self._calm = {name: since for name, since in self._calm.items() if name in there}
        for start in range(0, len(found), LET_GO_AT_ONCE):
            if gone >= want_bytes:
                break
            held = {path: fd for path, _ in found[start : start + LET_GO_AT_ONCE] if (fd := self._lock_calm(path, now))}
            try:
                names = [path.name for path in held]
                for (path, fd), known_bytes in zip(held.items(), ask(names) if names else (), strict=True):
                    size_bytes = self._files.size_bytes(fd)
                    # What is longer than commits say may be needed by somebody's next commit: the sweep waits for it.
                    if known_bytes == size_bytes and gone < want_bytes:
                        self._files.remove(path)
                        self._segments.forget(path.name)
                        gone += size_bytes
            finally:
                for fd in held.values():
                    self._files.close(fd)
        self._let_go_bytes += gone
        with self._lock:
            self._used = (-USED_S, 0, 0)
        return gone

    def _lock_calm(self, path: Path, now: float) -> int:
        """The lock of a segment that nobody has written for a while, 0 for any other."""
        try:
            fd = self._files.lock_file(path, 0.0)
        except (BlockingIOError, FileNotFoundError):
            self._calm.pop(path.name, None)
            return 0
        if now - self._calm.setdefault(path.name, now) >= CALM_S:
            return fd
        self._files.close(fd)
        return 0

    @property
    def fullness(self) -> float:
        """What is used of the quota, as a share of it."""
        return self._usage()[1] / max(1, self._quota_bytes or 0)

    def surplus_bytes(self, share: float) -> int:
        """Bytes beyond a share of the quota."""
        return max(0, self._usage()[1] - int(share * (self._quota_bytes or 0)))

    def held(self) -> list[Segment]:
        """All that is here, with its length now."""
        return [Segment(path.name, self.worker_id, size_bytes) for path, size_bytes in self._found()]

    def status(self) -> dict[str, Any]:
        """Figures for ``raycache status``."""
        with self._lock:
            clients = len(self._clients)
        count, used_bytes = self._usage()
        return {
            "directory": str(self._directories[0]) if self._directories else None,
            "quota_bytes": self._quota_bytes,
            "used_bytes": used_bytes,
            "segments": count,
            "left_over": len(self._suspects),
            "swept_bytes": self._swept_bytes,
            "let_go_bytes": self._let_go_bytes,
            "client_writers": clients,
            "out_of_service": self._out_of_service or None,
        }

    def _allow(self, growth_bytes: int) -> None:
        room_bytes = self.room_bytes()
        if growth_bytes > room_bytes:
            raise NoSpace(no_room(self.worker_id, growth_bytes, room_bytes))
        with self._lock:
            at, count, used_bytes = self._used
            self._used = (at, count, used_bytes + growth_bytes)

    def _client(self, segment: str) -> SegmentWriter:
        with self._lock:
            client = self._clients.get(segment)
            if client is None:
                # An earlier process of this worker may have made it.
                client = self._clients[segment] = _ClientWriter(self._reopen(segment), 0.0)
            client.heard = self._clock()
            self._clients.move_to_end(segment)
            return client.writer

    def _reopen(self, segment: str) -> SegmentWriter:
        if not self._directories:
            raise NotFound(f"segment {segment} is not here")
        return SegmentWriter.resume(
            self._directories[0] / segment, self.worker_id, self._allow, self._files, wait_s=0.0
        )

    def _release_idle(self) -> None:
        before = self._clock() - CLIENT_IDLE_S
        with self._lock:
            idle = [segment for segment, client in self._clients.items() if client.heard < before]
        for segment in idle:
            self.release(segment)

    def _usage(self) -> tuple[int, int]:
        """Segments and their bytes."""
        with self._lock:
            at, count, size_bytes = self._used
        if self._clock() - at >= USED_S:
            found = self._found()
            count, size_bytes = len(found), sum(size_bytes for _, size_bytes in found)
            with self._lock:
                self._used = (self._clock(), count, size_bytes)
        return count, size_bytes

    def _found(self) -> list[tuple[Path, int]]:
        """All segments here, and how long each is."""
        found: list[tuple[Path, int]] = []
        for directory in self._directories if not self._out_of_service else ():
            for entry in self._files.scan(directory):
                if is_segment(entry.name):
                    with suppress(FileNotFoundError):  # its writer has discarded it meanwhile
                        found.append((Path(entry.path), entry.stat(follow_symlinks=False).st_size))
        return found


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
