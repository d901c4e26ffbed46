"""A directory whose listing was lost: what was stored is set aside, and the directory is listed anew under a new id.

Why a new id: an inode number names a row of a directory's listing, and the kernels of all nodes remember such numbers.
A new listing has its rows in another order, so that under the old id an old number would be another file. The old id
is never used again, and whoever asks for it is told that there is no such directory.

The directory above names the new id. Its rows do not change either: the old row becomes a tombstone and a new one is
appended, as a later version, which mounts follow as they follow a refresh.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from raycache.core import paths
from raycache.core.listing import LISTING_SCHEMA, append, prepare_listing
from raycache.core.manifest import Manifest
from raycache.core.values import Dataset
from raycache.errors import InvalidInput
from raycache.meta.catalog import Catalog, Listed

LOST_AND_FOUND = "lost+found"
"""Directory beside the catalog for what was damaged. For people to look at; nothing reads it, it may be emptied."""


def relist_under_new_id(catalog: Catalog, dataset: Dataset, path: str, dir_id: int, listed_ns: int) -> int:
    """Forget the listing of a directory, whatever state it is in, and return its new id. One transaction.

    The caller sees to it that nobody else makes a version of the directory above meanwhile.
    """
    new_id = catalog.reserve_ids(1)[0]
    parent: Listed | None = None
    if path:
        above, name = paths.split(path)
        parent_id = catalog.find_directory(dataset.name, above)
        manifest = _readable(catalog, parent_id) if parent_id is not None else None
        row = None if manifest is None else manifest.find(name.encode("utf-8", "surrogateescape"))
        if manifest is not None and row is not None and manifest.child_id(row) is not None:
            parent = Listed.of(renumber(manifest, {row: new_id}, listed_ns))
    catalog.replace_directory(dir_id, new_id, parent)
    return new_id


def renumber(manifest: Manifest, new_ids: dict[int, int], listed_ns: int) -> Manifest:
    """The next version of a directory, in which some rows that are directories have become rows with other ids.

    Row by row in Python, a microsecond or two each: damage is rare, and the directory above is seldom a large one.
    """
    kept = [row for row in manifest.rows() if row not in new_ids]
    without = _again(manifest, kept, {}, listed_ns)
    twice = _again(
        without, [*kept, *new_ids], {manifest.name(row): new_id for row, new_id in new_ids.items()}, listed_ns
    )
    # One change is one version: nobody ever sees the one in which the rows are gone and have not come again.
    version, columns = manifest.directory.version + 1, twice.columns
    once = replace(
        columns,
        dead_at=np.minimum(columns.dead_at, np.uint32(version)),
        version_rows=np.delete(columns.version_rows, -2) if twice.directory.version > version else columns.version_rows,
    )
    return Manifest(replace(twice.directory, version=version), once)


def _again(manifest: Manifest, rows: list[int], new_ids: dict[bytes, int], listed_ns: int) -> Manifest:
    """The directory as if its source had listed just these rows."""
    columns = {
        "name": [manifest.name(row) for row in rows],
        "is_dir": [manifest.child_id(row) is not None or manifest.name(row) in new_ids for row in rows],
        "size_bytes": [manifest.size(row) for row in rows],
        "mtime_ns": [manifest.mtime_ns(row) for row in rows],
        "etag": [manifest.etag(row).encode() for row in rows],
    }
    listing, _ = prepare_listing(pa.RecordBatch.from_pydict(columns, schema=LISTING_SCHEMA))
    numbered = [new_ids[name] for name in sorted(new_ids)]  # as the listing has them
    return append(manifest, listing, np.asarray(numbered, np.uint64), listed_ns, manifest.directory.hidden)


def keep_aside(lost_found: Path, name: str, body: bytes) -> Path:
    """Write damaged bytes where they are out of the way, and return where that is."""
    lost_found.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = free_name(lost_found / name)
    target.write_bytes(body)
    return target


def move_aside(catalog: Path, now_ns: int) -> Path:
    """Move a catalog file, with its log, out of the way, and return its new name."""
    lost_found = catalog.parent / LOST_AND_FOUND
    lost_found.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = free_name(lost_found / f"{catalog.stem}-{now_ns // 10**9}.db")
    for end in ("-shm", "-wal", ""):  # the file itself last: without it, the others mean nothing to anybody
        source = Path(f"{catalog}{end}")
        if source.exists():
            os.replace(source, f"{target}{end}")
    return target


def free_name(wanted: Path) -> Path:
    """``wanted``, or the same with a number where that is taken."""
    names = (wanted if n == 1 else wanted.with_name(f"{wanted.stem}-{n}{wanted.suffix}") for n in range(1, 1 << 20))
    return next(name for name in names if not name.exists())


def _readable(catalog: Catalog, dir_id: int) -> Manifest | None:
    try:
        return catalog.manifest(dir_id)
    except InvalidInput:
        return None  # lost as well: it will be listed anew, and then finds the new id by the path
