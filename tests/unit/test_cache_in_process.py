"""The whole cache without Ray: real catalog, real block stores, real client, over a local directory."""

from __future__ import annotations

import glob
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.client.namespace import Namespace
from raycache.core.values import Stat
from raycache.errors import Changed, InvalidInput, IsADirectory, NotADirectory, NotFound, ReadOnly
from raycache.fuse.vfs import ROOT_INO, Attr, Vfs, WouldBlock
from raycache.testing.inprocess import InProcessCache


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree of 60 files in 3 directories, and one large file."""
    rng = random.Random(5)
    for number in range(60):
        path = tmp_path / "data" / "abc"[number % 3] / f"{number:02d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(number * 1000))
    (tmp_path / "data" / "large").write_bytes(rng.randbytes(3_500_000))
    return tmp_path / "data"


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_way_in_gives_the_same_bytes(source: Path) -> None:
    with InProcessCache(workers=3) as cache:
        cache.files.attach(str(source), "data", {})
        for path, body in tree(source).items():
            with cache.files.open(f"raycache://data/{path}") as file:
                assert file.read() == body
            with cache.files.open(f"{source}/{path}", buffering=0) as raw:
                raw.seek(len(body) // 2)
                assert raw.read() == body[len(body) // 2 :]
        uris = [f"raycache://data/{path}" for path in tree(source)]
        assert [bytes(data) for data in cache.files.read_many(uris)] == list(tree(source).values())


def test_walk_glob_and_stat_show_the_tree(source: Path) -> None:
    with InProcessCache() as cache:
        cache.files.attach(str(source), "data", {})
        walked = [
            (base.removeprefix("raycache://data"), dirs, names)
            for base, dirs, names in cache.files.walk("raycache://data")
        ]
        wanted = [
            (base.removeprefix(str(source)), sorted(dirs), sorted(names)) for base, dirs, names in os.walk(source)
        ]
        assert sorted(walked) == sorted(wanted)
        for pattern in ("*", "a/*", "*/*5.bin", "a/[0-1]?.bin", "**/*.bin", "**", "b/01.bin", "b/nothing", "none/*"):
            found = {uri.removeprefix("raycache://data/") for uri in cache.files.glob(f"raycache://data/{pattern}")}
            assert found == set(glob.glob(pattern, root_dir=source, recursive=True)) - {""}, pattern
        about = cache.files.stat("raycache://data/large")
        assert (about.is_dir, about.size_bytes) == (False, 3_500_000)
        assert cache.files.stat("raycache://data/a") == Stat(
            "a", True, 0, 1, "", {"entries": 20, "hidden": 0, "version": 1}
        )


def test_errors_of_the_path_api(source: Path) -> None:
    with InProcessCache() as cache:
        cache.files.attach(str(source), "data", {})
        for uri, kind in {
            "raycache://data/none": NotFound,
            "raycache://other/x": NotFound,
            "raycache://data/a": IsADirectory,
            "raycache://data/large/x": NotADirectory,
            "raycache://data/../x": InvalidInput,
        }.items():
            with pytest.raises(kind):
                cache.files.open(uri)
        for mode in ("wb", "r+b", "a", "x"):
            with pytest.raises(ReadOnly):
                cache.files.open("raycache://data/large", mode)
        for mode in ("", "q", "rr", "rbt"):
            with pytest.raises(InvalidInput):
                cache.files.open("raycache://data/large", mode)
        with pytest.raises(NotADirectory):
            cache.files.listdir("raycache://data/large")
        with pytest.raises(InvalidInput, match="already"):
            cache.files.attach(str(source), "again", {})
        with pytest.raises(NotFound):
            cache.files.attach(str(source.parent / "none"), None, {})
        assert [dataset.name for dataset in cache.master.datasets()] == ["data"]


def test_a_source_inside_a_dataset_is_that_dataset(source: Path) -> None:
    with InProcessCache() as cache:
        outer = cache.files.attach(str(source), None, {})
        assert cache.files.attach(f"{source}/a", None, {}) == outer
        assert cache.files.listdir(f"{source}/a") == sorted(os.listdir(source / "a"))


def test_calls_grow_with_blocks_not_with_files(source: Path) -> None:
    with InProcessCache(block_bytes=8 << 20) as cache:
        cache.files.attach(str(source), "data", {})
        uris = [f"raycache://data/{path}" for path in tree(source)]
        cache.files.read_many(uris)
        assert cache.pool.stores["worker-0"].settle(10)
        cache.files.read_many(uris)
        before = cache.master.calls, cache.pool.calls
        for uri in uris * 3:
            with cache.files.open(uri) as file:
                file.read()
        assert (cache.master.calls, cache.pool.calls) == before


@given(seed=st.integers(0, 2**32), quota_mib=st.sampled_from([0, 1, 2, 64]))
def test_random_reads_with_workers_that_vanish(
    tmp_path_factory: pytest.TempPathFactory, seed: int, quota_mib: int
) -> None:
    rng = random.Random(seed)
    root = tmp_path_factory.mktemp("source")
    bodies = {f"{number:02d}": rng.randbytes(rng.choice((0, 1, 999, 70_000, 1_300_000))) for number in range(12)}
    for name, body in bodies.items():
        (root / name).write_bytes(body)
    with InProcessCache(workers=2, quota_bytes=quota_mib << 20, view_bytes=rng.choice((0, 1 << 30))) as cache:
        cache.files.attach(str(root), "data", {})
        for _ in range(40):
            name = rng.choice(sorted(bodies))
            offset, length = rng.randrange(1_400_000), rng.randrange(400_000)
            assert (
                cache.files.read_range(f"raycache://data/{name}", offset, length)
                == bodies[name][offset : offset + length]
            )
            if rng.random() < 0.1 and len(cache.pool.stores) == 2:
                cache.pool.kill(rng.choice(sorted(cache.pool.stores)))
            for store in cache.pool.stores.values():
                store.check()


def test_a_changed_file_is_refused_until_refreshed_and_only_it_is_fetched_again(source: Path) -> None:
    with InProcessCache(block_bytes=8 << 20) as cache:
        cache.files.attach(str(source), "data", {})
        uris = [f"raycache://data/a/{name}" for name in sorted(os.listdir(source / "a"))]
        assert len(cache.files.listdir("raycache://data/a")) == 20
        (source / "a" / "03.bin").write_bytes(b"new bytes")
        (source / "a" / "06.bin").unlink()
        for name in ("03.bin", "06.bin"):
            with pytest.raises(Changed, match=name):
                cache.files.read_many([f"raycache://data/a/{name}"])
        good = [uri for uri in uris if uri[-6:] not in ("03.bin", "06.bin")]
        cache.files.read_many(good)
        assert cache.pool.stores["worker-0"].settle(10)
        requests = cache.pool.stores["worker-0"].status()["counters"]["ufs_requests"]
        (source / "a" / "99.bin").write_bytes(b"added")
        assert cache.files.refresh("raycache://data/a") == 2
        assert cache.files.refresh("raycache://data/a") == 2
        assert cache.files.listdir("raycache://data/a") == sorted(os.listdir(source / "a"))
        assert cache.files.read_many(["raycache://data/a/03.bin", "raycache://data/a/99.bin"]) == [
            b"new bytes",
            b"added",
        ]
        cache.files.read_many(good)
        assert cache.pool.stores["worker-0"].status()["counters"]["ufs_requests"] == requests + 2


def test_a_full_memory_is_read_through_and_counted(source: Path) -> None:
    with InProcessCache(quota_bytes=1 << 20, view_bytes=0) as cache:
        cache.files.attach(str(source), "data", {})
        for _ in range(2):
            for path, body in tree(source).items():
                assert cache.files.read_many([f"raycache://data/{path}"])[0] == body
        status = cache.pool.stores["worker-0"].status()
        assert status["mem_bytes"] <= 1 << 20
        assert status["counters"]["read_through"] > 0
        cache.memory.full = True  # what the object store refuses is not kept, and nobody's read fails for it
    with InProcessCache() as cache:
        cache.memory.full = True
        cache.files.attach(str(source), "data", {})
        for path, body in tree(source).items():
            assert cache.files.read_many([f"raycache://data/{path}"])[0] == body
        assert cache.pool.stores["worker-0"].status()["mem_bytes"] == 0
        assert cache.pool.stores["worker-0"].status()["counters"]["not_kept"] > 0


def test_the_vfs_answers_from_memory_or_says_that_it_would_wait(source: Path) -> None:
    with InProcessCache(block_bytes=8 << 20) as cache:
        dataset = cache.files.attach(str(source), "data", {})
        vfs = Vfs(cache.namespace, cache.reader, dataset.root_id, mtime_ns=7)
        with pytest.raises(WouldBlock):
            vfs.lookup(ROOT_INO, b"a", wait=False)
        a = vfs.lookup(ROOT_INO, b"a")
        assert (a.is_dir, vfs.getattr(a.ino)) == (True, a)
        file = vfs.lookup(a.ino, b"57.bin")
        assert (file.size, file.is_dir) == (57_000, False)
        with pytest.raises(WouldBlock):
            vfs.read(file.ino, 0, 100, wait=False)
        body = (source / "a" / "57.bin").read_bytes()
        assert vfs.read(file.ino, 100, 1000) == body[100:1100]
        assert vfs.read(file.ino, 57_000, 1000) == b""
        names = [(entry.name, entry.attr) for entry in vfs.readdir(a.ino)]
        assert [name for name, _ in names] == sorted(os.fsencode(name) for name in os.listdir(source / "a"))
        assert (b"57.bin", file) in names
        middle = list(vfs.readdir(a.ino))[9].next_offset
        assert [entry.name for entry in vfs.readdir(a.ino, middle)] == [name for name, _ in names][10:]
        for offset in (0, middle, 10**6):
            entries = vfs.scan(a.ino, offset, 17)
            columns = zip(entries.ino, entries.is_dir, entries.size, entries.mtime_ns, strict=True)
            assert [Attr(*(each.item() for each in row)) for row in columns] == [
                entry.attr for entry in list(vfs.readdir(a.ino, offset))[:17]
            ]
        with pytest.raises(NotFound):
            vfs.lookup(a.ino, b"none")
        with pytest.raises(NotADirectory):
            vfs.lookup(file.ino, b"x")
        with pytest.raises(IsADirectory):
            vfs.read(a.ino, 0, 1)
        with pytest.raises(NotFound):
            vfs.getattr((file.ino >> 32 << 32) + 5000)
        # A second process with the same catalog answers for the numbers that the first handed out.
        other = Vfs(cache.namespace, cache.reader, dataset.root_id, mtime_ns=7)
        assert other.getattr(file.ino) == file
        assert other.path(file.ino) == "a/57.bin"


def test_the_vfs_follows_a_refresh_and_names_exactly_what_changed(source: Path) -> None:
    with InProcessCache() as cache:
        dataset = cache.files.attach(str(source), "data", {})
        vfs = Vfs(Namespace(cache.master), cache.reader, dataset.root_id, mtime_ns=7)
        a, b = vfs.lookup(ROOT_INO, b"a"), vfs.lookup(ROOT_INO, b"b")
        old = vfs.lookup(a.ino, b"03.bin")
        vfs.lookup(b.ino, b"01.bin")
        assert vfs.follow(0) == (0, [], [])
        (source / "a" / "03.bin").write_bytes(b"replaced")
        (source / "a" / "06.bin").unlink()
        (source / "a" / "99.bin").write_bytes(b"added")
        (source / "fresh").write_bytes(b"at the root")
        (source / "c" / "x").write_bytes(b"in a directory that this vfs does not hold")
        for path in ("a", "", "b", "c"):
            cache.master.refresh(
                cache.files.attach(str(source), "data", {}).root_id if not path else child(cache, path)
            )
        since, names, inodes = vfs.follow(0)
        changed = {(a.ino, b"03.bin"), (a.ino, b"06.bin"), (a.ino, b"99.bin"), (ROOT_INO, b"fresh")}
        assert len(names) == len(changed)
        assert set(names) == changed
        assert sorted(inodes) == sorted([a.ino, ROOT_INO])
        assert vfs.follow(since) == (since, [], [])
        assert vfs.lookup(a.ino, b"03.bin").ino != old.ino
        assert vfs.getattr(old.ino) == old, "the old file keeps its number"
        with pytest.raises(NotFound):
            vfs.lookup(a.ino, b"06.bin")


def child(cache: InProcessCache, path: str) -> int:
    return cache.namespace.walk(cache.master.datasets()[0], path).manifest.directory.dir_id
