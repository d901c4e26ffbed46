"""What the Python API does to a dataset, beside what the system does to a local directory: see ``twin_trees``.

The machine that drives mounts drives ``FileSystem`` here, over a whole cache in one process; with what only the API
has: files that are made with the directories above them, copies, trees that are moved and removed, many files at once.
RAYCACHE_API_SEQUENCES and RAYCACHE_API_SEED: how many sequences, and of which seed.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test
from twin_trees import LocalTree, TwinTrees, names, offsets, outcome, paths, sizes, some_bytes

from raycache.client.filesystem import FileSystem
from raycache.core.inode import Verb
from raycache.testing.inprocess import InProcessCache

SEQUENCES = int(os.environ.get("RAYCACHE_API_SEQUENCES", "900"))
SEED = int(os.environ.get("RAYCACHE_API_SEED", "0")) or random.SystemRandom().randrange(2**32)
PER_CACHE = 50
"""Examples after which there is a new cache: what was removed is remembered for a while."""

BEGIN = {"a": some_bytes(10_000, 1), "b/a": b"few", "b/c/a": b""}
"""What each example begins with."""

edit_modes = st.sampled_from(["wb", "xb", "ab", "r+b", "w+b", "a+b", "x+b"])


class Local(LocalTree):
    """What the API promises, in terms of system calls."""

    def mkdir(self, path: str, mode: int) -> None:
        super().mkdir(path, mode)
        os.chmod(self.at(path), os.stat(self.at(path)).st_mode | mode & 0o777)  # no process's umask counts

    def make_above(self, path: str) -> None:
        """As object stores have it, files need no directories."""
        above = path.split("/")[:-1]
        for depth in range(1, len(above) + 1):
            each = self.at("/".join(above[:depth]))
            if os.path.isdir(each):
                continue
            if os.path.exists(each):
                raise NotADirectoryError(errno.ENOTDIR, each)
            os.makedirs(self.at("/".join(above)))
            return

    def write_whole(self, path: str, data: bytes) -> int:
        self.make_above(path)
        return super().write_whole(path, data)

    def edit(self, path: str, mode: str, at: int, data: bytes, size: int | None, keep: bool) -> None:
        if not keep:  # nothing is seen of it
            if mode.startswith(("a", "r")) and os.path.isdir(self.at(path)):
                raise IsADirectoryError(errno.EISDIR, path)
            if mode.startswith(("a", "x")):
                must_have_no_file_above(self.at(path))
            if mode.startswith("x") and os.path.exists(self.at(path)):
                raise FileExistsError(errno.EEXIST, path)
            if mode.startswith("r"):
                os.stat(self.at(path))
            return
        if "r" not in mode:
            self.make_above(path)
        with open(self.at(path), mode) as file:
            file.seek(at)
            file.write(data)
            if size is not None:
                file.truncate(size)

    def read_range(self, path: str, at: int, size: int) -> bytes:
        with open(self.at(path), "rb") as file:
            file.seek(at)
            return file.read(size)

    def read_to_edit(self, path: str, at: int, data: bytes) -> bytes:
        with open(self.at(path), "r+b") as file:
            file.seek(at)
            file.write(data)
            file.seek(0)
            return file.read()

    def copy(self, path: str, to: str, replace: bool) -> None:
        with open(self.at(path), "rb") as file:
            data, mode = file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if path == to:
            return
        self.make_above(to)
        is_new = not os.path.exists(self.at(to))
        with open(self.at(to), "wb" if replace else "xb") as file:
            file.write(data)
        if is_new:
            os.chmod(self.at(to), mode)

    def touch(self, path: str, exist_ok: bool) -> None:
        self.make_above(path)
        if not exist_ok or not os.path.isdir(self.at(path)):
            with open(self.at(path), "ab" if exist_ok else "xb"):
                pass

    def remove_tree(self, path: str) -> int:
        if not os.path.isdir(self.at(path)):
            os.unlink(self.at(path))
            return 1
        count = 1 + sum(len(below) + len(files) for _, below, files in os.walk(self.at(path)))
        shutil.rmtree(self.at(path))
        return count

    def replace_tree(self, path: str, to: str) -> None:
        os.stat(self.at(path))
        if os.path.exists(self.at(to)):
            self.remove_tree(to)
        os.rename(self.at(path), self.at(to))

    def stat(self, path: str) -> tuple[bool, int]:
        info = os.stat(self.at(path))
        return stat.S_ISDIR(info.st_mode), 0 if stat.S_ISDIR(info.st_mode) else info.st_size

    def exists(self, path: str) -> bool:
        return os.path.exists(self.at(path))

    def write_many(self, files: dict[str, bytes]) -> int:
        failed: OSError | None = None
        for path, data in files.items():
            try:
                self.write_whole(path, data)
            except OSError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return len(files)

    def seen(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for directory, below, files in os.walk(self.root):
            for name in below + files:
                path = os.path.join(directory, name)
                info = os.lstat(path)
                data = Path(path).read_bytes() if stat.S_ISREG(info.st_mode) else None
                found[path.removeprefix(f"{self.root}/")] = (oct(info.st_mode), data)
        return found


def make_tree(root: Path) -> None:
    for path, data in BEGIN.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def is_listed(number: int) -> bool:
    """Whether what an example begins with is of the source, or else was written."""
    return number % 2 == 1


def must_have_no_file_above(path: str) -> None:
    """Whether there is something of this name does not matter."""
    with suppress(FileNotFoundError):
        os.stat(path)


class Api:
    """The same, of ``FileSystem``."""

    def __init__(self, files: FileSystem, cache: InProcessCache, path: str) -> None:
        self._files, self._cache, self._root = files, cache, path

    def at(self, path: str) -> str:
        return f"raycache://data/{self._root}/{path}"

    def listdir(self, path: str) -> list[str]:
        return self._files.listdir(self.at(path))

    def mkdir(self, path: str, mode: int) -> None:
        self._files.mkdir(self.at(path), mode=mode)

    def rmdir(self, path: str) -> None:
        self._files.rmdir(self.at(path))

    def unlink(self, path: str) -> None:
        self._files.remove(self.at(path))

    def rename(self, path: str, to: str, flags: int) -> None:
        self._files.rename(self.at(path), self.at(to), replace=not flags)

    def chmod(self, path: str, mode: int) -> None:
        self._files.chmod(self.at(path), mode)

    def write_whole(self, path: str, data: bytes) -> int:
        with self._files.open(self.at(path), "wb") as file:
            return file.write(data)

    def truncate(self, path: str, size: int) -> None:
        self._files.truncate(self.at(path), size)

    def utime(self, path: str, second: int) -> int:
        self._files.utime(self.at(path), mtime_ns=second * 10**9 + 2)
        return self._cache.master.tree.getattr(("data", f"{self._root}/{path}")).mtime_ns

    def edit(self, path: str, mode: str, at: int, data: bytes, size: int | None, keep: bool) -> None:
        with self._files.open(self.at(path), mode) as file:
            file.seek(at)
            file.write(data)
            if size is not None:
                file.truncate(size)
            if not keep:
                file.discard()

    def read_range(self, path: str, at: int, size: int) -> bytes:
        return bytes(self._files.read_range(self.at(path), at, size))

    def read_to_edit(self, path: str, at: int, data: bytes) -> bytes:
        with self._files.open(self.at(path), "r+b") as file:
            file.seek(at)
            file.write(data)
            file.seek(0)
            return bytes(file.read())

    def copy(self, path: str, to: str, replace: bool) -> None:
        self._files.copy(self.at(path), self.at(to), replace=replace)

    def touch(self, path: str, exist_ok: bool) -> None:
        self._files.touch(self.at(path), exist_ok=exist_ok)

    def remove_tree(self, path: str) -> int:
        return self._files.remove_tree(self.at(path))

    def replace_tree(self, path: str, to: str) -> None:
        self._files.replace_tree(self.at(path), self.at(to))

    def stat(self, path: str) -> tuple[bool, int]:
        found = self._files.stat(self.at(path))
        return found.is_dir, 0 if found.is_dir else found.size_bytes

    def exists(self, path: str) -> bool:
        return self._files.exists(self.at(path))

    def write_many(self, files: dict[str, bytes]) -> int:
        return self._files.write_many({self.at(path): data for path, data in files.items()})

    def seen(self, files: FileSystem | None = None) -> dict[str, Any]:
        """What a client shows: this one, or another."""
        files = files or self._files
        top = self.at("").rstrip("/")
        found: dict[str, Any] = {}
        regular: list[str] = []
        for base, below, inside in files.walk(top):
            found |= dict.fromkeys((f"{base}/{name}" for name in below), None)
            regular += [f"{base}/{name}" for name in inside]
        found |= zip(regular, map(bytes, files.read_many(regular)), strict=True)
        places = [("data", uri.removeprefix("raycache://data/")) for uri in found]
        known = self._cache.master.tree.apply([Verb("getattr", (place,)) for place in places])
        return {
            uri.removeprefix(f"{top}/"): (oct(attr.mode), data)
            for (uri, data), attr in zip(found.items(), known, strict=True)
        }


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {path: (one.get(path), other.get(path)) for path in one | other if one.get(path) != other.get(path)}


class ApiTwins(TwinTrees):
    """A local directory, and one of a dataset."""

    rename_flags = (0, 0, 1)
    base: Path
    cache: InProcessCache | None = None
    examples: Iterator[int]

    def __init__(self) -> None:
        super().__init__()
        number = next(type(self).examples)
        if number % PER_CACHE == 0:
            self.new_cache(number)
        cache = type(self).cache
        assert cache is not None
        name = f"example-{number}"
        self.local = Local(str(self.base / "local" / name))
        self.api = Api(cache.files, cache, name)
        make_tree(Path(self.local.root))
        if not is_listed(number):
            for path, data in BEGIN.items():
                self.api.write_whole(path, data)

    @classmethod
    def new_cache(cls, number: int) -> None:
        cls.end()
        where = cls.base / f"cache-{number}"
        for name in ("source", "segments"):
            (where / name).mkdir(parents=True)
        for each in filter(is_listed, range(number, number + PER_CACHE)):
            make_tree(where / "source" / f"example-{each}")
        cls.cache = InProcessCache(segments=where / "segments")
        cls.cache.files.attach(f"file://{where / 'source'}", "data", {})
        cls.cache.files.set_write_type("data", "cache")

    @classmethod
    def end(cls) -> None:
        if cls.cache is not None:
            cls.cache.close()
            cls.cache = None

    def both(self, call: Callable[[Any], Any]) -> None:
        local, api = (outcome(lambda tree=tree: call(tree)) for tree in (self.local, self.api))
        assert api == local, f"{api!r} by the API, {local!r} locally"
        shown, there = self.api.seen(), self.local.seen()
        assert shown == there, f"by the API, locally: {differences(shown, there)}"

    @rule(path=paths, mode=edit_modes, at=offsets, size=sizes, cut=st.one_of(st.none(), offsets), keep=st.booleans())
    def edit(self, path: str, mode: str, at: int, size: int, cut: int | None, keep: bool) -> None:
        self.both(lambda tree: tree.edit(path, mode, at, some_bytes(size, at + size), cut, keep))

    @rule(path=paths, at=offsets, size=sizes)
    def read_range(self, path: str, at: int, size: int) -> None:
        self.both(lambda tree: tree.read_range(path, at, size))

    @rule(path=paths, at=offsets, size=sizes)
    def read_to_edit(self, path: str, at: int, size: int) -> None:
        self.both(lambda tree: tree.read_to_edit(path, at, some_bytes(size, at + size)))

    @rule(path=paths, to=paths, replace=st.booleans())
    def copy(self, path: str, to: str, replace: bool) -> None:
        self.both(lambda tree: tree.copy(path, to, replace))

    @rule(path=paths, exist_ok=st.booleans())
    def touch(self, path: str, exist_ok: bool) -> None:
        self.both(lambda tree: tree.touch(path, exist_ok))

    @rule(path=paths)
    def remove_tree(self, path: str) -> None:
        self.both(lambda tree: tree.remove_tree(path))

    @rule(path=names, to=names)
    def replace_tree(self, path: str, to: str) -> None:
        if path != to:
            self.both(lambda tree: tree.replace_tree(path, to))

    @rule(path=paths)
    def stat(self, path: str) -> None:
        self.both(lambda tree: tree.stat(path))

    @rule(path=paths)
    def exists(self, path: str) -> None:
        self.both(lambda tree: tree.exists(path))

    @rule(files=st.dictionaries(paths, sizes, max_size=4))
    def write_many(self, files: dict[str, int]) -> None:
        self.both(lambda tree: tree.write_many({path: some_bytes(size, size) for path, size in files.items()}))

    @rule()
    def time_passes(self) -> None:
        """Until this client shows what was published, and has forgotten what it did itself."""
        assert self.cache is not None
        self.cache.namespace.settle()
        self.both(lambda tree: tree.exists("a"))

    def teardown(self) -> None:
        assert self.cache is not None
        self.cache.namespace.settle()
        _, another = self.cache.another()
        shown, there = self.api.seen(another), self.local.seen()
        assert shown == there, f"to another client, locally: {differences(shown, there)}"
        self.cache.files.remove_tree(self.api.at("").rstrip("/"))
        shutil.rmtree(self.local.root)


@pytest.mark.timeout(120 + 3 * SEQUENCES)
def test_the_api_and_a_local_directory_do_not_differ() -> None:
    print(f"seed {SEED}")  # noqa: T201
    with tempfile.TemporaryDirectory() as base:
        (Path(base) / "local").mkdir()
        ApiTwins.base, ApiTwins.examples = Path(base), itertools.count()
        machine: Any = seed(SEED)(ApiTwins)
        try:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=SEQUENCES,
                    stateful_step_count=40,
                    deadline=None,
                    database=None,
                    print_blob=True,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            ApiTwins.end()
