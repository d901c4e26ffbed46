"""What readers waited for, and a sentence that says why one of them was slow. Pure.

A *reader* is a process that reads for training: a rank, a DataLoader worker of it, in an epoch. It waits for one of
VIEW (it had the block mapped: no wait at all), FILE (a block file of its node), WORKER (its node's worker), NODE (a
worker elsewhere) and SOURCE (the under file system, whichever worker asked it).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

from raycache.errors import NotFound

VIEW, FILE, WORKER, NODE, SOURCE = "view", "file", "worker", "node", "source"
READERS_KEPT = 2048
"""Readers, in an epoch each, that a table holds: a few hundred bytes each."""
STANDS_OUT, STANDS_OUT_S = 1.5, 1.0
"""How many times as long as the median rank one waits, and how much longer, to be called slow."""


class ReaderName(NamedTuple):
    """Who reads. What is not known is None."""

    job: str
    rank: int | None = None
    worker: int | None = None
    """Of the DataLoader of the rank."""
    epoch: int | None = None


class Wait(NamedTuple):
    """What one thing was waited for."""

    dataset: str
    kind: str
    where: str
    """Id of the worker, for NODE."""
    reads: int
    """Ranges of blocks."""
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ReaderWaits:
    """All that a reader waited for, so far."""

    reader: ReaderName
    process: str
    """Tells processes apart that have the same name."""
    since: float
    until: float
    """Between these moments, in seconds since 1970."""
    waits: tuple[Wait, ...]

    @property
    def seconds(self) -> float:
        """For all of it."""
        return sum(wait.seconds for wait in self.waits)


class WaitTable:
    """The newest that readers told, by reader; those that told nothing for longest go first. Threading: not safe."""

    def __init__(self, kept: int = READERS_KEPT) -> None:
        self._kept = kept
        self._told: OrderedDict[tuple[ReaderName, str], ReaderWaits] = OrderedDict()

    def note(self, told: Iterable[ReaderWaits]) -> None:
        """A reader tells the whole of what it waited for; it replaces what it told before."""
        for each in told:
            key = each.reader, each.process
            self._told[key] = each
            self._told.move_to_end(key)
        while len(self._told) > self._kept:
            self._told.popitem(last=False)

    def all(self) -> list[ReaderWaits]:
        """Of every reader."""
        return list(self._told.values())


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job waited."""

    job: str
    epoch: int | None
    sentence: str
    readers: tuple[ReaderWaits, ...]
    """Of that job and epoch."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        readers = [
            {
                **each.reader._asdict(),
                "process": each.process,
                "elapsed_s": round(each.until - each.since, 3),
                "waited_s": round(each.seconds, 3),
                "waits": [{**wait._asdict(), "seconds": round(wait.seconds, 3)} for wait in each.waits],
            }
            for each in self.readers
        ]
        return {**asdict(self), "readers": readers}


def explain(told: Sequence[ReaderWaits], name: str | None = None, epoch: int | None = None) -> Explanation:
    """Why a rank was slow, or that none was. ``name``: of a job, or of a dataset, of which the job that read it last is
    meant; the last job of all if left out. ``epoch``: the newest if left out. Raises NotFound.
    """
    known = [each for each in told if name is None or each.reader.job == name or name in _datasets(each)]
    if not known:
        jobs = ", ".join(sorted({each.reader.job for each in told})) or "none"
        raise NotFound(f"no reader of {name or 'a job'} has told what it waited for; jobs that did: {jobs}")
    job = max(known, key=lambda each: each.until).reader.job
    known = [each for each in known if each.reader.job == job]
    epochs = {each.reader.epoch for each in known if each.reader.epoch is not None}
    if epoch is None:
        epoch = max(epochs, default=None)
    elif epoch not in epochs:
        raise NotFound(f"job {job} told of no epoch {epoch}; it did of {sorted(epochs) or 'none'}")
    readers = [each for each in known if each.reader.epoch == epoch]
    return Explanation(job, epoch, _sentence(readers, epoch), tuple(readers))


def _datasets(each: ReaderWaits) -> set[str]:
    return {wait.dataset for wait in each.waits}


def _sentence(readers: Sequence[ReaderWaits], epoch: int | None) -> str:
    """Ranks are compared by their slowest worker: a loader hands batches out in order and waits for that one."""
    slowest: dict[int | str, ReaderWaits] = {}
    for each in readers:
        key = each.process if each.reader.rank is None else each.reader.rank
        if key not in slowest or each.seconds > slowest[key].seconds:
            slowest[key] = each
    worst = max(slowest.values(), key=lambda each: each.seconds)
    others = [each.seconds for each in slowest.values() if each is not worst]
    unranked = "The slowest reader" if others else "The reader"
    who = unranked if worst.reader.rank is None else f"Rank {worst.reader.rank}"
    who += "" if worst.reader.worker is None else f" (worker {worst.reader.worker})"
    when = "" if epoch is None else f" in epoch {epoch}"
    waited = f"{who} waited {worst.seconds:.1f} s of {worst.until - worst.since:.1f} s{when}"
    usual = median(others) if others else 0.0
    if not others:
        pass
    elif worst.seconds >= STANDS_OUT * usual and worst.seconds - usual >= STANDS_OUT_S:
        times = f"{worst.seconds / usual:.1f} times as long as" if usual >= STANDS_OUT_S / 10 else "much longer than"
        waited += f", {times} the median of the others ({usual:.1f} s)"
    else:
        waited = f"None stands out: they waited {min(others):.1f} s to {worst.seconds:.1f} s{when}. {waited}"
    return f"{waited}: {_causes(worst)}."


def _causes(told: ReaderWaits) -> str:
    reads, size_bytes = sum(wait.reads for wait in told.waits), sum(wait.size_bytes for wait in told.waits)
    asked: dict[str, list[Wait]] = {}
    for wait in told.waits:
        if wait.kind != VIEW:
            asked.setdefault(_what(wait), []).append(wait)
    longest = sorted(asked.items(), key=lambda item: -sum(wait.seconds for wait in item[1]))
    parts = [
        f"{sum(wait.seconds for wait in waits):.1f} s for {what} "
        f"({sum(wait.size_bytes for wait in waits) / max(1, size_bytes):.0%} of its bytes)"
        for what, waits in longest[:3]
    ]
    mapped = sum(wait.reads for wait in told.waits if wait.kind == VIEW)
    parts.append(f"{mapped:,} of its {reads:,} reads were of memory that it had mapped")
    return "; ".join([*parts, *_advice(longest[0][1][0])] if longest else parts)


def _what(wait: Wait) -> str:
    if wait.kind == SOURCE:
        return f"the source of {wait.dataset}"
    return {FILE: "the disks of its node", WORKER: "its node's worker"}.get(wait.kind, f"worker {wait.where[:8]}")


def _advice(wait: Wait) -> list[str]:
    if wait.kind == SOURCE:
        return [f"to spare that, `raycache load {wait.dataset}` before, and look at `raycache status` for room"]
    if wait.kind == NODE:
        return ["to spare that, have each reader read what its node owns, or give the dataset replicas"]
    return ["more memory (mem) would spare that"] if wait.kind == FILE else []
