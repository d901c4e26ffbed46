"""Files that are written: drafts, which become files when they are closed, and many small files at once.

Responsible for: the file objects of the writing modes, where a draft's bytes lie until it is committed, grouping small
files. Not responsible for: verbs on names (``editing``), segments, or how a commit becomes visible (``meta``).

Invariants
* A draft is seen by nobody until it is closed, and then as a whole. One that ends otherwise - an exception in its
  ``with``, ``discard()``, or being forgotten - leaves nothing.
* What is read from a draft in an updating mode is what will be committed: own bytes over the version that was opened.

Threading: a draft is for one thread at a time, as the builtin's files are; ``Writing`` is safe.
"""

from __future__ import annotations

import io
import stat
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from raycache.client.changing import Changing, Target
from raycache.client.segments import Writer
from raycache.client.treeapi import VERBS_AT_ONCE
from raycache.core.arguments import check_write_type
from raycache.core.extents import Extents
from raycache.core.inode import EXTENTS_MAX, LISTED_FILE, Attr, Content, Extent, Segment, Verb
from raycache.core.values import Buffer, Failed
from raycache.errors import Exists, IsADirectory, NotFound

BUFFER_BYTES = 2**20
COPY_BYTES = 4 * 2**20
"""One step of copying what lies scattered."""
GROUP_BYTES = 64 * 2**20
"""Bytes of small files that are written before their commit."""


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

    def __init__(self, owner: Writing, target: Target, mode: str, options: Options, base: Base | None) -> None:
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
        """See io.RawIOBase.write: all of it is taken. Raises NoSpace, Unavailable."""
        self._check_open()
        view = memoryview(data).cast("B")
        if "a" in self.mode:
            self._position = self._extents.size_bytes
        self._put(self._position, view)
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
        if self._writer is not None:
            self._writer.sync()

    def discard(self) -> None:
        """Leave nothing of it, and close it."""
        self._discarded = True
        self.close()

    def close(self) -> None:
        """Make it a file, unless it was discarded. Raises what TreeApi.put and commit raise; then there is none."""
        if self.closed:
            return
        super().close()
        if self._discarded:
            self.settle(committed=False)
        elif not self.options.wait:
            self._owner.commit([self])

    def verb(self) -> Verb | None:
        """What has to be asked of the master for it to become a file; None when it is as it was."""
        if self._discarded or not self._changed:
            return None
        if len(self._extents) > EXTENTS_MAX:
            self._gather()
        segments: Sequence[Segment] = ()
        if self._writer is not None:
            if self.options.sync:
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
        if not self.closed:
            self.discard()
        self.settle(committed=False)

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
        content = Content(piece.length, (piece._replace(at=0),))
        return self._owner.segments.read(self.target.dataset, content, 0, piece.length)

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
        buffered: Any = getattr(self, "buffer", self)
        draft: Draft = buffered.raw
        return draft

    def sync(self) -> None:
        """See Draft.sync; with what is buffered here."""
        self.flush()
        self.draft.sync()

    def discard(self) -> None:
        """See Draft.discard."""
        self.draft.discard()


class WrittenFile(_Written, io.BufferedWriter):
    """A file open for writing."""


class UpdatedFile(_Written, io.BufferedRandom):
    """A file open for reading and writing."""


class WrittenText(_Written, io.TextIOWrapper):
    """A text file open for writing."""


class Writing:
    """Writes files of datasets."""

    def __init__(self, changing: Changing) -> None:
        self._changing = changing
        self._tree = changing.tree
        self.segments = changing.segments
        """Where bytes go to and come from."""

    def target(self, uri: str) -> Target:
        """Where a file is to be. Raises InvalidInput, NotFound for its dataset, IsADirectory for the root of one."""
        target = self._changing.target(uri)
        if not target.name or uri.endswith("/"):
            raise IsADirectory(f"{uri} is a directory; give the name of a file in it")
        return target

    def open(self, uri: str, mode: str, options: Options) -> Draft:
        """Begin to write. Raises NotFound, Exists, IsADirectory, InvalidInput, Unavailable."""
        target = self.target(uri)
        base = None
        if "r" in mode or "a" in mode:
            base = self._base(target, must_exist="r" in mode)
        elif "x" in mode and self._is_there(target):
            raise Exists(f"{uri} is there already; open it with mode 'w' to replace it")
        return Draft(self, target, mode, options, base)

    def edit(
        self,
        uri: str,
        mode: str,
        options: Options,
        *,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """``open`` with the buffers that the builtin's has. Raises as ``open`` does."""
        draft: Any = self.open(uri, mode, options)
        if "b" in mode and buffering == 0:
            return draft  # type: ignore[no-any-return]
        size = buffering if buffering > 1 else BUFFER_BYTES
        buffered: Any = UpdatedFile(draft, size) if "+" in mode else WrittenFile(draft, size)
        if "b" in mode:
            return buffered  # type: ignore[no-any-return]
        return WrittenText(buffered, encoding or "utf-8", errors, newline, line_buffering=buffering == 1)

    def commit(self, drafts: Sequence[Draft]) -> None:
        """Have drafts become files: VERBS_AT_ONCE of them in one step, in which all that are not refused do.

        Raises what TreeApi.put and commit raise, for the first that is refused.
        """
        asked: list[tuple[Draft, Verb]] = []
        try:
            asked = [(draft, verb) for draft in drafts if (verb := draft.verb()) is not None]
            self._apply([(draft.target, verb) for draft, verb in asked])
        finally:
            # What may be in the catalog is kept: what is not is deleted in time by the worker, who asks the master.
            for draft in drafts:
                draft.settle(committed=bool(asked))
        for write_type in {draft.options.write_type for draft in drafts}:
            mine = [draft.target for draft, _ in asked if draft.options.write_type == write_type]
            self._changing.settled(mine, write_type)

    def write_many(
        self, files: Mapping[str, Buffer] | Iterable[tuple[str, Buffer]], write_type: str = "", sync: bool = False
    ) -> int:
        """Write whole files, many in one step and next to each other in one segment; how many.

        VERBS_AT_ONCE of them, or GROUP_BYTES, are on their way at a time: files may be made as they are asked for.
        Raises as ``open`` and ``commit`` do, for the first that is refused; of its group the others are written, of
        the groups after it none.
        """
        options = Options(write_type, sync)
        pairs = iter(files.items() if isinstance(files, Mapping) else files)
        return sum(self._write_group(group, options) for group in _groups(pairs))

    def _write_group(self, group: Sequence[tuple[str, Buffer]], options: Options) -> int:
        writer = self.segments.writer() if any(len(data) for _, data in group) else None
        try:
            placed = [(self.target(uri), _append(writer, memoryview(data).cast("B"))) for uri, data in group]
            if writer is not None and options.sync:
                writer.sync()
            segments = () if writer is None else (writer.about(),)
            now_ns = time.time_ns()

            def verb(target: Target, content: Content) -> Verb:
                mine = segments if content.extents else ()
                args = (target.folder, target.name, LISTED_FILE, content, mine, now_ns, options.write_type, True)
                return Verb("put", args, uuid.uuid4().hex)

            self._apply([(target, verb(target, content)) for target, content in placed])
        finally:
            if writer is not None:
                writer.release()
        self._changing.settled((target for target, _ in placed), options.write_type)
        return len(group)

    def _apply(self, asked: Sequence[tuple[Target, Verb]]) -> None:
        failed: list[Failed] = []
        try:
            for start in range(0, len(asked), VERBS_AT_ONCE):
                answers = self._tree.apply([verb for _, verb in asked[start : start + VERBS_AT_ONCE]])
                failed += [answer for answer in answers if isinstance(answer, Failed)]
        finally:  # also what may be there although nobody heard of it
            self._changing.noted(target for target, _ in asked)
        if failed:
            raise failed[0].error

    def _is_there(self, target: Target) -> bool:
        try:
            self._tree.getattr(target.place)
        except NotFound:
            return False
        return True

    def _base(self, target: Target, *, must_exist: bool) -> Base | None:
        """The version of a file to start from."""
        try:
            attr, content = self._tree.content(target.place)
        except NotFound:
            if must_exist:
                raise
            return None
        if not stat.S_ISREG(attr.mode):
            raise IsADirectory(f"{target.uri} is no file")
        return Base(attr, content)


def _append(writer: Writer | None, data: memoryview) -> Content:
    if writer is None or not len(data):
        return Content(0, ())
    return Content(len(data), (Extent(0, len(data), writer.segment, writer.append(data)),))


def _groups(pairs: Iterator[tuple[str, Buffer]]) -> Iterator[list[tuple[str, Buffer]]]:
    group: list[tuple[str, Buffer]] = []
    size_bytes = 0
    for pair in pairs:
        group.append(pair)
        size_bytes += memoryview(pair[1]).nbytes
        if len(group) == VERBS_AT_ONCE or size_bytes >= GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group
