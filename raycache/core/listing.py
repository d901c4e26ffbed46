"""Listing to manifest: what an under file system lists becomes columns, first and later versions. Pure.

Not responsible for: fetching a listing, or numbering directories (the catalog does).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycache.core import paths
from raycache.core.layout import extend_cuts
from raycache.core.manifest import Directory, Manifest, binary_views, name_hash, numbers

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


def prepare_listing(listing: pa.RecordBatch) -> tuple[pa.RecordBatch, int]:
    """Order a listing by name and drop what a file system cannot show; the second value counts what was dropped.

    A directory shadows an object of the same name. A name that Linux forbids (longer than 255 bytes, with a NUL)
    cannot be shown at all.
    """
    order = pc.sort_indices(listing, sort_keys=[("name", "ascending"), ("is_dir", "descending")])
    listing = listing.take(order)
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
    shown = listing.filter(pa.array(keep))
    return shown, listing.num_rows - shown.num_rows


def build(directory: Directory, listing: pa.RecordBatch, dir_ids: NDArray[np.uint64]) -> Manifest:
    """First version of a directory from a prepared listing.

    ``listing``: rows of LISTING_SCHEMA from ``prepare_listing``. ``dir_ids``: uint64, one per directory row, in order.
    """
    is_dir = _flags(listing)
    ends = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_sizes(listing), dtype=np.uint64)])
    columns = {
        "names": listing.column("name"),
        "ends": pa.array(ends),
        "mtimes_ns": listing.column("mtime_ns"),
        "etags": _pack_etags(listing.column("etag")),
        "dir_rows": pa.array(np.flatnonzero(is_dir).astype(np.uint32)),
        "dir_ids": pa.array(dir_ids),
        "dead_rows": pa.array(np.zeros(0, np.uint32)),
        "cuts": pa.array(extend_cuts(ends, 0, np.zeros(1, np.uint64), directory.block_bytes)),
    }
    return Manifest(directory, columns | _index(columns["names"]))


def append(
    old: Manifest, listing: pa.RecordBatch, dir_ids: NDArray[np.uint64], listed_ns: int, hidden: int
) -> Manifest:
    """Next version of a directory: what is gone is tombstoned, what is new or changed is appended.

    ``listing``: the whole directory again, from ``prepare_listing``. ``dir_ids``: one per directory row of
    ``new_directories(old, listing)``, in that order.
    """
    dead, fresh = compare(old, listing)
    added = listing.take(pa.array(fresh))
    is_dir = _flags(added)
    first = old.row_count
    before = numbers(old.column("ends"))
    ends = np.concatenate([before, before[-1] + np.cumsum(_sizes(added), dtype=np.uint64)])
    directory = replace(old.directory, version=old.directory.version + 1, listed_ns=listed_ns, hidden=hidden)
    columns = {
        "names": _joined(old.column("names"), added.column("name")),
        "ends": pa.array(ends),
        "mtimes_ns": _joined(old.column("mtimes_ns"), added.column("mtime_ns")),
        "etags": _joined(old.column("etags"), _pack_etags(added.column("etag"))),
        "dir_rows": _joined(old.column("dir_rows"), pa.array((first + np.flatnonzero(is_dir)).astype(np.uint32))),
        "dir_ids": _joined(old.column("dir_ids"), pa.array(dir_ids)),
        "dead_rows": pa.array(np.union1d(numbers(old.column("dead_rows")), dead).astype(np.uint32)),
        "cuts": pa.array(extend_cuts(ends, first, numbers(old.column("cuts")), directory.block_bytes)),
    }
    return Manifest(directory, columns | _index(columns["names"]))


def compare(old: Manifest, listing: pa.RecordBatch) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Rows of ``old`` to tombstone, and rows of ``listing`` to append."""
    gone = _marked(old.row_count, numbers(old.column("dead_rows")))
    live = np.flatnonzero(~gone)
    found = pc.index_in(listing.column("name"), value_set=old.column("names").take(pa.array(live)))
    at = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))  # rows of the listing that have a name in old
    rows = live[found.drop_null().to_numpy()]  # and the rows of old that have it
    listed, picked = listing.take(pa.array(at)), pa.array(rows)
    is_dir = _flags(listed)
    was_dir = _marked(old.row_count, numbers(old.column("dir_rows")))[rows]
    same = (
        (np.diff(numbers(old.column("ends")))[rows] == _sizes(listed))
        & (numbers(old.column("mtimes_ns"))[rows] == listed.column("mtime_ns").to_numpy())
        & pc.equal(old.column("etags").take(picked), _pack_etags(listed.column("etag"))).to_numpy(zero_copy_only=False)
    )
    kept = (is_dir == was_dir) & (is_dir | same)
    gone[rows[kept]] = True  # not gone, but nothing to tombstone either
    return np.flatnonzero(~gone).astype(np.uint32), np.flatnonzero(~_marked(listing.num_rows, at[kept]))


def new_directories(old: Manifest | None, listing: pa.RecordBatch) -> list[bytes]:
    """Names of the directories of a prepared listing that have no row yet and so need an id."""
    rows = listing if old is None else listing.take(pa.array(compare(old, listing)[1]))
    names: list[bytes] = rows.column("name").filter(rows.column("is_dir")).to_pylist()
    return names


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


def _joined(first: pa.Array, second: pa.Array) -> pa.Array:
    return pa.concat_arrays([first, second])


def _index(names: pa.BinaryArray) -> dict[str, pa.Array]:
    """Columns ``hashes`` (sorted uint32) and ``slots`` (uint32) of a name column."""
    hashes = np.empty(len(names), dtype=np.uint32)
    step = 65_536  # Python objects for one chunk of names at a time, whatever the size of the directory
    for start in range(0, len(names), step):
        chunk = names.slice(start, step).to_pylist()
        hashes[start : start + len(chunk)] = [name_hash(name) for name in chunk]
    slots = np.argsort(hashes, kind="stable").astype(np.uint32)
    return {"hashes": pa.array(hashes[slots]), "slots": pa.array(slots)}


def _contains(names: pa.BinaryArray, lengths: NDArray[Any], forbidden: bytes) -> NDArray[np.bool_]:
    """Which names hold one of the forbidden bytes, without an object per name."""
    at, data = binary_views(names)
    body = np.frombuffer(data, dtype=np.uint8)[at[0] : at[-1]]
    hits = np.flatnonzero(np.isin(body, np.frombuffer(forbidden, dtype=np.uint8)))
    found = np.zeros(len(lengths), dtype=bool)
    found[np.searchsorted(np.asarray(at)[1:] - at[0], hits, side="right")] = True
    return found


def _pack_etags(etags: pa.BinaryArray) -> pa.BinaryArray:
    """Halve the usual version name, an MD5 in quotes: 16 bytes of digest in place of 34 characters.

    A text that happens to be 16 bytes long, or to begin with a zero byte, gets a zero byte in front, so that length
    16 always means a digest and a leading zero is never part of a text.
    """
    etags = etags.fill_null(b"")
    is_md5 = pc.match_substring_regex(etags, '^"[0-9a-f]{32}"$').to_numpy(zero_copy_only=False)
    digests = etags.filter(pa.array(is_md5))
    at, data = binary_views(digests)
    digits = np.frombuffer(data, np.uint8)[at[0] : at[-1]].reshape(-1, 34)[:, 1:33]
    halves = np.where(digits < ord("a"), digits - ord("0"), digits - ord("a") + 10).astype(np.uint8)
    packed = np.ascontiguousarray(halves[:, ::2] << 4 | halves[:, 1::2])
    offsets = np.arange(0, packed.size + 1, 16, dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(packed)]
    texts = etags.filter(pa.array(~is_md5)).to_pylist()
    escaped = pa.array([b"\0" + text if len(text) == 16 or text[:1] == b"\0" else text for text in texts], pa.binary())
    order = np.empty(len(etags), np.int64)
    order[np.concatenate([np.flatnonzero(is_md5), np.flatnonzero(~is_md5)])] = np.arange(len(etags))
    return _joined(pa.Array.from_buffers(pa.binary(), len(digests), buffers), escaped).take(pa.array(order))
