"""A manifest as bytes: to be mapped by readers, or to be kept.

Both are an Arrow IPC stream of one row of lists. What is mapped has all that a reader needs at once; what is kept is
zstd-compressed unless it is small, and leaves out what can be made again: the index, and running totals in place of
sizes.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from raycache.core.columns import Etags, Index, Names, Stored, Times, number_from, numbers
from raycache.core.manifest import Columns, Directory, Manifest
from raycache.errors import InvalidInput

FORMAT = b"2"
SMALL_ROWS = 50
"""Up to so many rows compression makes what is kept larger, and takes five times as long."""
_SIZE_BYTES = 8
_COLUMNS = {
    "names": pa.binary(),
    "size_planes": pa.uint8(),
    "ends": pa.uint64(),
    "mtimes_ns": pa.int64(),
    "mtimes": pa.uint32(),
    "etags": pa.binary(),
    "digests": pa.binary(16),
    "dir_rows": pa.uint32(),
    "dir_ids": pa.uint64(),
    "dead_rows": pa.uint32(),
    "dead_at": pa.uint32(),
    "version_rows": pa.uint64(),
    "cuts": pa.uint64(),
    "slots": pa.uint32(),
    "prints": pa.uint8(),
    "starts": pa.uint32(),
}
_SCHEMA = pa.schema([(name, pa.large_list(kind)) for name, kind in _COLUMNS.items()])
_NUMBERS = ("ends", "cuts", "dir_rows", "dir_ids", "dead_rows", "dead_at", "version_rows")


def to_mapped(manifest: Manifest) -> pa.Buffer:
    """Bytes that readers map."""
    return _write(manifest, _stored(manifest) | manifest.index.stored(), None)


def to_kept(manifest: Manifest) -> pa.Buffer:
    """Bytes for the disk, an order of magnitude smaller. The catalog's change numbers are not in them."""
    stored = _stored(manifest)
    # All lowest bytes of the sizes, then all second ones ...: the upper ones are zeros, which then take no room at all.
    planes = np.diff(manifest.columns.ends).view(np.uint8).reshape(manifest.row_count, _SIZE_BYTES).T
    stored["size_planes"] = pa.array(np.ascontiguousarray(planes).reshape(-1))
    stored["ends"] = stored["ends"].slice(0, 0)
    return _write(manifest, stored, "zstd" if manifest.row_count > SMALL_ROWS else None)


def from_bytes(buffer: Any) -> Manifest:
    """A manifest over ``buffer``, from either function; one that can be mapped is not copied.

    Raises InvalidInput when the buffer is no manifest, or one of another format.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(buffer)) as reader:
            meta = {key.decode(): value for key, value in (reader.schema.metadata or {}).items()}
            if meta["format"] != FORMAT:
                raise InvalidInput(
                    f"manifest of format {meta['format'].decode()}; this raycache reads {FORMAT.decode()}"
                )
            if not reader.schema.equals(_SCHEMA):
                raise InvalidInput("not a manifest: its columns are others")
            batch = reader.read_next_batch()
        batch.validate()
        stored = {name: batch.column(name)[0].values for name in _COLUMNS}
        return Manifest(_directory(meta), _columns(stored, meta))
    except InvalidInput:
        raise
    # What Arrow raises depends on where a buffer ends too early or is damaged.
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, StopIteration) as error:
        raise InvalidInput(f"not a manifest: {error}") from error


def _stored(manifest: Manifest) -> Stored:
    columns = manifest.columns
    stored = {name: pa.array([], _COLUMNS[name]) for name in ("size_planes", "slots", "prints", "starts")}
    stored |= {name: pa.array(getattr(columns, name)) for name in _NUMBERS}
    for packed in (columns.names, columns.times, columns.etags):
        stored |= packed.stored()
    return stored


def _write(manifest: Manifest, stored: Stored, compression: str | None) -> pa.Buffer:
    about, columns = manifest.directory, manifest.columns
    meta = {
        "format": FORMAT,
        "dir_id": str(about.dir_id),
        "dataset": about.dataset,
        "source": about.source.encode("utf-8", "surrogateescape"),
        "path": about.path.encode("utf-8", "surrogateescape"),
        "version": str(about.version),
        "listed_ns": str(about.listed_ns),
        "block_bytes": str(about.block_bytes),
        "hidden": str(about.hidden),
        "changes": json.dumps(about.changes),
        **columns.names.about(),
        **columns.times.about(),
    }
    arrays = [pa.LargeListArray.from_arrays([0, len(stored[name])], stored[name]) for name in _COLUMNS]
    batch = pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA.with_metadata(meta))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _directory(meta: dict[str, bytes]) -> Directory:
    return Directory(
        dir_id=number_from(meta, "dir_id"),
        dataset=meta["dataset"].decode(),
        source=meta["source"].decode("utf-8", "surrogateescape"),
        path=meta["path"].decode("utf-8", "surrogateescape"),
        version=number_from(meta, "version"),
        listed_ns=number_from(meta, "listed_ns"),
        block_bytes=number_from(meta, "block_bytes"),
        hidden=number_from(meta, "hidden"),
        changes=tuple(json.loads(meta["changes"])),
    )


def _columns(stored: Stored, meta: dict[str, bytes]) -> Columns:
    names = Names(stored["names"], meta["prefix"], meta["suffix"])
    etags = Etags(stored["digests"] if len(stored["digests"]) else stored["etags"])
    mtimes = stored["mtimes"] if len(stored["mtimes"]) else stored["mtimes_ns"]
    times = Times(mtimes, number_from(meta, "mtime_base_ns"), number_from(meta, "mtime_unit_ns"))
    if not len(stored["ends"]):
        planes = numbers(stored["size_planes"]).reshape(_SIZE_BYTES, -1)
        sizes = np.ascontiguousarray(planes.T).view(np.uint64).reshape(-1)
        stored["ends"] = pa.array(np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes, dtype=np.uint64)]))
        index = None
    else:
        index = Index(stored["slots"], stored["prints"], stored["starts"])
    columns = Columns(names, times, etags, index, **{name: numbers(stored[name]) for name in _NUMBERS})
    rows = len(names)
    if {
        len(columns.ends) - 1,
        len(times),
        len(etags),
        len(names if index is None else index),
        int(columns.version_rows[-1]),
    } != {rows}:
        raise InvalidInput("not a manifest: its columns differ in length")
    pairs = ((columns.dir_rows, columns.dir_ids), (columns.dead_rows, columns.dead_at))
    if any(len(one) != len(other) for one, other in pairs) or not len(columns.cuts):
        raise InvalidInput("not a manifest: its columns differ in length")
    if number_from(meta, "version") != len(columns.version_rows):
        raise InvalidInput("not a manifest: its versions do not add up")
    return columns
