from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raycache.core.layout import extend_cuts

SIZES = st.lists(st.one_of(st.integers(0, 12), st.integers(0, 60)), max_size=60)
BLOCK = st.integers(1, 20)


def cuts_of(sizes, block_bytes, first_row=0, before=(0,)):
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64)
    return extend_cuts(ends, first_row, np.asarray(before, np.uint64), block_bytes)


@given(SIZES, BLOCK)
def test_cuts_cover_the_stream_without_gaps(sizes, block_bytes):
    cuts = cuts_of(sizes, block_bytes)
    assert cuts.dtype == np.uint64
    assert cuts[0] == 0
    assert cuts[-1] == sum(sizes)
    blocks = np.diff(cuts.astype(np.int64))
    assert (blocks > 0).all()
    assert (blocks <= block_bytes).all()


@given(SIZES, BLOCK)
def test_file_that_fits_is_never_cut_and_a_large_one_starts_at_a_cut(sizes, block_bytes):
    cuts = [int(cut) for cut in cuts_of(sizes, block_bytes)]
    start = 0
    for size in sizes:
        inside = [cut for cut in cuts if start < cut < start + size]
        if size <= block_bytes:
            assert not inside
        else:
            assert start in cuts
            assert inside == list(range(start + block_bytes, start + size, block_bytes))
            assert start + size in cuts
        start += size


@given(SIZES, BLOCK)
def test_blocks_of_small_files_are_full(sizes, block_bytes):
    """Two neighbours never fit into one block, unless a large file lies between."""
    sizes = [min(size, block_bytes) for size in sizes]
    blocks = np.diff(cuts_of(sizes, block_bytes).astype(np.int64))
    ends = np.cumsum(sizes)
    cuts = cuts_of(sizes, block_bytes)
    for block, cut in enumerate(cuts[1:-1]):
        following = next(size for size, end in zip(sizes, ends, strict=True) if end > cut)
        assert blocks[block] + following > block_bytes


@given(SIZES, SIZES, BLOCK)
@example([], [], 1)
@example([0, 0], [0], 4)
@example([4], [0, 4], 4)
def test_appending_never_moves_a_cut(old, new, block_bytes):
    before = cuts_of(old, block_bytes)
    after = cuts_of(old + new, block_bytes, first_row=len(old), before=before)
    assert after[: len(before)].tolist() == before.tolist()
    assert after[-1] == sum(old + new)
    # New rows are laid out as if they were alone.
    assert (after[len(before) - 1 :] - before[-1]).tolist() == cuts_of(new, block_bytes).tolist()


@pytest.mark.parametrize("sizes", [[], [0], [0, 0, 0]])
def test_nothing_makes_no_block(sizes):
    assert cuts_of(sizes, 8).tolist() == [0]


def test_sizes_beyond_what_a_float_holds():
    cuts = cuts_of([2**60, 1, 2**60 - 1], 2**60)
    assert cuts.tolist() == [0, 2**60, 2**61]
