"""A large tree through a mount: ``find``, a refresh that changes part of it, and the master killed meanwhile.

20,000 files by default; ``RAYCACHE_TEST_FILES=1000000`` for the million that the project promises.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raycache

FILES = int(os.environ.get("RAYCACHE_TEST_FILES", "20000"))
DIRECTORY_FILES = 1000
CHANGED = FILES // 100
READ = 2000
FIND_S = 300
Tree = dict[str, bytes]


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[tuple[Path, Tree]]:
    """A source of FILES files that hold their own names, and what is in it by path."""
    root = tmp_path / "source"
    found: Tree = {}
    for number in range(FILES):
        name = f"{number // DIRECTORY_FILES:04d}/{number:07d}.bin"
        if number % DIRECTORY_FILES == 0:
            (root / name).parent.mkdir(parents=True)
        write(root, name, found, name.encode())
    yield root, found
    subprocess.run(["rm", "-rf", str(root)], check=True)


def write(root: Path, name: str, found: Tree, body: bytes) -> None:
    fd = os.open(root / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.write(fd, body)
    os.close(fd)
    found[name] = body


def change(root: Path, found: Tree, seed: int) -> list[str]:
    """Rewrite, delete and add files; the names that were touched."""
    names = random.Random(seed).sample(sorted(found), CHANGED)
    half = len(names) // 2
    for name in names[:half]:
        write(root, name, found, f"rewritten {name} {seed}".encode())
    for name in names[half : half + half // 2]:
        (root / name).unlink()
        del found[name]
    for name in names[half + half // 2 :]:
        write(root, f"{name}.new", found, f"added beside {name}".encode())
    return names


def look(mountpoint: Path) -> tuple[set[str], list[str]]:
    """What ``find`` shows, in another process, and what it complains of."""
    command = ["find", str(mountpoint), "-type", "f", "-printf", "%P %s\n"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FIND_S)
    assert (done.returncode != 0) == (done.stderr != "")
    return set(done.stdout.splitlines()), done.stderr.splitlines()


def listed(mountpoint: Path) -> set[str]:
    found, complaints = look(mountpoint)
    assert complaints == []
    return found


def wait_until_shown(mountpoint: Path, found: Tree) -> None:
    """Until a ``find`` goes through without a complaint and shows just this. One that walks while the mount moves on
    may meet files that are no more, as in any file system that changes, and nothing else."""
    deadline = time.monotonic() + 60
    while True:
        now, complaints = look(mountpoint)
        assert all(line.endswith("No such file or directory") for line in complaints), complaints[:10]
        if not complaints and now == shown(found):
            return
        assert time.monotonic() < deadline, (complaints[:10], sorted(now ^ shown(found))[:10])
        time.sleep(0.2)


def shown(found: Tree) -> set[str]:
    return {f"{name} {len(body)}" for name, body in found.items()}


def check_bytes(mountpoint: Path, found: Tree, names: list[str]) -> None:
    for name in names:
        if name in found:
            assert (mountpoint / name).read_bytes() == found[name]
        else:
            assert not (mountpoint / name).exists()


def kill_master(cache: Any) -> int:
    pid: int = cache.master.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


@pytest.mark.timeout(180 + FILES // 1000)  # to make and to delete a million files takes minutes by itself
def test_a_large_tree_survives_find_a_refresh_and_the_masters_death(
    tree: tuple[Path, Tree], cache: Any, mountpoint: Path
) -> None:
    root, found = tree
    with raycache.mount(str(root), mountpoint, session="kernel"):
        assert listed(mountpoint) == shown(found)
        touched = change(root, found, seed=1)

        # One master dies while it lists, the next answers for what the first had acknowledged.
        killed: list[int] = []
        killer = threading.Timer(0.2, lambda: killed.append(kill_master(cache)))
        killer.start()
        raycache.refresh(str(root), recursive=True)
        killer.join()
        assert killed
        assert cache.master.status()["pid"] != killed[0]

        wait_until_shown(mountpoint, found)
        kill_master(cache)
        steady = random.Random(2).sample(sorted(found), min(READ, len(found)))
        check_bytes(mountpoint, found, touched[:READ] + steady)
        assert listed(mountpoint) == shown(found)
