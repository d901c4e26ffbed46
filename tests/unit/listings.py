"""Random listings, and what a directory that was listed should look like."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from raycache.core.listing import LISTING_SCHEMA, append, build, new_directories, prepare_listing
from raycache.core.manifest import Directory, Manifest

BLOCK_BYTES = 100
DIRECTORY = Directory(
    dir_id=7,
    dataset="train",
    source="s3://bucket/train",
    path="a/b",
    version=1,
    listed_ns=11,
    block_bytes=BLOCK_BYTES,
)


class Entry(NamedTuple):
    """One row of a listing."""

    name: bytes
    is_dir: bool = False
    size: int = 0
    mtime_ns: int = 0
    etag: str = ""


def listing_of(entries: list[Entry]) -> pa.RecordBatch:
    columns = zip(*((*entry[:4], entry.etag.encode()) for entry in entries), strict=True) if entries else [[]] * 5
    return pa.RecordBatch.from_arrays(
        [pa.array(list(column), kind.type) for column, kind in zip(columns, LISTING_SCHEMA, strict=True)],
        schema=LISTING_SCHEMA,
    )


def built(entries: list[Entry], directory: Directory = DIRECTORY, first_id: int = 1000) -> Manifest:
    prepared, _ = prepare_listing(listing_of(entries))
    return build(directory, prepared, ids(len(new_directories(None, prepared)), first_id))


def appended(old: Manifest, entries: list[Entry], first_id: int = 2000, listed_ns: int = 12) -> Manifest:
    prepared, hidden = prepare_listing(listing_of(entries))
    fresh = new_directories(old, prepared)
    return append(old, prepared, ids(len(fresh), first_id), listed_ns, hidden)


def ids(count: int, first: int) -> np.ndarray:
    return np.arange(first, first + count, dtype=np.uint64)


def shown(entries: list[Entry]) -> dict[bytes, Entry]:
    """The entries that a file system shows, by name: what every manifest of this listing must hold."""
    model: dict[bytes, Entry] = {}
    for entry in entries:
        name = entry.name
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > 255:
            continue
        if name not in model or entry.is_dir:
            model[name] = Entry(name, True) if entry.is_dir else entry
    return model


_FEW = [b"a", b"b", b"ab", b"a.jpg", b"b.jpg", b"c.jpg", b"sub", b"sub2", b"\xff\xfe", b"new\nline", b"sp ace"]
NAMES = st.one_of(
    st.sampled_from(_FEW),
    st.sampled_from([b"x" * 255, b"y" * 256, b"", b".", b"..", b"a/b", b"nul\0", b"\xc3(", "\N{SNOWMAN}".encode()]),
    st.binary(max_size=6),
)
ETAGS = st.one_of(
    st.just(""),
    st.sampled_from(['"0123456789abcdef0123456789abcdef"', '"fedcba98765432100123456789abcdef"', '"new"', '"d-2"']),
    st.sampled_from(["x" * 16, "\N{SNOWMAN}" * 4, '"' + " " * 32 + '"', '"' + "A" * 32 + '"', '"' + "ab " * 11 + '"']),
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
)
SIZES = st.one_of(st.just(0), st.integers(0, 30), st.integers(0, 450))
ENTRIES = st.builds(
    Entry,
    NAMES,
    is_dir=st.sampled_from([False, False, False, True]),
    size=SIZES,
    mtime_ns=st.integers(0, 3),
    etag=ETAGS,
)


def _no_twins(entries: list[Entry]) -> list[Entry]:
    """A source may list a directory and a file of one name, but never two files."""
    return list({(entry.name, entry.is_dir): entry for entry in entries}.values())


LISTINGS = st.lists(ENTRIES, max_size=25).map(_no_twins)
GENERATIONS = st.lists(LISTINGS, min_size=1, max_size=5)
