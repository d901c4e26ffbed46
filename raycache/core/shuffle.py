"""The order of an epoch, who reads what of it, and what is left of it. Pure.

Files are numbered, and lie in *packs*: consecutive numbers, one pack per block, a file that is cut over several blocks
in its first. An epoch is one sequence of all files, made of ``(seed, epoch)``:

* The packs are permuted, uniformly.
* ``window`` packs that follow each other then are a *window*. The files of a window are permuted, uniformly.

A *position* is a place in that sequence. Who reads what is said in *spans* of positions, half open and disjoint: at
first the whole epoch, cut into equal shares for all readers. What is left of an epoch is spans too, and can be cut anew
for any other number of readers: the sequence itself knows nothing of them. A state has a few spans per reader.

How well this shuffles. Any pack may come anywhere in the epoch, and every epoch has another order. But files of one
pack come within one window of each other, ``window`` packs' worth of files, and a mini-batch of one reader has files of
at most ``window`` packs (two windows' at their border). Where the files of a pack are alike, as in listings with a
directory per class or per recording, that is less variety than a uniform shuffle has: with one class per pack, a
mini-batch of 256 from a window of 16 packs holds at most 16 classes. Each reader has a window of its own, so that a
global batch of 8 readers holds 8 times as many. A window of all packs is a uniform shuffle. (The same trade is made by
DIESEL, ICPP 2020, as chunk-wise shuffle, and by shuffle buffers over shards.)

Packs may be sorted into *groups*, one for each node that readers are on: the sequence then has the packs of one node
after those of another, and readers whose ranks are in the same order of nodes have shares that lie on their own nodes,
but for what those have more or less of.

Permutations are made of the raw numbers of a generator (PCG64), which NumPy keeps the same from version to version, and
a stable sort; two equal numbers of 64 bits, which would favour the lower one, do not happen in practice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raycache.errors import InvalidInput

Span = tuple[int, int]
"""Positions from the first up to, and without, the second."""
WINDOW_PACKS = 16


class EpochOrder:
    """The sequence of one epoch. Holds arrays of one number per pack, and the files of the last window asked for.

    Threading: not safe; each reader has its own.
    """

    def __init__(
        self,
        pack_files: NDArray[np.integer],
        seed: int = 0,
        epoch: int = 0,
        window: int = WINDOW_PACKS,
        groups: NDArray[np.integer] | None = None,
    ) -> None:
        """``pack_files``: how many files each pack has. ``groups``: a number of each pack; those with the lowest come
        first, and no window has packs of two groups. Raises InvalidInput for a number below 0, a window below 1."""
        if seed < 0 or epoch < 0 or window < 1:
            raise InvalidInput(f"seed={seed}, epoch={epoch} must not be negative, window={window} at least 1")
        sizes = np.asarray(pack_files, np.int64)
        first = np.cumsum(sizes) - sizes
        filled = np.flatnonzero(sizes)
        packs = filled[permutation(len(filled), (seed, epoch))]
        starts = np.zeros(min(1, len(packs)), np.intp)
        if groups is not None:
            packs = packs[np.argsort(groups[packs], kind="stable")]
            starts = np.flatnonzero(np.diff(groups[packs], prepend=-1))
        self.packs = packs
        """Packs that files begin in, in the order of the epoch."""
        self._first = first[self.packs]
        self._sizes = sizes[self.packs]
        stops = [*starts[1:].tolist(), len(packs)]
        windows = [np.arange(start, stop, window) for start, stop in zip(starts.tolist(), stops, strict=False)]
        self._windows_at = np.concatenate([*windows, [len(packs)]]).astype(np.intp)
        """Where in ``packs`` each window begins, and the last one ends."""
        self._bounds = np.concatenate([[0], np.cumsum(self._sizes)])[self._windows_at]
        self._seed, self._epoch = seed, epoch
        self._held: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def files(self, span: Span) -> NDArray[np.int64]:
        """Numbers of the files at these positions, in order."""
        start, stop = span
        parts = [
            self._files_of(number)[max(0, start - first) : stop - first] for number, first in self._windows(start, stop)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def packs_of(self, span: Span) -> NDArray[np.int64]:
        """Packs of the windows that these positions touch, in the order of the epoch."""
        touched = [number for number, _ in self._windows(*span)]
        if not touched:
            return np.zeros(0, np.int64)
        return self.packs[self._windows_at[touched[0]] : self._windows_at[touched[-1] + 1]]

    def window_end(self, position: int) -> int:
        """The position at which the window of this one ends."""
        return int(self._bounds[np.searchsorted(self._bounds, position, side="right")])

    def _windows(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Windows that positions touch, and where each begins."""
        if start >= stop:
            return
        first = int(np.searchsorted(self._bounds, start, side="right")) - 1
        last = int(np.searchsorted(self._bounds, stop, side="left"))
        for number in range(first, last):
            yield number, int(self._bounds[number])

    def _files_of(self, number: int) -> NDArray[np.int64]:
        if self._held is None or self._held[0] != number:
            packs = slice(*self._windows_at[number : number + 2])
            sizes = self._sizes[packs]
            shift = self._first[packs] - (np.cumsum(sizes) - sizes)
            files = np.repeat(shift, sizes) + np.arange(sizes.sum())
            order = permutation(len(files), (self._seed, self._epoch, number + 1))
            self._held = (number, files[order])
        return self._held[1]


def permutation(count: int, words: Sequence[int]) -> NDArray[np.intp]:
    """A uniform one, made of some numbers."""
    return np.argsort(np.random.PCG64(words).random_raw(count), kind="stable")


def first_uses(
    pack_files: NDArray[np.integer], files: NDArray[np.integer]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The packs that a sequence of files has, each once, in the order in which it has them, and where each first.

    ``pack_files``: as EpochOrder has it.
    """
    pack_of = np.repeat(np.arange(len(pack_files)), pack_files)
    first = np.full(len(pack_files), len(files))
    first[pack_of[files[::-1]]] = np.arange(len(files))[::-1]  # of several, the last that is assigned stays
    packs = np.argsort(first, kind="stable")[: np.count_nonzero(first < len(files))]
    return packs, first[packs]


# ---- spans


def length(spans: Sequence[Span]) -> int:
    """Positions in spans."""
    return sum(stop - start for start, stop in spans)


def united(spans: Sequence[Span]) -> list[Span]:
    """The same positions in as few spans as can be, ascending."""
    found: list[Span] = []
    for start, stop in sorted(spans):
        if start >= stop:
            continue
        if found and found[-1][1] >= start:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return found


def cut(spans: Sequence[Span], start: int, stop: int) -> list[Span]:
    """The positions of spans from the ``start``-th to the ``stop``-th, without that one."""
    found: list[Span] = []
    for first, last in spans:
        size = last - first
        if max(0, start) < min(size, stop):
            found.append((first + max(0, start), first + min(size, stop)))
        start, stop = start - size, stop - size
    return found


@dataclass(frozen=True, slots=True)
class Readers:
    """Who reads an epoch: ``workers`` processes in each of ``ranks``. Reader ``rank * workers + worker`` has the share
    of that number, so that what one rank reads lies together."""

    ranks: int = 1
    workers: int = 1

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.workers < 1:
            raise InvalidInput(f"{self.ranks} ranks with {self.workers} workers each cannot read anything")

    @property
    def count(self) -> int:
        """All of them."""
        return self.ranks * self.workers

    def shares(self, spans: Sequence[Span], *, even: bool = False) -> list[list[Span]]:
        """What each reader reads of spans. Shares differ by one position at most, and so do those of whole ranks; in a
        rank, no worker has more than the one before.

        ``even``: all ranks have the same shares; the last positions, fewer than there are ranks, are read by none.
        """
        size, left = divmod(length(spans), self.count)
        if even:
            left -= left % self.ranks
        found: list[list[Span]] = []
        start = 0
        for number in range(self.count):
            rank, worker = divmod(number, self.workers)
            stop = start + size + (worker * self.ranks + rank < left)
            found.append(cut(spans, start, stop))
            start = stop
        return found

    def after(self, spans: Sequence[Span], batches: int, batch_files: int, *, even: bool = False) -> list[Span]:
        """What is left when every rank has taken ``batches`` mini-batches of ``batch_files``, its workers in turn, as
        PyTorch's DataLoader takes them. ``even`` as in ``shares``."""
        found: list[Span] = []
        for number, mine in enumerate(self.shares(spans, even=even)):
            turns = max(0, -(-(batches - number % self.workers) // self.workers))
            found += cut(mine, turns * batch_files, length(mine))
        return united(found)
