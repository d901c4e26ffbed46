"""The next version of a directory, from what its source lists now. Pure but for the numbers of new directories."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from raycache.core import paths
from raycache.core.listing import append, build, new_directories
from raycache.core.manifest import Directory, Manifest

NumberDirectories = Callable[[Sequence[str]], Sequence[int]]
"""Directory ids of paths inside the dataset, in order."""


def next_version(
    first: Directory, old: Manifest | None, listing: pa.RecordBatch, number: NumberDirectories
) -> Manifest | None:
    """The version of a directory that follows ``old``, or None when nothing changed.

    ``first``: what the directory is, as of version 1; its ``listed_ns`` and ``hidden`` hold for any version.
    ``listing``: from ``prepare_listing``.
    """
    names = new_directories(old, listing)
    children = [paths.join(first.path, name.decode("utf-8", "surrogateescape")) for name in names]
    dir_ids = np.asarray(number(children), dtype=np.uint64)
    if old is None:
        return build(first, listing, dir_ids)
    manifest = append(old, listing, dir_ids, first.listed_ns, first.hidden)
    same = (manifest.row_count, manifest.live_count) == (old.row_count, old.live_count)
    return None if same else manifest
