from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from listings import BLOCK_BYTES, DIRECTORY, GENERATIONS, LISTINGS, Entry, appended, built

from raycache.core import archive
from raycache.core import columns as columns_module
from raycache.core import manifest as manifest_module
from raycache.core.manifest import FEW, Manifest
from raycache.core.values import BlockPlan
from raycache.errors import InvalidInput

WAYS = st.sampled_from([archive.to_mapped, archive.to_kept])
COLUMNS = ("names", "etags", "mtimes_ns", "ends", "cuts", "dir_rows", "dir_ids", "dead_rows", "dead_at", "version_rows")

TREE = [
    Entry(b"a.jpg", False, 30, 1, '"0123456789abcdef0123456789abcdef"'),
    Entry(b"b.jpg", False, 30, 2, '"v1"'),
    Entry(b"dir", True),
    Entry(b"empty", False, 0, 3, '"v0"'),
    Entry(b"large", False, 250, 4, '"v2"'),
    Entry(b"z\xff", False, 7, 5, ""),
]


def every_version(generations):
    manifest = built(generations[0])
    for entries in generations[1:]:
        manifest = appended(manifest, entries)
    return manifest


@given(GENERATIONS, WAYS)
def test_buffer_round_trip(generations, to_bytes):
    manifest = every_version(generations)
    again = archive.from_bytes(to_bytes(manifest))
    assert again.directory == manifest.directory
    for name in COLUMNS:
        assert again.column(name).equals(manifest.column(name))
    assert list(again.rows()) == list(manifest.rows())
    for row in manifest.rows():
        assert again.find(manifest.name(row)) == row
        assert again.etag(row) == manifest.etag(row)
    assert [again.block_id(block) for block in range(again.block_count)] == [
        manifest.block_id(block) for block in range(manifest.block_count)
    ]
    assert archive.to_mapped(again).equals(archive.to_mapped(manifest))


@given(GENERATIONS)
def test_every_version_can_be_had_again(generations):
    manifest = built(generations[0])
    versions = [(0, manifest)]
    for number, entries in enumerate(generations[1:], start=2):
        manifest = appended(manifest, entries)
        change = 10 * number
        manifest = Manifest(
            replace(manifest.directory, changes=(*manifest.directory.changes, change)), manifest.columns
        )
        versions.append((change, manifest))
    newest = archive.from_bytes(archive.to_mapped(manifest))
    for change, then in versions:
        for asked in (change, change + 9):
            again = newest.as_of(asked)
            assert again.directory.version == then.directory.version
            assert (again.row_count, again.live_count, again.file_count) == (
                then.row_count,
                then.live_count,
                then.file_count,
            )
            assert (again.size_bytes, again.block_count) == (then.size_bytes, then.block_count)
            for name in COLUMNS:
                assert again.column(name).equals(then.column(name))
            for row in range(newest.row_count):
                name = newest.name(row)
                assert again.find(name) == then.find(name)
                found = -1 if then.find(name) is None else then.find(name)
                for count in (1, FEW + 1):  # one by one, and together
                    assert set(again.find_many([name] * count)) == {found}
            assert ids(again) == ids(then)
            assert list(again.live_rows(0, 100)) == list(then.rows())


@pytest.mark.parametrize("step", [1, 7, 1 << 14])
def test_a_name_that_came_back_many_times_is_found_among_its_tombstones(monkeypatch, step):
    monkeypatch.setattr(columns_module, "_STEP", step)
    manifest = built(TREE)
    for version in range(60):
        again = [Entry(name, False, 30, 1, f'"{version}"') for name in (b"a.jpg", b"large")]
        manifest = appended(manifest, [*again, *TREE[1:4], TREE[5]])
    wanted = [b"large", b"b.jpg", b"no such name", b"a.jpg", b"dir", b"large"] * FEW
    assert [None if row is None else manifest.etag(row) for row in map(manifest.find, wanted)] == [
        *('"59"', '"v1"', None, '"59"', "", '"59"') * FEW
    ]
    assert manifest.find_many(wanted).tolist() == [-1 if row is None else row for row in map(manifest.find, wanted)]
    assert manifest.find_many([]).tolist() == []


def test_mapped_buffer_is_not_copied():
    buffer = archive.to_mapped(built(TREE))
    names = archive.from_bytes(memoryview(buffer)).column("names").buffers()[2]
    assert buffer.address <= names.address < buffer.address + buffer.size


def test_names_that_are_no_utf8_survive_in_the_head():
    odd = "b\udcffd"
    manifest = built(TREE, replace(DIRECTORY, source=f"file:///{odd}", path=odd, dataset="x"))
    again = archive.from_bytes(archive.to_mapped(manifest))
    assert again.directory == manifest.directory
    assert again.plan(0).parts == manifest.plan(0).parts


@given(LISTINGS, st.data())
def test_pieces_are_the_bytes_of_a_row(entries, data):
    manifest = built(entries)
    stream = [0] * manifest.size_bytes
    for row in manifest.rows():
        size = manifest.size(row)
        at = 0
        for piece in manifest.pieces(row, 0, size):
            assert piece.length > 0
            assert piece.offset + piece.length <= manifest.block_size(piece.block)
            start = sum(manifest.block_size(block) for block in range(piece.block)) + piece.offset
            for position in range(start, start + piece.length):
                stream[position] += 1
            at += piece.length
        assert at == size
        offset = data.draw(st.integers(0, size + 3))
        length = data.draw(st.integers(0, size + 3))
        part = manifest.pieces(row, offset, length)
        assert sum(piece.length for piece in part) == max(0, min(length, size - offset))
    assert stream == [1] * manifest.size_bytes


@given(GENERATIONS)
def test_plan_tiles_its_block_and_agrees_with_the_pieces(generations):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_module, "PART_BYTES", 40)
        manifest = every_version(generations)
        for block in range(manifest.block_count):
            plan = manifest.plan(block)
            assert plan.block_id == manifest.block_id(block)
            assert plan.dataset == "train"
            assert plan.size_bytes == manifest.block_size(block) <= BLOCK_BYTES
            end = 0
            for part in plan.parts:
                assert part.block_offset == end
                assert 0 < part.length <= 40
                end += part.length
            assert end == plan.size_bytes
            assert BlockPlan.unpack(plan.pack()) == plan
        for row in manifest.rows():
            for piece in manifest.pieces(row, 0, manifest.size(row)):
                parts = [part for part in manifest.plan(piece.block).parts if part.path == manifest.path(row)]
                mine = [part for part in parts if piece.offset <= part.block_offset < piece.offset + piece.length]
                assert sum(part.length for part in mine) == piece.length
                assert {part.etag for part in mine} == {manifest.etag(row)}
                for part in mine:
                    place = (piece.block, part.block_offset, part.length)
                    assert manifest.pieces(row, part.file_offset, part.length) == [place]


def ids(manifest):
    return [manifest.block_id(block) for block in range(manifest.block_count)]


def test_blocks_of_the_same_files_have_the_same_id_everywhere():
    here = ids(built(TREE))
    assert len(set(here)) == len(here) == 5
    elsewhere = replace(DIRECTORY, dir_id=99, version=17, listed_ns=5, hidden=3, dataset="other")
    assert ids(built(list(reversed(TREE)), elsewhere, first_id=5)) == here
    assert all(len(block_id) == 16 for block_id in here)


def test_what_has_no_bytes_has_no_part_in_an_id():
    # Between a.jpg and b.jpg, where nothing moves a cut.
    here = ids(built(TREE))
    assert ids(built([*TREE, Entry(b"aa", True, mtime_ns=5), Entry(b"ab", False, 0, 1, '"e"')])) == here


def test_id_is_of_the_place_too():
    here = set(ids(built(TREE)))
    assert not here & set(ids(built(TREE, replace(DIRECTORY, path="a/c"))))
    assert not here & set(ids(built(TREE, replace(DIRECTORY, source="s3://bucket/other"))))
    assert ids(built(TREE, replace(DIRECTORY, source="s3://bucket/train/a", path="b"))) == ids(built(TREE))


@pytest.mark.parametrize(
    ("row", "changes", "differ"),
    [
        (0, {"etag": '"fedcba98765432100123456789abcdef"'}, {0}),
        (1, {"etag": '"v9"'}, {0}),
        (1, {"name": b"b.jpeg"}, {0}),
        (1, {"size": 31}, {0}),
        (4, {"etag": '"v9"'}, {1, 2, 3}),
        (4, {"size": 249}, {1, 2, 3}),
        (5, {"mtime_ns": 6}, {4}),
        # With a version the mtime says nothing: the same bytes were written again.
        (1, {"mtime_ns": 9}, set()),
        (2, {"mtime_ns": 9}, set()),
        (3, {"etag": '"v9"'}, set()),
    ],
)
def test_changed_file_changes_the_ids_of_its_blocks_and_no_other(row, changes, differ):
    changed = [entry._replace(**changes) if at == row else entry for at, entry in enumerate(TREE)]
    before, after = ids(built(TREE)), ids(built(changed))
    assert {block for block in range(len(before)) if before[block] != after[block]} == differ


@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["", '"x"', '"y"'])), min_size=1, max_size=8))
def test_id_tells_versions_apart_where_the_source_has_none(files):
    """A file that is replaced by one of the same size, in a source without versions, is another block."""
    old = built([Entry(b"%d" % at, False, size, 1, etag) for at, (size, etag) in enumerate(files)])
    new = appended(old, [Entry(b"%d" % at, False, size, 2, etag) for at, (size, etag) in enumerate(files)])
    stale = {
        new.block_id(block)
        for block in range(old.block_count, new.block_count)
        if any(part.etag == "" for part in new.plan(block).parts)
    }
    assert not stale & set(ids(old))


@pytest.mark.parametrize(
    "buffer", [b"", b"x", b"not a manifest" * 100, b"\xff" * 64, b"\0" * 64, b"PK\x03\x04" + b"\0" * 90]
)
def test_bytes_that_are_no_manifest(buffer):
    with pytest.raises(InvalidInput, match="not a manifest"):
        archive.from_bytes(buffer)


def test_arrow_stream_that_is_no_manifest():
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"names": [b"x"]})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(InvalidInput, match="not a manifest"):
        archive.from_bytes(sink.getvalue())


@pytest.mark.parametrize("change", ["none", "format", "columns", "rows", "number", "missing", "lengths"])
def test_stream_with_a_damaged_head(change):
    batch = pa.ipc.open_stream(archive.to_mapped(built(TREE))).read_next_batch()
    meta = dict(batch.schema.metadata)
    if change == "format":
        meta[b"format"] = b"999"
    if change == "number":
        meta[b"dir_id"] = b"seven"
    if change == "missing":
        del meta[b"listed_ns"]
    if change == "columns":
        batch = batch.rename_columns([*batch.schema.names[:-1], "slits"])
    if change == "lengths":
        shorter = pa.array([batch.column(2)[0].as_py()[:-1]], batch.schema.field(2).type)
        batch = batch.set_column(2, batch.schema.field(2), shorter)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema.with_metadata(meta)) as writer:
        if change != "rows":
            writer.write_batch(batch.replace_schema_metadata(meta))
    if change == "none":
        assert archive.from_bytes(sink.getvalue()).row_count == len(TREE)
        return
    with pytest.raises(InvalidInput, match="format 999" if change == "format" else "not a manifest"):
        archive.from_bytes(sink.getvalue())


@pytest.mark.parametrize("to_bytes", [archive.to_mapped, archive.to_kept])
def test_truncated_buffer(to_bytes):
    whole = to_bytes(built(TREE)).to_pybytes()
    # The last 8 bytes only say that the stream ends.
    for length in range(len(whole) - 8):
        with pytest.raises(InvalidInput, match="not a manifest"):
            archive.from_bytes(whole[:length])


@given(st.sets(st.integers(0, 199)), st.integers(0, 200), st.integers(1, 50))
def test_live_rows_are_those_that_no_tombstone_covers(gone, start, count):
    entries = [Entry(b"%03d" % number, False, 1, 1, "") for number in range(200)]
    new = appended(built(entries), [entry for row, entry in enumerate(entries) if row not in gone])
    assert list(new.live_rows(start, count)) == list(new.rows(start))[:count]
