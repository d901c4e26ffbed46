"""Block files that the client reads itself: no call per read, every byte checked, the worker told of what is bad."""

from __future__ import annotations

import errno
import os
import random
import select
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raycache.client import blockfiles
from raycache.client.blockfiles import DEADLINE_S, Begun, BlockFiles
from raycache.client.diskreads import DiskReads, Ended
from raycache.config import Tier
from raycache.core.lane import Lane, Overdue
from raycache.core.scheduling import Threads
from raycache.core.values import Filed
from raycache.store.accounts import Accounts
from raycache.store.directory import Directory, open_directories
from raycache.testing.inprocess import InProcessCache

FILES, BLOCK_BYTES = 60, 1 << 20
SIZES = {name: size for number in range(FILES) for name, size in [(f"{number:02d}", 30_000 + 2_500 * number)]}


def body(name: str) -> bytes:
    return random.Random(name).randbytes(SIZES[name])


class Disk:
    """preadv that tests can hold up; counts."""

    def __init__(self) -> None:
        self.reads = 0
        self.hold: threading.Event | None = None
        self.held = threading.Semaphore(0)

    def __call__(self, fd: int, buffers: list[memoryview], offset: int) -> int:
        self.reads += 1
        if (hold := self.hold) is not None:
            self.held.release()
            assert hold.wait(30)
        return os.preadv(fd, buffers, offset)


class Cached:
    """A cache whose blocks all lie in one directory, and a client that reads its files."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "data").mkdir()
        for name in SIZES:
            (home / "data" / name).write_bytes(body(name))
        self.disk = Disk()
        self.lane = Lane(4, 0.2, "test")
        self.made: list[Directory] = []
        self.cache = InProcessCache(
            quota_bytes=0, block_bytes=BLOCK_BYTES, directories=self.directories, files=BlockFiles(self.lane, self.disk)
        )
        self.cache.files.attach(str(home / "data"), "data", {})
        (self.store,) = self.cache.pool.stores.values()
        self.read(*SIZES)
        assert self.store.settle(10)
        assert self.directory.status()["blocks"] == len(self.block_files()) > 4
        self.counts()

    def directories(self, accounts: Accounts) -> list[Directory]:
        self.made = open_directories([Tier(self.home / "tier", 1 << 30)], "test", accounts)
        return self.made

    @property
    def directory(self) -> Directory:
        return self.made[0]

    def block_files(self) -> list[Path]:
        return sorted((self.home / "tier").glob("blocks-*/??/*"))

    def read(self, *names: str) -> None:
        """Read and check files, in one call."""
        for name, data in zip(names, self.cache.files.read_many([f"raycache://data/{n}" for n in names]), strict=True):
            assert bytes(data) == body(name), name

    def counts(self) -> dict[str, int]:
        """Since the last time: calls to the worker, reads of the disk by the client, requests to the source."""
        now = {
            "calls": self.cache.pool.calls,
            "disk": self.disk.reads,
            "source": self.store.status()["counters"]["ufs_requests"],
        }
        before = getattr(self, "_before", dict.fromkeys(now, 0))
        self._before = now
        return {name: now[name] - before[name] for name in now}


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[Cached]:
    cached = Cached(tmp_path)
    yield cached
    cached.cache.close()


def test_a_worker_is_asked_once_per_block(cached: Cached) -> None:
    names = list(SIZES)
    random.Random(1).shuffle(names)
    for name in names:
        cached.read(name)
    assert cached.counts() == {"calls": len(cached.block_files()), "disk": FILES, "source": 0}
    cached.read(*names)
    assert cached.counts() == {"calls": 0, "disk": FILES, "source": 0}
    assert cached.directory.status()["hits"] == len(cached.block_files())


def test_parts_of_files_are_what_they_should_be(cached: Cached) -> None:
    rng = random.Random(2)
    for _ in range(200):
        name = rng.choice(list(SIZES))
        offset = rng.randrange(SIZES[name])
        length = rng.choice([1, 100, 16_384, 70_000, 200_000])
        with cached.cache.files.open(f"raycache://data/{name}", buffering=0) as file:
            file.seek(offset)
            data = file.read(length)
        assert data == body(name)[offset : offset + length]
    assert cached.counts()["source"] == 0


def test_flipped_bytes_are_never_seen_and_the_worker_drops_the_block(cached: Cached) -> None:
    cached.read(*SIZES)
    for path in cached.block_files():
        raw = bytearray(path.read_bytes())
        for at in range(len(raw) // 2, len(raw), 50_000):
            raw[at] ^= 1
        path.write_bytes(raw)  # the same file: clients have it open
    blocks = len(cached.block_files())
    cached.read(*SIZES)
    cached.read(*SIZES)
    status = cached.directory.status()
    assert (status["corrupt"], status["out_of_service"]) == (blocks, None)
    assert cached.store.settle(10)
    cached.read(*SIZES)
    cached.counts()
    cached.read(*SIZES)
    assert cached.counts()["source"] == 0, "all of it is there again"


def test_a_dropped_block_gives_its_bytes_back_and_is_read_from_the_source(cached: Cached) -> None:
    cached.read(*SIZES)
    paths = cached.block_files()
    held = [os.open(path, os.O_RDONLY) for path in paths]
    for path in paths:
        assert cached.directory.drop(bytes.fromhex(path.name.partition("-")[0]))
    assert [os.fstat(fd).st_blocks for fd in held] == [0] * len(held), "although the client has them open"
    for fd in held:
        os.close(fd)
    cached.counts()
    cached.read(*SIZES)
    assert cached.counts()["source"] > 0
    assert cached.directory.status()["corrupt"] == 0, "a block that was dropped is not a damaged one"


@pytest.mark.parametrize("how", ["other container", "other user"])
def test_files_that_cannot_be_opened_are_read_by_the_worker(
    cached: Cached, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = PermissionError(13, "not yours") if how == "other user" else FileNotFoundError(2, "not here")
    really = os.open

    def refuse(path: Any, flags: int, *more: Any, **most: Any) -> int:
        if flags & os.O_DIRECT:
            raise error
        return really(path, flags, *more, **most)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    monkeypatch.setattr(blockfiles, "DIRECT_BYTES", 0)
    cached.read(*SIZES)
    assert cached.counts()["source"] == cached.counts()["disk"] == 0
    calls = cached.cache.pool.calls
    cached.read("00")
    assert cached.cache.pool.calls == calls + 1, "it is not asked for names again so soon"


def test_a_hanging_disk_holds_reads_up_once(cached: Cached) -> None:
    cached.read(*SIZES)
    cached.counts()
    cached.disk.hold = threading.Event()
    cached.read("00")  # the first one waits for the deadline of the lane, then the worker is asked
    assert cached.lane.overdue == 1
    hung = cached.disk.reads
    cached.read(*SIZES)
    assert cached.disk.reads == hung, "nobody else is sent to that disk"
    hold, cached.disk.hold = cached.disk.hold, None
    hold.set()
    while cached.lane.overdue:
        pass
    cached.counts()
    cached.read(*SIZES)
    assert cached.counts()["disk"] == FILES


def test_descriptors_and_headers_are_bounded(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockfiles, "OPEN_BLOCKS", 2)
    files = BlockFiles()
    before = len(os.listdir("/proc/self/fd"))
    ids = [bytes.fromhex(path.name.partition("-")[0]) for path in cached.block_files()]
    filed: dict[bytes, Filed] = {}
    for block_id in ids:
        block = cached.directory.find(block_id)
        assert block is not None
        filed[block_id] = cached.directory.name(block)
        files.learn("w", block_id, filed[block_id])
    for _ in range(2):
        for block_id in ids:
            (data,) = files.read([blockfiles.Piece(block_id, 0, 100_000)])
            assert data is not None
    assert len(os.listdir("/proc/self/fd")) <= before + 2 + len(ids)  # the directory has all of them open
    limit_bytes = 2 * max(len(one.header) for one in filed.values())
    monkeypatch.setattr(blockfiles, "HEADERS_BYTES", limit_bytes)
    files.learn("w", ids[0], filed[ids[0]])
    known = [len(filed[block_id].header) for block_id in ids if files.knows(block_id)]
    assert len(known) >= 2
    assert sum(known) <= limit_bytes


def test_many_threads(cached: Cached) -> None:
    def epoch(seed: int) -> None:
        names = list(SIZES)
        random.Random(seed).shuffle(names)
        for name in names:
            cached.read(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(epoch, range(8)))
    assert cached.counts()["source"] == 0


def test_a_lane_refuses_while_a_call_is_overdue_and_undoes_what_came_late() -> None:
    lane = Lane(2, 0.05, "test")
    gate, undone = threading.Event(), threading.Event()
    with pytest.raises(Overdue):
        lane.call(lambda: gate.wait(30), late=undone.set)
    with pytest.raises(Overdue):
        lane.call(lambda: 1)
    assert (lane.overdue, lane.refused, undone.is_set()) == (1, 2, False)
    gate.set()
    assert undone.wait(30)
    while lane.overdue:
        pass
    assert lane.call(lambda: 1) == 1
    with pytest.raises(ValueError, match="mine"):
        lane.call(lambda: int("mine"))


def test_callers_that_may_hang_read_by_themselves_and_others_go_through_the_worker(cached: Cached) -> None:
    cached.cache.reader.files.callers_may_hang = True
    cached.read(*SIZES)
    cached.disk.hold = hold = threading.Event()
    names = iter(SIZES)
    with ThreadPoolExecutor(3) as pool:
        hung = [pool.submit(cached.read, name) for name, _ in zip(names, range(3), strict=False)]
        for _ in hung:
            assert cached.disk.held.acquire(timeout=10)
        while not cached.cache.reader.files.hanging:
            pass
        cached.disk.hold = None
        reads = cached.disk.reads
        for name in names:
            cached.read(name)
        assert cached.disk.reads == reads
        hold.set()
        for one in hung:
            one.result(10)
    assert not cached.cache.reader.files.hanging


LARGE = [name for name, size in SIZES.items() if size >= 100_000]


def begin(cached: Cached, name: str) -> Any:
    """Begin to read a file, as the session of a mount does."""
    cache = cached.cache
    manifest = cache.master.manifest(cache.master.datasets()[0].root_id)
    row = manifest.find(name.encode())
    assert row is not None
    return cache.reader.begin(manifest, row, 0, SIZES[name])


def end(files: BlockFiles, fd: int, count: int) -> dict[Begun, memoryview | None]:
    """That many reads that were begun, when they have ended."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    found: dict[Begun, memoryview | None] = {}
    while len(found) < count:
        assert poll.poll(10_000)
        found.update(files.ended())
    return found


def test_reads_are_begun_once_the_file_is_open_and_give_what_was_written(cached: Cached) -> None:
    files = cached.cache.reader.files
    cached.read(LARGE[0])
    assert begin(cached, LARGE[0]) is None, "nobody has said that he will ask for what was begun"
    fd = files.begin_beside()
    assert fd is not None
    assert begin(cached, "00") is None, "small reads go through the page cache"
    cached.read(*LARGE)
    cached.counts()
    begun = {begin(cached, name): name for name in LARGE}
    assert None not in begun
    found = end(files, fd, len(LARGE))
    assert {begun[one]: bytes(data or b"") for one, data in found.items()} == {name: body(name) for name in LARGE}
    assert cached.counts() == {"calls": 0, "disk": 0, "source": 0}
    assert files.ended() == []
    assert set().union(*files.take_read().values()) == {one.piece.block_id for one in begun}


def test_reads_one_after_the_other_use_the_same_memory_and_none_before_the_next_call(cached: Cached) -> None:
    files = cached.cache.reader.files
    cached.read(*LARGE)
    fd = files.begin_beside()
    assert fd is not None
    first = begin(cached, LARGE[0])
    shown = end(files, fd, 1)[first]
    second = begin(cached, LARGE[1])
    assert second.pages.slot != first.pages.slot, "the bytes of the first are still being looked at"
    assert bytes(shown or b"") == body(LARGE[0])
    end(files, fd, 1)
    assert begin(cached, LARGE[2]).pages.slot == first.pages.slot
    end(files, fd, 1)


def test_what_was_flipped_is_not_answered_but_read_again_by_who_may_wait(cached: Cached) -> None:
    files = cached.cache.reader.files
    cached.read(*LARGE)
    fd = files.begin_beside()
    assert fd is not None
    for path in cached.block_files():
        spoilt = bytearray(path.read_bytes())
        spoilt[-1_000_000::5_000] = bytes(len(spoilt[-1_000_000::5_000]))
        with path.open("r+b") as file:
            file.write(spoilt)
    begun = [begin(cached, name) for name in LARGE]
    assert set(end(files, fd, len(begun)).values()) == {None}
    cached.read(*LARGE)
    assert cached.directory.status()["corrupt"] > 0


class Kernel:
    """DiskReads that end when the test says so, with the outcome that it says."""

    fd = 17

    def __init__(self, depth: int) -> None:
        self.outcomes: list[Ended] = []
        self.begun = 0

    def begin(self, fd: int, memory: memoryview, address: int, offset: int) -> int:
        self.begun += 1
        return self.begun

    def ended(self) -> list[Ended]:
        ended, self.outcomes = self.outcomes, []
        return ended


class Clock(Threads):
    now = 1000.0

    def monotonic(self) -> float:  # type: ignore[override]
        return self.now


def test_reads_that_do_not_end_are_made_another_way_and_no_more_are_begun(
    cached: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, kernel, clock = cached.cache.reader.files, Kernel(0), Clock()
    monkeypatch.setattr(blockfiles, "DiskReads", lambda depth: kernel)
    monkeypatch.setattr(files, "_clock", clock.monotonic)
    cached.read(*LARGE)
    files.begin_beside()
    first, second = begin(cached, LARGE[0]), begin(cached, LARGE[1])
    clock.now += DEADLINE_S + 1
    third = begin(cached, LARGE[2])
    assert files.ended() == [(first, None), (second, None)]
    assert files.ended() == []
    assert files.hanging
    assert begin(cached, LARGE[3]) is None
    cached.counts()
    cached.read(*LARGE)
    assert cached.counts()["disk"] == 0, "the worker reads them: it sees what is wrong with the disk"
    kernel.outcomes = [Ended(1, -errno.EIO), Ended(3, -errno.EIO)]
    assert files.ended() == [(third, None)]
    assert files.hanging
    kernel.outcomes = [Ended(2, 0)]
    assert files.ended() == []
    assert not files.hanging


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_knows_no_such_reads_is_asked_for_none(
    cached: Cached, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    files, kernel = cached.cache.reader.files, Kernel(0)
    monkeypatch.setattr(blockfiles, "DiskReads", lambda depth: kernel)
    cached.read(*LARGE)
    files.begin_beside()
    begun = begin(cached, LARGE[0])
    kernel.outcomes = [Ended(1, -number)]
    assert files.ended() == [(begun, None)]
    assert begin(cached, LARGE[0]) is None
    assert kernel.begun == 1


def test_a_kernel_that_makes_no_such_reads_is_no_error(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(depth: int) -> DiskReads:
        raise OSError(errno.ENOSYS, "not known for this machine")

    monkeypatch.setattr(blockfiles, "DiskReads", refuse)
    files = cached.cache.reader.files
    assert files.begin_beside() is None
    cached.read(*LARGE)
    assert begin(cached, LARGE[0]) is None
    assert files.ended() == []
