"""Load, free, pin, ttl and removal over a whole cache in one process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycache.errors import InvalidInput, NotFound, SourceUnavailable, Unavailable
from raycache.testing.inprocess import InProcessCache
from raycache.ufs.local import LocalUfs

FILE, FILES, BLOCK = 10_000, 40, 50_000
"""Five files to a block, eight blocks to a directory."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for directory in ("a", "b/c"):
        (tmp_path / directory).mkdir(parents=True)
        for number in range(FILES):
            (tmp_path / directory / f"{number:02d}").write_bytes(bytes([number]) * FILE)
    return tmp_path


@pytest.fixture
def cache(source: Path) -> Iterator[InProcessCache]:
    with InProcessCache(workers=2, quota_bytes=900_000, block_bytes=BLOCK, view_bytes=1) as made:
        made.files.attach(str(source), "d", {})
        yield made


def held(cache: InProcessCache) -> int:
    return sum(store.status()["mem_bytes"] for store in cache.pool.stores.values())


def asked(cache: InProcessCache) -> int:
    return sum(store.status()["counters"]["ufs_requests"] for store in cache.pool.stores.values())


def test_a_load_reads_all_once_and_an_epoch_after_it_nothing(cache: InProcessCache) -> None:
    job = cache.keeping.load("d")
    report = job.wait(30)
    assert (report.state, report.files, report.bytes, report.failed) == ("done", 80, 80 * FILE, 0)
    assert report.beyond_bytes == 0
    assert job.report == job.progress() == report
    before = asked(cache)
    assert before == 80
    for number in range(FILES):
        assert cache.files.read_range(f"raycache://d/b/c/{number:02d}", 0, FILE) == bytes([number]) * FILE
    assert asked(cache) == before
    assert cache.keeping.load("raycache://d/a/07").wait(30).bytes == BLOCK
    with pytest.raises(NotFound):
        cache.keeping.load("raycache://d/none")


def test_what_does_not_fit_is_told_with_the_figure(cache: InProcessCache) -> None:
    cache.keeping.set_retention("d", {"quota": 300_000})
    report = cache.keeping.load("raycache://d").wait(30)
    assert report.bytes + report.beyond_bytes == 80 * FILE
    assert report.bytes == held(cache) == 300_000
    cache.keeping.set_retention("d", {"quota": 0})
    for store in cache.pool.stores.values():
        while store.tiers.tend(2):
            store.check()
    assert held(cache) == 0


def test_a_load_survives_the_death_of_a_worker(cache: InProcessCache) -> None:
    cache.pool.kill("worker-1")
    report = cache.keeping.load("raycache://d").wait(30)
    assert (report.state, report.bytes) == ("done", 80 * FILE)


def test_a_source_that_fails_makes_files_fail_and_not_the_job(
    cache: InProcessCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = LocalUfs.get

    def sometimes(self: Any, path: str, *about: Any) -> Any:
        if path == "a/03":
            raise SourceUnavailable(f"{path}: away")
        return get(self, path, *about)

    monkeypatch.setattr(LocalUfs, "get", sometimes)
    report = cache.keeping.load("raycache://d/a").wait(30)
    assert (report.state, report.failed, report.bytes) == ("done", 5, 7 * BLOCK)
    monkeypatch.setattr(LocalUfs, "get", get)
    assert cache.keeping.load("raycache://d/a").wait(30).bytes == 8 * BLOCK


def test_a_load_can_be_cancelled_and_waited_for_in_vain(cache: InProcessCache, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    get = LocalUfs.get

    def slow(self: Any, *about: Any) -> Any:
        assert go_on.wait(30)
        return get(self, *about)

    monkeypatch.setattr(LocalUfs, "get", slow)
    job = cache.keeping.load("raycache://d")
    with pytest.raises(Unavailable, match="goes on"):
        job.wait(0.2)
    assert job.progress().state == "running"
    job.cancel()
    assert job.wait(30).state == "cancelled"
    go_on.set()
    assert all(store.settle(30) for store in cache.pool.stores.values())


def test_free_drops_a_dataset_a_directory_or_a_file_and_nothing_pinned(cache: InProcessCache) -> None:
    cache.keeping.load("raycache://d").wait(30)
    freed = cache.keeping.free("raycache://d/b")
    assert (freed.blocks, freed.size_bytes, freed.unreached) == (8, 8 * BLOCK, 0)
    assert cache.keeping.free("raycache://d/a/00").blocks == 1
    assert held(cache) == 7 * BLOCK
    assert cache.keeping.pin("raycache://d/a").wait(30).bytes == 8 * BLOCK
    for uri in ("raycache://d/a", "raycache://d/a/00"):
        with pytest.raises(InvalidInput, match="unpin that first"):
            cache.keeping.free(uri)
    freed = cache.keeping.free("raycache://d")
    assert (freed.blocks, freed.pinned_bytes) == (0, 8 * BLOCK)
    cache.keeping.unpin("raycache://d/a")
    assert cache.keeping.free("raycache://d").blocks == 8
    assert held(cache) == 0
    with pytest.raises(NotFound, match="not pinned"):
        cache.keeping.unpin("raycache://d/a")


def test_a_pin_is_weighed_and_outlasts_what_would_evict_it(cache: InProcessCache, source: Path) -> None:
    other = source.parent / f"{source.name}-other"
    (other / "x").mkdir(parents=True)
    for number in range(6 * FILES):
        (other / "x" / f"{number:03d}").write_bytes(b"x" * FILE)
    cache.files.attach(str(other), "o", {})
    cache.keeping.set_retention("o", {"replicas": 2})
    with pytest.raises(InvalidInput, match=r"4,800,000.*2,097,152"):
        cache.keeping.pin("raycache://o")
    cache.keeping.set_retention("o", {"replicas": 1, "priority": 5, "eviction": "lru"})
    cache.keeping.pin("raycache://d/a/00").wait(30)
    report = cache.keeping.load("raycache://o").wait(30)
    assert report.bytes == 2_400_000, "each was let in"
    assert held(cache) <= 1_800_000
    before = asked(cache)
    cache.files.read_range("raycache://d/a/00", 0, FILE)
    assert asked(cache) == before, "the pinned file's block is still here"
    entry = cache.namespace.entry("raycache://o/x/000")
    assert entry.row is not None
    cache.keeping.remove("o")
    assert held(cache) == BLOCK
    with pytest.raises(NotFound):
        cache.files.listdir("raycache://o")
    manifest, row = entry.manifest, entry.row
    with pytest.raises(NotFound, match="'o'"):  # who holds a listing still, as mounts do, is told that it is gone
        cache.reader.read(manifest, row, 0, FILE)
    (status,) = cache.metadata.status()
    assert status["pinned_bytes"] == BLOCK
