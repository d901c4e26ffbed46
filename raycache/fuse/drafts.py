"""What files hold as a mount shows them: as the master had them last, with what was written here since.

Responsible for: the contents of files that are open or were a moment ago, and where new bytes of each go. Not
responsible for: asking the master (``writable``), segments (``spool``).

There is one draft for an inode, whoever has it open and how often: handles hold nothing, so that a successor of this
process can go on with them.

Invariants
* A draft that is not *dirty* is a version that the master has; it may be dropped at any time.
* Bytes that a commit has named are never written over: what of a segment lies before ``committed`` is left alone.

Bounds: CLEAN_MAX drafts that are not dirty. Threading: safe; a draft is changed under its lock, and committed under
``committing``, which is taken first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from raycache.core.extents import Extents
from raycache.core.inode import Attr, Content, Extent, Segment
from raycache.fuse.draftlog import Kind
from raycache.fuse.spool import Spool

Record = Callable[..., None]
"""``DraftLog.add``."""

CLEAN_MAX = 16_384
SMALL_BYTES = 2**20
"""Bytes of a file that go into a segment with those of others; more have one of their own."""


class Draft:
    """The contents of an inode."""

    def __init__(self, attr: Attr, content: Content | None, now: float, record: Record) -> None:
        self._record = record
        self.lock = threading.Lock()
        self.committing = threading.Lock()
        self.attr = attr
        """As the master had it last."""
        self.extents = Extents(content)
        self.fresh_at = now
        """When the master said that this is so."""
        self.dirty = False
        self.edits = 0
        """Changes so far: whether there were any while a commit was under way."""
        self.mtime_ns = 0
        """Of the last change."""
        self.pages_known = False
        """Whether the pages that the kernel has of it, if any, are of these contents."""
        self.opens = 0
        """Times it was opened here and not closed; not what a predecessor of this process opened."""
        self.bare = False
        """Whether it was made here, and nobody has given it extended attributes."""
        self.orphan = False
        """Whether it has no name any more."""
        self.segments: dict[str, int] = {}
        """Segments with bytes of it, and how much of each a commit may have named."""
        self.own = ""
        """The segment that is its alone."""
        self.new_bytes = 0
        """Written since it was read last from the master."""

    def shown(self, attr: Attr | None = None) -> Attr:
        """What ``stat`` shows. ``attr``: something newer of the master."""
        attr = attr or self.attr
        if not self.dirty:
            return attr
        return attr._replace(
            size_bytes=self.extents.size_bytes, mtime_ns=self.mtime_ns, ctime_ns=max(attr.ctime_ns, self.mtime_ns)
        )

    def write(self, at: int, data: memoryview, spool: Spool, now_ns: int) -> None:
        """Lay bytes over what is there. With the lock held. Raises NoSpace, Unavailable."""
        length = len(data)
        there = self.extents.pieces(at, length) if at < self.extents.size_bytes else []
        if len(there) == 1 and there[0].length == length and self._is_loose(there[0]):
            roll = spool.find(there[0].segment)
            if roll is not None:
                spool.rewrite(roll, there[0].offset, data)
                self._edited(now_ns)
                return
        is_small = self.new_bytes + length <= SMALL_BYTES and not self.own
        roll = spool.shared(self.attr.ino) if is_small else spool.own(self.attr.ino, self.own)
        if not is_small:
            self.own = roll.segment
        extent = Extent(at, length, roll.segment, spool.append(roll, data))
        self.segments.setdefault(roll.segment, 0)
        self.new_bytes += length
        self.put(extent, now_ns)

    def put(self, extent: Extent, now_ns: int) -> None:
        """Lay an extent over what is there. With the lock held. Raises NoSpace."""
        self._record(Kind.PUT, self.attr.ino, tuple(extent), now_ns)
        self.extents.put(extent)
        self._edited(now_ns)

    def resize(self, size_bytes: int, now_ns: int) -> None:
        """Cut it, or make it longer with a hole. With the lock held. Raises NoSpace."""
        self._record(Kind.SIZE, self.attr.ino, size_bytes, now_ns)
        self.extents.resize(size_bytes)
        self._edited(now_ns)

    def restore(self, edits: Sequence[Extent | int], now_ns: int) -> None:
        """Edits of a predecessor, extents and sizes in order."""
        for edit in edits:
            if isinstance(edit, int):
                self.extents.resize(edit)
            else:
                self.extents.put(edit)
        self._edited(now_ns)

    def committed(self, edits: int) -> None:
        """The master has what it held after so many edits. With the lock held."""
        if self.edits == edits:
            self.dirty = False
            self._record(Kind.CLEAN, self.attr.ino)

    def record_whole(self) -> None:
        """Put all of it on record again. With the lock held. Raises NoSpace."""
        content = self.extents.content()
        whole = (content.size_bytes, [tuple(extent) for extent in content.extents])
        self._record(Kind.WHOLE, self.attr.ino, whole, self.mtime_ns)

    def _edited(self, now_ns: int) -> None:
        self.dirty = True
        self.edits += 1
        self.mtime_ns = now_ns

    def _is_loose(self, piece: Extent) -> bool:
        """Whether no commit has named the bytes of a piece."""
        committed = self.segments.get(piece.segment)
        return committed is not None and piece.offset >= committed

    def named(self, spool: Spool) -> list[Segment]:
        """Segments of its bytes, for a commit that is about to name them. With the lock held."""
        found: list[Segment] = []
        for segment in self.segments:
            if roll := spool.find(segment):
                about = roll.writer.about()
                self.segments[segment] = about.size_bytes
                found.append(about)
        return found


class Drafts:
    """All drafts of a mount."""

    def __init__(self, clock: Callable[[], float], stale: Callable[[int], None], record: Record) -> None:
        """``stale``: told of inodes whose contents are others than those that were shown. ``record``: told of edits."""
        self._clock = clock
        self._stale = stale
        self._record = record
        self._lock = threading.Lock()
        self._drafts: OrderedDict[int, Draft] = OrderedDict()

    def find(self, ino: int) -> Draft | None:
        """The draft of an inode, if there is one."""
        return self._drafts.get(ino)

    def keep(self, attr: Attr, content: Content | None) -> Draft:
        """Hold what the master says of an inode now; a draft that is dirty keeps its own contents."""
        with self._lock:
            now = self._clock()
            draft = self._drafts.get(attr.ino)
            if draft is None:
                draft = self._drafts[attr.ino] = Draft(attr, content, now, self._record)
                self._make_room()
                return draft
            self._drafts.move_to_end(attr.ino)
        with draft.lock:
            is_stale = attr.version > draft.attr.version and not draft.dirty
            if not draft.dirty and attr.version >= draft.attr.version:
                draft.extents = Extents(content)  # the same bytes may lie elsewhere by now
            if is_stale:
                draft.pages_known = False
                draft.new_bytes = 0
            if attr.version >= draft.attr.version:
                draft.attr = attr
                draft.fresh_at = now
        if is_stale:
            self._stale(attr.ino)
        return draft

    def learn(self, attr: Attr) -> Attr:
        """The master has said what an inode is: what is to be shown. Contents that are not its any more are dropped."""
        draft = self._drafts.get(attr.ino)
        if draft is None:
            return attr
        with draft.lock:
            if attr.version < draft.attr.version:
                return draft.shown()  # an answer that was overtaken
            is_stale = attr.version != draft.attr.version and not draft.dirty
            if not is_stale:
                draft.attr = attr
                draft.fresh_at = self._clock()
                return draft.shown()
        self.drop(attr.ino)
        self._stale(attr.ino)
        return attr

    def drop(self, ino: int) -> None:
        """Hold a draft no more."""
        with self._lock:
            self._drafts.pop(ino, None)

    def dirty(self) -> list[Draft]:
        """Those that hold what the master has not."""
        with self._lock:
            return [draft for draft in self._drafts.values() if draft.dirty]

    def _make_room(self) -> None:
        """With the lock held: drop the oldest of which nothing would be lost. Looks at a few: nearly all are clean."""
        if len(self._drafts) <= CLEAN_MAX:
            return
        for ino in [ino for ino, _ in zip(self._drafts, range(16), strict=False)]:
            draft = self._drafts[ino]
            if draft.dirty or draft.opens > 0:
                self._drafts.move_to_end(ino)
            else:
                del self._drafts[ino]
                return
