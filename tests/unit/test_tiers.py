"""A worker's blocks over memory and disk: where they go, that they are found again, and that reads never notice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raycache.config import Tier
from raycache.core import blockfile
from raycache.core.values import BlockPlan, Failed, Fetch, Part
from raycache.errors import Changed
from raycache.store.accounts import Accounts
from raycache.store.blocks import BlockStore
from raycache.store.directory import open_directories
from raycache.store.tiers import Kept, Tiers
from raycache.testing.inprocess import PlainMemory

PART = 40_000
SIZE = 3 * PART
FILE = blockfile.file_bytes(SIZE, "data")


class Source:
    """A stand-in for ``Sources``; ``gone`` are paths that are not what was listed."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gone: set[str] = set()

    def call(self, dataset: str, use: Callable[[Any], Any]) -> Any:
        return use(self)

    def get(self, path: str, start: int, length: int, etag: str) -> bytes:
        self.asked.append(path)
        if path in self.gone:
            raise Changed(f"{path} is gone")
        return content(path)


def content(path: str) -> bytes:
    return random.Random(path).randbytes(PART)


class Worker:
    """A store over memory and one directory that can be killed and replaced."""

    def __init__(self, path: Path, source: Source) -> None:
        self.path, self.source = path, source
        self.store: BlockStore | None = None

    def start(self, memory: float, disk: float, eviction: Any = "keep") -> BlockStore:
        self.stop()
        accounts = Accounts(eviction)
        directories = open_directories([Tier(self.path, int(disk * FILE))], "test/ns", accounts)
        tiers = Tiers(PlainMemory(), int(memory * SIZE), directories, accounts)
        self.store = BlockStore(tiers, self.source, 2)  # type: ignore[arg-type]
        self.store.start()
        return self.store

    def stop(self) -> None:
        if self.store is not None:
            assert self.store.settle(10)
            self.store.check()
            self.store.stop()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path, Source())
    yield worker
    worker.stop()


def read(store: BlockStore, number: int, part: int = 0, *, parts: int = 1, whole: bool = False) -> Any:
    """Read parts of a block and check every byte; returns the answer."""
    parts_of = tuple(Part(f"{number}/{n}", "v", 0, PART * n, PART) for n in range(3))
    plan = BlockPlan(number.to_bytes(16, "big"), "data", SIZE, parts_of)
    (answer,), _ = store.fetch([Fetch(plan.block_id, plan.pack(), PART * part, PART * parts, whole)], 10)
    if isinstance(answer, Failed):
        raise answer.error
    start = PART * part
    data = answer.view[start : start + PART * parts] if isinstance(answer, Kept) else answer
    assert bytes(data) == b"".join(content(f"{number}/{n}") for n in range(part, part + parts))
    return answer


def fill(store: BlockStore, *numbers: int) -> None:
    for number in numbers:
        read(store, number, parts=3)
        assert store.settle(10)
        store.check()


def tiers(store: BlockStore) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = store.status()["tiers"]
    return found


def blocks(store: BlockStore) -> list[int]:
    return [tier["blocks"] for tier in tiers(store)]


def test_what_memory_has_no_room_for_is_kept_on_disk_and_read_from_there(worker: Worker) -> None:
    store = worker.start(memory=1, disk=2)
    fill(store, 1, 2, 3)
    assert blocks(store) == [1, 2]
    asked = len(worker.source.asked)
    for number in (1, 2, 3):
        answer = read(store, number, 1, whole=True)
        assert isinstance(answer, Kept) == (number == 1)
    assert len(worker.source.asked) == asked
    fill(store, 4)
    read(store, 4)
    assert blocks(store) == [1, 2]
    assert store.status()["counters"]["read_through"] > 0


def test_a_replaced_worker_finds_the_disk_again_and_brings_blocks_up(worker: Worker) -> None:
    store = worker.start(memory=1, disk=2)
    fill(store, 1, 2, 3)
    store = worker.start(memory=1, disk=2)
    assert blocks(store) == [0, 2]
    asked = len(worker.source.asked)
    assert isinstance(read(store, 2, whole=True), Kept)
    assert not isinstance(read(store, 3, whole=True), Kept), "memory is full by now"
    assert len(worker.source.asked) == asked
    assert blocks(store) == [1, 2], "the copy below stays"
    store.check()
    fill(store, 1)
    assert blocks(store) == [1, 2], "and makes way for a block that is nowhere else"
    asked = len(worker.source.asked)
    for number in (1, 2, 3):
        read(store, number)
    assert len(worker.source.asked) == asked
    assert tiers(store)[1]["out_of_service"] is None


@pytest.mark.parametrize("eviction", ["lru", "sieve"])
def test_an_evicting_memory_sends_blocks_down(worker: Worker, eviction: str) -> None:
    store = worker.start(memory=1, disk=2, eviction=eviction)
    fill(store, 1, 2, 3)
    assert blocks(store) == [1, 2]
    asked = len(worker.source.asked)
    for number in (3, 2, 1):
        read(store, number)
    assert len(worker.source.asked) == asked
    fill(store, 4)
    assert blocks(store) == [1, 2]
    assert tiers(store)[1]["evicted"] == 1


def test_without_a_disk_an_evicting_memory_drops(worker: Worker) -> None:
    store = worker.start(memory=2, disk=0, eviction="lru")
    fill(store, 1, 2, 3)
    assert blocks(store) == [2, 0]


def test_flipped_bytes_are_fetched_again(worker: Worker) -> None:
    store = worker.start(memory=0, disk=2)
    fill(store, 1)
    (path,) = worker.path.glob("blocks-*/??/*")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    asked = len(worker.source.asked)
    read(store, 1, 2)
    assert worker.source.asked[asked:] == ["1/2"]
    assert tiers(store)[1]["corrupt"] == 1
    fill(store, 1)
    assert blocks(store) == [0, 1]
    asked = len(worker.source.asked)
    read(store, 1, parts=3)
    assert len(worker.source.asked) == asked


def test_a_hole_on_disk_is_asked_for_again_after_a_while(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    worker.source.gone.add("1/1")
    store = worker.start(memory=0, disk=2)
    read(store, 1, 0)
    read(store, 1, 2)
    assert store.settle(10)
    store = worker.start(memory=0, disk=2)
    assert blocks(store) == [0, 1]
    asked = len(worker.source.asked)
    read(store, 1, 0)
    with pytest.raises(Changed):
        read(store, 1, 1)
    assert len(worker.source.asked) == asked
    worker.source.gone.clear()
    monkeypatch.setattr("raycache.store.blocks.HOLE_S", 0.0)
    read(store, 1, 1)
    assert len(worker.source.asked) > asked


def test_two_caches_on_one_directory_do_not_meet(tmp_path: Path) -> None:
    one, other = (open_directories([Tier(tmp_path, FILE)], name, Accounts())[0] for name in ("a", "../b"))
    assert one.status()["out_of_service"] is other.status()["out_of_service"] is None
    assert {one.path.parent, other.path.parent} == {tmp_path}
    one.close()
    other.close()
