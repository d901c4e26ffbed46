"""Files of the cache as PyTorch datasets: ``FileDataset`` by index, ``StreamDataset`` as a stream of epochs.

    DataLoader(FileDataset("s3://bucket/train", decode), batch_size=64, shuffle=True, num_workers=4)

A sample is ``transform(buffer, path)``: ``buffer`` has the whole file, read-only, without a copy where this node holds
it, and is valid for as long as it is kept; ``path`` is below the directory that was asked for. Without a transform it
is the file's bytes, copied, as a tensor of ``uint8``. Nothing is decoded here.

Both pin what they show: the files as they were listed when the dataset was made, or as of ``change``. Both pickle as a
few hundred bytes. How DataLoader workers get at bytes is ``routes``' business; ``forkserver`` and ``spawn`` are the
fastest, ``fork`` works through a mount.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from raycache.core.resume import EpochState, Stream, merge_states
from raycache.core.shuffle import WINDOW_PACKS, EpochOrder, Readers, Span, first_uses, length, permutation
from raycache.core.values import Worker
from raycache.data.routes import Files
from raycache.errors import InvalidInput

__all__ = ["EpochSampler", "FileDataset", "StreamDataset", "merge_states", "to_tensor"]

Transform = Callable[[memoryview, str], Any]
READ_FILES = 64
READ_BYTES = 64 * 2**20
"""What a stream reads in one call at most, but for a single larger file: little enough to begin soon."""


def to_tensor(buffer: memoryview, path: str) -> Any:
    """The bytes of a file as a tensor of ``uint8``; a copy."""
    return torch.frombuffer(bytearray(buffer), dtype=torch.uint8) if len(buffer) else torch.empty(0, dtype=torch.uint8)


class FileDataset(Dataset):  # type: ignore[misc]
    """Files below a directory, by number: ordered by directory, then by row of its listing."""

    def __init__(
        self,
        uri: str,
        transform: Transform | None = None,
        *,
        pattern: str = "**",
        options: Mapping[str, Any] | None = None,
        change: int | None = None,
    ) -> None:
        """``uri``: a directory of a source, or of a dataset (``raycache://name/path``). ``pattern``: which files, as in
        ``raycache.glob``, relative to it. ``options``: storage options of a source that is no dataset yet. ``change``:
        show files as of this change number (``raycache.snapshot``); now if left out.

        Raises InvalidInput, NotFound, NotADirectory, and what listing a source raises.
        """
        self.transform = transform or to_tensor
        self._files = Files.select(uri, pattern, options, change)

    @property
    def change(self) -> int:
        """The change number that files are shown as of."""
        return self._files.wanted.change

    def paths(self, numbers: Sequence[int] | None = None) -> list[str]:
        """Path of each of these files, of all if left out, below the directory."""
        return self._files.paths(np.arange(len(self)) if numbers is None else np.asarray(numbers, np.int64))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> Any:
        """One sample. Raises IndexError, and what ``Reader.read`` raises."""
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Any]:
        """Samples of a mini-batch: one call per owner for all that is not mapped here."""
        wanted = np.asarray(numbers, np.int64)
        if len(wanted) and not -len(self) <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"files are numbered 0 to {len(self) - 1}")
        wanted %= max(1, len(self))
        self._files.reads_as(_rank_of_process()[0], _worker_of_process()[1])
        return _samples(self._files, wanted, self.transform)


class EpochSampler(Sampler[int]):  # type: ignore[misc]
    """Numbers of a FileDataset's files, for a DataLoader's ``sampler``: each once per epoch, in a uniformly random
    order that is made of ``(seed, epoch)``, split over ranks. Holds an array of numbers; PyTorch's own samplers make a
    Python list, which takes five times as much memory.

    The order is known, so that the cache can be told of it. ``ahead``: how many packs are filled before the first of
    their files is wanted, exactly those, in the order in which they will be; 0, as it is by default, tells nothing.
    What is filled already, or does not fit, is left as it is. (Dryden et al., "Clairvoyant prefetching for distributed
    machine learning I/O", SC 2021, from which the idea is.)
    """

    def __init__(
        self,
        files: FileDataset,
        *,
        seed: int = 0,
        even: bool = False,
        rank: int | None = None,
        ranks: int | None = None,
        ahead: int = 0,
    ) -> None:
        """``even``, ``rank``, ``ranks``: as StreamDataset has them. Raises InvalidInput."""
        if (rank is None) != (ranks is None):
            raise InvalidInput("give both rank and ranks, or neither")
        if seed < 0 or ahead < 0:
            raise InvalidInput(f"seed={seed}, ahead={ahead} must not be negative")
        self._files = files._files
        self._seed, self._even, self._ahead = seed, even, ahead
        self._given = None if rank is None or ranks is None else (rank, ranks)
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return length(self._share())

    def __iter__(self) -> Iterator[int]:
        order = permutation(len(self._files), (self._seed, self._epoch))
        numbers = np.concatenate([order[start:stop] for start, stop in self._share()] or [order[:0]])
        packs, first = first_uses(self._files.packs.files, numbers if self._ahead else numbers[:0])
        told = 0
        for start in range(0, len(numbers), READ_FILES):
            stop = min(start + READ_FILES, len(numbers))
            tell = min(int(np.searchsorted(first, stop)) + self._ahead, len(packs))
            if told < tell:
                self._files.expect(packs[told:tell].tolist())
                told = tell
            yield from numbers[start:stop].tolist()

    def _share(self) -> list[Span]:
        rank, ranks = _checked_rank(self._given)
        return Readers(ranks).shares([(0, len(self._files))], even=self._even)[rank]


class StreamDataset(IterableDataset):  # type: ignore[misc]
    """All files once per epoch, in an order of ``core.shuffle``, split over ranks and DataLoader workers.

    Packs that come next are filled ahead. Call ``set_epoch`` before each epoch; it reaches workers that persist. The
    rank is that of ``torch.distributed`` if it is initialised when the epoch begins, else of the variables RANK and
    WORLD_SIZE, else 0 of 1, unless given.

    Resuming: a state says what is left of an epoch. Three ways to one:

    * ``state_dict()``, as torchdata's StatefulDataLoader asks for it in each worker, and a loop without workers may. It
      is the state of one reader, to be loaded into that reader.
    * ``merge_states(states of all ranks)``: the state of all, from those, however they are nested.
    * ``state_after(batches, ...)``: the same by arithmetic, where all ranks have taken as many mini-batches.

    A state of all may be loaded with any number of ranks and workers; each file that is left then comes exactly once.
    """

    def __init__(
        self,
        uri: str,
        transform: Transform | None = None,
        *,
        pattern: str = "**",
        seed: int = 0,
        window: int = WINDOW_PACKS,
        even: bool = False,
        rank: int | None = None,
        ranks: int | None = None,
        near: bool | Sequence[str] = False,
        options: Mapping[str, Any] | None = None,
        change: int | None = None,
    ) -> None:
        """``seed``, ``window``: see ``core.shuffle``. ``even``: all ranks get equally many samples, as training in step
        (DDP) needs; fewer than there are ranks are left out of an epoch. Else ranks differ by one at most.

        ``near``: each rank reads what its node keeps, as far as shares of equal length allow; a pack is then read by
        ranks of the same node in every epoch, which is less of a shuffle. True asks all ranks where they are, over
        ``torch.distributed``: all of them make the dataset, after it is initialised. Else the Ray node of each rank.
        The other arguments are FileDataset's, and so are the errors.
        """
        if (rank is None) != (ranks is None):
            raise InvalidInput("give both rank and ranks, or neither")
        self.transform = transform or to_tensor
        self._files = Files.select(uri, pattern, options, change)
        self._seed, self._window, self._even = seed, window, even
        self._given = None if rank is None or ranks is None else (rank, ranks)
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._owners = self._find_owners(near)
        self._loaded: EpochState | None = None
        self._reading: EpochState | None = None
        self._order()  # refuses what is no order

    @property
    def change(self) -> int:
        """The change number that files are shown as of."""
        return self._files.wanted.change

    @property
    def epoch(self) -> int:
        """The epoch that is read, or begins next."""
        return int(self._epoch[0])

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next epoch. A state that was loaded stays in force for its own epoch alone."""
        if epoch < 0:
            raise InvalidInput(f"epoch {epoch}: epochs are numbered from 0")
        self._epoch[0] = epoch

    def __len__(self) -> int:
        """Samples of this rank: in the epoch, or in what is left of it where the state of all was loaded."""
        rank, ranks = self._rank()
        return self._state().of_rank(Readers(ranks), rank, even=self._even)

    def __iter__(self) -> Iterator[Any]:
        """This reader's samples. Raises what ``Reader.read`` raises, and InvalidInput for a state of another reader."""
        self._reading = self._mine()
        self._files.reads_as(self._rank()[0], _worker_of_process()[1], self.epoch)
        return self._read(self._order(), list(self._reading.left))

    def state_dict(self) -> dict[str, Any]:
        """What this reader has left of the epoch; plain numbers and lists."""
        under_way = self._reading is not None and self._reading.epoch == self.epoch
        return (self._reading if self._reading is not None and under_way else self._mine()).to_dict()

    def state_after(self, batches: int, batch_files: int, workers: int = 0) -> dict[str, Any]:
        """What all ranks have left when each has taken ``batches`` mini-batches of ``batch_files``, through a
        DataLoader with so many ``workers``, since this epoch, or what was loaded of it, began."""
        readers = Readers(self._rank()[1], max(1, workers))
        return self._state().after(readers, batches, batch_files, even=self._even).to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, with files as of the change that it was taken at.

        Raises InvalidInput for the state of another stream (seed, window, files), and what listing a source raises.
        """
        loaded = EpochState.from_dict(state)
        if loaded.stream.change != self.change:
            self._files = self._files.as_of(loaded.stream.change)
        if replace(loaded.stream, owners=self._owners) != self._stream():
            raise InvalidInput(f"the state is of {loaded.stream}, and this is {self._stream()}")
        self.set_epoch(loaded.epoch)
        self._loaded, self._reading = loaded, None

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned knows nothing of torch.distributed: what this process knows goes with the dataset.
        return {**self.__dict__, "_given": self._rank()}

    def _stream(self) -> Stream:
        return Stream(self._seed, self._window, len(self._files), self.change, self._owners)

    def _order(self) -> EpochOrder:
        groups = self._files.owned(self._state().stream.owners)
        return EpochOrder(self._files.packs.files, self._seed, self.epoch, self._window, groups)

    def _find_owners(self, near: bool | Sequence[str]) -> tuple[tuple[str, int], ...]:
        """Workers of the nodes that ranks are on, by rank. Raises InvalidInput."""
        if near is False:
            return ()
        ranks = self._rank()[1]
        node, workers = self._files.near()
        nodes = [node] if near is True else list(near)
        if near is True and ranks > 1:
            nodes, workers = _told_by_ranks(ranks, node, workers)
        if len(nodes) != ranks:
            raise InvalidInput(f"near names the nodes of {len(nodes)} ranks, and there are {ranks}")
        by_node = {worker.node_id: (worker.worker_id, worker.capacity_bytes) for worker in workers}
        return tuple(by_node[each] for each in dict.fromkeys(nodes) if each in by_node)

    def _rank(self) -> tuple[int, int]:
        return _checked_rank(self._given)

    def _state(self) -> EpochState:
        """What is left of the epoch when it begins here."""
        if self._loaded is not None and self._loaded.epoch == self.epoch:
            return self._loaded
        return EpochState.beginning(self._stream(), self.epoch)

    def _mine(self) -> EpochState:
        """The share of this process in it."""
        rank, ranks = self._rank()
        workers, number = _worker_of_process()
        reader = rank * workers + (number or 0)
        return self._state().share(Readers(ranks, workers), reader, even=self._even)

    def _read(self, order: EpochOrder, left: list[Span]) -> Iterator[Any]:
        """Samples at positions; what is left then is known before each of them is handed out."""
        assert self._reading is not None
        window_end = -1
        while left:
            start, stop = left.pop(0)
            while start < stop:
                if order.window_end(start) != window_end:
                    window_end = order.window_end(start)
                    # This window's packs, and the next one's.
                    self._files.expect(order.packs_of((start, min(stop, window_end + 1))).tolist())
                numbers = self._at_once(order.files((start, min(stop, start + READ_FILES, window_end))))
                for sample in _samples(self._files, numbers, self.transform):
                    start += 1
                    self._reading = replace(self._reading, left=((start, stop), *left)[start == stop :])
                    yield sample
        self._files.tell_waits()

    def _at_once(self, numbers: Any) -> Any:
        """As many of these files as fit into one read, at least one."""
        ends = np.cumsum(self._files.selection.sizes(numbers))
        return numbers[: max(1, int(np.searchsorted(ends, READ_BYTES, side="right")))]


def _samples(files: Files, numbers: Any, transform: Transform) -> list[Any]:
    return [transform(buffer, path) for buffer, path in zip(files.read(numbers), files.paths(numbers), strict=True)]


def _told_by_ranks(ranks: int, node: str, workers: list[Worker]) -> tuple[list[str], list[Worker]]:
    """The node of each rank, and the workers as rank 0 knows them."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() == ranks):
        raise InvalidInput(f"near=True asks {ranks} ranks over torch.distributed: initialise it, or give their nodes")
    told: list[Any] = [None] * ranks
    distributed.all_gather_object(told, (node, workers))
    return [each[0] for each in told], told[0][1]


def _worker_of_process() -> tuple[int, int | None]:
    """How many DataLoader workers there are, and which of them this is; 1 and None where it is none."""
    worker = get_worker_info()
    return (1, None) if worker is None else (worker.num_workers, worker.id)


def _checked_rank(given: tuple[int, int] | None) -> tuple[int, int]:
    """Rank and number of ranks: as given, else of this process. Raises InvalidInput."""
    rank, ranks = given or _rank_of_process()
    if not 0 <= rank < ranks:
        raise InvalidInput(f"rank {rank} is none of {ranks}")
    return rank, ranks


def _rank_of_process() -> tuple[int, int]:
    """Rank and number of ranks, as ``torch.distributed`` or the launcher has them."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank, ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not rank.isdigit() or not ranks.isdigit():
        raise InvalidInput(f"RANK={rank} and WORLD_SIZE={ranks} must be numbers")
    return int(rank), int(ranks)
