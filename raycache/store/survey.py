"""What an earlier worker left in a directory of block files: found by their names alone.

A block file is ``XX/ID-KEY``: the block's id, its first two digits, and the key of its origin (``origins``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from raycache.core.values import Origin
from raycache.store import identity, origins
from raycache.store.fileops import FileOps
from raycache.store.origins import Origins

TEMPORARY = ".writing"
_NAME = re.compile(r"([0-9a-f]{2,128})-([0-9a-f]{16})")
_NO_BLOCKS = {"lock", identity.NAME, origins.NAME, origins.NAME + TEMPORARY}


class Found(NamedTuple):
    """A block file."""

    block_id: bytes
    origin: Origin
    size_bytes: int


class Survey(NamedTuple):
    """What is there."""

    fitting: list[Found]
    """What fits into the quota, oldest first."""
    beyond: list[Found]
    """What does not: the quota was larger once."""
    foreign: int
    """Files that are not ours."""


def file_path(directory: Path, block_id: bytes, key: str) -> Path:
    """The file of a block."""
    name = block_id.hex()
    return directory / name[:2] / f"{name}-{key}"


def find_key(directory: Path, files: FileOps, block_id: bytes) -> str | None:
    """The key of a block that is in the directory, looked for by its name. Raises OSError."""
    name = block_id.hex() + "-"
    names = (each for each in files.names(directory / name[:2]) if each.startswith(name))
    keys = (match[2] for each in names if (match := _NAME.fullmatch(each)))
    return next(keys, None)


def survey(directory: Path, files: FileOps, known: Origins, quota_bytes: int) -> Survey:
    """Look through a directory; files that were half-written are deleted. Raises OSError."""
    found: list[tuple[float, Found]] = []
    keys: set[str] = set()
    foreign = 0
    for below in files.scan(directory):
        if not (below.is_dir(follow_symlinks=False) and re.fullmatch("[0-9a-f]{2}", below.name)):
            foreign += below.name not in _NO_BLOCKS
            continue
        for entry in files.scan(Path(below.path)):
            if entry.name.endswith(TEMPORARY):
                files.remove(Path(entry.path))
            elif (name := _ours(below.name, entry.name)) and entry.is_file(follow_symlinks=False):
                about = entry.stat(follow_symlinks=False)
                keys.add(name[2])
                found.append((about.st_mtime, Found(bytes.fromhex(name[1]), known.find(name[2]), about.st_size)))
            else:
                foreign += 1
    known.forget_others(keys)
    fitting: list[Found] = []
    beyond: list[Found] = []
    for _, one in sorted(found, reverse=True):
        fits = one.size_bytes <= quota_bytes
        quota_bytes -= one.size_bytes if fits else 0
        (fitting if fits else beyond).append(one)
    return Survey(fitting[::-1], beyond, foreign)


def _ours(directory: str, name: str) -> re.Match[str] | None:
    match = _NAME.fullmatch(name)
    return match if match and name.startswith(directory) and len(match[1]) % 2 == 0 else None
