"""The contents of files of a mount that is written: reading, writing, committing. Knows neither FUSE nor Ray.

Responsible for: when the master is asked for contents and told of them. Not responsible for: names and attributes
(``writable``), what a file holds meanwhile (``drafts``), where bytes lie (``spool``, ``client.segments``).

Close-to-open: what was written is committed, whole, when a descriptor is closed or synced; until then it is seen
through this mount alone. Who opens a file sees the last commit that the master had less than LIFETIME_S before.

Threading: safe. What takes ``wait=False`` raises WouldBlock where it would have to ask somebody.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence

from xxhash import xxh3_64_hexdigest

from raycache.client.namespace import WouldBlock
from raycache.core.extents import found_anew
from raycache.core.inode import EXTENTS_MAX, Attr, Content, Extent, Verb
from raycache.core.values import Buffer
from raycache.errors import Changed, Refused, Unavailable
from raycache.fuse.beside import Steps, given
from raycache.fuse.draftlog import DraftLog, Kind
from raycache.fuse.drafts import Draft, Drafts
from raycache.fuse.grouped import Grouped
from raycache.fuse.spool import Bytes, Roll, Spool

LIFETIME_S = 1.0
"""How long it is believed what the master said of a file."""
EXTENTS_FEW = 16
"""Pieces of a file that are told of without a thread of its own."""
COPY_BYTES = 4 * 2**20
"""One step of copying what lies scattered."""
SIZE_MAX = 2**63 - 1
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
_SEEK_DATA = 3


class Files:
    """See the module."""

    def __init__(
        self,
        master: Grouped,
        segments: Bytes,
        dataset: str,
        log: DraftLog,
        stale: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """``stale``: told of inodes whose contents are others than the kernel may have pages of."""
        self._log = log
        self._master = master
        self._segments = segments
        self._dataset = dataset
        self._clock = clock
        self._now_ns = now_ns
        self.drafts = Drafts(clock, stale, log.add)
        self.spool = Spool(segments, self._begun, clock)
        self._lost: set[int] = set()

    def restore(self, attr: Attr, content: Content, edits: Sequence[Extent | int], mtime_ns: int, orphan: bool) -> None:
        """A file that a predecessor had not committed: what lies beneath, and edits. Raises NoSpace."""
        draft = self.drafts.keep(attr, content)
        with draft.lock:
            draft.restore(edits, mtime_ns)
            draft.orphan = orphan
            for segment in {extent.segment for extent in draft.extents.content().extents}:
                if roll := self.spool.find(segment):
                    draft.segments[segment] = roll.writer.size_bytes  # a commit may have named any of it
            draft.record_whole()

    def lose(self, ino: int) -> None:
        """What was written to a file is lost: whoever closes it next is told."""
        self._lost.add(ino)

    def record_again(self) -> None:
        """Put all that is not committed on record again. Raises NoSpace."""
        for roll in self.spool.held():
            self._begun(roll)
        for draft in self.drafts.dirty():
            with draft.lock:
                if draft.dirty:
                    draft.record_whole()

    def _begun(self, roll: Roll) -> None:
        self._log.add(Kind.SEGMENT, roll.segment, roll.writer.worker_id)

    def created(self, attr: Attr) -> None:
        """An empty file was made here, and is open."""
        draft = self.drafts.keep(attr, None)
        draft.pages_known = draft.bare = True
        draft.opens += 1

    def known(self, ino: int) -> Attr | None:
        """What ``stat`` shows, where it was heard of the master within LIFETIME_S."""
        draft = self.drafts.find(ino)
        if draft is None or self._clock() - draft.fresh_at >= LIFETIME_S:
            return None
        with draft.lock:
            return draft.shown()

    def is_bare(self, ino: int) -> bool:
        """Whether an inode certainly has no extended attributes: the kernel asks before the first write to each."""
        draft = self.drafts.find(ino)
        return draft is not None and draft.bare

    def doubt(self, ino: int) -> None:
        """Attributes of an inode have changed, other than those that were heard."""
        draft = self.drafts.find(ino)
        if draft is not None:
            draft.bare, draft.fresh_at = False, self._clock() - LIFETIME_S

    def open(self, ino: int, truncate: bool, *, wait: bool = True) -> bool:
        """Open a file; whether the pages that the kernel has are of its contents. Raises NotFound, WouldBlock."""
        draft = self.drafts.find(ino)
        if draft is None or not (draft.dirty or self._clock() - draft.fresh_at < LIFETIME_S):
            if not wait:
                raise WouldBlock
            draft = self._load(ino)
        with draft.lock:
            known, draft.pages_known = draft.pages_known, True
            draft.opens += 1
            if truncate:
                draft.resize(0, self._now_ns())
        return known

    def is_committed(self, ino: int) -> bool:
        """Whether there is nothing that the master has not, and nothing that is known to be lost."""
        draft = self.drafts.find(ino)
        return (draft is None or not draft.dirty) and ino not in self._lost

    def closed(self, ino: int) -> bool:
        """A handle is gone; whether there is something to be committed."""
        draft = self.drafts.find(ino)
        if draft is None:
            return False
        with draft.lock:
            draft.opens = max(0, draft.opens - 1)
            self._finish(draft)
        return draft.dirty

    def read(self, ino: int, offset: int, size: int) -> Buffer:
        """Up to ``size`` bytes. Raises what Segments.read raises, IsADirectory, NotFound."""
        draft = self._draft(ino)
        with draft.lock:
            pieces, version = draft.extents.pieces(offset, size), draft.attr.version
        try:
            return self._read(pieces)
        except Changed:
            # What lies in the source may have been moved there: a file of another name, of which the master knows.
            attr, content = self._master.ask("content", ino)
        draft = self.drafts.keep(attr, content)
        with draft.lock:
            if not draft.dirty:
                pieces = draft.extents.pieces(offset, size)
            elif attr.version == version:
                pieces = found_anew(pieces, content)
        return self._read(pieces)

    def _read(self, pieces: list[Extent]) -> Buffer:
        """Consecutive pieces of a file."""
        found: list[Buffer] = []
        for piece in pieces:
            roll = self.spool.find(piece.segment) if piece.segment else None
            if roll is not None:
                found.append(roll.writer.pread(piece.offset, piece.length))
            elif not piece.segment and not piece.path:
                found.append(bytes(piece.length))
            else:
                length = sum(piece.length for piece in pieces)
                content = Content(pieces[0].at + length, tuple(pieces))
                return self._segments.read(self._dataset, content, pieces[0].at, length)
        return found[0] if len(found) == 1 else b"".join(found)

    def write(self, ino: int, at: int, data: memoryview, *, wait: bool = True) -> int:
        """Write bytes; how many. Raises NoSpace, Unavailable, NotFound, Refused (EFBIG), WouldBlock."""
        draft = self.drafts.find(ino)
        if not wait and (draft is None or not self._segments.is_at_hand()):
            raise WouldBlock
        draft = draft or self._load(ino)
        if at + len(data) > SIZE_MAX:
            raise Refused.because(errno.EFBIG, f"offset {at} is beyond the end of the largest file")
        with draft.lock:
            draft.write(at, data, self.spool, self._now_ns())
        return len(data)

    def resize(self, ino: int, size_bytes: int) -> Draft:
        """Cut a file, or make it longer with a hole. Raises NotFound, IsADirectory, InvalidInput."""
        draft = self._draft(ino)
        with draft.lock:
            draft.resize(size_bytes, self._now_ns())
        return draft

    def commit(self, ino: int, request_id: str, *, sync: bool = False) -> None:
        """Have the master hold what was written. ``sync``: on disk first. Raises what TreeApi.commit raises."""
        self._master.run(self.commit_steps(ino, request_id, sync=sync))

    def commit_steps(self, ino: int, request_id: str, *, sync: bool = False, wait: bool = True) -> Steps[None]:
        """The same in steps."""
        if ino in self._lost:
            self._lost.discard(ino)
            raise Unavailable(f"inode {ino:#x}: what was written is lost with the disk that it was on; write it anew")
        draft = self.drafts.find(ino)
        if not wait and (sync or (draft is not None and len(draft.extents) > EXTENTS_FEW)):
            raise WouldBlock
        if draft is None:
            if sync:  # it was clean; and what is clean and not held any more has been on disk for long
                given((yield [Verb("sync", ())])[0])
            return
        if not draft.committing.acquire(blocking=wait):
            raise WouldBlock
        try:
            yield from self._commit_steps(draft, request_id, sync)
        finally:
            draft.committing.release()

    def _commit_steps(self, draft: Draft, request_id: str, sync: bool) -> Steps[None]:
        """The same, of what nobody else commits."""
        while len(draft.extents) > EXTENTS_MAX:
            self._gather(draft)
        with draft.lock:
            names = {extent.segment for extent in draft.extents.content().extents} if sync else set()
            edits, is_needed = draft.edits, draft.dirty and not draft.orphan
            segments = draft.named(self.spool) if is_needed else []
            content, mtime_ns = draft.extents.content(), draft.mtime_ns
        self.spool.sync(names)
        if not is_needed:
            if sync:
                given((yield [Verb("sync", ())])[0])
            return
        ino = draft.attr.ino
        # Who asks again may have more to tell by now, and must not be answered that less is known already.
        same_id = f"{request_id}:{xxh3_64_hexdigest(repr((content, mtime_ns)).encode())}"
        verbs = [Verb("commit", (ino, content, segments, mtime_ns), same_id)]
        attr, *synced = yield verbs + [Verb("sync", ())] * sync
        for answer in (attr, *synced):
            given(answer)
        with draft.lock:
            draft.attr, draft.fresh_at = attr, self._clock()
            draft.committed(edits)
            if not draft.dirty:
                self.spool.settle(ino, draft.segments)
                draft.segments = {name: named for name, named in draft.segments.items() if name == draft.own}
                self._finish(draft)

    def _finish(self, draft: Draft) -> None:
        """Add nothing more to the own segment of a file that is closed. With its lock held."""
        if draft.own and draft.opens == 0 and not draft.dirty:
            self.spool.finish(draft.own)
            draft.own = ""

    def forget(self, ino: int) -> None:
        """A file without a name is not open any more, and what was written to it of no use."""
        draft = self.drafts.find(ino)
        if draft is not None:
            with draft.lock:
                self.spool.settle(ino, draft.segments)
                self.spool.finish(draft.own)
            self.drafts.drop(ino)

    def room_bytes(self) -> int:
        """What may be written. Raises Unavailable."""
        return self._segments.room_bytes()

    def allocate(self, ino: int, mode: int, offset: int, length: int) -> None:
        """As fallocate(2); nothing is reserved. Raises Refused (EOPNOTSUPP), NotFound, IsADirectory."""
        draft = self._draft(ino)
        with draft.lock:
            size_bytes, stop = draft.extents.size_bytes, offset + length
            if mode & ~(_KEEP_SIZE | _PUNCH_HOLE | _ZERO_RANGE):
                raise Refused.because(errno.EOPNOTSUPP, f"fallocate mode {mode:#x} is not supported")
            if mode & (_PUNCH_HOLE | _ZERO_RANGE) and offset < size_bytes:
                draft.put(Extent(offset, min(stop, size_bytes) - offset), self._now_ns())
            if not mode & _KEEP_SIZE and stop > size_bytes:
                draft.resize(stop, self._now_ns())

    def seek(self, ino: int, offset: int, whence: int) -> int:
        """As lseek(2) with SEEK_DATA or SEEK_HOLE. Raises Refused (ENXIO)."""
        draft = self._draft(ino)
        with draft.lock:
            size_bytes = draft.extents.size_bytes
            pieces = draft.extents.pieces(offset, size_bytes)
        if not pieces:
            raise Refused.because(errno.ENXIO, f"offset {offset} is beyond the end of a file of {size_bytes} bytes")
        for piece in pieces:
            is_hole = not piece.segment and not piece.path
            if is_hole != (whence == _SEEK_DATA):
                return piece.at
        if whence == _SEEK_DATA:
            raise Refused.because(errno.ENXIO, f"there are no data from offset {offset} on")
        return size_bytes

    def copy(self, ino: int, offset: int, to_ino: int, to_offset: int, length: int, request_id: str) -> int:
        """As copy_file_range(2), by having both files made of the same bytes. Raises as ``commit`` and ``write``."""
        source, target = self._draft(ino), self._draft(to_ino)
        self.commit(ino, request_id)  # what is shared is not written over from now on
        with source.lock:
            if source.dirty:
                raise Refused.because(errno.EOPNOTSUPP, "the file is being written at this moment: it has to be copied")
            pieces = source.extents.pieces(offset, length)
        with target.lock:
            for piece in pieces:
                target.put(piece._replace(at=piece.at - offset + to_offset), self._now_ns())
        return sum(piece.length for piece in pieces)

    def _draft(self, ino: int) -> Draft:
        return self.drafts.find(ino) or self._load(ino)

    def _load(self, ino: int) -> Draft:
        attr, content = self._master.ask("content", ino)
        return self.drafts.keep(attr, content)

    def _gather(self, draft: Draft) -> None:
        """Copy what lies scattered into one piece."""
        for at in range(0, draft.extents.size_bytes, COPY_BYTES):
            with draft.lock:
                data = memoryview(self._read(draft.extents.pieces(at, COPY_BYTES)))
                draft.own = self.spool.own(draft.attr.ino, draft.own).segment
                draft.write(at, data, self.spool, draft.mtime_ns)
