"""Listing to manifest: what an under file system lists becomes columns, first and later versions. Pure.

Not responsible for: fetching a listing, or numbering directories (the catalog does).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycache.core import paths
from raycache.core.columns import Etags, Names, Times, binary_views, pack_etags
from raycache.core.layout import extend_cuts
from raycache.core.manifest import Columns, Directory, Manifest

LISTING_SCHEMA = pa.schema(
    [
        ("name", pa.binary()),
        ("is_dir", pa.bool_()),
        ("size_bytes", pa.uint64()),
        ("mtime_ns", pa.int64()),
        ("etag", pa.binary()),
    ]
)
"""One level of a directory, as an under file system lists it. ``etag`` names the version; empty if there is none."""


class Beside(NamedTuple):
    """What is known of a directory beside a listing."""

    rows: NDArray[np.integer[Any]]
    """Rows that stay as they are, whatever the listing says."""
    dir_ids: Mapping[bytes, int]
    """Ids that directories have, by name, where a row with another id is not the same one."""


NOTHING_BESIDE = Beside(np.zeros(0, np.uint32), {})


def prepare_listing(listing: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    """Order a listing by name and drop what a file system cannot show; the second value counts what was dropped.

    A directory shadows an object of the same name. A name that Linux forbids (longer than 255 bytes, with a NUL)
    cannot be shown at all.
    """
    if not is_ascending(listing.column("name")):  # an object store's listing is, and to sort takes half of all the time
        listing = listing.take(pc.sort_indices(listing, sort_keys=[("name", "ascending"), ("is_dir", "descending")]))
    names = listing.column("name")
    keep = np.ones(len(names), dtype=bool)
    if len(names):
        same = pc.equal(names.slice(1), names.slice(0, len(names) - 1))
        keep[1:] = ~same.to_numpy(zero_copy_only=False)
        lengths = pc.binary_length(names).to_numpy(zero_copy_only=False)
        # Only names that can be wrong are looked at one by one.
        suspicious = (lengths <= 2) | (lengths > paths.NAME_MAX) | _contains(names, lengths, b"\0/")
        for row in np.flatnonzero(suspicious):
            keep[row] &= paths.is_shown(names[int(row)].as_py())
    shown = listing if keep.all() else listing.filter(pa.array(keep))
    return shown, listing.num_rows - shown.num_rows


def build(directory: Directory, listing: pa.RecordBatch, dir_ids: NDArray[np.uint64]) -> Manifest:
    """First version of a directory from a prepared listing.

    ``listing``: rows of LISTING_SCHEMA from ``prepare_listing``. ``dir_ids``: uint64, one per directory row, in order.
    """
    is_dir = _flags(listing)
    ends = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_sizes(listing), dtype=np.uint64)])
    names = Names.of(listing.column("name"))
    columns = Columns(
        names=names,
        times=Times.of(listing.column("mtime_ns")),
        etags=Etags.of(pack_etags(listing.column("etag"))),
        index=None,
        ends=ends,
        cuts=extend_cuts(ends, 0, np.zeros(1, np.uint64), directory.block_bytes),
        dir_rows=np.flatnonzero(is_dir).astype(np.uint32),
        dir_ids=dir_ids,
        dead_rows=np.zeros(0, np.uint32),
        dead_at=np.zeros(0, np.uint32),
        version_rows=np.array([len(names)], np.uint64),
    )
    return Manifest(directory, columns)


def append(
    old: Manifest,
    listing: pa.RecordBatch,
    dir_ids: NDArray[np.uint64],
    listed_ns: int,
    hidden: int,
    beside: Beside = NOTHING_BESIDE,
) -> Manifest:
    """Next version of a directory: what is gone is tombstoned, what is new or changed is appended.

    ``listing``: the whole directory again, from ``prepare_listing``, but for the rows ``beside`` it. ``dir_ids``: one
    per directory row of ``new_directories(old, listing, beside)``, in that order.
    """
    dead, fresh = compare(old, listing, beside)
    added = listing.take(pa.array(fresh))
    is_dir = _flags(added)
    first, before, version = old.row_count, old.columns, old.directory.version + 1
    ends = np.concatenate([before.ends, before.ends[-1] + np.cumsum(_sizes(added), dtype=np.uint64)])
    directory = replace(old.directory, version=version, listed_ns=listed_ns, hidden=hidden)
    names = Names.of(pa.concat_arrays([old.column("names"), added.column("name")]))
    dead_rows = np.concatenate([before.dead_rows, dead])
    dead_at = np.concatenate([before.dead_at, np.full(len(dead), version, np.uint32)])
    order = np.argsort(dead_rows, kind="stable")
    columns = Columns(
        names=names,
        times=Times.of(pa.concat_arrays([old.column("mtimes_ns"), added.column("mtime_ns")])),
        etags=Etags.of(pa.concat_arrays([old.column("etags"), pack_etags(added.column("etag"))])),
        index=None,
        ends=ends,
        cuts=extend_cuts(ends, first, before.cuts, directory.block_bytes),
        dir_rows=np.concatenate([before.dir_rows, (first + np.flatnonzero(is_dir)).astype(np.uint32)]),
        dir_ids=np.concatenate([before.dir_ids, dir_ids]),
        dead_rows=dead_rows[order],
        dead_at=dead_at[order],
        version_rows=np.append(before.version_rows, np.uint64(len(names))),
    )
    return Manifest(directory, columns)


def compare(
    old: Manifest, listing: pa.RecordBatch, beside: Beside = NOTHING_BESIDE
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Rows of ``old`` to tombstone, and rows of ``listing`` to append."""
    gone = _marked(old.row_count, old.columns.dead_rows)
    gone[beside.rows] = True  # as good as gone: neither compared nor tombstoned
    live = np.flatnonzero(~gone)
    found = pc.index_in(listing.column("name"), value_set=old.column("names").take(pa.array(live)))
    at = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))  # rows of the listing that have a name in old
    rows = live[found.drop_null().to_numpy()]  # and the rows of old that have it
    listed, picked = listing.take(pa.array(at)), pa.array(rows)
    is_dir = _flags(listed)
    was_dir = _marked(old.row_count, old.columns.dir_rows)[rows]
    same = (
        (np.diff(old.columns.ends)[rows] == _sizes(listed))
        & (old.columns.times.slice(0, old.row_count)[rows] == listed.column("mtime_ns").to_numpy())
        & pc.equal(old.column("etags").take(picked), pack_etags(listed.column("etag"))).to_numpy(zero_copy_only=False)
    )
    kept = (is_dir == was_dir) & (is_dir | same)
    for here in np.flatnonzero(kept & is_dir) if beside.dir_ids else ():
        known = beside.dir_ids.get(listed.column("name")[int(here)].as_py())
        kept[here] = known in (None, old.child_id(int(rows[here])))
    gone[rows[kept]] = True  # not gone, but nothing to tombstone either
    return np.flatnonzero(~gone).astype(np.uint32), np.flatnonzero(~_marked(listing.num_rows, at[kept]))


def new_directories(old: Manifest | None, listing: pa.RecordBatch, beside: Beside = NOTHING_BESIDE) -> list[bytes]:
    """Names of the directories of a prepared listing that have no row yet and so need an id."""
    rows = listing if old is None else listing.take(pa.array(compare(old, listing, beside)[1]))
    names: list[bytes] = rows.column("name").filter(rows.column("is_dir")).to_pylist()
    return names


def is_ascending(names: pa.BinaryArray) -> bool:
    """Whether names are in order, each but once."""
    return len(names) < 2 or bool(pc.all(pc.less(names.slice(0, len(names) - 1), names.slice(1))).as_py())


def _marked(count: int, rows: NDArray[Any]) -> NDArray[np.bool_]:
    marks = np.zeros(count, dtype=bool)
    marks[rows] = True
    return marks


def _flags(listing: pa.RecordBatch) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = listing.column("is_dir").to_numpy(zero_copy_only=False)
    return flags


def _sizes(listing: pa.RecordBatch) -> NDArray[np.uint64]:
    """Sizes as rows have them: whatever a source says, a directory has none."""
    return np.where(_flags(listing), 0, listing.column("size_bytes").to_numpy(zero_copy_only=False)).astype(np.uint64)


def _contains(names: pa.BinaryArray, lengths: NDArray[Any], forbidden: bytes) -> NDArray[np.bool_]:
    """Which names hold one of the forbidden bytes, without an object per name."""
    at, data = binary_views(names)
    body = np.frombuffer(data, dtype=np.uint8)[at[0] : at[-1]]
    hits = np.flatnonzero(np.any([body == byte for byte in forbidden], axis=0))
    found = np.zeros(len(lengths), dtype=bool)
    found[np.searchsorted(np.asarray(at)[1:] - at[0], hits, side="right")] = True
    return found
