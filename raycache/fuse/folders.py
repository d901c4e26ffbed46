"""Attributes of directories in which files are being made, as they were heard together with the last one.

The kernel forgets them with each name that it makes, and asks for them before it looks for the next: without this,
making a file would cost one question more.

Bounds: FOLDERS_MAX directories, for LIFETIME_S, which adds to how long the kernel itself believes. Threading: safe.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from raycache.core.inode import Attr

FOLDERS_MAX = 1024
LIFETIME_S = 0.25


class Folders:
    """See the module."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[int, tuple[Attr, float]] = OrderedDict()
        self._changes = 0
        """Begun or ended so far. What was asked for before one of them may be older than it."""
        self._changing = 0

    def mark(self) -> int:
        """To be taken before a directory is asked for."""
        return self._changes

    def learn(self, attr: Attr, mark: int) -> None:
        """The answer, if nothing else was changed meanwhile."""
        with self._lock:
            if self._changing or mark != self._changes:
                return
            before = self._known.get(attr.ino)
            if before is not None and before[0].mtime_ns > attr.mtime_ns:
                return  # an answer that was overtaken
            self._known[attr.ino] = attr, self._clock()
            self._known.move_to_end(attr.ino)
            if len(self._known) > FOLDERS_MAX:
                self._known.popitem(last=False)

    def known(self, ino: int) -> Attr | None:
        """Of a directory, if they are certain."""
        found = self._known.get(ino)
        return found[0] if found is not None and self._clock() - found[1] < LIFETIME_S else None

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While something else than the making of a file may change a directory."""
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def _change(self, by: int) -> None:
        with self._lock:
            self._changing += by
            self._changes += 1
            self._known.clear()
