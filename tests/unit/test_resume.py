"""What is left of an epoch, kept as plain values and gone on with by other readers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycache.core.resume import EpochState, Stream, merge_states
from raycache.core.shuffle import Readers, cut, length
from raycache.errors import InvalidInput

STREAM = Stream(seed=1, window=4, files=100, change=7)
WORLDS = st.builds(Readers, st.integers(1, 4), st.integers(1, 3))


def share_after(state: EpochState, world: Readers, number: int, taken: int) -> EpochState:
    mine = state.share(world, number, even=False)
    left = cut(mine.left, taken, length(mine.left))
    return EpochState(mine.stream, mine.epoch, tuple(left), mine.reader, mine.readers)


@given(WORLDS, st.lists(st.integers(0, 100), min_size=12, max_size=12))
def test_states_of_all_readers_make_one_whatever_they_are_nested_in(world: Readers, taken: list[int]) -> None:
    whole = EpochState.beginning(STREAM, 3)
    states = [share_after(whole, world, number, taken[number]) for number in range(world.count)]
    nested = [
        {"_snapshot": {"workers": {f"worker_{number}": {"dataset_state": state.to_dict()}}, "step": 5}}
        for number, state in enumerate(states)
    ]
    merged = EpochState.from_dict(json.loads(json.dumps(merge_states(nested))))
    assert (merged.stream, merged.epoch, merged.reader, merged.readers) == (STREAM, 3, None, None)
    assert length(merged.left) == sum(length(state.left) for state in states)
    assert merged == EpochState.from_dict(merge_states([[state.to_dict() for state in reversed(states)]]))


def test_a_reader_goes_on_with_its_own_state_and_with_no_other() -> None:
    world = Readers(2, 1)
    state = share_after(EpochState.beginning(STREAM, 0), world, 1, 10)
    assert EpochState.from_dict(state.to_dict()).share(world, 1, even=False) == state
    with pytest.raises(InvalidInput, match="reader 1 of 2 alone"):
        state.share(world, 0, even=False)
    with pytest.raises(InvalidInput, match="reader 1 of 2 alone"):
        state.share(Readers(3, 1), 1, even=False)
    with pytest.raises(InvalidInput, match="reader 1 of 2 alone"):
        state.after(world, 1, 1, even=False)


def test_the_only_reader_speaks_for_all() -> None:
    state = share_after(EpochState.beginning(STREAM, 0), Readers(), 0, 10)
    assert length(state.of_all()) == 90
    assert length(state.share(Readers(3, 1), 2, even=False).left) == 30


def test_states_that_do_not_belong_together_are_refused() -> None:
    world = Readers(2, 1)
    whole = EpochState.beginning(STREAM, 0)
    first, second = (share_after(whole, world, number, 5).to_dict() for number in range(2))
    other_epoch = share_after(EpochState.beginning(STREAM, 1), world, 1, 5).to_dict()
    with pytest.raises(InvalidInput, match=r"readers \[1\] of 2 are missing"):
        merge_states([first])
    with pytest.raises(InvalidInput, match="one epoch"):
        merge_states([first, other_epoch])
    with pytest.raises(InvalidInput, match="no state"):
        merge_states([{"model": 1}])
    with pytest.raises(InvalidInput, match="no state"):
        EpochState.from_dict({"model": 1})
    assert length(EpochState.from_dict(merge_states([first, second])).left) == 90


def test_how_much_a_rank_has_left() -> None:
    whole = EpochState.beginning(STREAM, 0)
    assert [whole.of_rank(Readers(3), rank, even=False) for rank in range(3)] == [34, 33, 33]
    assert [whole.of_rank(Readers(3), rank, even=True) for rank in range(3)] == [33, 33, 33]
    assert share_after(whole, Readers(3, 1), 1, 3).of_rank(Readers(3), 1, even=False) == 30
