"""Entries of a directory in columns: order, names, sizes and times of many rows at once. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycache.core.manifest import Manifest
from raycache.core.values import Stat

Rows = NDArray[np.uint32]


def rows_by_name(manifest: Manifest) -> Rows:
    """Live rows, ordered by the bytes of their names."""
    rows = manifest.live_rows(0, manifest.row_count)
    if manifest.directory.version > 1:  # appended rows are out of order
        rows = rows[pc.sort_indices(manifest.columns.names.take(rows)).to_numpy()]
    return rows


def directory_rows(manifest: Manifest) -> Rows:
    """Live rows that are directories, in row order."""
    live: Rows = np.setdiff1d(manifest.columns.dir_rows, manifest.columns.dead_rows, assume_unique=True)
    return live


def are_directories(manifest: Manifest, rows: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which of the rows are directories; a negative row is none."""
    return np.isin(rows, manifest.columns.dir_rows)


def names_of(manifest: Manifest, rows: NDArray[np.integer]) -> list[str]:
    """Names of rows; what is not UTF-8 in them is escaped by surrogates."""
    column = manifest.columns.names.take(rows)
    try:
        names: list[str] = column.cast(pa.string()).to_pylist()
    except pa.ArrowInvalid:  # one of them is not UTF-8
        names = [name.decode("utf-8", "surrogateescape") for name in column.to_pylist()]
    return names


def sizes_of(manifest: Manifest, rows: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Bytes of rows; 0 for directories."""
    ends, at = manifest.columns.ends, rows.astype(np.int64)
    sizes: NDArray[np.uint64] = ends[at + 1] - ends[at]
    return sizes


def first_blocks_of(manifest: Manifest, rows: NDArray[np.integer]) -> NDArray[np.int64]:
    """The block in which each row begins; for an empty file, the one where it would begin."""
    starts = manifest.columns.ends[rows.astype(np.int64)]
    blocks = np.searchsorted(manifest.columns.cuts, starts, side="right") - 1
    return blocks.clip(0, max(0, manifest.block_count - 1))


def mtimes_ns_of(manifest: Manifest, rows: NDArray[np.integer], unknown_ns: int) -> NDArray[np.int64]:
    """Modification times of rows; ``unknown_ns`` for directories and where the source keeps none."""
    found = manifest.columns.times.take(rows.astype(np.int64))
    return np.where((found == 0) | are_directories(manifest, rows), unknown_ns, found)


def stats_of(manifest: Manifest, rows: NDArray[np.integer], unknown_ns: int) -> list[Stat]:
    """What is known of rows; ``unknown_ns`` as in ``mtimes_ns_of``."""
    columns = (
        names_of(manifest, rows),
        rows.tolist(),
        are_directories(manifest, rows).tolist(),
        sizes_of(manifest, rows).tolist(),
        mtimes_ns_of(manifest, rows, unknown_ns).tolist(),
    )
    inside = f"{manifest.directory.path}/" if manifest.directory.path else ""
    return [
        Stat(inside + name, is_dir, size_bytes, mtime_ns, "" if is_dir else manifest.etag(row))
        for name, row, is_dir, size_bytes, mtime_ns in zip(*columns, strict=True)
    ]


def encoded(names: Sequence[str]) -> list[bytes]:
    """Names as a manifest has them."""
    return [name.encode("utf-8", "surrogateescape") for name in names]
