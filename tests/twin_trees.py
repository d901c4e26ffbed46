"""Two trees that must not differ: whatever is done to one is done to the other, and all of both compared.

What is common to the machine of a mount (``fuse/twins.py``) and that of the Python API (``model/test_api_twins.py``):
names, values that are drawn, what is done to a tree by its paths, and a local directory as the one that is right.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from raycache.errors import RaycacheError

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100

names = st.sampled_from(["a", "b", "c"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
offsets = st.sampled_from([0, 1, 10, 4095, 4096, 5000, 70_000])
sizes = st.sampled_from([0, 1, 100, 4096, 9000, 140_000])
modes = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o2770, 0o000])


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the error that it meets."""
    try:
        return call()
    except (OSError, RaycacheError) as error:
        return f"errno {error.errno}"


def some_bytes(length: int, number: int) -> bytes:
    return random.Random(number).randbytes(length)


class Tree(Protocol):
    """What the rules do to each of two trees. Paths are relative to it; calls raise OSError."""

    def listdir(self, path: str) -> list[str]: ...
    def mkdir(self, path: str, mode: int) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def rename(self, path: str, to: str, flags: int) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...
    def write_whole(self, path: str, data: bytes) -> int: ...
    def truncate(self, path: str, size: int) -> None: ...
    def utime(self, path: str, second: int) -> int: ...


class LocalTree:
    """A directory, of a local file system or in a mount."""

    def __init__(self, root: str) -> None:
        self.root = root

    def at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(self.at(path)))

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self.at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self.at(path))

    def rename(self, path: str, to: str, flags: int) -> None:
        """renameat2(2)."""
        if LIBC.renameat2(AT_FDCWD, os.fsencode(self.at(path)), AT_FDCWD, os.fsencode(self.at(to)), flags) < 0:
            raise OSError(ctypes.get_errno(), "renameat2")

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def write_whole(self, path: str, data: bytes) -> int:
        return Path(self.at(path)).write_bytes(data)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self.at(path), size)

    def utime(self, path: str, second: int) -> int:
        os.utime(self.at(path), ns=(second * 10**9 + 1, second * 10**9 + 2))
        return os.stat(self.at(path)).st_mtime_ns


class TwinTrees(RuleBasedStateMachine):
    """See the module."""

    rename_flags = (0, 0, 0, 1, 2)
    """See renameat2(2)."""

    def both(self, call: Callable[[Any], Any]) -> None:
        """Do something to each tree: it must come to the same, and leave the same behind."""
        raise NotImplementedError

    @rule(path=paths)
    def listdir(self, path: str) -> None:
        self.both(lambda tree: tree.listdir(path))

    @rule(path=paths, mode=modes)
    def mkdir(self, path: str, mode: int) -> None:
        self.both(lambda tree: tree.mkdir(path, mode))

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        self.both(lambda tree: tree.rmdir(path))

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        self.both(lambda tree: tree.unlink(path))

    @rule(path=paths, to=paths, which=st.integers(0, 4))
    def rename(self, path: str, to: str, which: int) -> None:
        flags = self.rename_flags[which % len(self.rename_flags)]
        self.both(lambda tree: tree.rename(path, to, flags))

    @rule(path=paths, mode=modes)
    def chmod(self, path: str, mode: int) -> None:
        self.both(lambda tree: tree.chmod(path, mode))

    @rule(path=paths, size=sizes)
    def write_whole(self, path: str, size: int) -> None:
        self.both(lambda tree: tree.write_whole(path, some_bytes(size, size)))

    @rule(path=paths, size=st.one_of(offsets, sizes))
    def truncate(self, path: str, size: int) -> None:
        self.both(lambda tree: tree.truncate(path, size))

    @rule(path=paths, second=st.integers(0, 2_000_000_000))
    def utime(self, path: str, second: int) -> None:
        self.both(lambda tree: tree.utime(path, second))
