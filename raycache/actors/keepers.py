"""All workers, seen as one thing that keeps blocks: ``client.protocols.KeepingPool`` over Ray."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray

from raycache.actors.names import METHOD_TIMEOUT_S
from raycache.actors.transport import get, is_in_job
from raycache.client.keeping import sum_freed
from raycache.client.waiting import WaitLog, job_name, keep_telling
from raycache.core.scheduling import THREADS
from raycache.core.values import Freed, Worker
from raycache.core.waits import ReaderWaits
from raycache.errors import Unavailable, WorkerLost


class RemoteKeepers:
    """See the module."""

    def __init__(self, workers: Callable[[bool], Sequence[Worker]], handle: Callable[[str], Any]) -> None:
        """``workers``: as KeepingPool's. ``handle``: the actor of a worker; raises ValueError when it is gone."""
        self._workers = workers
        self._handle = handle
        self._job_id = ray.get_runtime_context().get_job_id()

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        """See KeepingPool."""
        return self._workers(refresh)

    def load(self, calls: Mapping[str, Sequence[bytes]]) -> Mapping[str, Sequence[str] | WorkerLost]:
        """See KeepingPool."""
        return {
            worker_id: answer if isinstance(answer, WorkerLost) else list(answer)
            for worker_id, answer in self._ask_each("load", {name: (list(plans),) for name, plans in calls.items()})
        }

    def free(self, dataset: str, path: str, blocks: Collection[bytes] | None) -> Freed:
        """See KeepingPool."""
        asked = {worker.worker_id: (dataset, path, blocks) for worker in self._workers(True)}
        return sum_freed([answer for _, answer in self._ask_each("free", asked)])

    def keep_log(self) -> WaitLog:
        """What this process waits for when it reads, told to the worker of its node now and then."""
        log = WaitLog(job_name(self._job_id), self._tell)
        keep_telling(log, THREADS)
        return log

    def _tell(self, told: Sequence[ReaderWaits]) -> None:
        if is_in_job(self._job_id) and (workers := self._workers(False)):
            nearest = next((worker for worker in workers if worker.local), workers[0])
            with suppress(ValueError, ray.exceptions.RayError):  # gone, and what it was told with it
                self._handle(nearest.worker_id).note_waits.remote(list(told))

    def waits(self) -> list[ReaderWaits]:
        """What readers have told the workers that answer."""
        answers = self._ask_each("waits", {worker.worker_id: () for worker in self._workers(True)})
        return [each for _, answer in answers if not isinstance(answer, WorkerLost) for each in answer]

    def _ask_each(self, method: str, calls: Mapping[str, tuple[Any, ...]]) -> list[tuple[str, Any]]:
        """One call to each worker, side by side; its answer or WorkerLost."""
        under_way: list[tuple[str, Any]] = []
        for worker_id, args in calls.items():
            try:
                under_way.append((worker_id, getattr(self._handle(worker_id), method).remote(*args)))
            except (ValueError, ray.exceptions.RayError) as error:
                under_way.append((worker_id, WorkerLost(f"worker {worker_id[:8]} is gone: {error}")))
        answers: list[tuple[str, Any]] = []
        for worker_id, ref in under_way:
            try:
                gone = isinstance(ref, WorkerLost)
                answers.append((worker_id, ref if gone else get(ref, METHOD_TIMEOUT_S, f"worker {worker_id[:8]}")))
            except Unavailable as lost:
                answers.append((worker_id, WorkerLost(str(lost))))
        return answers
