"""What a gateway that died had not committed, made drafts of its successor again.

Responsible for: what the records of ``draftlog`` come to. Not responsible for: keeping them.

Threading: before anything is served.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from raycache.core.inode import Content, Extent, Verb
from raycache.core.values import Failed
from raycache.errors import RaycacheError, Unavailable
from raycache.fuse.draftlog import DraftLog, Kind
from raycache.fuse.files import Files
from raycache.fuse.grouped import Grouped

PATIENCE_S = 60.0
"""How long the master is asked for what lies beneath; then what was not committed is given up."""
_log = logging.getLogger(__name__)


@dataclass
class Edited:
    """A file that was not committed."""

    whole: Content | None = None
    """All that it held at some time; None: what the master has, at the beginning."""
    edits: list[Extent | int] = field(default_factory=list)
    """Since then: ranges and sizes."""
    mtime_ns: int = 0


@dataclass
class Left:
    """What a predecessor left."""

    segments: dict[str, str] = field(default_factory=dict)
    """Names, and the worker of each."""
    files: dict[int, Edited] = field(default_factory=dict)
    orphans: set[int] = field(default_factory=set)

    def segments_of(self, ino: int) -> set[str]:
        """Segments of the predecessor with bytes of a file."""
        edited = self.files[ino]
        extents = [edit for edit in edited.edits if isinstance(edit, Extent)]
        extents += edited.whole.extents if edited.whole is not None else ()
        return {extent.segment for extent in extents} & self.segments.keys()


def read_left(records: Iterable[tuple[Any, ...]]) -> Left:
    """What records come to."""
    left = Left()
    for kind, *values in records:
        if kind == Kind.SEGMENT:
            left.segments[values[0]] = values[1]
            continue
        ino = values[0]
        if kind == Kind.ORPHAN:
            left.orphans.add(ino)
        elif kind == Kind.FORGOTTEN:
            left.orphans.discard(ino)
            left.files.pop(ino, None)
        elif kind == Kind.CLEAN:
            left.files.pop(ino, None)
        elif kind == Kind.WHOLE:
            size_bytes, extents = values[1]
            whole = Content(size_bytes, tuple(Extent(*extent) for extent in extents))
            left.files[ino] = Edited(whole, mtime_ns=values[2])
        else:
            edited = left.files.setdefault(ino, Edited())
            edited.edits.append(Extent(*values[1]) if kind == Kind.PUT else values[1])
            edited.mtime_ns = values[2]
    return left


def recover(log: DraftLog, files: Files, master: Grouped) -> set[int]:
    """Go on with what predecessors left; files without a name that somebody may have open."""
    numbers, records = log.left()
    left = read_left(records)
    for ino in left.orphans:
        log.add(Kind.ORPHAN, ino)
    if left.files:
        _log.info("going on with %d files that were being written", len(left.files))
        _restore(left, files, master)
    log.drop(numbers)
    return left.orphans


def _restore(left: Left, files: Files, master: Grouped) -> None:
    users: dict[str, list[int]] = {}
    for ino in left.files:
        for segment in left.segments_of(ino):
            users.setdefault(segment, []).append(ino)
    lost: set[int] = set()
    for segment, inos in users.items():
        try:
            files.spool.resume(segment, left.segments[segment], inos)
        except RaycacheError as error:
            _log.error("what was written to segment %s is lost: %s", segment, error)
            lost.update(inos)
    inos = [ino for ino in left.files if ino not in lost]
    for ino, answer in zip(inos, _ask(master, inos), strict=True):
        edited = left.files[ino]
        if isinstance(answer, Failed):
            _log.warning("what was written to inode %#x is dropped: %s", ino, answer.error)
            continue
        attr, content = answer
        files.restore(attr, edited.whole or content, edited.edits, edited.mtime_ns, ino in left.orphans)
    for ino in lost:
        files.lose(ino)


def _ask(master: Grouped, inos: list[int]) -> list[Any]:
    """Contents of files as the master has them, a Failed in place of what it has not."""
    found: list[Any] = []
    until = time.monotonic() + PATIENCE_S
    while len(found) < len(inos):
        part = inos[len(found) : len(found) + 512]
        try:
            found += master.try_all([Verb("content", (ino,)) for ino in part])
        except Unavailable as error:
            if time.monotonic() > until:
                return found + [Failed(error)] * (len(inos) - len(found))
            time.sleep(0.5)
    return found
