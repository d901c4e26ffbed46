"""Files of a tree as numbers: the same files that ``glob`` finds, in packs that are the blocks they begin in."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from listings import Entry, appended, built

from raycache.client.reader import Reader
from raycache.client.selection import Selection
from raycache.core.entries import first_blocks_of
from raycache.core.values import BlockPlan, Sealed, Worker
from raycache.errors import InvalidInput, NotADirectory, NotFound
from raycache.testing.inprocess import InProcessCache


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files of 0 to 60 kB in three directories, one of them nested, and one large file."""
    rng = random.Random(5)
    for number in range(61):
        path = tmp_path / "data" / ("a", "b", "a/c")[number % 3] / f"{number:02d}.{('bin', 'txt')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(number * 1000))
    (tmp_path / "data" / "large").write_bytes(rng.randbytes(3_500_000))
    return tmp_path / "data"


@pytest.mark.parametrize("pattern", ["**", "**/*.bin", "a/*", "*/*/*", "**/**/?1.*", "large", "none*", "a/**"])
def test_a_pattern_selects_the_files_that_glob_finds(source: Path, pattern: str) -> None:
    with InProcessCache() as cache:
        cache.files.attach(str(source), "data", {})
        selection = Selection.of(cache.namespace, "raycache://data", pattern)
        found = selection.paths(np.arange(len(selection)))
        matched = [uri.removeprefix("raycache://data/") for uri in cache.files.glob(f"raycache://data/{pattern}")]
        assert sorted(found) == [path for path in matched if not cache.files.stat(f"raycache://data/{path}").is_dir]
        assert len(set(found)) == len(found)


def test_what_is_known_of_a_file(source: Path) -> None:
    with InProcessCache(workers=2) as cache:
        cache.files.attach(str(source), "data", {})
        selection = Selection.of(cache.namespace, str(source / "a"))
        numbers = np.random.default_rng(1).permutation(len(selection))
        paths = selection.paths(numbers)
        stats = [os.stat(source / path) for path in paths]
        assert len(paths) == 41
        assert selection.sizes(numbers).tolist() == [stat.st_size for stat in stats]
        assert selection.mtimes_ns(numbers).tolist() == [stat.st_mtime_ns for stat in stats]
        assert selection.size_bytes == sum(stat.st_size for stat in stats)
        read = cache.reader.read_many(selection.rows(numbers))
        assert [bytes(data) for data in read] == [(source / path).read_bytes() for path in paths]


def test_packs_are_the_blocks_that_files_begin_in(source: Path) -> None:
    with InProcessCache(block_bytes=100_000) as cache:
        cache.files.attach(str(source), "data", {})
        selection = Selection.of(cache.namespace, "raycache://data")
        packs = selection.packs()
        assert packs.files.sum() == len(selection)
        rows = selection.rows(np.arange(len(selection)))
        for (manifest, row), part, block in zip(
            rows, np.repeat(packs.part, packs.files), np.repeat(packs.block, packs.files), strict=True
        ):
            assert selection.manifests[part] is manifest
            assert manifest.blocks_of(row)[0] == block


@given(st.lists(st.integers(0, 250), max_size=30), st.lists(st.integers(0, 250), max_size=10))
def test_first_blocks_are_those_that_a_manifest_names(sizes: list[int], more: list[int]) -> None:
    old = [Entry(f"f{number:03}".encode(), size=size, etag=str(size)) for number, size in enumerate(sizes)]
    new = [Entry(f"g{number:03}".encode(), size=size, etag=str(size)) for number, size in enumerate(more)]
    manifest = appended(built(old), old + new)
    rows = manifest.live_rows(0, manifest.row_count)
    assert first_blocks_of(manifest, rows).tolist() == [manifest.blocks_of(row)[0] for row in rows.tolist()]


def test_an_empty_selection_and_what_is_none(source: Path) -> None:
    with InProcessCache() as cache:
        cache.files.attach(str(source), "data", {})
        nothing = Selection.of(cache.namespace, "raycache://data", "*.none")
        assert len(nothing) == 0
        assert nothing.packs().files.tolist() == []
        assert nothing.size_bytes == 0
        with pytest.raises(NotADirectory):
            Selection.of(cache.namespace, "raycache://data/large")
        with pytest.raises(NotFound):
            Selection.of(cache.namespace, "raycache://data/not")
        for pattern in ("", "/a", "a//b", "../a", "./*"):
            with pytest.raises(InvalidInput):
                Selection.of(cache.namespace, "raycache://data", pattern)


def test_blocks_that_are_expected_are_filled_unless_they_are_held_here() -> None:
    manifest = built([Entry(f"f{number}".encode(), size=60, etag=str(number)) for number in range(5)])
    blocks = range(manifest.block_count)
    hinted: list[bytes] = []

    class RecordingPool:
        def workers(self, refresh: bool = False) -> list[Worker]:
            return [Worker("w", 1, local=True)]

        def hint(self, calls: Mapping[str, Sequence[bytes]]) -> None:
            hinted.extend(BlockPlan.unpack(plan).block_id for plan in calls["w"])

    reader = Reader(RecordingPool(), 1 << 20, 5)  # type: ignore[arg-type]
    reader.views.hold(manifest.block_id(2), Sealed(memoryview(bytes(60))), "w")
    reader.expect([(manifest, block) for block in blocks])
    assert sorted(hinted) == sorted(manifest.block_id(block) for block in blocks if block != 2)
    hinted.clear()
    reader.expect([(manifest, 2)])
    assert hinted == []
