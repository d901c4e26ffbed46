"""Memory that reads past the page cache are made into."""

from __future__ import annotations

from raycache.client.pagememory import PAGE_BYTES, SLOT_BYTES, SLOTS, PageMemory, fresh


def test_pieces_are_whole_aligned_pages_that_do_not_overlap() -> None:
    memory = PageMemory()
    pieces = [memory.take(size) for size in (1, PAGE_BYTES, PAGE_BYTES + 1, SLOT_BYTES)]
    assert [len(piece.memory) for piece in pieces] == [PAGE_BYTES, PAGE_BYTES, 2 * PAGE_BYTES, SLOT_BYTES]
    for number, piece in enumerate(pieces):
        assert piece.address % PAGE_BYTES == 0
        piece.memory[:] = bytes([number]) * len(piece.memory)
    assert [set(piece.memory) for piece in pieces] == [{0}, {1}, {2}, {3}]


def test_what_was_given_back_is_used_again_and_only_that() -> None:
    memory = PageMemory()
    pieces = [memory.take(100_000) for _ in range(SLOTS)]
    assert len({piece.slot for piece in pieces}) == SLOTS
    beyond = memory.take(100_000)
    assert beyond.slot is None
    memory.give_back([pieces[3], beyond])
    assert memory.take(5).address == pieces[3].address
    assert memory.take(5).slot is None


def test_longer_ones_are_fresh_memory() -> None:
    longer = PageMemory().take(SLOT_BYTES + 1)
    assert longer.slot is None
    assert len(longer.memory) == SLOT_BYTES + PAGE_BYTES
    assert longer.address % PAGE_BYTES == fresh(7).address % PAGE_BYTES == 0
