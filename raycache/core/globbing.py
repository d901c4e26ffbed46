"""Shell patterns over names. ``*``, ``?`` and ``[...]`` match within one name; ``**`` is the walker's business."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raycache.core.columns import binary_views

_MAGIC = re.compile(r"[*?[]")
_TOKEN = re.compile(r"\*+|\[(?:!?\][^]]*\]|(?!!?\])[^]]+\])|.", re.DOTALL)
"""A pattern in parts: stars, a class (closed, else its ``[`` is an ordinary character), or one character."""
_ASCII = [chr(code) for code in range(128)]


def has_magic(part: str) -> bool:
    """Whether a path segment is a pattern."""
    return bool(_MAGIC.search(part))


def glob_names(names: Iterable[str], pattern: str) -> list[str]:
    """Names that match; as in a shell, a pattern matches a leading dot only with a dot of its own."""
    if not has_magic(pattern):
        return [name for name in names if name == pattern]
    match = re.compile(translate(pattern)).match
    return [name for name in names if match(name) and (pattern.startswith(".") or not name.startswith("."))]


def glob_column(names: pa.BinaryArray, pattern: str) -> NDArray[np.bool_]:
    """Which names of a column match, as ``glob_names`` would say of each: no Python object per name.

    Only names that are not plain ASCII, in which a character is not a byte, are looked at one by one.
    """
    if not has_magic(pattern):
        matched = pc.equal(names, pa.scalar(pattern.encode("utf-8", "surrogateescape"), pa.binary()))
        return _flags(matched)
    found = _flags(pc.match_substring_regex(names, _ascii_regex(pattern)))
    if not pattern.startswith("."):
        found &= ~_flags(pc.starts_with(names, pattern=b"."))
    for row in np.flatnonzero(_beyond_ascii(names)):
        name = names[int(row)].as_py().decode("utf-8", "surrogateescape")
        found[row] = bool(glob_names([name], pattern))
    return found


def _ascii_regex(pattern: str) -> str:
    """A regular expression (RE2, on bytes) that matches the ASCII names that the pattern matches.

    Each part but a star becomes the set of characters that ``fnmatch`` lets it match, so that the odd rules of
    classes - ranges that are empty, signs that are escaped - are fnmatch's own.
    """
    return (
        r"(?s)\A" + "".join(".*" if part[0] == "*" else _ascii_class(part) for part in _TOKEN.findall(pattern)) + r"\z"
    )


def _ascii_class(part: str) -> str:
    match = re.compile(translate(part)).match
    matched = [f"\\x{ord(char):02x}" for char in _ASCII if match(char)]
    if len(matched) == len(_ASCII):
        return "."
    return f"[{''.join(matched)}]" if matched else r"[^\x00-\xff]"


def _beyond_ascii(names: pa.BinaryArray) -> NDArray[np.bool_]:
    at, data = binary_views(names)
    ends = np.asarray(at)
    body = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
    hits = np.flatnonzero(body >= 128)
    marked = np.zeros(len(names), bool)
    marked[np.searchsorted(ends[1:] - ends[0], hits, side="right")] = True
    return marked


def _flags(column: pa.BooleanArray) -> NDArray[np.bool_]:
    return np.array(column.to_numpy(zero_copy_only=False), dtype=bool)
