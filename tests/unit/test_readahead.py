"""What is fetched ahead, and what is not."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa

from raycache.client.readahead import SEQUENTIAL_BLOCKS, SWEEP_STEP, ReadAhead
from raycache.core.listing import LISTING_SCHEMA, build
from raycache.core.manifest import Directory, Manifest
from raycache.testing.inprocess import InProcessCache


def manifest_of(*sizes: int, block_bytes: int = 100) -> Manifest:
    rows = [
        {"name": b"%06d" % n, "is_dir": False, "size_bytes": size, "mtime_ns": 0, "etag": b""}
        for n, size in enumerate(sizes)
    ]
    listing = pa.RecordBatch.from_pylist(rows, schema=LISTING_SCHEMA)
    return build(Directory(1, "d", "s3://b", "", 1, 0, block_bytes), listing, np.zeros(0, np.uint64))


def test_blocks_of_a_row() -> None:
    manifest = manifest_of(60, 60, 0, 250, 1, 0)
    assert [manifest.blocks_of(row) for row in range(6)] == [(0, 0), (1, 1), (2, 2), (2, 4), (5, 5), (5, 5)]
    assert manifest_of(0).blocks_of(0) == (0, 0)


def test_a_large_file_has_its_next_blocks_ahead_and_none_beyond_its_end() -> None:
    manifest, ahead = manifest_of(50, 1000, 50), ReadAhead()
    first, last = manifest.blocks_of(1)
    asked = [ahead.touch(manifest, 1, block) for block in range(first, last + 1)]
    assert asked[0] == [first + 1, first + SEQUENTIAL_BLOCKS]
    # Every block once, and none of the small file behind it (a sweep is another matter and may ask for that).
    flat = [block for found in asked[:3] for block in found]
    assert len(flat) == len(set(flat))
    assert max(flat) <= last


def test_probes_cause_nothing_and_a_sweep_fetches_the_rest_once() -> None:
    manifest = manifest_of(*[100] * 200)
    probing = ReadAhead()
    assert [probing.touch(manifest, row, row) for row in (7, 150, 3, 99)] == [[]] * 4
    sweeping, order = ReadAhead(), list(range(200))
    random.Random(3).shuffle(order)
    asked: list[int] = []
    touched: set[int] = set()
    for at, row in enumerate(order):
        touched.add(row)
        found = sweeping.touch(manifest, row, row)
        assert len(found) <= SWEEP_STEP
        assert not set(found) & (touched - {row})
        assert found or at < 20 or len(touched | set(asked)) == 200
        asked += found
    assert len(asked) == len(set(asked))


def test_the_rest_of_a_swept_directory_arrives_before_it_is_asked_for(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}").write_bytes(bytes([number]) * 100_000)
    with InProcessCache(block_bytes=200_000) as cache:
        cache.files.attach(str(tmp_path), "data", {})
        store = cache.pool.stores["worker-0"]
        for number in range(0, 16, 2):
            cache.files.read_many([f"raycache://data/{number:02d}"])
            assert store.settle(10)
        assert store.status()["blocks"] >= 16, "read 8 files in 8 of 20 blocks"
        before = store.status()["counters"]
        for number in range(40):
            assert cache.files.read_many([f"raycache://data/{number:02d}"])[0] == bytes([number]) * 100_000
        misses = store.status()["counters"]["misses"] - before["misses"]
        assert misses <= 8
        assert store.status()["counters"]["ufs_requests"] <= 40, "nothing was fetched twice"
