"""Renumbering a directory: one row goes, one comes, and all others stay what they were."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from listings import GENERATIONS, Entry, appended, built

from raycache.core import archive
from raycache.core.manifest import Manifest
from raycache.meta.recovery import free_name, keep_aside, renumber


@given(GENERATIONS, st.data())
def test_only_the_row_that_is_renumbered_changes(generations: list[list[Entry]], data: st.DataObject) -> None:
    manifest = built(generations[0])
    for entries in generations[1:]:
        manifest = appended(manifest, entries)
    directories = [row for row in manifest.rows() if manifest.child_id(row) is not None]
    chosen = data.draw(st.lists(st.sampled_from(directories), unique=True)) if directories else []
    new_ids = {row: 5000 + at for at, row in enumerate(chosen)}
    now = archive.from_bytes(archive.to_kept(renumber(manifest, new_ids, 99)))
    assert now.row_count == manifest.row_count + len(chosen)
    for row in range(manifest.row_count):
        assert about(now, row) == about(manifest, row)
        assert now.is_dead(row) == (manifest.is_dead(row) or row in new_ids)
    for row, new_id in new_ids.items():
        found = now.find(manifest.name(row))
        assert found is not None
        assert now.child_id(found) == new_id
    assert now.live_count == manifest.live_count
    assert now.directory.hidden == manifest.directory.hidden
    assert now.directory.version > manifest.directory.version
    assert blocks(now) == blocks(manifest), "nothing that is cached is fetched again"


def blocks(manifest: Manifest) -> list[bytes]:
    return [manifest.block_id(block) for block in range(manifest.block_count)]


def about(manifest: Manifest, row: int) -> tuple[object, ...]:
    return (
        manifest.name(row),
        manifest.size(row),
        manifest.mtime_ns(row),
        manifest.etag(row),
        manifest.child_id(row),
    )


def test_what_is_kept_aside_overwrites_nothing(tmp_path: Path) -> None:
    kept = [keep_aside(tmp_path / "lost", "a.manifest", body) for body in (b"1", b"2", b"3")]
    assert [path.read_bytes() for path in kept] == [b"1", b"2", b"3"]
    assert free_name(tmp_path / "lost" / "a.manifest").name == "a-4.manifest"
