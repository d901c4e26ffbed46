"""One task of the journal, brought about in its source. No threads and no waiting but for the source.

Nothing that others put is put over or deleted: each put and deletion says which version it expects to find. Where the
source has another one, it may be our own: a put whose answer was lost, or one of an earlier version that was thought
to have failed. Such a one is known by its mark; by its bytes; or, where it could not be marked (some stores keep none,
copies have another's) and the bytes of that earlier version are gone, by its size and its time. Everything else is a
conflict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from raycache.core.inode import Content, Extent, pieces
from raycache.core.persisting import BLOCKED, CONFLICT, DONE, LATER, REFUSED, Attempt, Outcome, Task
from raycache.core.segment import SegmentRange, SourceRange
from raycache.core.values import Buffer, Failed, Stat
from raycache.errors import (
    AccessDenied,
    Changed,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    RaycacheError,
    SourceUnavailable,
    Unavailable,
)
from raycache.ufs.base import Stream, UnderFileSystem
from raycache.ufs.sources import Sources

WHOLE_MAX_BYTES = 16 << 20
"""Files up to this size are put in one request, larger ones in parts, as they are read."""
READ_BYTES = 8 << 20
CLOCKS_NS = 60 * 10**9
"""How far apart the clocks of the master and of a store may be."""
_TRIES = 5
"""Looks at what is there, for one task: each finds that somebody has just changed it."""
ReadExtents = Callable[[str, Sequence[Extent]], Sequence[Buffer]]
"""Bytes of extents of a dataset, in order. Raises Changed (they are gone), Unavailable."""


class ExtentReader:
    """A ReadExtents of what lies on the disk of a worker, and in sources."""

    def __init__(self, here: Callable[[Sequence[SegmentRange]], Sequence[Buffer | Failed]], sources: Sources) -> None:
        """``here``: ranges of segments of this worker."""
        self._here = here
        self._sources = sources

    def __call__(self, dataset: str, extents: Sequence[Extent]) -> Sequence[Buffer]:
        """See ReadExtents."""
        found: list[Buffer] = []
        for extent in extents:
            answers: Sequence[Buffer | Failed] = [bytes(extent.length)]
            if extent.segment:
                answers = self._here([SegmentRange(extent.segment, extent.offset, extent.length)])
            elif extent.path:
                part = SourceRange(dataset, extent.path, extent.etag, extent.offset, extent.length)
                answers = self._sources.read([part])
            if isinstance(answers[0], Failed):
                raise answers[0].error
            found.append(answers[0])
        return found


class _Conflict(Exception):
    def __init__(self, etag: str) -> None:
        super().__init__(etag)
        self.etag = etag


class _Unreadable(Exception):
    """What is to be put cannot be read."""

    def __init__(self, error: RaycacheError) -> None:
        super().__init__(str(error))
        self.error = error


def carry_out(task: Task, ufs: UnderFileSystem, read: ReadExtents) -> Outcome:
    """Do it; what became of it. Raises nothing but AccessDenied, on which other credentials may be tried."""
    about = (task.seq, task.dataset, task.path)
    where = f"{ufs.uri}/{task.path}"
    try:
        if task.kind == "put":
            assert task.content is not None
            etag = _Put(task, task.content, ufs, read).do()
            return Outcome(*about, DONE, etag, content=task.content, mark=task.tried[-1].mark)
        _delete_file(task, ufs)
        if task.kind == "mkdir":
            ufs.make_directory(task.path)
        elif task.kind == "rmdir":
            with suppress(NotADirectory):  # a file is there, or above it, as it is to be
                ufs.remove_directory(task.path)
        return Outcome(*about, DONE)
    except _Conflict as conflict:
        error = f"{where} was changed in the source by others; `raycache persist` with --overwrite or --discard decides"
        return Outcome(*about, CONFLICT, conflict.etag, error)
    except _Unreadable as unreadable:
        # Nothing waits for a worker that is away; for a source that is, everything does.
        result = LATER if isinstance(unreadable.error, SourceUnavailable) else REFUSED
        return Outcome(*about, result, error=f"the bytes for {where} cannot be read: {unreadable.error}")
    except AccessDenied:
        raise
    except (IsADirectory, NotADirectory, NotEmpty) as error:
        return Outcome(*about, BLOCKED, error=str(error))
    except RaycacheError as error:
        return Outcome(*about, LATER if isinstance(error, Unavailable) else REFUSED, error=str(error))


class _Put:
    """One put, until it has succeeded, or it is known why it cannot."""

    def __init__(self, task: Task, content: Content, ufs: UnderFileSystem, read: ReadExtents) -> None:
        self._task = task
        self._path = task.path
        self._content = content
        self._mine = task.tried[-1]
        self._ufs = ufs
        self._read = read

    def do(self) -> str:
        """The version that the source has now. Raises _Conflict, _Unreadable, and what the source raises."""
        expected, origin = self._task.base_etag, self._task.origin
        for _ in range(_TRIES):
            try:
                return self._bring(expected, origin)
            except Changed:
                found = self._look()
                if found is not None and self._is_done(found):
                    return found.etag
                if found is not None and found.etag != expected and not self._is_ours(found):
                    raise _Conflict(found.etag) from None
                if found is not None and found.etag == expected:
                    origin = None  # what there was to copy has changed: the bytes may be elsewhere too
                expected = found.etag if found is not None else ""
            except IsADirectory:
                self._ufs.remove_directory(self._path)  # it is gone here, and empty there
        raise SourceUnavailable(f"{self._ufs.uri}/{self._path}: others keep changing it")

    def _bring(self, expected: str, origin: tuple[str, str] | None) -> str:
        size_bytes = self._content.size_bytes
        if origin is not None:
            copied = self._ufs.copy(origin[0], origin[1], size_bytes, self._path, expected)
            if copied is not None:
                return copied.etag
        if size_bytes > WHOLE_MAX_BYTES:
            data: Buffer | Stream = Stream(size_bytes, self._chunks)
        else:
            data = self._range(0, size_bytes)
        return self._ufs.put(self._path, data, expected, self._mine.mark).etag

    def _look(self) -> Stat | None:
        """The file that is there."""
        try:
            found = self._ufs.stat(self._path)
        except NotFound:
            return None
        return None if found.is_dir else found

    def _mark(self) -> str | None:
        try:
            return self._ufs.mark_of(self._path)
        except NotFound:
            return ""

    def _is_done(self, found: Stat) -> bool:
        """Whether what is there is what was to be put: by us, or by others."""
        if found.size_bytes != self._content.size_bytes:
            return False
        return self._mark() == self._mine.mark or self._has_same_bytes(found)

    def _is_ours(self, found: Stat) -> bool:
        """Whether what is there, and is not what was to be put, was put here."""
        mark = self._mark()
        # With our own mark it is the beginning of what was to be put: some stores keep that of a broken connection.
        return mark == self._mine.mark or _is_older(found, mark, self._task.tried[:-1])

    def _has_same_bytes(self, found: Stat) -> bool:
        start = 0
        try:
            for chunk in self._chunks():
                length = memoryview(chunk).nbytes
                if self._ufs.get(self._path, start, length, found.etag) != chunk:
                    return False
                start += length
        except Changed:
            return False  # again, or ours: then a next attempt has other bytes
        return True

    def _chunks(self) -> Iterator[Buffer]:
        size_bytes = self._content.size_bytes
        for start in range(0, size_bytes, READ_BYTES):
            yield self._range(start, min(READ_BYTES, size_bytes - start))

    def _range(self, start: int, length: int) -> Buffer:
        wanted = pieces(self._content.extents, start, length)
        try:
            found = self._read(self._task.dataset, wanted) if wanted else [b""]
        except RaycacheError as error:
            raise _Unreadable(error) from error
        return found[0] if len(found) == 1 else b"".join(found)


def _delete_file(task: Task, ufs: UnderFileSystem) -> None:
    """Delete the file that is known to be at the path of a task, if one is. Raises _Conflict."""
    expected = task.base_etag
    if not expected and not task.tried and task.kind != "delete":
        return
    for _ in range(_TRIES):
        try:
            if expected:
                ufs.delete(task.path, expected)
                return
        except (NotFound, IsADirectory, NotADirectory):
            return
        except Changed:
            pass
        try:
            found = ufs.stat(task.path)
            mark = None if found.is_dir else ufs.mark_of(task.path)
        except (NotFound, NotADirectory):
            return
        if found.is_dir:
            return
        if found.etag != expected and not _is_older(found, mark, task.tried):
            raise _Conflict(found.etag)
        expected = found.etag
    raise SourceUnavailable(f"{ufs.uri}/{task.path}: others keep changing it")


def _is_older(found: Stat, mark: str | None, tried: Sequence[Attempt]) -> bool:
    """Whether a file is one that was put here, at an attempt of which nobody heard."""
    if mark and any(attempt.mark == mark for attempt in tried):
        return True
    # A copy has the mark of what it was copied from, if any.
    unmarked = [attempt for attempt in tried if mark is None or attempt.etag]
    return any(
        attempt.size_bytes == found.size_bytes
        and (found.mtime_ns >= attempt.since_ns - CLOCKS_NS or found.etag == attempt.etag)
        for attempt in unmarked
    )
