"""Files of a tree, numbered from 0: manifests and an array of rows, no Python object per file.

Numbers go by directory, then by row, so that the files that begin in one block have consecutive numbers: a *pack* of
``core.shuffle``. What is selected depends on the listings alone, so that every process that selects the same as of the
same change has the same numbers.

Threading: immutable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycache.client.namespace import Namespace
from raycache.client.search import files_below
from raycache.core import paths
from raycache.core.entries import Rows, first_blocks_of, mtimes_ns_of, names_of, sizes_of
from raycache.core.manifest import Manifest

Numbers = NDArray[np.integer]


class Packs(NamedTuple):
    """Blocks in which files begin, in the order of the files: a row each, in columns."""

    part: NDArray[np.int64]
    """Which directory, as numbered in the selection."""
    block: NDArray[np.int64]
    files: NDArray[np.int64]
    """How many of the selected files begin there."""


class Selection:
    """Files of some directories."""

    def __init__(self, parts: Sequence[tuple[Manifest, Rows]]) -> None:
        """``parts``: directories, and ascending rows of files in each."""
        self.manifests = [manifest for manifest, _ in parts]
        self._rows = np.concatenate([rows for _, rows in parts]) if parts else np.zeros(0, np.uint32)
        self._starts = np.cumsum([0, *(len(rows) for _, rows in parts)])

    @staticmethod
    def of(namespace: Namespace, uri: str, pattern: str = "**") -> Selection:
        """Files below a directory that match a pattern. See ``search.files_below``, also for what it raises."""
        return Selection(files_below(namespace, uri, pattern))

    def without(self, path: str) -> Selection:
        """But for those at or below a directory."""
        return Selection(
            [
                (manifest, self.rows_of_part(part))
                for part, manifest in enumerate(self.manifests)
                if not f"{manifest.directory.path}/".startswith(f"{path}/")
            ]
        )

    def __len__(self) -> int:
        return len(self._rows)

    def rows_of_part(self, part: int) -> Rows:
        """The rows of one directory."""
        return self._rows[self._starts[part] : self._starts[part + 1]]

    def between(self, start: int, stop: int) -> Iterator[tuple[int, Rows]]:
        """Directories that files from ``start`` up to ``stop`` are in, and their rows."""
        for part in range(int(np.searchsorted(self._starts, start, side="right")) - 1, len(self.manifests)):
            first, last = (min(max(int(at), start), stop) for at in self._starts[part : part + 2])
            if first < last:
                yield part, self._rows[first:last]
            elif first == stop:
                break

    def rows(self, numbers: Numbers) -> list[tuple[Manifest, int]]:
        """Manifest and row of each file, in order."""
        parts = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = self._rows[numbers]
        return [(self.manifests[part], row) for part, row in zip(parts.tolist(), rows.tolist(), strict=True)]

    def sizes(self, numbers: Numbers) -> NDArray[np.int64]:
        """Bytes of each file."""
        found = np.zeros(len(numbers), np.int64)
        for manifest, at, rows in self._by_part(numbers):
            found[at] = sizes_of(manifest, rows)
        return found

    def mtimes_ns(self, numbers: Numbers) -> NDArray[np.int64]:
        """Modification time of each file, 0 where the source keeps none."""
        found = np.zeros(len(numbers), np.int64)
        for manifest, at, rows in self._by_part(numbers):
            found[at] = mtimes_ns_of(manifest, rows, 0)
        return found

    def paths(self, numbers: Numbers) -> list[str]:
        """Path of each file inside its dataset."""
        found = [""] * len(numbers)
        for manifest, at, rows in self._by_part(numbers):
            for position, name in zip(at.tolist(), names_of(manifest, rows), strict=True):
                found[position] = paths.join(manifest.directory.path, name)
        return found

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        parts = (sizes_of(manifest, self.rows_of_part(part)) for part, manifest in enumerate(self.manifests))
        return int(sum(int(sizes.sum()) for sizes in parts))

    def packs(self) -> Packs:
        """The blocks that the files begin in."""
        columns = []
        for part, manifest in enumerate(self.manifests):
            blocks, files = np.unique(first_blocks_of(manifest, self.rows_of_part(part)), return_counts=True)
            columns.append((np.full(len(blocks), part, np.int64), blocks, files))
        if not columns:
            return Packs(*[np.zeros(0, np.int64)] * 3)
        return Packs(*(np.concatenate(column).astype(np.int64) for column in zip(*columns, strict=True)))

    def _by_part(self, numbers: Numbers) -> Iterator[tuple[Manifest, NDArray[np.intp], Rows]]:
        """Directories that files are in, where in ``numbers`` they stand, and their rows."""
        parts = np.searchsorted(self._starts, numbers, side="right") - 1
        for part in np.unique(parts).tolist():
            at = np.flatnonzero(parts == part)
            yield self.manifests[part], at, self._rows[np.asarray(numbers)[at]]
