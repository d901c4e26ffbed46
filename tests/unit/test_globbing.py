"""Patterns over a column say of each name what fnmatch says of it alone."""

from __future__ import annotations

import fnmatch
import os

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raycache.core.globbing import glob_column, glob_names

_LETTERS = st.sampled_from([b"a", b"b", b"z", b"A", b"0", b".", b"-", b"^", b"]", b"[", b"!", b"\\", b"\n", b"*", b"?"])
_ODD = st.sampled_from(["\u00e9".encode(), "\u2603".encode(), b"\xff", b"\xc3", b" ", b"&", b"|", b"~", b"$", b"("])
NAMES = st.lists(st.lists(_LETTERS | _ODD, min_size=1, max_size=5).map(b"".join), max_size=12)
_CLASSES = st.sampled_from(
    ["[", "]", "[!", "[^", "[a-z]", "[!a]", "[z-a]", "[]a]", "[!]", "[\\]", "[--0]", "[a-]", "[\u00e9]"]
)
_SIGNS = st.sampled_from([*"ab.zA0-^!\\\n*?&|~$(", "\u00e9", "\u2603", "\udcff", "**"])
PATTERNS = st.lists(_SIGNS | _CLASSES, min_size=1, max_size=6).map("".join)


@given(NAMES, PATTERNS)
@example([b"a\n", b"a"], "a*")
@example([b"\xff", "\u00e9".encode(), b"ab"], "?")
@example([b"[", b"a"], "[")
@example([b"]", b"a", b"!"], "[!]a]")
@example([b".a", b"a"], "[.]a")
@example([b"[]", b"[", b"[!]", b"a"], "[]*")
@example([b"[]", b"[", b"[!]", b"!"], "[!]")
@example([b"-", b"a", b"z"], "[z-a]")
def test_a_column_matches_as_each_name_does(names: list[bytes], pattern: str) -> None:
    texts = [os.fsdecode(name) for name in names]
    wanted = [bool(glob_names([text], pattern)) for text in texts]
    assert glob_column(pa.array(names, pa.binary()), pattern).tolist() == wanted
    # A slice, as a column cut out of another one is: its offsets do not begin at 0.
    sliced = pa.array([b"\xffx", *names], pa.binary()).slice(1)
    assert glob_column(sliced, pattern).tolist() == wanted


@pytest.mark.parametrize("pattern", ["*.jpg", "img_??.*", "[a-f]*", "[!a]*", "x"])
def test_no_name_that_is_ascii_is_looked_at_alone(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"img_{number:02d}.jpg".encode() for number in range(100)] + [b"a", b"x", b"b.jpg"]
    wanted = [fnmatch.fnmatchcase(name.decode(), pattern) for name in names]
    monkeypatch.setattr("raycache.core.globbing.glob_names", None)
    assert glob_column(pa.array(names, pa.binary()), pattern).tolist() == wanted
