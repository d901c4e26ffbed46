"""A local directory and one in a mount that must not differ: see ``twin_trees``, which has to be importable.

    PYTHONPATH=tests python tests/fuse/twins.py LOCAL MOUNTED EXAMPLES STEPS [SEED]

Needs root, which takes the part of several users. The steps are drawn by Hypothesis, which makes the shortest it can of
those that end in a difference. Prints the seed on the first line, and how many steps there were on the last.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import random
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test
from twin_trees import LIBC, LocalTree, TwinTrees, modes, names, offsets, outcome, paths, sizes, some_bytes

HANDLES = 4
_numbers = itertools.count()
_steps = itertools.count()

users = st.sampled_from([0, 0, 1000, 1001])
flag_sets = st.sampled_from(
    [
        os.O_RDONLY,
        os.O_RDWR,
        os.O_WRONLY | os.O_APPEND,
        os.O_RDWR | os.O_CREAT,
        os.O_RDWR | os.O_CREAT | os.O_EXCL,
        os.O_RDWR | os.O_CREAT | os.O_TRUNC,
        os.O_WRONLY | os.O_TRUNC,
        os.O_RDONLY | os.O_DIRECTORY,
        os.O_RDWR | os.O_NOFOLLOW,
        os.O_RDWR | os.O_CREAT | os.O_APPEND,
    ]
)


@contextmanager
def acting_as(user: int) -> Iterator[None]:
    """As a user of the same number as their group, who is in no other; 0 is root."""
    os.setegid(user)
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def seen(root: str) -> dict[str, Any]:
    """All there is below a directory, with what it holds. Names of one inode are told as such."""
    found: dict[str, Any] = {}
    inodes: dict[int, str] = {}
    for directory, below, files in os.walk(root):
        below.sort()
        for name in sorted(below + files):
            path = os.path.join(directory, name)
            info = os.lstat(path)
            about: list[Any] = [
                oct(info.st_mode),
                info.st_uid,
                info.st_gid,
                inodes.setdefault(info.st_ino, path.removeprefix(root)),
            ]
            if stat.S_ISREG(info.st_mode):
                about += [info.st_nlink, info.st_size, Path(path).read_bytes()]
            elif stat.S_ISLNK(info.st_mode):
                about.append(os.readlink(path))
            if not stat.S_ISLNK(info.st_mode):
                about.append({name: os.getxattr(path, name) for name in os.listxattr(path)})
            found[path.removeprefix(root)] = about
    return found


def make_tree(root: str) -> None:
    """What each example begins with."""
    os.makedirs(f"{root}/b/c")
    os.mkdir(f"{root}/c")
    Path(f"{root}/a").write_bytes(some_bytes(10_000, 1))
    Path(f"{root}/b/a").write_bytes(b"few")


class Twins(TwinTrees):
    """A local directory, and one in a mount."""

    roots: tuple[str, str]

    def __init__(self) -> None:
        super().__init__()
        number = next(_numbers)
        self.here = [os.path.join(root, f"example-{number}") for root in self.roots]
        for root in self.here:
            if not os.path.exists(root):  # of some the source of the mount has it
                make_tree(root)
            os.link(f"{root}/a", f"{root}/b/b")
            for directory in (".", "b", "c"):
                os.chmod(f"{root}/{directory}", 0o777)
        self.user = 0
        self.open = [[os.open(f"{root}/{path}", os.O_RDWR) for root in self.here] for path in ("a", "b/a")]

    def both(self, call: Callable[[LocalTree], Any]) -> None:
        next(_steps)
        local, mounted = (self.outcome_in(root, call) for root in self.here)
        assert mounted == local, f"{mounted!r} in the mount, {local!r} locally"
        self.compare()

    def outcome_in(self, root: str, call: Callable[[LocalTree], Any]) -> Any:
        os.chdir(root)  # no other user needs to get through what is above it
        with acting_as(self.user):
            return outcome(lambda: call(LocalTree(".")))

    def both_open(self, which: int, call: Callable[[int], Any]) -> None:
        """The same with a file that is open, if any is."""
        if not self.open:
            return
        next(_steps)
        with acting_as(self.user):
            local, mounted = (outcome(lambda: call(fd)) for fd in self.open[which % len(self.open)])  # noqa: B023
        assert mounted == local, f"{mounted!r} in the mount, {local!r} locally"
        self.compare()

    def compare(self) -> None:
        local, mounted = (seen(root) for root in self.here)
        assert mounted == local

    @rule(user=users)
    def become(self, user: int) -> None:
        self.user = user

    @rule(path=paths, user=users, group=users)
    def chown(self, path: str, user: int, group: int) -> None:
        self.both(lambda tree: os.chown(tree.at(path), user, group, follow_symlinks=False))

    @rule(path=paths, mode=st.integers(0, 7))
    def access(self, path: str, mode: int) -> None:
        self.both(lambda tree: os.access(tree.at(path), mode, effective_ids=True))

    @rule(path=paths, to=paths)
    def link(self, path: str, to: str) -> None:
        self.both(lambda tree: os.link(tree.at(path), tree.at(to), follow_symlinks=False))

    @rule(path=paths, what=paths)
    def symlink(self, path: str, what: str) -> None:
        self.both(lambda tree: os.symlink(what, tree.at(path)))

    @rule(path=paths, name=names, value=st.binary(max_size=10))
    def setxattr(self, path: str, name: str, value: bytes) -> None:
        self.both(lambda tree: os.setxattr(tree.at(path), f"user.{name}", value))

    @rule(path=paths, name=names)
    def removexattr(self, path: str, name: str) -> None:
        self.both(lambda tree: os.removexattr(tree.at(path), f"user.{name}"))

    @rule(path=paths, flags=flag_sets, mode=modes)
    def open_file(self, path: str, flags: int, mode: int) -> None:
        if len(self.open) == HANDLES:
            self.close(0)
        fds: list[int] = []

        def call(tree: LocalTree) -> bool:
            fds.append(os.open(tree.at(path), flags, mode))
            return True

        self.both(call)
        if len(fds) == len(self.here):
            self.open.append(fds)

    @rule(which=st.integers(0, 3), at=offsets, size=sizes)
    def pwrite(self, which: int, at: int, size: int) -> None:
        self.both_open(which, lambda fd: os.pwrite(fd, some_bytes(size, at + size), at))

    @rule(which=st.integers(0, 3), size=sizes)
    def write(self, which: int, size: int) -> None:
        self.both_open(which, lambda fd: os.write(fd, some_bytes(size, size)))

    @rule(which=st.integers(0, 3), at=offsets, size=sizes)
    def pread(self, which: int, at: int, size: int) -> None:
        self.both_open(which, lambda fd: os.pread(fd, size, at))

    @rule(which=st.integers(0, 3), size=st.one_of(offsets, sizes))
    def ftruncate(self, which: int, size: int) -> None:
        self.both_open(which, lambda fd: os.ftruncate(fd, size))

    @rule(which=st.integers(0, 3), mode=st.sampled_from([0, 1, 3, 16, 17]), at=offsets, size=sizes)
    def fallocate(self, which: int, mode: int, at: int, size: int) -> None:
        def call(fd: int) -> int:
            if LIBC.fallocate(fd, mode, ctypes.c_long(at), ctypes.c_long(size)) < 0:
                raise OSError(ctypes.get_errno(), "fallocate")
            return 0

        self.both_open(which, call)

    @rule(which=st.integers(0, 3), at=offsets, to=offsets, size=sizes)
    def copy_range(self, which: int, at: int, to: int, size: int) -> None:
        self.both_open(which, lambda fd: os.copy_file_range(fd, fd, size, at, to))

    @rule(which=st.integers(0, 3), at=offsets)
    def write_through_memory(self, which: int, at: int) -> None:
        def call(fd: int) -> None:
            info = os.fstat(fd)  # directories have a size of their own
            if stat.S_ISREG(info.st_mode) and at < info.st_size:
                with mmap.mmap(fd, info.st_size) as view:
                    view[at] = 77
                    view.flush()

        self.both_open(which, call)

    @rule(which=st.integers(0, 3))
    def fstat(self, which: int) -> None:
        def call(fd: int) -> Any:
            info = os.fstat(fd)
            return (oct(info.st_mode), None if stat.S_ISDIR(info.st_mode) else (info.st_nlink, info.st_size))

        self.both_open(which, call)

    @rule(which=st.integers(0, 3))
    def fsync(self, which: int) -> None:
        self.both_open(which, os.fsync)

    @rule(which=st.integers(0, 3))
    def close(self, which: int) -> None:
        if self.open:
            for fd in self.open.pop(which % len(self.open)):
                os.close(fd)
            self.compare()

    def teardown(self) -> None:
        while self.open:
            for fd in self.open.pop():
                os.close(fd)
        os.chdir("/")
        for root in self.here:
            shutil.rmtree(root)


def main(local: str, mounted: str, examples: str, steps: str, number: str = "") -> None:
    chosen = int(number or random.SystemRandom().randrange(2**32))
    print(f"seed {chosen}", flush=True)  # noqa: T201
    Twins.roots = (local, mounted)
    machine: Any = seed(chosen)(Twins)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(examples),
            stateful_step_count=int(steps),
            deadline=None,
            database=None,
            print_blob=True,
            verbosity=Verbosity.normal,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(f"steps {next(_steps)}")  # noqa: T201


if __name__ == "__main__":
    os.umask(0o022)
    os.setgroups([])
    main(*sys.argv[1:])
