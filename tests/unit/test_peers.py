"""Workers that have blocks for each other: several in one process, their calls direct."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from raycache.core.membership import View
from raycache.core.placement import rank
from raycache.core.values import BlockPlan, Buffer, Failed, Fetch, Part, Worker
from raycache.errors import WorkerLost
from raycache.store.blocks import BlockStore
from raycache.store.moving import Mover
from raycache.store.peers import About, Peers
from raycache.store.tiers import Kept, Tiers
from raycache.testing.inprocess import PlainMemory

BLOCK_BYTES = 300
BLOCKS = 60


def plan(number: int) -> BlockPlan:
    parts = tuple(Part(f"{number}/{n}", "v", 0, 100 * n, 100) for n in range(3))
    return BlockPlan(b"block%03d" % number, "data", BLOCK_BYTES, parts)


def body(number: int) -> bytes:
    return b"".join(bytes([number, n]) * 50 for n in range(3))


class Source:
    """Bytes that name their file; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def call(self, dataset: str, use: Callable[[Any], Any]) -> Any:
        return use(self)

    def get(self, path: str, start: int, length: int, etag: str) -> bytes:
        self.asked[path] += 1
        number, part = path.split("/")
        return bytes([int(number), int(part)]) * 50


class Fleet:
    """Workers that reach each other; ``gone`` ones are not reached. Its own PeerCalls; counts them."""

    def __init__(self) -> None:
        self.source = Source()
        self.members: dict[str, tuple[BlockStore, Mover, Tiers]] = {}
        self.view = View()
        self.gone: set[str] = set()
        self.calls: Counter[str] = Counter()
        self.before: Callable[[str], None] = lambda method: None

    def add(self, name: str, quota_blocks: int = BLOCKS, *, new: bool = False) -> BlockStore:
        """``new``: it waits to be introduced, by views in which it is ``fresh``."""
        tiers = Tiers(PlainMemory(), quota_blocks * BLOCK_BYTES)
        peers = Peers(self, incarnation=f"{name} is new" if new else None)
        store = BlockStore(tiers, self.source, 2, peers=peers)  # type: ignore[arg-type]
        mover = Mover(store, tiers, peers, None)
        store.start()
        mover.start()
        self.members[name] = store, mover, tiers
        return store

    def tell(self, names: str, replicas: int = 1, draining: str = "", fresh: str = "") -> None:
        """A new view, known to all that are in it."""
        workers = tuple(
            Worker(
                name, 1, node_id=name, draining=name in draining, incarnation=f"{name} is new" if name in fresh else ""
            )
            for name in names
        )
        self.view = View(self.view.number + 1, workers, (("data", replicas),) if replicas > 1 else ())
        for name in names:
            self.members[name][1].adopt(self.view, name, self.view.number)

    def owner(self, number: int) -> str:
        return rank(plan(number).block_id, self.view.workers)[0].worker_id

    def read(self, name: str, number: int, part: int = 0, length: int = BLOCK_BYTES) -> bytes:
        one = plan(number)
        fetch = Fetch(one.block_id, one.pack(), 100 * part, length, whole=False)
        (answer,), _ = self.members[name][0].fetch([fetch], 10)
        if isinstance(answer, Failed):
            raise answer.error
        return bytes(answer)  # type: ignore[arg-type]

    def epoch(self) -> None:
        for number in range(BLOCKS):
            assert self.read(self.owner(number), number) == body(number)
            # With as many fills under way as may be, what is read next is not kept.
            assert self.members[self.owner(number)][0].settle(10)
        self.settle()

    def settle(self) -> None:
        for store, mover, _ in self.members.values():
            assert store.settle(10)
            deadline = threading.Event()
            for _ in range(1000):
                if not mover.report().moving:
                    break
                deadline.wait(0.01)
            assert not mover.report().moving

    def held(self, name: str) -> set[bytes]:
        return {block_id for block_id, _ in self.members[name][2].held()}

    def counters(self, name: str) -> dict[str, int]:
        found: dict[str, int] = self.members[name][0].status()["counters"]
        return found

    def _reach(self, worker: Worker, method: str) -> tuple[BlockStore, Mover, Tiers]:
        self.calls[method] += 1
        self.before(method)
        if worker.worker_id in self.gone:
            raise WorkerLost(worker.worker_id)
        return self.members[worker.worker_id]

    def offer(self, to: Worker, giver: str, block_ids: Sequence[bytes], timeout_s: float) -> list[bool]:
        return self._reach(to, "offer")[1].offered(giver, block_ids)

    def hand_over(self, giver: Worker, block_id: bytes, timeout_s: float) -> Buffer | None:
        found = self._reach(giver, "hand_over")[0].lend(block_id)
        return found.view if isinstance(found, Kept) else found

    def take(self, taker: Worker, giver: str, block: About, timeout_s: float) -> bool:
        return self._reach(taker, "take")[0].take(giver, block, timeout_s)

    def read_through(self, owner: Worker, request: Fetch, timeout_s: float) -> Buffer:
        (answer,), _ = self._reach(owner, "read")[0].fetch([request], timeout_s, direct=True)
        if isinstance(answer, Failed):
            raise answer.error
        return answer  # type: ignore[return-value]


# The name that PeerCalls has for it is that of the test's own read.
class _Calls:
    def __init__(self, fleet: Fleet) -> None:
        self.offer, self.hand_over, self.take = fleet.offer, fleet.hand_over, fleet.take
        self.read = fleet.read_through


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    fleet = Fleet()
    real = Peers.__init__
    monkeypatch.setattr(Peers, "__init__", lambda self, calls, **more: real(self, _Calls(calls), **more))
    yield fleet
    for store, mover, _ in fleet.members.values():
        store.check()
        mover.stop()
        store.stop()


def test_a_join_moves_its_share_from_who_had_it_and_asks_the_source_for_nothing(fleet: Fleet) -> None:
    fleet.add("a")
    fleet.add("b")
    fleet.tell("ab")
    fleet.epoch()
    assert not fleet.calls
    fleet.add("c")
    fleet.source.asked.clear()
    fleet.tell("abc")
    fleet.epoch()
    assert not fleet.source.asked
    mine = {plan(number).block_id for number in range(BLOCKS) if fleet.owner(number) == "c"}
    assert fleet.held("c") == mine
    assert fleet.calls["hand_over"] == fleet.counters("c")["peer_blocks"] == len(mine) > 0
    assert fleet.counters("c")["peer_bytes"] == len(mine) * BLOCK_BYTES


def test_what_nobody_has_is_asked_of_nobody(fleet: Fleet) -> None:
    for name in "abc":
        fleet.add(name)
    fleet.tell("ab")
    fleet.tell("abc")
    fleet.epoch()
    assert not fleet.calls


def test_what_was_handed_over_goes_first(fleet: Fleet) -> None:
    fleet.add("a", quota_blocks=10)
    fleet.add("b")
    fleet.tell("a")
    for number in range(10):
        fleet.read("a", number)
    fleet.settle()
    fleet.tell("ab")
    moved = [number for number in range(10) if fleet.owner(number) == "b"]
    for number in moved:
        fleet.read("b", number)
    fleet.settle()
    more = [number for number in range(10, BLOCKS) if fleet.owner(number) == "a"][: len(moved) + 1]
    for number in more:
        fleet.read("a", number)
        fleet.settle()
    # ``keep`` gives up nothing that is its own: there is room for as many as were handed over, and no more.
    stayed = {plan(number).block_id for number in range(10) if number not in moved}
    assert fleet.held("a") == stayed | {plan(number).block_id for number in more[: len(moved)]}


def test_many_readers_of_a_moved_block_are_one_call(fleet: Fleet) -> None:
    fleet.add("a")
    fleet.tell("a")
    fleet.add("b")
    for number in range(BLOCKS):
        fleet.read("a", number)
    fleet.settle()
    fleet.tell("ab")
    number = next(number for number in range(BLOCKS) if fleet.owner(number) == "b")
    fleet.source.asked.clear()
    open_, there = threading.Event(), threading.Event()

    def before(method: str) -> None:
        there.set()
        assert open_.wait(10)

    fleet.before = before
    with ThreadPoolExecutor(16) as pool:
        reads = [pool.submit(fleet.read, "b", number, part % 3, 100) for part in range(16)]
        assert there.wait(10)
        open_.set()
        assert {read.result() for read in reads} == {body(number)[at : at + 100] for at in (0, 100, 200)}
    assert fleet.calls["hand_over"] == 1
    assert not fleet.source.asked


@pytest.mark.parametrize("trouble", ["gone", "evicted"])
def test_the_source_is_asked_when_a_peer_cannot_give(fleet: Fleet, trouble: str) -> None:
    fleet.add("a")
    fleet.add("b")
    fleet.tell("a")
    for number in range(BLOCKS):
        fleet.read("a", number)
    fleet.settle()
    fleet.tell("ab")
    number = next(number for number in range(BLOCKS) if fleet.owner(number) == "b")
    if trouble == "gone":
        fleet.gone.add("a")
    else:
        fleet.members["a"][2].drop(plan(number).block_id)
    fleet.source.asked.clear()
    assert fleet.read("b", number) == body(number)
    assert sum(fleet.source.asked.values()) == 3
    assert fleet.counters("b")["peer_failures"] == 1
    other = next(one for one in range(number + 1, BLOCKS) if fleet.owner(one) == "b")
    calls = fleet.calls["hand_over"]
    assert fleet.read("b", other) == body(other)
    assert fleet.calls["hand_over"] == calls + (trouble == "evicted"), "who is gone is not asked again at once"


def test_who_drains_moves_all_of_it_and_gets_nothing_new(fleet: Fleet) -> None:
    for name in "abc":
        fleet.add(name)
    fleet.tell("abc")
    fleet.epoch()
    fleet.source.asked.clear()
    fleet.tell("abc", draining="c")
    fleet.settle()
    assert fleet.held("a") | fleet.held("b") == {plan(number).block_id for number in range(BLOCKS)}
    fleet.gone.add("c")
    fleet.epoch()
    assert not fleet.source.asked
    fleet.gone.clear()
    new = BLOCKS + 1
    assert fleet.read("c", new) == body(new)  # a client with an old view
    fleet.settle()
    assert plan(new).block_id not in fleet.held("c")


def test_who_drains_does_not_wait_for_room_that_others_have_not(fleet: Fleet) -> None:
    fleet.add("a", quota_blocks=5)
    fleet.add("b")
    fleet.tell("b")
    for number in range(20):
        fleet.read("b", number)
    fleet.settle()
    fleet.tell("ab", draining="b")
    fleet.settle()
    assert len(fleet.held("a")) == 5
    fleet.source.asked.clear()
    assert all(fleet.read("a", number) == body(number) for number in range(20))
    assert not fleet.source.asked, "what has no room is read through the one that has it"


def test_copies_are_made_from_the_owner_and_made_anew(fleet: Fleet) -> None:
    for name in "abcd":
        fleet.add(name)
    fleet.tell("abcd", replicas=2)
    fleet.epoch()
    assert set(fleet.source.asked.values()) == {1}
    assert sum(len(fleet.held(name)) for name in "abcd") == 2 * BLOCKS
    fleet.gone.add("d")
    fleet.tell("abc", replicas=2)
    fleet.settle()
    assert sum(len(fleet.held(name)) for name in "abc") >= 2 * BLOCKS
    fleet.epoch()
    assert set(fleet.source.asked.values()) == {1}


def test_a_copy_that_is_not_made_yet_is_read_through_the_owner(fleet: Fleet) -> None:
    for name in "abc":
        fleet.add(name)
    fleet.tell("abc", replicas=2)
    for number in range(BLOCKS):
        second = rank(plan(number).block_id, fleet.view.workers)[1].worker_id
        assert fleet.read(second, number) == body(number)
    fleet.settle()
    assert set(fleet.source.asked.values()) == {1}


def test_two_with_different_views_who_send_each_other_reads_end_at_the_source(fleet: Fleet) -> None:
    for name in "ab":
        fleet.add(name)
        others = tuple(Worker(each, 1, node_id=each, draining=each == name) for each in "ab")
        fleet.members[name][1].adopt(View(1, others), name, 1)
    for number in range(5):
        assert fleet.read("a", number) == body(number)
        assert fleet.read("b", number) == body(number)
    assert fleet.calls["read"] > 0


def test_the_second_in_line_keeps_what_it_reads_while_the_first_is_away(fleet: Fleet) -> None:
    fleet.add("a")
    fleet.add("b")
    fleet.tell("ab")
    fleet.gone.add("a")
    numbers = [number for number in range(BLOCKS) if fleet.owner(number) == "a"]
    for _ in range(2):
        for number in numbers:
            assert fleet.read("b", number) == body(number)
    assert fleet.members["b"][0].settle(10)
    asked = sum(fleet.source.asked.values())
    fleet.tell("b")
    assert fleet.members["b"][0].settle(10)
    for number in numbers:
        assert fleet.read("b", number) == body(number)
    assert sum(fleet.source.asked.values()) == asked


def restarted(fleet: Fleet) -> None:
    """Two workers with all blocks, and a new one in the place of the second that was not told of anything yet."""
    for name in "ab":
        fleet.add(name)
    fleet.tell("ab", replicas=2)
    fleet.epoch()
    store, mover, _ = fleet.members.pop("b")
    mover.stop()
    store.stop()
    fleet.source.asked.clear()
    fleet.add("b", new=True)


def test_who_was_just_started_waits_to_be_told_who_has_its_blocks(fleet: Fleet) -> None:
    restarted(fleet)
    store, mover, _ = fleet.members["b"]
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(fleet.read, "b", 7)
        assert store.load([plan(8).pack()]) == ["wait"]
        mover.adopt(fleet.view, "b", fleet.view.number)  # in which it is the one before it
        assert store.load([plan(8).pack()]) == ["wait"]
        assert not early.done()
        fleet.tell("ab", replicas=2, fresh="b")
        assert early.result(10) == body(7)
    fleet.epoch()
    assert not fleet.source.asked


def test_who_is_told_nothing_goes_on_after_a_while(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycache.store.peers.INTRODUCTION_S", 0.05)
    restarted(fleet)
    assert fleet.read("b", 7) == body(7)
    assert sum(fleet.source.asked.values()) == 3
