from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from listings import BLOCK_BYTES, DIRECTORY, ETAGS, GENERATIONS, LISTINGS, Entry, appended, built, listing_of, shown

from raycache.core import columns
from raycache.core import listing as listing_module
from raycache.core.listing import compare, new_directories, prepare_listing
from raycache.core.manifest import FEW

HASHES = pytest.mark.parametrize(
    "name_hash", [None, lambda _: 5, lambda name: len(name) % 2], ids=["xxhash", "one hash", "two hashes"]
)


def rehash(monkeypatch, name_hash):
    if name_hash is not None:
        monkeypatch.setattr(columns, "name_hash", name_hash)


def rows_of(manifest):
    """What a manifest shows, in the words of the model."""
    found = {}
    for row in manifest.rows():
        name, is_dir = manifest.name(row), manifest.child_id(row) is not None
        assert name not in found
        found[name] = (
            Entry(name, True)
            if is_dir
            else Entry(name, False, manifest.size(row), manifest.mtime_ns(row), manifest.etag(row))
        )
    return found


def check(manifest, entries):
    """All that must hold of a manifest of these entries, however it came about."""
    model = shown(entries)
    assert rows_of(manifest) == model
    for name, entry in model.items():
        row = manifest.find(name)
        assert row is not None
        assert manifest.name(row) == name
        assert not manifest.is_dead(row)
        assert manifest.path(row) == f"a/b/{name.decode('utf-8', 'surrogateescape')}"
        if entry.is_dir:
            assert manifest.size(row) == 0
    for absent in (b"no such name", b"", b"x" * 256, b"sub/a"):
        if absent not in model:
            assert manifest.find(absent) is None
    assert manifest.live_count == len(model)
    assert manifest.file_count == sum(not entry.is_dir for entry in model.values())
    absent = [name for name in (b"no such name", b"", b"x" * 256, b"sub/a") if name not in model]
    wanted = [*model, *absent]
    found = [*map(manifest.find, model), *[-1] * len(absent)]
    assert manifest.find_many(wanted).tolist() == found
    assert manifest.find_many(wanted * FEW).tolist() == found * FEW


@given(LISTINGS)
def test_prepared_listing_is_ordered_and_can_be_shown(entries):
    prepared, hidden = prepare_listing(listing_of(entries))
    model = shown(entries)
    assert prepared.column("name").to_pylist() == sorted(model)
    assert hidden == len(entries) - len(model)
    for name, is_dir in zip(prepared.column("name").to_pylist(), prepared.column("is_dir").to_pylist(), strict=True):
        assert is_dir == model[name].is_dir


@pytest.mark.parametrize("slices", [(0, 5), (2, 3), (3, 0)])
def test_slice_of_a_larger_listing_is_prepared_alike(slices):
    entries = [Entry(name) for name in (b"c", b"a\0", b"x/y", b"a", b"")]
    offset, length = slices
    prepared, hidden = prepare_listing(listing_of(entries).slice(offset, length))
    model = shown(entries[offset : offset + length])
    assert prepared.column("name").to_pylist() == sorted(model)
    assert hidden == length - len(model)


@HASHES
def test_first_version_holds_what_was_listed(name_hash):
    with pytest.MonkeyPatch.context() as patch:
        rehash(patch, name_hash)

        @given(LISTINGS)
        def run(entries):
            check(built(entries), entries)

        run()


@HASHES
def test_later_versions_hold_what_was_listed_last_and_move_nothing(name_hash):
    with pytest.MonkeyPatch.context() as patch:
        rehash(patch, name_hash)

        @given(GENERATIONS)
        def run(generations):
            manifest = built(generations[0])
            check(manifest, generations[0])
            for number, entries in enumerate(generations[1:], start=2):
                newer = appended(manifest, entries, first_id=1000 * number, listed_ns=number)
                check(newer, entries)
                check_nothing_moved(manifest, newer)
                assert newer.directory.version == number
                assert newer.directory.listed_ns == number
                assert newer.directory.hidden == len(entries) - len(shown(entries))
                manifest = newer

        run()


def check_nothing_moved(old, new):
    """Row numbers, block numbers, ids and bytes of an old version are good in the new one."""
    count = old.row_count
    assert new.row_count >= count
    for name in ("names", "ends", "mtimes_ns", "etags", "dir_rows", "dir_ids", "cuts"):
        column = old.column(name)
        assert new.column(name).slice(0, len(column)).equals(column)
    assert [new.block_id(block) for block in range(old.block_count)] == [
        old.block_id(block) for block in range(old.block_count)
    ]
    assert set(old.column("dead_rows").to_pylist()) <= set(new.column("dead_rows").to_pylist())
    for row in old.rows():
        assert new.pieces(row, 0, 10**6) == old.pieces(row, 0, 10**6)


@given(LISTINGS)
def test_same_listing_again_adds_nothing(entries):
    old = built(entries)
    dead, fresh = compare(old, prepare_listing(listing_of(entries))[0])
    assert (len(dead), len(fresh)) == (0, 0)
    new = appended(old, list(reversed(entries)))
    assert (new.row_count, new.block_count) == (old.row_count, old.block_count)


BASE = Entry(b"f", False, 10, 1, '"e"')


@pytest.mark.parametrize(
    "changed",
    [
        BASE._replace(size=11),
        BASE._replace(mtime_ns=2),
        BASE._replace(etag='"g"'),
        BASE._replace(etag=""),
        Entry(b"f", True),
    ],
)
def test_changed_file_is_a_new_row(changed):
    old = built([BASE, Entry(b"g", False, 5)])
    new = appended(old, [changed, Entry(b"g", False, 5)])
    assert new.find(b"f") == 2
    assert new.is_dead(0)
    assert new.find(b"g") == 1


def test_file_comes_and_goes():
    rest = [Entry(b"g", False, 5)]
    manifest = built([BASE, *rest])
    for generation in range(3):
        manifest = appended(manifest, rest, listed_ns=generation)
        assert manifest.find(b"f") is None
        manifest = appended(manifest, [BASE, *rest], listed_ns=generation)
        assert manifest.find(b"f") == 2 + generation
        assert manifest.size(manifest.find(b"f")) == 10


def test_directory_keeps_its_id_while_it_is_listed():
    sub = Entry(b"sub", True, mtime_ns=1)
    first = built([sub], first_id=50)
    again = appended(first, [sub._replace(mtime_ns=9), Entry(b"new", True)], first_id=60)
    assert again.child_id(again.find(b"sub")) == 50
    assert again.child_id(again.find(b"new")) == 60
    gone = appended(again, [])
    assert gone.find(b"sub") is None
    back = appended(gone, [sub], first_id=70)
    assert back.child_id(back.find(b"sub")) == 70


def test_only_new_directories_need_an_id():
    old = built([Entry(b"a", True), Entry(b"f", False, 3)])
    prepared, _ = prepare_listing(listing_of([Entry(b"z", True), Entry(b"a", True), Entry(b"f", True)]))
    assert new_directories(None, prepared) == [b"a", b"f", b"z"]
    assert new_directories(old, prepared) == [b"f", b"z"]


def test_size_of_a_directory_counts_for_nothing():
    old = built([Entry(b"d", True, size=4096), Entry(b"f", False, 3)])
    assert old.size_bytes == 3
    assert appended(old, [Entry(b"d", True, size=8192), Entry(b"f", False, 3)]).row_count == 2


@given(st.lists(ETAGS, max_size=12))
def test_etag_comes_back_as_it_was(etags):
    manifest = built([Entry(b"%04d" % at, False, 1, 0, etag) for at, etag in enumerate(etags)])
    assert [manifest.etag(row) for row in manifest.rows()] == etags


def test_etag_that_is_a_digest_takes_half():
    manifest = built([Entry(b"f", False, 1, 0, '"0123456789abcdef0123456789abcdef"')])
    assert manifest.column("etags").to_pylist() == [bytes.fromhex("0123456789abcdef0123456789abcdef")]


def test_missing_etag_is_no_etag():
    batch = listing_of([Entry(b"f", False, 1)])
    batch = batch.set_column(4, "etag", pa.array([None], pa.binary()))
    manifest = listing_module.build(DIRECTORY, prepare_listing(batch)[0], np.zeros(0, np.uint64))
    assert manifest.etag(0) == ""
    assert len(compare(manifest, prepare_listing(batch)[0])[1]) == 0


def test_large_directory_is_indexed_in_chunks():
    count = 70_000  # more than one chunk of the index
    entries = [Entry(b"%07d" % at, False, at % 3) for at in range(count)]
    manifest = built(entries)
    for at in (0, 1, 65_535, 65_536, count - 1):
        assert manifest.find(b"%07d" % at) == at
    assert manifest.block_count > count / BLOCK_BYTES
    newer = appended(manifest, entries[1:])
    assert newer.column("dead_rows").to_pylist() == [0]
