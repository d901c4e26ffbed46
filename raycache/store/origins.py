"""Where the blocks of a directory come from, known at start without opening one: their file names end in a key, and one
file says which dataset and directory a key stands for.

It is written before the first block of an origin is, a line of JSON each, and synced. A key that it does not tell of
(it was damaged, or is gone) stands for no dataset: such blocks are still read by their ids, and go before all others.
"""

from __future__ import annotations

import json
from pathlib import Path

import xxhash

from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import Origin
from raycache.store.fileops import FileOps

NAME = "origins"
KEY_CHARS = 16


class Origins:
    """See the module. Threading: safe. Grows by some hundred bytes per directory that had a block here, until the next
    start, which keeps only those that still have one."""

    def __init__(self, directory: Path, files: FileOps, scheduler: Scheduler = THREADS) -> None:
        self._path = directory / NAME
        self._files = files
        self._lock = scheduler.lock()
        self._known: dict[str, Origin] = {}

    def read(self) -> None:
        """Read what is there. Raises OSError."""
        for line in self._files.read(self._path).splitlines():
            try:
                dataset, directory = json.loads(line)
                origin = Origin(str(dataset), str(directory))
            except ValueError:  # torn by a crash, or damaged
                continue
            self._known[key_of(origin)] = origin

    def find(self, key: str) -> Origin:
        """What a key stands for; one that is not known, for itself."""
        return self._known.get(key, Origin("", key))

    def forget_others(self, keys: set[str]) -> None:
        """Keep those that blocks have. Raises OSError."""
        if self._known.keys() <= keys:
            return
        with self._lock:
            self._known = {key: origin for key, origin in self._known.items() if key in keys}
            lines = b"".join(_line(origin) for origin in self._known.values())
        aside = self._path.with_name(NAME + ".writing")
        self._files.write_synced(aside, lines)
        self._files.publish(aside, self._path)

    def keep(self, origin: Origin) -> None:
        """See to it that an origin is known to the next worker. Raises OSError."""
        key = key_of(origin)
        if key in self._known or not origin.dataset:
            return
        self._files.append_synced(self._path, _line(origin))
        with self._lock:
            self._known[key] = origin


def key_of(origin: Origin) -> str:
    """What the names of its blocks end in."""
    if not origin.dataset:
        return origin.directory  # see Origins.find
    return xxhash.xxh3_64_hexdigest(_line(origin))


def _line(origin: Origin) -> bytes:
    return json.dumps(list(origin)).encode() + b"\n"
