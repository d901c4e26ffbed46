"""Files that are written: drafts, which become files when they are closed, under the buffers that the builtin's have.

Responsible for: the file objects of the writing modes, and where a draft's bytes lie until it is committed. Not
responsible for: committing (``writing``), segments, or how a commit becomes visible (``meta``).

Invariants
* A draft is seen by nobody until it is closed, and then as a whole. One that ends otherwise - an exception in its
  ``with``, a write that failed, ``discard()``, or being forgotten - leaves nothing. Buffers above it write when they
  are closed, and close it whether that went well or not: a draft that lacks a part must not become a file.
* What is read from a draft in an updating mode is what will be committed: own bytes over the version that was opened.

Threading: a draft is for one thread at a time, as the builtin's files are.
"""

from __future__ import annotations

import io
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, Protocol

from raycache.client.changing import Target
from raycache.client.segments import Segments, Writer
from raycache.core.arguments import check_write_type
from raycache.core.extents import Extents, found_anew
from raycache.core.inode import EXTENTS_MAX, LISTED_FILE, Attr, Content, Extent, Place, Segment, Verb
from raycache.core.values import Buffer
from raycache.errors import Changed

BUFFER_BYTES = 2**20
COPY_BYTES = 4 * 2**20
"""One step of copying what lies scattered."""


class Committer(Protocol):
    """Who makes drafts files."""

    segments: Segments
    """Where bytes go to and come from."""

    def content(self, place: Place) -> tuple[Attr, Content]:
        """See TreeApi.content."""
        ...

    def commit(self, drafts: Sequence[Draft]) -> None:
        """See Writing.commit."""
        ...


@dataclass(frozen=True)
class Options:
    """How a file is to be written."""

    write_type: str = ""
    sync: bool = False
    """Have it on disk before it becomes visible."""
    wait: bool = False
    """Closing it only ends the writing: it becomes visible with others, see ``Writing.commit``."""

    def __post_init__(self) -> None:
        if self.write_type:
            check_write_type(self.write_type)


class Base(NamedTuple):
    """The version of a file that an update starts from."""

    attr: Attr
    content: Content


class Draft(io.RawIOBase):
    """A version of a file that is being written."""

    def __init__(self, owner: Committer, target: Target, mode: str, options: Options, base: Base | None) -> None:
        """``mode``: as the builtin has it, checked. ``base``: what an update starts from."""
        self.name, self.mode, self.options = target.uri, mode, options
        self.target = target
        self._base = base
        self._extents = Extents(base.content if base is not None else None)
        self._changed = base is None
        self._position = self._extents.size_bytes if "a" in mode else 0
        self._owner = owner
        self._writer: Writer | None = None
        self._discarded = False
        self.is_synced = options.sync
        """Whether it is to outlive a power cut once it is closed."""
        self._failed: BaseException | None = None
        """Why it lacks a part of what was to be written."""
        self._request_id = uuid.uuid4().hex

    def readable(self) -> bool:
        """In the updating modes."""
        return "+" in self.mode

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always; in the appending modes writes go to the end nevertheless."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.RawIOBase.seek. Raises ValueError for a position before the start."""
        self._check_open()
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._extents.size_bytes}[whence]
        if start + offset < 0:
            raise ValueError(f"{self.name}: cannot seek to {start + offset}")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Position in bytes."""
        self._check_open()
        return self._position

    def write(self, data: Any) -> int:
        """See io.RawIOBase.write: all of it is taken. Raises NoSpace, Unavailable; closing then raises it again."""
        self._check_open()
        view = memoryview(data).cast("B")
        if "a" in self.mode:
            self._position = self._extents.size_bytes
        try:
            self._put(self._position, view)
        except BaseException as error:
            self._failed = error
            raise
        self._position += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Cut the draft, or make it longer with zeros; the position stays."""
        self._check_open()
        size = self._position if size is None else size
        if size < 0:
            raise ValueError(f"{self.name}: cannot be {size} bytes long")
        self._changed = self._changed or size != self._extents.size_bytes
        self._extents.resize(size)
        return size

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase.readinto. Raises what Reader.read raises."""
        self._check_open()
        if not self.readable():
            raise io.UnsupportedOperation(f"{self.name}: mode {self.mode!r} does not read")
        target = memoryview(buffer).cast("B")
        done = 0
        for piece in self._extents.pieces(self._position, len(target)):
            target[done : done + piece.length] = self._read(piece)
            done += piece.length
        self._position += done
        return done

    def sync(self) -> None:
        """Have what was written on disk. It is visible only when the file is closed. Raises Unavailable, NoSpace."""
        self._check_open()
        self.is_synced = True
        if self._writer is not None:
            self._writer.sync()

    def discard(self) -> None:
        """Leave nothing of it, and close it; what was committed stays."""
        self._discarded = True
        self.close()
        self.settle(committed=False)

    def commit(self) -> None:
        """Close it, and make it a file where that was left for later. Raises as ``close`` does."""
        self.close()
        if self.options.wait:
            self._owner.commit([self])

    def close(self) -> None:
        """Make it a file, unless it was discarded. Raises what TreeApi.put and commit raise, and what a write raised;
        then there is none."""
        if self.closed:
            return
        super().close()
        if self._discarded:
            return
        if self._failed is not None:
            self.settle(committed=False)
            raise self._failed
        if not self.options.wait:
            self._owner.commit([self])

    def verb(self) -> Verb | None:
        """What has to be asked of the master for it to become a file; None when it is as it was."""
        if self._discarded or not self._changed:
            return None
        if self._failed is not None:
            raise self._failed
        if len(self._extents) > EXTENTS_MAX:
            self._gather()
        segments: Sequence[Segment] = ()
        if self._writer is not None:
            if self.is_synced:
                self._writer.sync()
            segments = (self._writer.about(),)
        content, now_ns = self._extents.content(), time.time_ns()
        write_type = self.options.write_type
        if self._base is not None:
            args: tuple[Any, ...] = (self._base.attr.ino, content, segments, now_ns, write_type)
            return Verb("commit", args, self._request_id)
        args = (
            self.target.folder,
            self.target.name,
            LISTED_FILE,
            content,
            segments,
            now_ns,
            write_type,
            "x" not in self.mode,
        )
        return Verb("put", args, self._request_id)

    def settle(self, *, committed: bool) -> None:
        """Let go of its bytes, which a commit names, or may name; else they are of no use."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if committed:
            writer.release()
        else:
            writer.discard()

    def __del__(self) -> None:
        # io.RawIOBase closes what is forgotten; here that would make it a file.
        self.discard()

    def _put(self, at: int, data: memoryview) -> None:
        if not len(data):
            return
        if self._writer is None:
            self._writer = self._owner.segments.writer()
        there = self._extents.pieces(at, len(data))
        if len(there) == 1 and there[0].length == len(data) and there[0].segment == self._writer.segment:
            self._writer.pwrite(there[0].offset, data)  # over bytes of its own that nobody else knows
        else:
            self._extents.put(Extent(at, len(data), self._writer.segment, self._writer.append(data)))
        self._changed = True

    def _read(self, piece: Extent) -> Buffer:
        if self._writer is not None and piece.segment == self._writer.segment:
            return self._writer.pread(piece.offset, piece.length)
        try:
            return self._read_beneath([piece])
        except Changed:
            # What lies in the source may have been moved there: a file of another name, of which the master knows.
            if self._base is None or not piece.path:
                raise
            attr, content = self._owner.content(self._base.attr.ino)
            if attr.version != self._base.attr.version:
                raise
        return self._read_beneath(found_anew([piece], content))

    def _read_beneath(self, pieces: Sequence[Extent]) -> Buffer:
        start, stop = pieces[0].at, pieces[-1].at + pieces[-1].length
        return self._owner.segments.read(self.target.dataset, Content(stop, tuple(pieces)), start, stop - start)

    def _gather(self) -> None:
        """Copy what lies scattered into one piece."""
        for at in range(0, self._extents.size_bytes, COPY_BYTES):
            pieces = self._extents.pieces(at, COPY_BYTES)
            data = memoryview(b"".join(self._read(piece) for piece in pieces))
            assert self._writer is not None
            self._extents.put(Extent(at, len(data), self._writer.segment, self._writer.append(data)))

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"{self.name}: I/O operation on closed file")


class _Written:
    """What the buffered files have beside what Python's have: they leave nothing when they are not closed properly."""

    closed: bool
    close: Callable[[], None]
    flush: Callable[[], None]

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        if not self.closed:
            warnings.warn(f"{self.draft.name} was never closed: what was written is dropped", ResourceWarning, 2)
            self.discard()

    @property
    def draft(self) -> Draft:
        """What is below the buffers."""
        below: Any = self
        while not isinstance(below, Draft):
            below = below.below
        return below

    @property
    def below(self) -> Any:
        """The next file below this one."""
        raise NotImplementedError

    def sync(self) -> None:
        """See Draft.sync; with what is buffered here."""
        self.flush()
        self.below.sync()

    def discard(self) -> None:
        """See Draft.discard."""
        self.below.discard()

    def commit(self) -> None:
        """See Draft.commit; with what is buffered here."""
        self.close()
        self.below.commit()


class WrittenFile(_Written, io.BufferedWriter):
    """A file open for writing."""

    @property
    def below(self) -> Any:
        """See _Written."""
        return self.raw


class UpdatedFile(_Written, io.BufferedRandom):
    """A file open for reading and writing."""

    @property
    def below(self) -> Any:
        """See _Written."""
        return self.raw


class WrittenText(_Written, io.TextIOWrapper):
    """A text file open for writing."""

    @property
    def below(self) -> Any:
        """See _Written."""
        return self.buffer


class CompressedFile(_Written, io.BufferedWriter):
    """A file that is compressed as it is written, by another file over this one's."""

    def __init__(self, compressing: Any, file: Any) -> None:
        """``compressing``: writes to ``file``, and does not close it."""
        super().__init__(compressing)
        self._file = file

    @property
    def below(self) -> Any:
        """See _Written."""
        return self._file

    def close(self) -> None:
        """Write the rest, and close all."""
        if not self._file.closed:
            super().close()
            self._file.close()

    def discard(self) -> None:
        """See Draft.discard."""
        with suppress(OSError):  # what it has left to write is of no use
            super().close()
        self._file.discard()


def buffered(draft: Draft, buffering: int, encoding: str | None, errors: str | None, newline: str | None) -> IO[Any]:
    """A draft under the buffers that the builtin's has. Arguments as the builtin's."""
    found: Any = draft
    if "b" in draft.mode and buffering == 0:
        return found  # type: ignore[no-any-return]
    size = buffering if buffering > 1 else BUFFER_BYTES
    found = UpdatedFile(draft, size) if "+" in draft.mode else WrittenFile(draft, size)
    if "b" in draft.mode:
        return found  # type: ignore[no-any-return]
    return WrittenText(found, encoding or "utf-8", errors, newline, line_buffering=buffering == 1)
