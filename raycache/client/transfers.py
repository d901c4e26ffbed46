"""Files and whole trees, to the cache, from it and within it.

Small files travel many at a time: a thousand in one step to the cache, a batch from it; a copy within a dataset moves
no bytes. In the cache each file is seen whole or not at all; a tree that could not be copied to its end is there as far
as it got.

Threading: none of its own.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from raycache.client.drafts import BUFFER_BYTES
from raycache.client.filesystem import FileSystem
from raycache.core.values import Stat
from raycache.errors import (
    AccessDenied,
    InvalidInput,
    IsADirectory,
    NoSpace,
    NotADirectory,
    NotFound,
    RaycacheError,
    Unavailable,
)

SMALL_BYTES = 2**20
"""Files up to this size travel with others."""
BATCH_FILES, BATCH_BYTES = 256, 32 * 2**20
"""Most of them that come from the cache in one step."""
_LOCAL_ERRORS: dict[int | None, type[RaycacheError]] = {
    errno.ENOENT: NotFound,
    errno.EISDIR: IsADirectory,
    errno.ENOTDIR: NotADirectory,
    errno.EEXIST: NotADirectory,  # as it is only ever directories that are made
    errno.EACCES: AccessDenied,
    errno.EPERM: AccessDenied,
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: NoSpace,
}


@dataclass
class Moved:
    """What a transfer has done so far."""

    files: int = 0
    size_bytes: int = 0
    left_out: int = 0
    """Links to directories, pipes and the like."""

    def add(self, size_bytes: int) -> None:
        """One file more."""
        self.files += 1
        self.size_bytes += size_bytes


def upload(files: FileSystem, local: Path, uri: str, write_type: str = "", sync: bool = False) -> Moved:
    """Copy a local file, or a directory with all below it, to a URI; links to files are followed.

    Raises what opening and closing files of the cache raises; NotFound and AccessDenied for local files as well.
    """
    moved = Moved()
    files.write_many(_sent(files, local, uri, write_type, sync, moved), write_type=write_type, sync=sync)
    return moved


def _sent(
    files: FileSystem, local: Path, uri: str, write_type: str, sync: bool, moved: Moved
) -> Iterator[tuple[str, bytes]]:
    """The small files of a tree; large ones are written as they are met."""
    for path, to in _below(files, local, uri, moved):
        with _local(path):
            size_bytes = path.stat().st_size
            if size_bytes <= SMALL_BYTES:
                data = path.read_bytes()
                moved.add(len(data))
                yield to, data
                continue
            with path.open("rb") as source, files.open(to, "wb", write_type=write_type, sync=sync) as target:
                shutil.copyfileobj(source, target, BUFFER_BYTES)
                moved.add(source.tell())


def _below(files: FileSystem, local: Path, uri: str, moved: Moved) -> Iterator[tuple[Path, str]]:
    with _local(local):
        if not local.is_dir():
            local.stat()
            yield local, uri
            return
        todo = [(local, uri)]
        while todo:
            directory, to = todo.pop()
            files.mkdir(to, parents=True, exist_ok=True)
            for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    todo.append((Path(entry.path), f"{to}/{entry.name}"))
                elif entry.is_file():
                    yield Path(entry.path), f"{to}/{entry.name}"
                else:
                    moved.left_out += 1


def download(files: FileSystem, uri: str, local: Path) -> Moved:
    """Copy a file, or a directory with all below it, to a local path. Raises as ``upload`` does."""
    moved = Moved()
    if not files.stat(uri).is_dir:
        _fetch_large(files, uri, local, moved)
        return moved
    for base, _, _ in files.walk(uri):
        directory = local.joinpath(*base[len(uri.rstrip("/")) :].split("/"))
        with _local(directory):
            directory.mkdir(parents=True, exist_ok=True)
        entries = [entry for entry in files.scandir(base) if not entry.is_dir]
        for batch in _batches(entries):
            _fetch(files, base, batch, directory, moved)
    return moved


def _batches(entries: Iterable[Stat]) -> Iterator[list[Stat]]:
    """Small files together; each large one alone."""
    batch: list[Stat] = []
    size_bytes = 0
    for entry in entries:
        if entry.size_bytes > SMALL_BYTES:
            yield [entry]
            continue
        batch.append(entry)
        size_bytes += entry.size_bytes
        if len(batch) == BATCH_FILES or size_bytes >= BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _fetch(files: FileSystem, base: str, batch: list[Stat], directory: Path, moved: Moved) -> None:
    names = [entry.path.rpartition("/")[2] for entry in batch]
    if batch[0].size_bytes > SMALL_BYTES:
        _fetch_large(files, f"{base}/{names[0]}", directory / names[0], moved)
        return
    for name, data in zip(names, files.read_many([f"{base}/{name}" for name in names]), strict=True):
        with _local(directory / name):
            (directory / name).write_bytes(data)
        moved.add(len(data))


def _fetch_large(files: FileSystem, uri: str, path: Path, moved: Moved) -> None:
    with files.open(uri) as source, _local(path), path.open("wb") as target:
        shutil.copyfileobj(source, target, BUFFER_BYTES)
        moved.add(target.tell())


def copy_tree(files: FileSystem, uri: str, to: str, write_type: str = "") -> Moved:
    """Copy a file, or a directory with all below it, to another URI; within a dataset no bytes are moved.

    Raises what FileSystem.copy raises, and InvalidInput for a directory that is to be copied into itself.
    """
    moved = Moved()
    if not files.stat(uri).is_dir:
        files.copy(uri, to, write_type=write_type)
        moved.add(files.stat(to).size_bytes)
        return moved
    base = uri.rstrip("/")
    (about, source), (other, target) = files.locate(base), files.locate(to)
    is_same = about.name == other.name
    if is_same and f"{target}/".startswith(f"{source}/" if source else ""):
        raise InvalidInput(f"{to} is in {uri}, which cannot be copied into itself")
    for directory, _, _ in files.walk(base):
        below = f"{to.rstrip('/')}{directory[len(base) :]}"
        files.mkdir(below, parents=True, exist_ok=True)
        entries = [entry for entry in files.scandir(directory) if not entry.is_dir]
        pairs = [
            (f"{directory}/{name}", f"{below}/{name}") for name in (each.path.rpartition("/")[2] for each in entries)
        ]
        if is_same:
            files.copy_many(pairs, write_type=write_type)
        else:
            for one, another in pairs:
                files.copy(one, another, write_type=write_type)
        for entry in entries:
            moved.add(entry.size_bytes)
    return moved


@contextmanager
def _local(path: Path) -> Iterator[None]:
    """Say which local file it was that something is wrong with."""
    try:
        yield
    except RaycacheError:
        raise
    except OSError as error:
        kind = _LOCAL_ERRORS.get(error.errno, Unavailable)
        raise kind(f"{error.filename or path}: {error.strerror or error}") from error
