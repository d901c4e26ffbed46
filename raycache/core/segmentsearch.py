"""Ranges of segments, from whoever has them: workers that wrote them, then those that the master knows to have them.

Not responsible for: calls (``Holders`` makes them), and what the caller has at hand itself.
Bounds: one call to each worker and round; rounds end at a deadline. Threading: a search belongs to its caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from raycache.core.scheduling import Scheduler
from raycache.core.segment import SegmentRange, likely_homes
from raycache.core.values import Buffer, Failed, Worker
from raycache.errors import Changed, Unavailable, WorkerLost

_PAUSE_S = 0.2


class Holders(Protocol):
    """Calls to master and workers. All raise WorkerLost, and Unavailable where the master is away."""

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        """Who there is to ask. ``refresh``: as the master knows it now."""
        ...

    def places(self, segments: Sequence[str]) -> Sequence[Sequence[str]]:
        """Of each segment the workers that the master knows to have it."""
        ...

    def read(self, worker_id: str, ranges: Sequence[SegmentRange], timeout_s: float) -> Sequence[Buffer | Failed]:
        """Bytes that a worker has; a Failed with NotFound for what it has not."""
        ...


def find_ranges(
    holders: Holders, wanted: Mapping[int, SegmentRange], timeout_s: float, scheduler: Scheduler
) -> dict[int, Buffer | Failed]:
    """Bytes of all that is wanted, by the same numbers; a Failed with Changed where no file needs the segment any more,
    with Unavailable where nobody who has it answered in time."""
    found: dict[int, Buffer | Failed] = {}
    missing = wanted
    search = _Search(holders)
    deadline = scheduler.monotonic() + timeout_s
    while missing:
        calls = search.plan(missing)
        for worker_id, some in calls.items():
            found.update(search.ask(worker_id, some, deadline - scheduler.monotonic()))
        if not calls:
            if scheduler.monotonic() + _PAUSE_S >= deadline:
                late = (f"segment {each.segment} cannot be read: {search.error}" for each in missing.values())
                return found | {at: Failed(Unavailable(text)) for at, text in zip(missing, late, strict=True)}
            if search.knows_places:  # who has them may be starting anew
                scheduler.sleep(_PAUSE_S)
            found.update(search.look_up(missing))
        missing = {at: each for at, each in missing.items() if at not in found}
    return found


class _Search:
    """Whom to ask for segments: the workers that wrote them, then those that the master knows to have them."""

    def __init__(self, holders: Holders) -> None:
        self.error: Exception = Unavailable("no worker has it")
        """Why the last one that was asked did not answer with bytes."""
        self._holders = holders
        self._places: dict[str, Sequence[str]] = {}
        self._asked: set[tuple[str, str]] = set()

    @property
    def knows_places(self) -> bool:
        """Whether the master was asked."""
        return bool(self._places)

    def plan(self, missing: Mapping[int, SegmentRange]) -> dict[str, dict[int, SegmentRange]]:
        """The next calls, by worker: each range of one that lives and was not asked for that segment yet."""
        alive = [worker.worker_id for worker in self._holders.workers()]
        calls: dict[str, dict[int, SegmentRange]] = {}
        for at, each in missing.items():
            places = self._places.get(each.segment) or likely_homes(each.segment, alive)
            for worker_id in [one for one in places if one in alive and (each.segment, one) not in self._asked][:1]:
                calls.setdefault(worker_id, {})[at] = each
        return calls

    def ask(self, worker_id: str, some: Mapping[int, SegmentRange], timeout_s: float) -> dict[int, Buffer]:
        """Make a call; what came of it."""
        self._asked.update((each.segment, worker_id) for each in some.values())
        try:
            answers = self._holders.read(worker_id, list(some.values()), timeout_s)
        except WorkerLost as lost:
            self.error = lost
            return {}
        found: dict[int, Buffer] = {}
        for at, answer in zip(some, answers, strict=True):
            if isinstance(answer, Failed):
                self.error = answer.error
            else:
                found[at] = answer
        return found

    def look_up(self, missing: Mapping[int, SegmentRange]) -> dict[int, Failed]:
        """Begin anew, with what the master knows; those that it knows not to be there any more."""
        names = list(dict.fromkeys(each.segment for each in missing.values()))
        self._asked.clear()
        try:
            if self._places:
                self._holders.workers(refresh=True)
            self._places = dict(zip(names, self._holders.places(names), strict=True))
        except Unavailable as error:
            self.error = error
            return {}
        return {
            at: Failed(Changed(f"segment {each.segment} is not needed by any file now: the file was replaced"))
            for at, each in missing.items()
            if not self._places[each.segment]
        }
