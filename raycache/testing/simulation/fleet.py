"""The master of a simulation, and how workers reach each other: as actors.fleet and actors.peers, without Ray.

A round starts the workers that are missing, asks all of them how they are, steps the membership, and spreads a new
view: workers first, clients when it is settled. The view outlives the master, as it does in Ray's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raycache.core.membership import Membership, Report, View
from raycache.core.membership import Node as Seen
from raycache.core.values import Buffer, Failed, Fetch, Worker
from raycache.errors import WorkerLost
from raycache.store.peers import About
from raycache.store.tiers import Kept
from raycache.testing.simulation.machinery import Process
from raycache.testing.simulation.network import Reply, first

if TYPE_CHECKING:
    from raycache.testing.simulation.cluster import Cluster, RunningWorker

ROUND_S = 2.0
REPORT_S = 0.2
SPREAD_S = 1.0


class SimulatedPeers:
    """The PeerCalls of one worker."""

    def __init__(self, cluster: Cluster, process: Process, host: str) -> None:
        self._cluster = cluster
        self._process = process
        self._host = host

    def offer(self, to: Worker, giver: str, block_ids: Sequence[bytes], timeout_s: float) -> list[bool]:
        """See PeerCalls."""
        found: list[bool] = self._call(to, lambda worker: worker.opened().offered(giver, block_ids), "offer", timeout_s)
        return found

    def hand_over(self, giver: Worker, block_id: bytes, timeout_s: float) -> Buffer | None:
        """See PeerCalls."""

        def lend(worker: RunningWorker) -> Buffer | None:
            found = worker.store_when_open().lend(block_id)
            return found.view if isinstance(found, Kept) else found

        block: Buffer | None = self._call(giver, lend, "lend", timeout_s)
        return block

    def take(self, taker: Worker, giver: str, block: About, timeout_s: float) -> bool:
        """See PeerCalls."""
        return bool(
            self._call(taker, lambda worker: worker.store_when_open().take(giver, block, timeout_s), "take", timeout_s)
        )

    def read(self, owner: Worker, request: Fetch, timeout_s: float) -> Buffer | None:
        """See PeerCalls."""

        def read(worker: RunningWorker) -> Any:
            return worker.opened().read_for(request, timeout_s)

        answer = self._call(owner, read, "read for another", timeout_s)
        if isinstance(answer, Failed):
            raise answer.error
        return None if answer is None else memoryview(answer)

    def _call(self, to: Worker, run: Callable[[RunningWorker], Any], what: str, timeout_s: float) -> Any:
        node = self._cluster.nodes.get(to.node_id)
        worker = node.worker if node is not None else None
        if worker is None:
            raise WorkerLost(f"{to.node_id} is gone")
        return self._cluster.network.call(
            (self._host, self._process), (to.node_id, worker.process), lambda: run(worker), what, timeout_s + 1
        )


class Fleet:
    """See the module. ``lead`` it in each life of the master."""

    def __init__(self, cluster: Cluster, replicas: Mapping[str, int]) -> None:
        self._cluster = cluster
        self._replicas = replicas
        self.membership = Membership(View())
        self.leaving: dict[str, None] = {}
        """Nodes that are to be drained."""
        self._settled = 0

    def lead(self, process: Process) -> None:
        """Do rounds for ever."""
        self._process = process
        self._lock = process.lock()
        self._turn = process.condition(self._lock)
        self._busy = False
        self._begun = self._finished = 0
        process.spawn(self._run, "rounds")

    def view(self) -> View:
        """Who is there, after a round that began now or later."""
        wanted = self._begun + 1
        while self._finished < wanted:
            self._round()
        return self.membership.view

    def _run(self) -> None:
        while True:
            self._round()
            self._process.sleep(ROUND_S)

    def _round(self) -> None:
        with self._lock:
            while self._busy:
                self._turn.wait()
            self._busy = True
            self._begun += 1
            number = self._begun
        self._step()
        with self._lock:
            self._busy, self._finished = False, number
            self._turn.notify_all()

    def _step(self) -> None:
        cluster = self._cluster
        for node in list(cluster.nodes.values()):
            cluster.start_worker(node)
        up = [node.name for node in cluster.nodes.values() if node.up]
        reports = self._configure(up, REPORT_S if self.membership.view.workers else SPREAD_S)
        seen = [Seen(name, name in self.leaving, reports.get(name)) for name in up]
        for name in self.membership.drained(seen):
            cluster.simulation.note(f"{name} is drained")
            self.leaving.pop(name, None)
            if name in cluster.nodes:
                cluster.leave(cluster.nodes[name])
        seen = [node for node in seen if node.node_id in cluster.nodes]
        view = self.membership.step(seen, self._replicas, self._process.monotonic())
        if view.number > self._settled:
            names = [worker.node_id for worker in view.workers]
            self._configure(names, SPREAD_S)
            self._settled = view.number
            self._begin(names)

    def _configure(self, names: Sequence[str], timeout_s: float) -> dict[str, Report]:
        calls, reports = self._begin(names), {}
        deadline = self._process.monotonic() + timeout_s
        for name, call in calls.items():
            if first(self._process, [call], deadline - self._process.monotonic()) is not None:
                try:
                    reports[name] = call.answers()
                except WorkerLost:
                    continue
        return reports

    def _begin(self, names: Sequence[str]) -> dict[str, Reply]:
        view, settled, calls = self.membership.view, self._settled, {}
        ids = {worker.node_id: worker.worker_id for worker in view.workers}
        for name in names:
            node = self._cluster.nodes.get(name)
            worker = node.worker if node is not None else None
            if worker is None:
                continue

            def configure(worker: RunningWorker = worker, me: str | None = ids.get(name)) -> Report:
                return worker.opened().adopt(view, me, settled)

            calls[name] = self._cluster.network.begin(
                ("master", self._process), (name, worker.process), configure, "configure"
            )
        return calls
