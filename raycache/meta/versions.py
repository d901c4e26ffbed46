"""The next version of a directory, from what its source lists now. Pure but for the numbers of new directories."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from raycache.core import paths
from raycache.core.listing import NOTHING_BESIDE, Beside, append, build, new_directories
from raycache.core.manifest import Directory, Manifest

NumberDirectories = Callable[[Sequence[str]], Sequence[int]]
"""Directory ids of paths inside the dataset, in order."""


def next_version(
    first: Directory,
    old: Manifest | None,
    listing: pa.RecordBatch,
    number: NumberDirectories,
    beside: Beside = NOTHING_BESIDE,
) -> Manifest | None:
    """The version of a directory that follows ``old``, or None when nothing changed.

    ``first``: what the directory is, as of version 1; its ``listed_ns`` and ``hidden`` hold for any version.
    ``listing``: from ``prepare_listing``, but for what is ``beside`` it.
    """
    names = new_directories(old, listing, beside)
    ids = dict(beside.dir_ids)
    unknown = [name for name in names if name not in ids]
    children = [paths.join(first.path, name.decode("utf-8", "surrogateescape")) for name in unknown]
    ids.update(zip(unknown, number(children), strict=True))
    dir_ids = np.asarray([ids[name] for name in names], dtype=np.uint64)
    if old is None:
        return build(first, listing, dir_ids)
    manifest = append(old, listing, dir_ids, first.listed_ns, first.hidden, beside)
    same = (manifest.row_count, manifest.live_count) == (old.row_count, old.live_count)
    return None if same else manifest
