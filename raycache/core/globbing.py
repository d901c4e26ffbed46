"""Shell patterns over names. ``*``, ``?`` and ``[...]`` match within one name; ``**`` is the walker's business."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

_MAGIC = re.compile(r"[*?[]")


def has_magic(part: str) -> bool:
    """Whether a path segment is a pattern."""
    return bool(_MAGIC.search(part))


def glob_names(names: Iterable[str], pattern: str) -> list[str]:
    """Names that match; as in a shell, a pattern matches a leading dot only with a dot of its own."""
    if not has_magic(pattern):
        return [name for name in names if name == pattern]
    match = re.compile(translate(pattern)).match
    return [name for name in names if match(name) and (pattern.startswith(".") or not name.startswith("."))]
