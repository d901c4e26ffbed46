"""Many listings side by side, as one stream of batches: what ``list_tree`` of every adapter is made of.

A *branch* is a part of a tree that is listed by one thread. It yields batches and may ask for further branches. There
are never more than ``threads`` under way, and never more than ``HELD`` batches that nobody has taken yet: whoever
reads slowly slows the listing down, not the machine.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycache.core import paths
from raycache.core.listing import LISTING_SCHEMA
from raycache.errors import NotADirectory, NotFound, SourceUnavailable

THREADS = 8
"""Branches of one tree that are listed at once, unless the caller says otherwise."""
HELD = 8
"""Batches that wait for the reader."""
SILENCE_S = 900.0
"""No branch may go without a word for so long: a directory of ten million files comes as one batch."""

AddBranch = Callable[["Branch"], None]


class Branch(Protocol):
    """Lists one part of a tree; ``add`` starts another part beside it."""

    def __call__(self, add: AddBranch) -> Iterator[Any]: ...


@dataclass
class _Flow:
    """What the threads and the reader share, under one condition."""

    branches: deque[Branch]
    unfinished: int
    """Branches that wait or are under way."""
    ready: deque[Any] = field(default_factory=deque)
    failure: BaseException | None = None
    closed: bool = False
    """The reader has gone."""
    turn: threading.Condition = field(default_factory=threading.Condition)

    def work(self) -> None:
        """Take branches until there are none left, or somebody failed."""
        while True:
            with self.turn:
                self.turn.wait_for(lambda: self._over() or self.branches, SILENCE_S)
                if self._over() or not self.branches:
                    return
                branch = self.branches.popleft()
            try:
                for batch in branch(self.add):
                    if not self._hand_over(batch):
                        return
            except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the reader's thread
                with self.turn:
                    self.failure = self.failure or error
                    self.turn.notify_all()
                return
            with self.turn:
                self.unfinished -= 1
                self.turn.notify_all()

    def add(self, branch: Branch) -> None:
        """One more branch."""
        with self.turn:
            self.branches.append(branch)
            self.unfinished += 1
            self.turn.notify_all()

    def take(self) -> Any | None:
        """The next batch, or None at the end. Raises what a branch raised."""
        with self.turn:
            spoke = self.turn.wait_for(lambda: self.ready or self._over(), SILENCE_S)
            if self.failure is not None:
                raise self.failure
            if not spoke:
                raise SourceUnavailable(f"a listing brought nothing for {SILENCE_S:g} s; list it again later")
            batch = self.ready.popleft() if self.ready else None
            self.turn.notify_all()
            return batch

    def close(self) -> None:
        """Let the threads end."""
        with self.turn:
            self.closed = True
            self.turn.notify_all()

    def _hand_over(self, batch: Any) -> bool:
        with self.turn:
            room = self.turn.wait_for(lambda: len(self.ready) < HELD or self._over(), SILENCE_S)
            if self._over():
                return False
            if not room:
                raise SourceUnavailable(f"nobody took what was listed for {SILENCE_S:g} s")
            self.ready.append(batch)
            self.turn.notify_all()
            return True

    def _over(self) -> bool:
        return self.closed or self.failure is not None or self.unfinished == 0


def in_parallel(first: Branch, threads: int) -> Generator[Any, None, None]:
    """Batches of a branch and of all that it asks for, in the order in which they come.

    Raises what the first branch that fails raises: who reads to the end has everything. Closing the iterator ends the
    threads as soon as what they are asking the source for has come.
    """
    flow = _Flow(deque([first]), 1)
    for number in range(threads):
        threading.Thread(target=flow.work, name=f"raycache-list-{number}", daemon=True).start()
    try:
        while (batch := flow.take()) is not None:
            yield batch
    finally:
        flow.close()


def walk_tree(
    list_directory: Callable[[str], Any],
    path: str,
    threads: int = THREADS,
    is_loop: Callable[[str], bool] = lambda _: False,
) -> Generator[Any, None, None]:
    """A whole tree from listings of one level, breadth first: see ``UnderFileSystem.list_tree``.

    ``is_loop``: whether a directory leads back to one above it; such a directory is not entered. A directory that is
    deleted while its tree is listed is left out; when the first one is missing, NotFound is raised.
    """
    return in_parallel(directory_branch(list_directory, path, "", is_loop), threads)


def directory_branch(
    list_directory: Callable[[str], Any], path: str, below: str, is_loop: Callable[[str], bool] = lambda _: False
) -> Branch:
    """The branch of the directory ``below`` the one whose tree is listed, ``path``, and of each directory in it."""

    def branch(add: AddBranch) -> Iterator[Any]:
        if is_loop(paths.join(path, below)):
            return
        try:
            batch = list_directory(paths.join(path, below))
        except (NotFound, NotADirectory):
            if below:
                return  # deleted since its parent was listed
            raise
        if batch.num_rows:
            yield with_prefix(batch, below)
        for name in batch.column("name").filter(batch.column("is_dir")).to_pylist():
            if paths.is_shown(name):
                deeper = paths.join(below, name.decode("utf-8", "surrogateescape"))
                add(directory_branch(list_directory, path, deeper, is_loop))

    return branch


def with_prefix(batch: Any, below: str) -> Any:
    """A listing of one level with names that begin with the path ``below``."""
    if not below:
        return batch
    prefix = pa.scalar(below.encode("utf-8", "surrogateescape") + b"/", pa.binary())
    names = pc.binary_join_element_wise(prefix, batch.column("name"), pa.scalar(b"", pa.binary()))
    return pa.RecordBatch.from_arrays([names, *batch.columns[1:]], schema=LISTING_SCHEMA)


def empty_files(batch: Any) -> Any:
    """Which rows are files without a byte: a boolean column."""
    sizes = batch.column("size_bytes").to_numpy(zero_copy_only=False)
    return pa.array((sizes == 0) & ~np.asarray(batch.column("is_dir").to_numpy(zero_copy_only=False)))
