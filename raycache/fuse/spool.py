"""Where new bytes lie until a commit names them, and until they are on disk.

Responsible for: which segment is written to - one for many small files, one of its own for a large one - how long it is
held, and syncing. Not responsible for: what a file is made of (``drafts``), where segments lie (``client.segments``).

A segment is held as long as a draft has bytes in it that are not committed, and until it is on disk: who asks for that
later (``fsync`` of a file that was closed before) finds it here. Without being asked it is synced, and let go of, when
nothing has been added to it for SETTLE_S.

Bounds: as many segments as drafts with bytes that are not committed, and HELD_MAX besides.
Threading: safe.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from raycache.client.segments import Writer
from raycache.core.inode import Content
from raycache.core.values import Buffer
from raycache.errors import RaycacheError

SHARED_BYTES = 64 * 2**20
"""Length at which a segment of many files is followed by another."""
SETTLE_S = 5.0
HELD_MAX = 64
_log = logging.getLogger(__name__)


class Bytes(Protocol):
    """What is asked of ``client.segments.Segments``."""

    def writer(self, *, at_once: bool = False) -> Writer:
        """A new segment; ``at_once`` where it ``is_at_hand``. Raises NoSpace, Unavailable."""
        ...

    def resume(self, segment: str, worker_id: str) -> Writer:
        """A segment whose writer died. Raises Unavailable, NotFound."""
        ...

    def read(self, dataset: str, content: Content, offset: int, length: int) -> Buffer:
        """Bytes of a file. Raises Changed, Unavailable."""
        ...

    def room_bytes(self) -> int:
        """What may be written now. Raises Unavailable."""
        ...

    def is_at_hand(self) -> bool:
        """Whether a segment is made and written to without asking anybody."""
        ...


class Roll:
    """A segment that is being written."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.users: set[int] = set()
        """Inodes with bytes in it that are not committed."""
        self.added = self.synced = 0
        """Numbers of the last write that has ended, and of the last one that is on disk."""
        self.added_at = 0.0
        self.is_done = False
        """Nothing is added any more."""
        self.syncing = threading.Lock()
        self._numbers = itertools.count(1)

    def wrote(self, now: float) -> None:
        """A write has ended. One that overtakes another may make a sync too many, and none too few."""
        self.added_at = now
        self.added = next(self._numbers)

    @property
    def segment(self) -> str:
        """Its name."""
        return self.writer.segment


class Spool:
    """See the module. ``tidy`` is to be called every second or so; ``close`` at the end."""

    def __init__(
        self, segments: Bytes, begun: Callable[[Roll], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``begun``: told of each segment before it is written to."""
        self._segments = segments
        self._begun = begun
        self._clock = clock
        self._lock = threading.Lock()
        self._rolls: dict[str, Roll] = {}
        self._shared: Roll | None = None

    def shared(self, ino: int) -> Roll:
        """A segment for some bytes of a small file. Raises NoSpace, Unavailable."""
        with self._lock:
            if self._shared is None or self._shared.writer.size_bytes >= SHARED_BYTES:
                if self._shared is not None:
                    self._shared.is_done = True
                self._shared = None
                self._shared = self._make()
            self._shared.users.add(ino)
            return self._shared

    def own(self, ino: int, segment: str) -> Roll:
        """A segment for a large file alone: the one it had, if it is held still. Raises NoSpace, Unavailable."""
        with self._lock:
            roll = self._rolls.get(segment)
            if roll is None or roll.is_done:
                roll = self._make()
            roll.users.add(ino)
            return roll

    def _make(self) -> Roll:
        roll = Roll(self._segments.writer(at_once=True))
        self._begun(roll)
        self._rolls[roll.segment] = roll
        return roll

    def resume(self, segment: str, worker_id: str, inos: Iterable[int]) -> Roll:
        """Hold a segment that a predecessor wrote, for files with bytes in it. Raises Unavailable, NotFound."""
        with self._lock:
            roll = self._rolls[segment] = Roll(self._segments.resume(segment, worker_id))
            roll.users.update(inos)
            roll.is_done = True
            roll.wrote(self._clock())
        return roll

    def find(self, segment: str) -> Roll | None:
        """A segment that is held here."""
        return self._rolls.get(segment)

    def held(self) -> list[Roll]:
        """All that are held."""
        with self._lock:
            return list(self._rolls.values())

    def append(self, roll: Roll, data: memoryview) -> int:
        """Write at the end of a segment; where. Raises NoSpace, Unavailable."""
        offset = roll.writer.append(data)
        roll.wrote(self._clock())
        return offset

    def rewrite(self, roll: Roll, offset: int, data: memoryview) -> None:
        """Write over bytes that no commit names. Raises NoSpace, Unavailable."""
        roll.writer.pwrite(offset, data)
        roll.wrote(self._clock())

    def settle(self, ino: int, segments: Collection[str]) -> None:
        """A file has no bytes in these any more that are not committed."""
        with self._lock:
            for segment in segments:
                if roll := self._rolls.get(segment):
                    roll.users.discard(ino)

    def finish(self, segment: str) -> None:
        """Nothing is added to a segment any more."""
        if roll := self._rolls.get(segment):
            roll.is_done = True

    def sync(self, segments: Collection[str]) -> None:
        """Return when all that was written to these is on disk. Those that are not held here are. Raises NoSpace,
        Unavailable."""
        for segment in segments:
            if roll := self._rolls.get(segment):
                self._sync(roll)

    def _sync(self, roll: Roll) -> None:
        with roll.syncing:  # whoever waited here may find it done
            added = roll.added
            if roll.synced != added:
                roll.writer.sync()
                roll.synced = added

    def tidy(self) -> None:
        """Sync what nothing was added to for a while, and let go of what has no use any more."""
        before = self._clock() - SETTLE_S
        with self._lock:
            rolls = list(self._rolls.values())
        is_crowded = len(rolls) > HELD_MAX
        for roll in rolls:
            if roll.added_at < before or (roll.is_done and is_crowded and not roll.users):
                self._settle(roll)

    def _settle(self, roll: Roll) -> None:
        try:
            self._sync(roll)
        except RaycacheError as error:
            # Nobody was promised that it would be there after a power cut.
            _log.warning("segment %s may not survive this machine: %s", roll.segment, error)
        with self._lock:
            if roll.users or roll is self._shared:
                return
            self._rolls.pop(roll.segment, None)
        roll.writer.release()

    def close(self) -> None:
        """Sync and let go of everything."""
        with self._lock:
            rolls, self._shared = list(self._rolls.values()), None
        for roll in rolls:
            roll.users.clear()
            self._settle(roll)
