"""Which blocks to have filled before anybody asks for them. Pure policy: told of touches, answers with blocks.

* A large file read from one block into the next: the blocks behind it, SEQUENTIAL_BLOCKS of them.
* An epoch-like sweep, recognised by many blocks of a directory being touched: the blocks not yet touched, in order, a
  few at each further touch, so that the source is never asked for more than readers are likely to want soon.

A directory that is only probed here and there, fewer than SWEEP_FRACTION of its blocks, causes nothing.
Bounds: SWEEPS_MAX directories are remembered, one byte per block each.
"""

from __future__ import annotations

from collections import OrderedDict

from raycache.core.manifest import Manifest

SEQUENTIAL_BLOCKS = 2
SWEEP_BLOCKS_MIN = 3
SWEEP_FRACTION = 0.1
SWEEP_STEP = 4
"""Blocks to ask for at each touch of a sweep: ahead of the reader, and no more than a worker fills at once."""
SWEEPS_MAX = 1024


class _Directory:
    def __init__(self, blocks: int) -> None:
        self.asked = bytearray(blocks)
        self.touched = 0
        self.next = 0


class ReadAhead:
    """What was touched of each directory. Not thread-safe: the reader calls it under its lock."""

    def __init__(self) -> None:
        self._directories: OrderedDict[tuple[int, int], _Directory] = OrderedDict()

    def touch(self, manifest: Manifest, row: int, block: int) -> list[int]:
        """A read of ``row`` had to ask for ``block``: the blocks to have filled now, none of them twice."""
        about = self._about(manifest)
        if not about.asked[block]:
            about.asked[block] = 1
            about.touched += 1
        ahead = self._sequential(manifest, row, block) or self._sweep(about)
        found = [number for number in ahead if not about.asked[number]]
        for number in found:
            about.asked[number] = 1
        return found

    @staticmethod
    def _sequential(manifest: Manifest, row: int, block: int) -> list[int]:
        first, last = manifest.blocks_of(row)
        if first == last:
            return []
        return list(range(block + 1, min(block + SEQUENTIAL_BLOCKS, last) + 1))

    @staticmethod
    def _sweep(about: _Directory) -> list[int]:
        if about.touched < max(SWEEP_BLOCKS_MIN, SWEEP_FRACTION * len(about.asked)):
            return []
        found: list[int] = []
        while about.next < len(about.asked) and len(found) < SWEEP_STEP:
            if not about.asked[about.next]:
                found.append(about.next)
            about.next += 1
        return found

    def _about(self, manifest: Manifest) -> _Directory:
        key = (manifest.directory.dir_id, manifest.directory.version)
        about = self._directories.get(key)
        if about is None:
            about = self._directories[key] = _Directory(manifest.block_count)
            if len(self._directories) > SWEEPS_MAX:
                self._directories.popitem(last=False)
        self._directories.move_to_end(key)
        return about
