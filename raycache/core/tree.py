"""A whole tree, listed in any order, cut into directories. Pure, in columns: no Python object per file.

There is one Python object per directory, and none of the rows is looked at alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycache.core import paths
from raycache.core.columns import binary_views
from raycache.core.listing import LISTING_SCHEMA, is_ascending


def cut(batches: Sequence[pa.RecordBatch]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Each directory of a tree: its path (``""`` for the top), and its one level in LISTING_SCHEMA, in any order.

    ``batches``: rows of LISTING_SCHEMA whose names are paths below the top; no more than 2 GiB of names. A directory
    exists when a row says so or when a name leads through it. A row that comes twice counts once. Nothing is said of
    directories below a name that a file system cannot show; that name itself is a row, as when it is listed alone.
    """
    if not any(batch.num_rows for batch in batches):
        yield "", _no_rows()
        return
    rows = _once(pa.Table.from_batches(batches).combine_chunks().to_batches()[0])
    if not has_directories(rows):
        yield "", rows
        return
    parents, names = _split(rows.column("name"))
    encoded = parents.dictionary_encode()
    codes = encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    taken = pa.array(order)
    grouped = pa.RecordBatch.from_arrays(
        [names.take(taken), *(column.take(taken) for column in rows.columns[1:])], schema=LISTING_SCHEMA
    )
    stops = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
    at = {parent: code for code, parent in enumerate(encoded.dictionary.to_pylist())}
    listed = rows.filter(rows.column("is_dir")).column("name").to_pylist()
    children, existing = _directories(at, listed)
    for path in existing:
        code = at.get(path)
        level = grouped.slice(stops[code], stops[code + 1] - stops[code]) if code is not None else _no_rows()
        implied = children.get(path)
        if implied:
            level = _joined(level, _directory_rows(sorted(implied)))
        yield path[:-1].decode("utf-8", "surrogateescape"), level


def has_directories(batch: pa.RecordBatch) -> bool:
    """Whether a batch of a tree tells of a directory below the top."""
    offsets, data = binary_views(batch.column("name"))
    body = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]
    return batch.column("is_dir").true_count > 0 or bool((body == ord("/")).any())


def _directories(at: dict[bytes, int], listed: list[bytes]) -> tuple[dict[bytes, set[bytes]], list[bytes]]:
    """Names of directories that no row names, by parent; and all directories that can be shown, the top first.

    Directories are written with a slash at the end, the top as nothing: so ``/x`` is not in the directory of ``x``.
    """
    explicit = {name + b"/" for name in listed}
    implied: dict[bytes, set[bytes]] = {}
    known = {b""}
    for path in [*at, *explicit]:
        inside = path
        while inside not in known:
            known.add(inside)
            parent, name = _parent(inside)
            if inside not in explicit:
                implied.setdefault(parent, set()).add(name)
            inside = parent
    return implied, [path for path in sorted(known) if all(map(paths.is_shown, path.split(b"/")[:-1]))]


def _parent(directory: bytes) -> tuple[bytes, bytes]:
    head, slash, name = directory[:-1].rpartition(b"/")
    return head + slash, name


def _once(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Rows without repetitions: of rows that agree in name and kind, the first."""
    names = rows.column("name")
    if is_ascending(names) or pc.count_distinct(names).as_py() == rows.num_rows:  # the former is far cheaper
        return rows
    order = pc.sort_indices(rows, sort_keys=[("name", "ascending"), ("is_dir", "ascending")])
    names, is_dir = rows.column("name").take(order), rows.column("is_dir").take(order)
    same = pc.and_(pc.equal(names.slice(1), names.slice(0, len(names) - 1)),
                   pc.equal(is_dir.slice(1), is_dir.slice(0, len(is_dir) - 1)))  # fmt: skip
    keep = np.ones(len(names), dtype=bool)
    keep[1:] = ~same.to_numpy(zero_copy_only=False)
    return rows.take(order.filter(pa.array(keep)))


def _split(names: pa.BinaryArray) -> tuple[pa.BinaryArray, pa.BinaryArray]:
    """Each path in two: the directory up to and with its last slash, and the name after it."""
    offsets, data = binary_views(names)
    at = np.asarray(offsets).astype(np.int64)
    body = np.frombuffer(data, dtype=np.uint8)[at[0] : at[-1]]
    at -= at[0]
    slashes = np.concatenate([np.full(1, -1), np.flatnonzero(body == ord("/"))])
    last = slashes[np.searchsorted(slashes, at[1:], side="left") - 1]
    starts = np.maximum(last + 1, at[:-1])  # where the name begins; the slash found may be an earlier row's
    lengths = np.column_stack([starts - at[:-1], at[1:] - starts])
    is_name = np.repeat(np.tile(np.array([False, True]), len(names)), lengths.ravel())
    return _binary(body[~is_name], lengths[:, 0]), _binary(body[is_name], lengths[:, 1])


def _binary(body: NDArray[np.uint8], lengths: NDArray[np.int64]) -> pa.BinaryArray:
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]).astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(body)])


def _directory_rows(names: list[bytes]) -> pa.RecordBatch:
    count = len(names)
    columns: list[Any] = [names, [True] * count, [0] * count, [0] * count, [b""] * count]
    return pa.RecordBatch.from_arrays(
        [pa.array(column, kind.type) for column, kind in zip(columns, LISTING_SCHEMA, strict=True)],
        schema=LISTING_SCHEMA,
    )


def _no_rows() -> pa.RecordBatch:
    return _directory_rows([])


def _joined(first: pa.RecordBatch, second: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.concat_arrays([one, other]) for one, other in zip(first.columns, second.columns, strict=True)],
        schema=LISTING_SCHEMA,
    )
