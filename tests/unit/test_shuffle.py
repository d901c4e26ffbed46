"""The order of an epoch: complete, without repetition, the same wherever it is made, and resumable by anybody."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.core.shuffle import EpochOrder, Readers, Span, cut, first_uses, length, united
from raycache.errors import InvalidInput

PACKS = st.lists(st.integers(0, 9), max_size=40).map(lambda sizes: np.array(sizes, np.int64))
SEEDS, EPOCHS, WINDOWS = st.integers(0, 2**63), st.integers(0, 1000), st.integers(1, 50)
WORLDS = st.builds(Readers, st.integers(1, 5), st.integers(1, 4))


@given(PACKS, SEEDS, EPOCHS, WINDOWS)
def test_an_epoch_has_every_file_once(packs: np.ndarray, seed: int, epoch: int, window: int) -> None:
    order = EpochOrder(packs, seed, epoch, window)
    assert len(order) == packs.sum()
    assert sorted(order.files((0, len(order))).tolist()) == list(range(packs.sum()))


@given(PACKS, SEEDS, WINDOWS, st.data())
def test_a_part_of_an_epoch_is_that_part(packs: np.ndarray, seed: int, window: int, data: st.DataObject) -> None:
    order = EpochOrder(packs, seed, 3, window)
    whole = order.files((0, len(order)))
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(order))] * 2)))
    np.testing.assert_array_equal(order.files((start, stop)), whole[start:stop])
    pack_of = np.repeat(np.arange(len(packs)), packs)
    assert set(pack_of[whole[start:stop]]) <= set(order.packs_of((start, stop)))
    if start < stop:
        assert start < order.window_end(start) <= len(order)


@given(PACKS, SEEDS, EPOCHS, WINDOWS, st.data())
def test_groups_come_one_after_the_other_and_share_no_window(
    packs: np.ndarray, seed: int, epoch: int, window: int, data: st.DataObject
) -> None:
    groups = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(packs), max_size=len(packs))), np.intp)
    order = EpochOrder(packs, seed, epoch, window, groups)
    files = order.files((0, len(order)))
    assert sorted(files.tolist()) == list(range(packs.sum()))
    group_of = np.repeat(groups, packs)[files]
    assert np.all(np.diff(group_of) >= 0)
    for start in range(len(order)):
        assert group_of[order.window_end(start) - 1] == group_of[start]
        assert set(groups[order.packs_of((start, start + 1))]) == {group_of[start]}
    plain = EpochOrder(packs, seed, epoch, window)
    for group in set(groups.tolist()):
        assert [pack for pack in plain.packs if groups[pack] == group] == [p for p in order.packs if groups[p] == group]


@given(PACKS, SEEDS, st.data())
def test_packs_in_the_order_in_which_a_sequence_has_them(packs: np.ndarray, seed: int, data: st.DataObject) -> None:
    whole = EpochOrder(packs, seed, 0, 50).files((0, int(packs.sum())))
    files = whole[: data.draw(st.integers(0, len(whole)))]
    pack_of = np.repeat(np.arange(len(packs)), packs)[files].tolist()
    found, at = first_uses(packs, files)
    assert found.tolist() == list(dict.fromkeys(pack_of))
    assert at.tolist() == [pack_of.index(pack) for pack in found.tolist()]


@given(PACKS, SEEDS, st.integers(1, 6))
def test_the_files_of_a_pack_stay_within_a_window(packs: np.ndarray, seed: int, window: int) -> None:
    order = EpochOrder(packs, seed, 0, window)
    pack_of = np.repeat(np.arange(len(packs)), packs)[order.files((0, len(order)))]
    at = 0
    for start in range(0, len(order.packs), window):
        mine = set(order.packs[start : start + window])
        count = int(packs[list(mine)].sum())
        assert set(pack_of[at : at + count]) == mine
        at += count


def _read(order: EpochOrder, spans: list[Span]) -> list[int]:
    return [int(file) for span in spans for file in order.files(span)]


@given(PACKS, SEEDS, WINDOWS, st.lists(WORLDS, min_size=1, max_size=5), st.data())
def test_every_file_once_whoever_reads_dies_and_goes_on(
    packs: np.ndarray, seed: int, window: int, worlds: list[Readers], data: st.DataObject
) -> None:
    """Readers stop anywhere, each on its own, and what is left goes to another number of them, again and again."""
    left: list[Span] = united([(0, int(packs.sum()))])
    seen: Counter[int] = Counter()
    for at, world in enumerate(worlds):
        order = EpochOrder(packs, seed, 0, window)  # made anew, as in another process
        remaining: list[Span] = []
        for mine in world.shares(left):
            taken = length(mine) if at + 1 == len(worlds) else data.draw(st.integers(0, length(mine)))
            seen.update(_read(order, cut(mine, 0, taken)))
            remaining += cut(mine, taken, length(mine))
        left = united(remaining)
        assert len(left) <= 1 + sum(each.count for each in worlds[: at + 1]), "a state stays small"
    assert left == []
    assert seen == Counter(range(int(packs.sum())))


@given(PACKS, WORLDS, st.integers(0, 8), st.integers(1, 5), st.booleans())
def test_in_step_what_is_left_is_known_from_the_number_of_batches(
    packs: np.ndarray, world: Readers, batches: int, batch_files: int, even: bool
) -> None:
    """Against workers that are asked in turn, as a DataLoader asks them, and skipped when they have nothing left."""
    spans = [(0, int(packs.sum()))]
    left: list[Span] = []
    for rank in range(world.ranks):
        shares = world.shares(spans, even=even)[rank * world.workers :][: world.workers]
        worker, given = 0, 0
        while given < batches and any(shares):
            if shares[worker]:
                shares[worker] = cut(shares[worker], batch_files, length(shares[worker]))
                given += 1
            worker = (worker + 1) % world.workers
        left += [span for share in shares for span in share]
    assert world.after(spans, batches, batch_files, even=even) == united(left)


@given(PACKS, WORLDS)
def test_shares_are_equal_to_one_or_exactly(packs: np.ndarray, world: Readers) -> None:
    spans = [(0, int(packs.sum()))]
    sizes = np.array([length(share) for share in world.shares(spans)]).reshape(world.ranks, world.workers)
    assert sizes.sum() == packs.sum()
    assert np.ptp(sizes) <= 1
    assert np.ptp(sizes.sum(axis=1)) <= 1
    assert (np.diff(sizes, axis=1) <= 0).all()
    even = np.array([length(share) for share in world.shares(spans, even=True)]).reshape(sizes.shape)
    assert (even == even[0]).all()
    assert even.sum() == packs.sum() // world.ranks * world.ranks
    assert (np.diff(even, axis=1) <= 0).all()


def test_epochs_and_seeds_differ_and_an_order_is_the_same_on_every_machine() -> None:
    packs = np.full(50, 20)
    orders = {
        (seed, epoch): EpochOrder(packs, seed, epoch, 8).files((0, 1000)).tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    # What a state means must not change with a version of NumPy, or with ours.
    digest = hashlib.sha256(EpochOrder(packs, 1, 2, 8).files((0, 1000)).astype("<i8").tobytes()).hexdigest()
    assert digest == "3c6cbae93e3ff07e7885fc68b635d2913f0a39ac08e5ddb5c3f9358b0b99c480"


def test_a_window_mixes_its_files_evenly() -> None:
    """Each tenth of a window has files of each of its packs, close to a tenth of them."""
    order = EpochOrder(np.full(64, 300), 5, 0, 16)
    pack_of = order.files((0, 4800)) // 300
    for part in np.split(pack_of, 10):
        counts = np.unique(part, return_counts=True)[1]
        assert len(counts) == 16
        assert counts.min() >= 12
        assert counts.max() <= 51


def test_ten_million_files_cost_little() -> None:
    packs = np.full(65_536, 150, np.uint32)
    order = EpochOrder(packs, 1, 1)
    assert len(order.files((4_000_000, 4_000_256))) == 256
    assert order._files_of(0).nbytes < 64 * 1024


@pytest.mark.parametrize(("seed", "epoch", "window"), [(-1, 0, 1), (0, -1, 1), (0, 0, 0)])
def test_what_is_no_order_is_refused(seed: int, epoch: int, window: int) -> None:
    with pytest.raises(InvalidInput):
        EpochOrder(np.ones(3, np.int64), seed, epoch, window)


def test_somebody_has_to_read() -> None:
    with pytest.raises(InvalidInput):
        Readers(0, 1)
    with pytest.raises(InvalidInput):
        Readers(1, 0)


def test_nothing_at_all() -> None:
    order = EpochOrder(np.zeros(3, np.int64))
    assert len(order) == 0
    assert order.files((0, 0)).tolist() == []
    assert order.packs_of((0, 0)).tolist() == []
