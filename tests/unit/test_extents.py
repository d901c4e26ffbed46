"""Extents of a file that is being written, beside a plain list of where each of its bytes lies."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from raycache.core.extents import Extents, found_anew
from raycache.core.inode import Content, Extent

Origin = tuple[str, int] | None
"""Segment and offset of a byte; None in a hole."""


def origins(extents: Extents, offset: int = 0, length: int = 1 << 40) -> list[Origin]:
    found: list[Origin] = []
    at = offset
    for piece in extents.pieces(offset, length):
        assert piece.at == at
        assert piece.length > 0
        at += piece.length
        found += [(piece.segment, piece.offset + n) if piece.segment else None for n in range(piece.length)]
    return found


WRITE = st.tuples(st.just("put"), st.integers(0, 40), st.integers(1, 20), st.sampled_from("abc"))
RESIZE = st.tuples(st.just("resize"), st.integers(0, 50), st.just(0), st.just(""))


@given(st.lists(st.one_of(WRITE, RESIZE), max_size=30))
def test_extents_are_what_was_written(steps):
    extents, model = Extents(), []
    ends = dict.fromkeys("abc", 0)
    for verb, at, length, segment in steps:
        if verb == "resize":
            extents.resize(at)
            model = model[:at] + [None] * (at - len(model))
        else:
            extents.put(Extent(at, length, segment, ends[segment]))
            model += [None] * (at + length - len(model))
            model[at : at + length] = [(segment, ends[segment] + n) for n in range(length)]
            ends[segment] += length
        assert extents.size_bytes == len(model)
        assert origins(extents) == model
        assert origins(extents, 7, 9) == model[7:16]
        joins = sum(not follows(*pair) for pair in pairwise(model))
        assert len(extents) == (joins + 1 if model else 0), "neighbours that continue each other are one"
    again = Extents(extents.content())
    assert (again.content(), again.size_bytes) == (extents.content(), len(model))


def follows(first: Origin, second: Origin) -> bool:
    if first is None or second is None:
        return first is second
    return (first[0], first[1] + 1) == second


def test_objects_of_the_source_are_kept_apart():
    base = Content(10, (Extent(0, 10, path="a/b", etag="e", row=77),))
    extents = Extents(base)
    extents.put(Extent(4, 2, "s", 100))
    assert extents.content() == Content(
        10,
        (
            Extent(0, 4, path="a/b", etag="e", row=77),
            Extent(4, 2, "s", 100),
            Extent(6, 4, offset=6, path="a/b", etag="e", row=77),
        ),
    )


def test_what_lies_in_the_source_is_looked_for_anew_and_the_rest_is_where_it_was():
    wanted = [Extent(2, 2, path="old", etag="1", offset=2), Extent(4, 4, "s", 100), Extent(8, 1)]
    now = Content(9, (Extent(0, 3, path="new", etag="2"), Extent(3, 6, path="other", etag="3", offset=70)))
    assert found_anew(wanted, now) == [
        Extent(2, 1, path="new", etag="2", offset=2),
        Extent(3, 1, path="other", etag="3", offset=70),
        *wanted[1:],
    ]
