"""Segments over Ray: ``client.segments.SegmentCalls``."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray

from raycache.actors.names import METHOD_TIMEOUT_S
from raycache.actors.transport import get
from raycache.core.inode import Extent
from raycache.core.segment import Home, SegmentRange, SourceRange
from raycache.core.values import Buffer, Failed, Worker
from raycache.errors import WorkerLost

WireBytes = pickle.PickleBuffer | Failed


class RemoteSegments:
    """See client.segments.SegmentCalls."""

    def __init__(
        self,
        workers: Callable[[bool], Sequence[Worker]],
        handle: Callable[[str], Any],
        places: Callable[[Sequence[str]], Sequence[Sequence[str]]],
        moved: Callable[[str, Sequence[Extent]], Sequence[Sequence[Extent]]],
    ) -> None:
        """``workers``: who is there, asked anew for True. ``handle``: the actor of one, raises ValueError. ``places``,
        ``moved``: see TreeApi.segment_places and moved_segments."""
        self._workers = workers
        self._handle = handle
        self._places = places
        self._moved = moved

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        """See SegmentCalls."""
        return self._workers(refresh)

    def homes(self) -> Sequence[Home]:
        """See SegmentCalls."""
        workers = [worker for worker in self._workers(False) if not worker.draining]
        here = [worker for worker in workers if worker.local]
        elsewhere = [worker for worker in workers if not worker.local]
        found = self._homes_of(here)
        if not any(home.directory for home in found):
            found += self._homes_of(elsewhere)
        if not any(home.directory for home in found):
            self._workers(True)  # what is known of them may be old
        if not found:
            raise WorkerLost("no worker lives; try again")
        return found

    def _homes_of(self, workers: Sequence[Worker]) -> list[Home]:
        homes: list[Home] = []
        for worker in workers:
            with suppress(WorkerLost):
                homes.append(self._call(worker.worker_id, "segment_home", METHOD_TIMEOUT_S))
        return homes

    def places(self, segments: Sequence[str]) -> Sequence[Sequence[str]]:
        """See SegmentCalls."""
        return self._places(segments)

    def moved(self, dataset: str, extents: Sequence[Extent]) -> Sequence[Sequence[Extent]]:
        """See SegmentCalls."""
        return self._moved(dataset, extents)

    def read(self, worker_id: str, ranges: Sequence[SegmentRange], timeout_s: float) -> Sequence[Buffer | Failed]:
        """See SegmentCalls."""
        return received(self._call(worker_id, "read_segments", timeout_s, list(ranges)))

    def read_source(self, worker_id: str, ranges: Sequence[SourceRange], timeout_s: float) -> Sequence[Buffer | Failed]:
        """See SegmentCalls."""
        return received(self._call(worker_id, "read_source", timeout_s, list(ranges)))

    def make(self, worker_id: str) -> str:
        """See SegmentCalls."""
        return self._call(worker_id, "make_segment", METHOD_TIMEOUT_S)  # type: ignore[no-any-return]

    def resume(self, worker_id: str, segment: str) -> int:
        """See SegmentCalls."""
        return self._call(worker_id, "resume_segment", METHOD_TIMEOUT_S, segment)  # type: ignore[no-any-return]

    def write(self, worker_id: str, segment: str, offset: int, data: Buffer) -> None:
        """See SegmentCalls."""
        self._call(worker_id, "write_segment", METHOD_TIMEOUT_S, segment, offset, pickle.PickleBuffer(data))

    def sync(self, worker_id: str, segment: str) -> None:
        """See SegmentCalls."""
        self._call(worker_id, "sync_segment", METHOD_TIMEOUT_S, segment)

    def hold(self, worker_id: str, segments: Sequence[str]) -> None:
        """See SegmentCalls."""
        self._call(worker_id, "hold_segments", METHOD_TIMEOUT_S, list(segments))

    def release(self, worker_id: str, segment: str, discard: bool) -> None:
        """See SegmentCalls."""
        self._call(worker_id, "release_segment", METHOD_TIMEOUT_S, segment, discard)

    def _call(self, worker_id: str, method: str, timeout_s: float, *args: Any) -> Any:
        what = f"worker {worker_id[:8]}"
        try:
            ref = getattr(self._handle(worker_id), method).remote(*args)
        except (ValueError, ray.exceptions.RayError) as error:
            raise WorkerLost(f"{what} is gone: {error}") from error
        return get(ref, max(0.1, timeout_s), what)


def to_wire(answers: Sequence[Buffer | Failed]) -> list[WireBytes]:
    """Bytes as they cross without a copy."""
    return [answer if isinstance(answer, Failed) else pickle.PickleBuffer(answer) for answer in answers]


def received(answers: Sequence[Any]) -> list[Buffer | Failed]:
    """What ``to_wire`` sent."""
    return [answer if isinstance(answer, Failed) else memoryview(answer).cast("B") for answer in answers]
