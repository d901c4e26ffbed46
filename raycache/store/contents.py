"""Bytes of files that were written through the cache, for blocks: what they are made of is one question to the master
for all that are wanted together, and each worker that has some of it is asked once.

Responsible for: putting parts together from segments here, segments elsewhere, objects of the source and holes. Not
responsible for: files of segments (``segmentfile``), or whom to ask for one (``core.segmentsearch``).

Bounds: asking others lasts REACH_S at most; a segment that could not be had is not looked for again for AVOID_S, so
that those of a worker that is gone do not keep all fetchers busy. Threading: safe.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

from raycache.core.inode import Content, Extent, parse_content_etag, pieces
from raycache.core.lane import Lane
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.segment import SegmentRange, SourceRange
from raycache.core.segmentsearch import Holders, find_ranges
from raycache.core.values import Buffer, Failed, Part
from raycache.errors import Changed, Unavailable
from raycache.ufs.sources import Sources

REACH_S, AVOID_S, AVOIDED_MAX = 30.0, 10.0, 4096
SOURCE_READS = 8
"""Ranges of objects that are read side by side, for all fetchers together."""
Resolve = Callable[[Sequence[tuple[int, int]]], Sequence[Content | Failed]]
"""What versions of files are made of: see TreeApi.contents."""


class WrittenFiles:
    """See the module."""

    def __init__(
        self,
        resolve: Resolve,
        here: Callable[[Sequence[SegmentRange]], Sequence[Buffer | Failed]],
        holders: Holders,
        sources: Sources,
        source_s: float,
        reach_s: float = REACH_S,
        scheduler: Scheduler = THREADS,
    ) -> None:
        """``here``: ranges of segments of this worker. ``source_s``: how long reading an object may take, ``reach_s``:
        asking other workers."""
        self._reach_s = reach_s
        self._resolve = resolve
        self._here = here
        self._holders = holders
        self._sources = sources
        self._scheduler = scheduler
        self._lane = Lane(SOURCE_READS, source_s, "written-source", scheduler)
        self._lock = scheduler.lock()
        self._avoided: OrderedDict[str, float] = OrderedDict()

    def read(self, dataset: str, parts: Sequence[Part]) -> list[Buffer | Failed]:
        """The bytes of parts, in order. Raises what asking the master raises."""
        found = self._read(dataset, parts)
        # A segment may have been let go since the master was asked: then it knows where else the bytes are.
        again = [at for at, answer in enumerate(found) if isinstance(answer, Failed) and _is_changed(answer)]
        if again:
            for at, answer in zip(again, self._read(dataset, [parts[at] for at in again]), strict=True):
                found[at] = answer
        return found

    def _read(self, dataset: str, parts: Sequence[Part]) -> list[Buffer | Failed]:
        contents = self._contents(parts)
        made = _Made([_pieces(part, content) for part, content in zip(parts, contents, strict=True)])
        self._read_segments(made)
        self._read_sources(made, dataset)
        return made.joined()

    def _contents(self, parts: Sequence[Part]) -> list[Content | Failed]:
        versions = [_version(part) for part in parts]
        wanted = list(dict.fromkeys(versions))
        found = dict(zip(wanted, self._resolve(wanted), strict=True))
        return [found[version] for version in versions]

    def _read_segments(self, made: _Made) -> None:
        wanted = {
            at: SegmentRange(piece.segment, piece.offset, piece.length)
            for at, piece in enumerate(made.pieces)
            if piece.segment
        }
        if not wanted:
            return
        missing: dict[int, SegmentRange] = {}
        for (at, each), answer in zip(wanted.items(), self._here(list(wanted.values())), strict=True):
            if isinstance(answer, Failed):
                missing[at] = each
            else:
                made.found[at] = answer
        self._reach(missing, made)

    def _reach(self, missing: dict[int, SegmentRange], made: _Made) -> None:
        """Segments of other workers."""
        now = self._scheduler.monotonic()
        with self._lock:
            avoided = {each.segment for each in missing.values() if self._avoided.get(each.segment, 0.0) > now}
        wanted = {at: each for at, each in missing.items() if each.segment not in avoided}
        found = find_ranges(self._holders, wanted, self._reach_s, self._scheduler)
        late = Failed(Unavailable("its worker did not answer just now; read it again in a while"))
        made.found |= dict.fromkeys(missing, late) | found
        failed = {each.segment for at, each in wanted.items() if _is_unavailable(found[at])}
        with self._lock:
            self._avoided |= dict.fromkeys(failed, self._scheduler.monotonic() + AVOID_S)
            while len(self._avoided) > AVOIDED_MAX:
                self._avoided.popitem(last=False)

    def _read_sources(self, made: _Made, dataset: str) -> None:
        wanted = {
            at: SourceRange(dataset, piece.path, piece.etag, piece.offset, piece.length)
            for at, piece in enumerate(made.pieces)
            if piece.path
        }
        answers = self._lane.call_all([partial(self._sources.read, [each]) for each in wanted.values()])
        for (at, each), answer in zip(wanted.items(), answers, strict=True):
            if isinstance(answer, BaseException):
                text = f"{dataset}: {each.path} did not arrive in time from its source; read it again"
                made.found[at] = Failed(Unavailable(text))
            else:
                made.found[at] = answer[0]


class _Made:
    """Parts on their way to being put together: the pieces of all of them in one list, and what was found of each."""

    def __init__(self, parts: Sequence[list[Extent] | Failed]) -> None:
        self._parts = parts
        self.pieces = [piece for part in parts if not isinstance(part, Failed) for piece in part]
        self.found: dict[int, Buffer | Failed] = {}

    def joined(self) -> list[Buffer | Failed]:
        """The bytes of each part, or why they could not be had."""
        joined: list[Buffer | Failed] = []
        at = 0
        for part in self._parts:
            if isinstance(part, Failed):
                joined.append(part)
                continue
            some = [
                self.found[at + number] if piece.segment or piece.path else bytes(piece.length)
                for number, piece in enumerate(part)
            ]
            at += len(part)
            failed = next((each for each in some if isinstance(each, Failed)), None)
            joined.append(failed or _join([each for each in some if not isinstance(each, Failed)]))
        return joined


def _version(part: Part) -> tuple[int, int]:
    version = parse_content_etag(part.etag)
    assert version is not None, part
    return version


def _pieces(part: Part, content: Content | Failed) -> list[Extent] | Failed:
    if isinstance(content, Failed):
        return content
    found = pieces(content.extents, part.file_offset, part.length)
    if sum(piece.length for piece in found) != part.length:
        return Failed(Changed(f"{part.path} has {content.size_bytes} bytes, and not those that were listed"))
    return found


def _is_changed(answer: Failed) -> bool:
    return isinstance(answer.error, Changed)


def _is_unavailable(answer: Buffer | Failed) -> bool:
    return isinstance(answer, Failed) and isinstance(answer.error, Unavailable)


def _join(found: Sequence[Buffer]) -> Buffer:
    return found[0] if len(found) == 1 else b"".join(found)
