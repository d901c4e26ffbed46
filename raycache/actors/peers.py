"""How one worker reaches another: ``store.peers.PeerCalls`` over Ray, and segments of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from raycache.actors.names import worker_name
from raycache.actors.segments import received
from raycache.actors.transport import get, get_views
from raycache.core.segment import SegmentRange
from raycache.core.values import Buffer, Failed, Fetch, Worker
from raycache.errors import WorkerLost
from raycache.store.peers import About, Peers


class RemotePeers:
    """See PeerCalls."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._handles: dict[str, tuple[str, Any]] = {}
        """By node, with the incarnation of its worker."""

    def offer(self, to: Worker, giver: str, block_ids: Sequence[bytes], timeout_s: float) -> list[bool]:
        """See PeerCalls."""
        return self._call(to, "offer", timeout_s, giver, list(block_ids))  # type: ignore[no-any-return]

    def hand_over(self, giver: Worker, block_id: bytes, timeout_s: float) -> Buffer | None:
        """See PeerCalls. A block in the other node's plasma is pulled by Ray; what is mapped here goes when it is let
        go of."""
        answer = self._call(giver, "lend", timeout_s, block_id)
        if answer is None:
            return None
        if isinstance(answer, tuple):
            return get_views(answer[0], timeout_s, _name(giver))[0]
        return memoryview(answer).cast("B")

    def take(self, taker: Worker, giver: str, block: About, timeout_s: float) -> bool:
        """See PeerCalls."""
        return self._call(taker, "take", timeout_s, giver, block, timeout_s)  # type: ignore[no-any-return]

    def read(self, owner: Worker, request: Fetch, timeout_s: float) -> Buffer | None:
        """See PeerCalls."""
        answer = self._call(owner, "read_for", timeout_s, request, timeout_s)
        if isinstance(answer, Failed):
            raise answer.error
        return None if answer is None else memoryview(answer).cast("B")

    def read_segments(
        self, holder: Worker, ranges: Sequence[SegmentRange], timeout_s: float
    ) -> Sequence[Buffer | Failed]:
        """Ranges of segments that another worker has. Raises WorkerLost."""
        return received(self._call(holder, "read_segments", timeout_s, list(ranges)))

    def _call(self, worker: Worker, method: str, timeout_s: float, *args: Any) -> Any:
        try:
            ref = getattr(self._handle(worker), method).remote(*args)
        except (ValueError, ray.exceptions.RayError) as error:
            raise WorkerLost(f"{_name(worker)} is gone: {error}") from error
        # The callee gives up at its own deadline and says why.
        return get(ref, timeout_s + 1, _name(worker))

    def _handle(self, worker: Worker) -> Any:
        incarnation, handle = self._handles.get(worker.node_id, ("", None))
        if handle is None or incarnation != worker.incarnation:
            handle = ray.get_actor(worker_name(worker.node_id), namespace=self._namespace)
            self._handles[worker.node_id] = worker.incarnation, handle
        return handle


def _name(worker: Worker) -> str:
    return f"worker {worker.worker_id[:8]}"


class PeerSegments:
    """Segments of other workers: ``core.segmentsearch.Holders`` for a worker."""

    def __init__(self, peers: Peers, calls: RemotePeers, places: Callable[[Sequence[str]], list[list[str]]]) -> None:
        """``places``: what the master knows, see TreeApi.segment_places."""
        self._peers = peers
        self._calls = calls
        self._places = places

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        """See Holders. The master tells every worker of a later view."""
        return self._peers.view.workers

    def places(self, segments: Sequence[str]) -> Sequence[Sequence[str]]:
        """See Holders."""
        return self._places(segments)

    def read(self, worker_id: str, ranges: Sequence[SegmentRange], timeout_s: float) -> Sequence[Buffer | Failed]:
        """See Holders."""
        worker = self._peers.view.find(worker_id)
        if worker is None:
            raise WorkerLost(f"worker {worker_id[:8]} is gone")
        return self._calls.read_segments(worker, ranges, timeout_s)
