"""One worker's blocks, over a source that does what the test says."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from raycache.core.values import BlockPlan, Failed, Fetch, Part
from raycache.errors import Changed, SourceUnavailable
from raycache.store.blocks import BlockStore
from raycache.store.fetchqueue import SourceLimits
from raycache.store.tiers import Tiers
from raycache.testing.inprocess import PlainMemory

PLAN = BlockPlan(b"block", "data", 300, tuple(Part(f"f{n}", "v", 0, 100 * n, 100) for n in range(3)))


class Source:
    """A stand-in for ``Sources``: bytes that name their file, or what ``fail`` says of a path."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fail: dict[str, BaseException] = {}

    def call(self, dataset: str, use: Callable[[Any], Any]) -> Any:
        return use(self)

    def get(self, path: str, start: int, length: int, etag: str) -> bytes:
        self.asked.append(path)
        if path in self.fail:
            raise self.fail[path]
        return path[-1:].encode() * length


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def store(source: Source) -> Any:
    store = BlockStore(Tiers(PlainMemory(), 1000), source, 2)  # type: ignore[arg-type]
    store.start()
    yield store
    store.check()
    store.stop()


def read(store: BlockStore, number: int) -> bytes:
    (answer,), _ = store.fetch([Fetch(PLAN.block_id, PLAN.pack(), 100 * number, 100, whole=False)], 10)
    if isinstance(answer, Failed):
        raise answer.error
    return bytes(answer)  # type: ignore[arg-type]


def test_a_hole_is_asked_for_again_after_a_while(
    store: BlockStore, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.fail["f1"] = Changed("f1 was deleted")
    assert read(store, 0) == b"0" * 100
    assert read(store, 2) == b"2" * 100
    assert store.settle(10)
    assert store.status()["blocks"] == 1
    asked = len(source.asked)
    with pytest.raises(Changed):
        read(store, 1)
    assert len(source.asked) == asked, "a hole is remembered"
    del source.fail["f1"]
    monkeypatch.setattr("raycache.store.blocks.HOLE_S", 0.0)
    assert read(store, 1) == b"1" * 100, "but not for ever"
    store.check()


def test_a_source_that_fails_in_a_fill_gives_its_reservation_back(store: BlockStore, source: Source) -> None:
    source.fail["f1"] = SourceUnavailable("away")
    read(store, 0)
    read(store, 2)
    assert store.settle(10)
    assert store.status()["blocks"] == 0
    with pytest.raises(SourceUnavailable):
        read(store, 1)
    assert store.settle(10)  # what this has begun fails too, whatever the source does from now on
    store.check()
    source.fail.clear()
    assert [read(store, number) for number in range(3)] == [b"0" * 100, b"1" * 100, b"2" * 100]
    assert store.settle(10)
    assert store.status()["blocks"] == 1


@pytest.mark.parametrize("where", ["source", "memory"])
def test_fetchers_outlive_whatever_is_raised(
    store: BlockStore, source: Source, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """What a Rust extension may raise: no Exception."""

    def put(self: PlainMemory, block: bytearray) -> Any:
        raise Panic

    with monkeypatch.context() as patch:
        if where == "memory":
            patch.setattr(PlainMemory, "put", put)
        else:
            source.fail.update({f"f{number}": Panic("panic") for number in range(3)})
        for _ in range(3):
            for number in range(3):
                if where == "memory":
                    assert len(read(store, number)) == 100
                else:
                    with pytest.raises(SourceUnavailable, match="panic"):
                        read(store, number)
        assert store.settle(10)
    source.fail.clear()
    assert read(store, 0) == b"0" * 100
    assert read(store, 1) == b"1" * 100
    assert store.settle(10)
    store.check()


def test_an_answer_of_the_wrong_length_is_an_error_and_nothing_else(
    store: BlockStore, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Source, "get", lambda self, path, start, length, etag: b"1" * (length - 1))
        with pytest.raises(SourceUnavailable, match="f1: 99 bytes came of 100"):
            read(store, 1)
        store.check()
    assert read(store, 1) == b"1" * 100


def test_sixty_four_readers_of_one_block_ask_for_each_part_once(source: Source) -> None:
    gate, asked = threading.Event(), threading.Semaphore(0)

    class Slow(Source):
        def get(self, path: str, start: int, length: int, etag: str) -> bytes:
            asked.release()
            assert gate.wait(30)
            return super().get(path, start, length, etag)

    slow = Slow()
    store = BlockStore(Tiers(PlainMemory(), 1000), slow, 8)  # type: ignore[arg-type]
    store.start()
    with ThreadPoolExecutor(64) as pool:
        ready = threading.Barrier(64)

        def one(number: int) -> bytes:
            ready.wait(30)
            return read(store, number % 3)

        reads = [pool.submit(one, number) for number in range(64)]
        assert all(asked.acquire(timeout=10) for _ in range(3))
        gate.set()
        assert [each.result(10) for each in reads] == [str(number % 3).encode() * 100 for number in range(64)]
    assert store.settle(10)
    assert sorted(slow.asked) == ["f0", "f1", "f2"]
    store.check()
    store.stop()


def test_two_hundred_clients_are_all_answered_within_the_bounds(source: Source) -> None:
    """Blocks that do not fit, from 200 threads at once: books and buffers stay within their bounds throughout."""
    plans = [
        BlockPlan(bytes([number]), "data", 300, tuple(Part(f"{number}/{n}", "v", 0, 100 * n, 100) for n in range(3)))
        for number in range(40)
    ]
    limits = SourceLimits(requests=6)
    store = BlockStore(Tiers(PlainMemory(), 3000), source, 8, limits=limits)  # type: ignore[arg-type]
    store.start()
    ready = threading.Barrier(200)

    def client(seed: int) -> None:
        rng = random.Random(seed)
        ready.wait(30)
        for _ in range(10):
            plan, part = rng.choice(plans), rng.randrange(3)
            (answer,), _ = store.fetch([Fetch(plan.block_id, plan.pack(), 100 * part, 100, whole=False)], 20)
            assert bytes(answer) == str(part).encode() * 100  # type: ignore[arg-type]
            store.check()

    with ThreadPoolExecutor(200) as pool:
        list(pool.map(client, range(200)))
    assert store.settle(10)
    status = store.status()
    assert status["mem_bytes"] <= 3000
    assert status["counters"]["reads"] == 2000
    store.stop()
