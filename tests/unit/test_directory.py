"""A directory of block files: found again, checked, within its quota, and what it does when the disk fails."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.core import blockfile
from raycache.core.blockfile import BadFile
from raycache.core.scheduling import Threads
from raycache.core.values import Origin
from raycache.store import directory as module
from raycache.store.accounts import Accounts
from raycache.store.directory import FULL_PAUSE_S, Directory
from raycache.store.fileops import FileOps
from raycache.store.origins import key_of

SIZE = 300_000
FILE = blockfile.file_bytes(SIZE, "data")
ORIGIN = Origin("data", "a/b")


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def file_name(number: int) -> str:
    return f"{key(number).hex()}-{key_of(ORIGIN)}"


def body(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


class FaultyFiles(FileOps):
    """The real file system, with errors where ``fail`` says; watches that the quota holds at every write."""

    def __init__(self) -> None:
        self.fail: dict[str, int] = {}
        self.root: Path | None = None
        self.most_bytes = 0

        self.hold: dict[str, threading.Event] = {}
        self.held = threading.Semaphore(0)

    def _maybe(self, verb: str) -> None:
        if hold := self.hold.get(verb):
            self.held.release()
            assert hold.wait(30)
        if number := self.fail.get(verb):
            raise OSError(number, os.strerror(number))

    def write(self, fd: int, data: memoryview) -> int:
        self._maybe("write")
        done = super().write(fd, data[:70_000])
        if self.root is not None:
            used = sum(path.stat().st_size for path in self.root.glob("??/*"))
            self.most_bytes = max(self.most_bytes, used)
        return done

    def pread(self, fd: int, length: int, offset: int) -> bytearray:
        self._maybe("pread")
        return super().pread(fd, length, offset)

    def scan(self, path: Path) -> Iterator[os.DirEntry[str]]:
        self._maybe("scan")
        return super().scan(path)

    def sync(self, fd: int) -> None:
        self._maybe("sync")
        super().sync(fd)

    def remove(self, path: Path) -> None:
        self._maybe("remove")
        super().remove(path)
        self._maybe("removed")


class Clock(Threads):
    now = 1000.0

    def monotonic(self) -> float:  # type: ignore[override]
        return self.now


def make(path: Path, blocks: float = 3, eviction: Any = "keep", **more: Any) -> Directory:
    directory = Directory(path, int(blocks * FILE), Accounts(eviction), **more)
    directory.open(lock_wait_s=0)
    return directory


def write(directory: Directory, number: int, holes: tuple[tuple[int, int], ...] = ()) -> bool:
    reservation = directory.reserve(key(number), SIZE, ORIGIN)
    if reservation is None:
        return False
    if directory.write(reservation, body(number), holes):
        return True
    directory.cancel(reservation)
    return False


def read(directory: Directory, number: int, offset: int = 0, length: int = SIZE) -> bytes | None:
    block = directory.find(key(number))
    data = block and directory.read(block, offset, length)
    directory.check()
    return None if data is None else bytes(data)


def block_path(directory: Directory, number: int) -> Path:
    return directory.path / "00" / file_name(number)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_blocks_are_found_again_and_checked(tmp_path: Path) -> None:
    first = make(tmp_path / "blocks")
    assert write(first, 1, holes=((10, 20),))
    assert write(first, 2)
    first.close()
    assert (tmp_path / "blocks").stat().st_mode & 0o777 == 0o700
    again = make(tmp_path / "blocks")
    assert read(again, 1, 65_000, 2_000) == body(1)[65_000:67_000]
    assert read(again, 2) == body(2)
    block = again.find(key(1))
    assert block is not None
    assert (block.header.holes, block.header.dataset) == (((10, 20),), "data")
    assert again.status()["used_bytes"] == sum(path.stat().st_size for path in again.path.glob("??/*")) == 2 * FILE


def test_nothing_is_read_at_start_and_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    first = make(tmp_path)
    assert write(first, 1)
    first.close()
    (tmp_path / "00" / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "00" / (file_name(2) + ".writing")).write_bytes(b"half")
    files = FaultyFiles()
    files.fail["pread"] = errno.EIO
    again = make(tmp_path, files=files)
    status = again.status()
    assert (status["blocks"], status["foreign"], status["out_of_service"]) == (1, 2, None)
    assert sorted(path.name for path in (tmp_path / "00").iterdir()) == [file_name(1), "notes.txt"]


@pytest.mark.parametrize("keep", [0, 10, 5_000, FILE - 1])
def test_torn_files_are_dropped_when_touched(tmp_path: Path, keep: int) -> None:
    first = make(tmp_path)
    assert write(first, 1)
    first.close()
    os.truncate(block_path(first, 1), keep)
    again = make(tmp_path)
    assert again.status()["blocks"] == 1
    assert read(again, 1) is None
    assert (again.status()["torn"], again.status()["blocks"], again.status()["used_bytes"]) == (1, 0, 0)
    assert not block_path(again, 1).exists()


@pytest.mark.parametrize("opened", [False, True])
def test_flipped_bytes_are_found_and_the_block_is_dropped(tmp_path: Path, opened: bool) -> None:
    directory = make(tmp_path)
    assert write(directory, 1)
    if opened:
        assert read(directory, 1) == body(1)
    flip(block_path(directory, 1), FILE - SIZE + 200_000)
    assert read(directory, 1, 0, 1000) == body(1)[:1000], "the other chunks are good"
    assert read(directory, 1, 199_000, 2_000) is None
    assert directory.status()["corrupt"] == 1
    assert not block_path(directory, 1).exists()
    assert write(directory, 1)
    assert read(directory, 1) == body(1)


@pytest.mark.parametrize("at", [0, 9, 13, 17, 30, 100, -1])
def test_flipped_bytes_of_a_header_are_found(at: int) -> None:
    header = bytearray(blockfile.encode(key(1), "data", body(1), ()))
    assert blockfile.decode(header).file_bytes == FILE
    header[at if at >= 0 else len(header.rstrip(b"\0")) - 1] ^= 1  # the last one is of a checksum
    with pytest.raises(BadFile):
        blockfile.decode(header)


MEMBERS = st.lists(st.integers(1, 200_000), max_size=60)


@given(MEMBERS, st.data())
def test_each_member_is_checked_by_itself_and_no_more_is_read_for_it(sizes: list[int], data: st.DataObject) -> None:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    block = random.Random(sum(sizes)).randbytes(sum(sizes))
    packed = blockfile.encode(key(1), "data", block, (), blockfile.chunk_ends(len(block), starts))
    assert len(packed) + len(block) == blockfile.file_bytes(len(block), "data")
    header = blockfile.decode(packed)
    assert blockfile.decode(packed[: header.used_bytes]).ends.tolist() == header.ends.tolist()
    for start, size in zip(starts, sizes, strict=True):
        first, last = header.chunks(start, size)
        header.check(first, block[first:last])
        assert first <= start
        assert start + size <= last
        assert last - first < size + 2 * blockfile.CHUNK_BYTES
        if start and sizes[starts.index(start) - 1] >= blockfile.SMALL_BYTES <= size:
            assert (first, last) == (start, start + size)
    if block:
        flipped = bytearray(block)
        at = data.draw(st.integers(0, len(block) - 1))
        flipped[at] ^= 1
        offset = data.draw(st.integers(0, at))
        first, last = header.chunks(offset, at - offset + 1)
        with pytest.raises(BadFile, match="not those"):
            header.check(first, flipped[first:last])


@pytest.mark.parametrize("size", [0, 1, 20_000, 1_000_000, 33_000_000])
def test_a_block_of_which_no_members_are_known_is_cut_evenly(size: int) -> None:
    ends = blockfile.chunk_ends(size).tolist()
    assert ends[-1:] == ([size] if size else [])
    assert len(ends) <= size // blockfile.SMALL_BYTES + 1
    assert all(stop - start <= 2 * blockfile.CHUNK_BYTES for start, stop in itertools.pairwise([0, *ends]))


def test_a_header_has_its_length_whatever_the_holes() -> None:
    holes = tuple((10**11 + 2 * n, 10**11 + 2 * n + 1) for n in range(blockfile.HOLES_MAX))
    for dataset in ("d", "ä" * 50, 'quoted"\n'):
        header = blockfile.encode(b"i" * 64, dataset, body(1), holes)
        assert len(header) + SIZE == blockfile.file_bytes(SIZE, dataset)
        assert (blockfile.decode(header).holes, blockfile.decode(header).dataset) == (holes, dataset)
    with pytest.raises(BadFile, match="gone from the source"):
        blockfile.encode(key(1), "data", body(1), (*holes, (0, 1)))


@pytest.mark.parametrize("eviction", ["keep", "lru", "sieve"])
def test_files_are_never_over_the_quota(tmp_path: Path, eviction: str) -> None:
    files = FaultyFiles()
    files.root = tmp_path
    directory = make(tmp_path, 3.5, eviction, files=files)
    made = [write(directory, number) for number in range(8)]
    directory.check()
    assert 3 * FILE <= files.most_bytes <= 3.5 * FILE
    assert made == ([True] * 3 + [False] * 5 if eviction == "keep" else [True] * 8)
    assert len(list(tmp_path.glob("??/*"))) == 3
    directory.close()
    smaller = make(tmp_path, 2)
    assert smaller.status()["blocks"] == len(list(tmp_path.glob("??/*"))) == 2


def test_a_dropped_file_gives_its_bytes_back_although_somebody_has_it_open(tmp_path: Path) -> None:
    directory = make(tmp_path)
    assert write(directory, 1)
    held = directory.find(key(1))
    assert held is not None
    fd = os.open(block_path(directory, 1), os.O_RDONLY)
    assert directory.drop(key(1))
    about = os.fstat(fd)
    os.close(fd)
    assert (about.st_nlink, about.st_size, about.st_blocks) == (0, 0, 0)
    assert directory.read(held, 0, SIZE) is None
    assert (directory.status()["corrupt"], directory.status()["out_of_service"]) == (0, None)


def test_a_full_disk_refuses_blocks_for_a_while(tmp_path: Path) -> None:
    files, clock = FaultyFiles(), Clock()
    directory = make(tmp_path, files=files, scheduler=clock)
    assert write(directory, 1)
    files.fail["write"] = errno.ENOSPC
    assert not write(directory, 2)
    files.fail.clear()
    assert not write(directory, 2)
    assert (directory.status()["refused"], directory.status()["out_of_service"]) == (1, None)
    assert read(directory, 1) == body(1)
    assert [path.name for path in (tmp_path / "00").iterdir()] == [file_name(1)], "nothing half-written stays"
    clock.now += FULL_PAUSE_S
    assert write(directory, 2)
    directory.check()


@pytest.mark.parametrize(("verb", "number"), [("sync", errno.EIO), ("write", errno.EROFS), ("pread", errno.EIO)])
def test_a_directory_that_fails_is_out_of_service(tmp_path: Path, verb: str, number: int) -> None:
    files = FaultyFiles()
    directory = make(tmp_path, files=files)
    assert write(directory, 1)
    files.fail[verb] = number
    assert (read(directory, 1) if verb == "pread" else write(directory, 2) or None) is None
    assert os.strerror(number) in directory.status()["out_of_service"]
    files.fail.clear()
    assert read(directory, 1) is None
    assert not write(directory, 3)
    directory.check()
    directory.close()
    assert read(make(tmp_path), 1) == body(1), "what it held is there again after a restart"


def test_a_victim_that_cannot_be_deleted_is_not_written_over(tmp_path: Path) -> None:
    files = FaultyFiles()
    directory = make(tmp_path, 1, "lru", files=files)
    assert write(directory, 1)
    files.fail["remove"] = errno.EIO
    assert not write(directory, 2)
    assert [path.name for path in (tmp_path / "00").iterdir()] == [file_name(1)]


def test_nothing_is_written_in_the_place_of_a_victim_once_the_directory_has_failed(tmp_path: Path) -> None:
    files = FaultyFiles()
    files.root = tmp_path
    directory = make(tmp_path, 1, "lru", files=files)
    assert write(directory, 1)
    reservation = directory.reserve(key(2), SIZE, ORIGIN)
    assert reservation is not None
    files.fail["pread"] = errno.EIO
    assert read(directory, 1) is None
    assert not directory.write(reservation, body(2), ())
    directory.cancel(reservation)
    assert files.most_bytes == FILE
    directory.check()


def test_a_block_that_is_dropped_twice_at_once_and_written_anew_is_in_the_books(tmp_path: Path) -> None:
    files = FaultyFiles()
    directory = make(tmp_path, 1, files=files)
    assert write(directory, 1)
    files.hold["removed"] = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        drops = [pool.submit(directory.drop, key(1)) for _ in range(2)]
        assert files.held.acquire(timeout=10)
        assert not files.held.acquire(timeout=0.2), "the second waits for the first"
        files.hold["removed"].set()
        assert [each.result(10) for each in drops] == [True, True]
    assert write(directory, 1)
    assert read(directory, 1) == body(1)
    assert not write(directory, 2), "there is no room beside it"


def test_a_reader_that_finds_a_file_gone_gives_no_bytes_back_before_they_are_free(tmp_path: Path) -> None:
    before = make(tmp_path, 1)
    assert write(before, 1)
    before.close()
    files = FaultyFiles()
    directory = make(tmp_path, 1, files=files)
    files.hold["removed"] = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        drop = pool.submit(directory.drop, key(1))
        assert files.held.acquire(timeout=10)
        reader = pool.submit(directory.find, key(1))
        assert not files.held.acquire(timeout=0.2)
        assert directory.reserve(key(1), SIZE, ORIGIN) is None
        files.hold["removed"].set()
        assert (drop.result(10), reader.result(10)) == (True, None)
    assert write(directory, 1)
    assert read(directory, 1) == body(1)


def test_one_worker_at_a_time(tmp_path: Path) -> None:
    first = make(tmp_path)
    assert write(first, 1)
    second = make(tmp_path)
    assert "another worker uses it" in second.status()["out_of_service"]
    assert not write(second, 2)
    first.close()
    assert read(make(tmp_path), 1) == body(1)


def test_a_process_out_of_descriptors_does_not_blame_the_directory(tmp_path: Path) -> None:
    files = FaultyFiles()
    directory = make(tmp_path, files=files)
    assert write(directory, 1)
    files.fail["pread"] = errno.EMFILE
    assert read(directory, 1) is None
    files.fail.clear()
    assert read(directory, 1) == body(1)


def in_service(directory: Directory) -> bool:
    return directory.status()["out_of_service"] is None


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline


def test_a_read_that_hangs_takes_the_directory_out_of_service_until_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_DEADLINE_S", 0.1)
    files = FaultyFiles()
    directory = make(tmp_path, files=files)
    assert write(directory, 1)
    assert write(directory, 2)
    files.hold["pread"] = hold = threading.Event()
    assert read(directory, 1) is None
    assert (directory.status()["overdue"], in_service(directory)) == (1, False)
    assert key(2) not in directory
    assert read(directory, 2) is None, "at once, without asking the disk"
    assert not write(directory, 3)
    assert files.held.acquire(blocking=False)
    assert not files.held.acquire(blocking=False)
    files.hold.clear()
    hold.set()
    wait_for(lambda: in_service(directory))
    assert read(directory, 1) == body(1)
    assert write(directory, 3)


def test_what_was_being_written_holds_its_bytes_until_the_disk_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_DEADLINE_S", 0.1)
    files = FaultyFiles()
    directory = make(tmp_path, 1, files=files)
    files.hold["write"] = hold = threading.Event()
    assert not write(directory, 1)
    directory.check()
    assert directory._ledger.free_bytes == 0
    files.hold.clear()
    hold.set()
    wait_for(lambda: in_service(directory))
    assert list(tmp_path.glob("??/*")) == []
    assert (directory._ledger.free_bytes, key(1) in directory) == (FILE, False)
    assert write(directory, 2)


def test_blocks_are_read_before_all_are_found(tmp_path: Path) -> None:
    first = make(tmp_path, 4)
    for number in range(3):
        assert write(first, number)
    first.close()
    flip(block_path(first, 2), FILE - 1)
    files = FaultyFiles()
    files.hold["scan"] = hold = threading.Event()
    directory = Directory(tmp_path, 4 * FILE, Accounts(), files)
    directory.open(lock_wait_s=0, wait=False)
    assert files.held.acquire(timeout=10)
    assert (directory.status()["looking"], directory.status()["blocks"]) == (True, 0)
    assert read(directory, 1) == body(1)
    assert read(directory, 7) is None
    assert read(directory, 2) is None
    assert not write(directory, 5), "nobody knows yet how much room there is"
    files.hold.clear()
    hold.set()
    wait_for(lambda: not directory.status()["looking"])
    directory.check()
    assert (directory.status()["blocks"], directory.status()["corrupt"]) == (2, 1)
    assert directory.status()["used_bytes"] == 2 * FILE
    assert write(directory, 2)
    assert [read(directory, number) for number in range(3)] == [body(number) for number in range(3)]


def test_a_clock_that_jumps_does_no_harm(tmp_path: Path) -> None:
    """Times of files order them at start, and nothing more: wrong ones lose no block that fits."""
    first = make(tmp_path, 4)
    for number in range(4):
        assert write(first, number)
        os.utime(block_path(first, number), (4e9 if number == 0 else 0, 4e9 if number == 0 else 0))
    first.close()
    again = make(tmp_path, 2)
    assert again.status()["blocks"] == 2
    assert read(again, 0) == body(0), "the one from the future counts as the newest"
    again.check()
