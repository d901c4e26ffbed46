"""What is left of an epoch, as a value that is kept beside a model's and resumed from. Pure.

A state is that of one reader, as each can say it by itself, or of all of them: made from the states of each, or by
arithmetic where all ranks are in step. That of all can be gone on with by any number of readers; see ``shuffle``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from raycache.core.shuffle import Readers, Span, length, united
from raycache.errors import InvalidInput

FORMAT = "raycache-epoch-1"


@dataclass(frozen=True, slots=True)
class Stream:
    """What an order is made of. Positions mean the same file in every epoch order of equal streams."""

    seed: int
    window: int
    files: int
    """How many there are."""
    change: int
    """The change number that they were selected at."""
    owners: tuple[tuple[str, int], ...] = ()
    """Workers, by id and capacity, whose packs come one after the other; see ``shuffle`` of groups."""


@dataclass(frozen=True, slots=True)
class EpochState:
    """What is left of an epoch of a stream."""

    stream: Stream
    epoch: int
    left: tuple[Span, ...]
    reader: int | None = None
    """Whose share it is, None for that of all readers."""
    readers: int | None = None
    """How many there are."""

    @staticmethod
    def beginning(stream: Stream, epoch: int) -> EpochState:
        """All of an epoch."""
        return EpochState(stream, epoch, tuple(united([(0, stream.files)])))

    def of_all(self) -> tuple[Span, ...]:
        """What all readers together have left. Raises InvalidInput where this is the state of one of several."""
        if self.reader is not None and self.readers != 1:
            raise InvalidInput(
                f"this is the state of reader {self.reader} of {self.readers} alone; merge the states of all of them, "
                "to go on with other readers"
            )
        return self.left

    def share(self, readers: Readers, number: int, *, even: bool) -> EpochState:
        """The state of one of ``readers``. Raises as ``of_all`` does, unless it is its own already."""
        if (self.reader, self.readers) == (number, readers.count):
            return self
        left = tuple(readers.shares(self.of_all(), even=even)[number])
        return replace(self, left=left, reader=number, readers=readers.count)

    def after(self, readers: Readers, batches: int, batch_files: int, *, even: bool) -> EpochState:
        """The state of all when every rank has taken so many mini-batches; see ``Readers.after``."""
        left = tuple(readers.after(self.of_all(), batches, batch_files, even=even))
        return EpochState(self.stream, self.epoch, left)

    def of_rank(self, readers: Readers, rank: int, *, even: bool) -> int:
        """How many samples a rank has left."""
        if self.reader is not None and self.readers != 1:
            return length(self.left)  # of one of its workers, which is all that is known
        shares = readers.shares(self.left, even=even)
        return sum(length(share) for share in shares[rank * readers.workers :][: readers.workers])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, for JSON, pickle and ``torch.save``."""
        left, owners = [list(span) for span in self.left], [list(owner) for owner in self.stream.owners]
        return {"format": FORMAT, **asdict(self.stream), "owners": owners, "epoch": self.epoch, "left": left,
                "reader": self.reader, "readers": self.readers}  # fmt: skip

    @staticmethod
    def from_dict(state: Mapping[str, Any]) -> EpochState:
        """What ``to_dict`` gave. Raises InvalidInput for anything else."""
        if not _is_state(state):
            raise InvalidInput("this is no state of a stream; merge_states finds it in what a loader returned")
        owners = tuple((str(name), int(capacity)) for name, capacity in state.get("owners", ()))
        seed, window, files, change = (int(state[name]) for name in ("seed", "window", "files", "change"))
        stream = Stream(seed, window, files, change, owners)
        left = tuple((int(start), int(stop)) for start, stop in state["left"])
        return EpochState(stream, int(state["epoch"]), left, state["reader"], state["readers"])


def merge_states(states: Iterable[Any]) -> dict[str, Any]:
    """The state of all readers, from what each of them said, whatever that is nested in.

    Raises InvalidInput where they are of different epochs or streams, or one is missing.
    """
    found = [EpochState.from_dict(state) for each in states for state in _states_in(each)]
    if not found:
        raise InvalidInput("there is no state of a stream in what was given")
    first = found[0]
    for state in found:
        if (state.stream, state.epoch, state.readers) != (first.stream, first.epoch, first.readers):
            raise InvalidInput("these states are not of one epoch of one stream with the same readers")
    missing = sorted(set(range(first.readers or 0)) - {state.reader for state in found})
    if missing:
        raise InvalidInput(f"states of readers {missing} of {first.readers} are missing; give those of all ranks")
    by_reader = {state.reader: state.left for state in found}
    left = tuple(united([span for spans in by_reader.values() for span in spans]))
    return EpochState(first.stream, first.epoch, left).to_dict()


def _states_in(value: Any) -> Iterator[Mapping[str, Any]]:
    if _is_state(value):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _states_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _states_in(each)


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("format") == FORMAT
