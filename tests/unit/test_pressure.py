"""Memory that others need: the quota gives way at once and comes back slowly; clients let go of what is evicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raycache.client.blockfiles import BlockFiles
from raycache.client.leases import renew
from raycache.client.reader import Views
from raycache.config import Tier
from raycache.core.blockfile import file_bytes
from raycache.core.scheduling import THREADS
from raycache.core.values import Origin, Sealed
from raycache.errors import Unavailable, WorkerLost
from raycache.store.accounts import Accounts
from raycache.store.directory import open_directories
from raycache.store.pressure import CALM_S, CLOSE_LOOK_S, LOOK_S, MemoryWatch, Pressure, StoreFigures
from raycache.store.tiers import Tiers
from raycache.testing.inprocess import PlainMemory

SIZE = 100


def used(others: int, ours: int = 0) -> StoreFigures:
    return StoreFigures(1000, others + ours, 0)


def test_the_quota_gives_way_at_once_and_comes_back_slowly() -> None:
    pressure = Pressure(400)
    assert pressure.step(used(300, 400), 400, 0) == 400
    assert pressure.step(used(500, 400), 400, 1) == 200
    assert pressure.step(used(2000), 0, 2) == 0
    assert pressure.step(used(0), 0, 3) == 0
    assert pressure.step(used(0), 0, 3 + CALM_S - 0.1) == 0, "it may come again"
    assert pressure.step(used(0), 0, 3 + CALM_S) == 100
    assert pressure.step(used(0, 100), 100, 4 + CALM_S) == 100
    assert pressure.step(used(650, 100), 100, 5 + CALM_S) == 50
    now, seen = 6 + CALM_S, []
    for _ in range(60):
        seen.append(pressure.step(used(0), 0, now))
        now += 1
    assert seen[-1] == 400, "all of it comes back"
    assert seen == sorted(seen)


def fill(tiers: Tiers, *numbers: int) -> None:
    for number in numbers:
        claim = tiers.reserve(bytes([number]), SIZE, Origin("data", ""))
        assert claim is not None
        assert tiers.keep(claim, bytearray(SIZE), ())


@pytest.mark.parametrize("eviction", ["keep", "lru", "sieve"])
@pytest.mark.parametrize("urgent", [False, True])
def test_memory_gives_blocks_back_and_writes_them_down_while_there_is_time(
    tmp_path: Path, eviction: Any, urgent: bool
) -> None:
    accounts = Accounts(eviction)
    directories = open_directories([Tier(tmp_path, 10**6)], "ns", accounts)
    tiers = Tiers(PlainMemory(), 4 * SIZE, directories, accounts)
    fill(tiers, 1, 2, 3, 4)
    figures = [StoreFigures(10 * SIZE, (8 if urgent else 7) * SIZE + 50, 7)]
    watch = MemoryWatch(tiers, lambda: figures[0])
    assert watch.look() == CLOSE_LOOK_S
    memory, disk = tiers.status()["tiers"]
    assert (memory["quota_bytes"], memory["configured_bytes"]) == (250 if urgent else 350, 4 * SIZE)
    assert memory["blocks"] == memory["quota_bytes"] // SIZE
    assert memory["shrunk_bytes"] == (4 - memory["blocks"]) * SIZE
    assert disk["blocks"] == (0 if urgent else 4 - memory["blocks"])
    tiers.check()
    figures[0] = StoreFigures(10 * SIZE, 0, 9)
    assert watch.look() == LOOK_S
    assert watch.status() == {"ray_spilled_bytes": 2, "looks_failed": 0}
    tiers.close()


def test_a_store_that_does_not_answer_changes_nothing() -> None:
    tiers = Tiers(PlainMemory(), 4 * SIZE)
    fill(tiers, 1, 2)

    def figures() -> StoreFigures:
        raise OSError("away")

    watch = MemoryWatch(tiers, figures)
    assert watch.look() == LOOK_S
    assert (watch.status()["looks_failed"], tiers.status()["blocks"]) == (1, 2)


def test_views_of_what_is_gone_are_let_go() -> None:
    views = Views(10**6, THREADS)
    for worker in "abc":
        for number in range(3):
            views.hold(f"{worker}{number}".encode(), Sealed(memoryview(bytes(SIZE))), worker)

    told: list[bytes] = []

    def still_kept(worker_id: str, block_ids: Sequence[bytes], read: Sequence[bytes]) -> list[bool]:
        told.extend(read)
        if worker_id == "b":
            raise WorkerLost("b is gone")
        if worker_id == "c":
            raise Unavailable("c says nothing")
        return [block_id != b"a1" for block_id in block_ids]

    views._read = {b"a0"}
    assert renew(views, BlockFiles(), still_kept) == 4
    assert told == [b"a0"], "what was read here keeps it from being evicted there"
    assert views.by_worker() == {"a": [b"a0", b"a2"], "c": [b"c0", b"c1", b"c2"]}
    assert views._size_bytes == 5 * SIZE


def test_what_clients_read_by_themselves_is_not_the_first_to_go(tmp_path: Path) -> None:
    accounts = Accounts("lru")
    directories = open_directories([Tier(tmp_path, 3 * file_bytes(SIZE, "data"))], "ns", accounts)
    tiers = Tiers(PlainMemory(), 0, directories, accounts)
    fill(tiers, 1, 2, 3)
    assert tiers.renew([], [bytes([1])]) == []
    fill(tiers, 4)
    assert [bytes([number]) in tiers for number in (1, 2, 3, 4)] == [True, False, True, True]
    tiers.close()
