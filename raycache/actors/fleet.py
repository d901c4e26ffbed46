"""One worker on each live node: what there is, compared in a loop with what there should be; and who knows of whom.

A round makes the workers that are missing, asks all of them how they are, steps the membership, and tells every worker
of a view that is new. When all of them know it, and have told each other what has moved, it is settled: clients follow.
"""

from __future__ import annotations

import json
import logging
import pickle
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray

from raycache.actors.names import METHOD_TIMEOUT_S, WORKER_GROUPS, worker_name, worker_options
from raycache.actors.plasma import Register
from raycache.actors.transport import draining_nodes, get
from raycache.actors.worker import WorkerActor
from raycache.config import Settings, parse_memory
from raycache.core.membership import Membership, Node, Report, View
from raycache.core.retention import Retention
from raycache.errors import InvalidInput, NotFound, Unavailable, WorkerLost

RECONCILE_S = 2.0
REPORT_S = 0.5
"""How long a round waits for the workers' reports."""
SPREAD_S = 10.0
"""How long a new view waits for workers that are slow to take it."""
START_S = 20.0
"""How long the first view of a cache waits for all of its workers, so that little has to move a second later."""
# Made once: each call of ray.remote would export the class to the cluster again.
_remote: Any = ray.remote  # its annotations know nothing of concurrency groups
_REMOTE_WORKER: Any = _remote(concurrency_groups=WORKER_GROUPS)(WorkerActor)
_log = logging.getLogger("raycache.master")


class Fleet:
    """See the module. Threading: safe; one round at a time."""

    def __init__(
        self,
        settings: Settings,
        retentions: Callable[[], Mapping[str, Retention]],
        written_bytes: Callable[[str], int],
    ) -> None:
        """``retentions``: what each dataset may keep, by name. ``written_bytes``: what files need of the segments of a
        worker, by its id."""
        self._settings = settings
        self._retentions = retentions
        self._written_bytes = written_bytes
        self._register = Register(settings.namespace)
        self._lock = threading.Lock()
        known = self._register.get("view")
        self._membership = Membership(pickle.loads(known) if known else View())
        self._saved = self._membership.view.number
        self._settled = self._saved
        self._leaving: set[str] = set(json.loads(self._register.get("leaving") or b"[]"))
        self._gone: set[str] = set(json.loads(self._register.get("gone") or b"[]"))
        self._began = 0
        self._finished = 0

    def run(self) -> None:
        """Reconcile for ever."""
        while True:
            try:
                self.reconcile()
            except Exception:  # noqa: BLE001 - the loop must outlive whatever Ray reports; the next round tries again
                _log.exception("cannot reconcile workers")
            time.sleep(RECONCILE_S)

    def view(self) -> View:
        """Who is there, after a round that began now or later."""
        wanted = self._began + 1
        with self._lock:
            if self._finished < wanted:
                self._round()
            return self._membership.view

    def reconcile(self) -> View:
        """Do one round."""
        with self._lock:
            self._round()
            return self._membership.view

    def capacity_bytes(self) -> int:
        """What all workers together may keep, in all their tiers."""
        return sum(worker.capacity_bytes for worker in self.view().workers)

    def drain(self, node: str, undo: bool = False) -> str:
        """Have a node's worker move what only it holds, and leave. ``undo``: have it back. Returns the node's id.

        ``node``: id or name of a Ray node or id of its worker, or how the one that is meant begins. Raises NotFound,
        InvalidInput (several begin like that; the last one that does not leave).
        """
        with self._lock:
            alive = _alive_nodes()
            node_id = self._find(node, alive)
            if undo:
                self._leaving.discard(node_id)
                self._gone.discard(node_id)
            else:
                staying = {each["NodeID"] for each in alive} - self._leaving - draining_nodes() - {node_id}
                if not staying:
                    raise InvalidInput(f"node {node_id} is the last one that does not leave; `raycache stop` ends all")
                self._leaving.add(node_id)
            self._save_leaving()
            self._round()
            return node_id

    def status(self) -> dict[str, Any]:
        """The view's number, and each worker's own figures; one that does not answer is listed with its error."""
        view = self.view()
        asked = [(worker, self._call(worker.node_id, "status")) for worker in view.workers]
        found = []
        for worker, ref in asked:
            about: dict[str, Any] = {
                "worker_id": worker.worker_id,
                "node_id": worker.node_id,
                "capacity_bytes": worker.capacity_bytes,
                "draining": worker.draining,
                "mem_quota_bytes": worker.memory_bytes,
                "written_bytes": self._written_bytes(worker.worker_id),
            }
            try:
                if ref is None:
                    raise WorkerLost("its process is gone; a new one is being started")
                about |= get(ref, METHOD_TIMEOUT_S / 3, f"worker {worker.worker_id[:8]}")
            except Unavailable as error:
                about["error"] = str(error)
            found.append(about)
        return {"view": {"number": view.number, "settled": self._settled}, "workers": found, "drained": self._drained()}

    def _drained(self) -> list[str]:
        return sorted(self._gone)

    def _round(self) -> None:
        self._began += 1
        number = self._began
        alive = _alive_nodes()
        self._forget_dead({node["NodeID"] for node in alive})
        leaving = self._leaving | draining_nodes()
        wanted = [node for node in alive if node["NodeID"] not in self._gone]
        for node in wanted:
            self._ensure(node)
        first = not self._membership.view.workers
        reports = self._configure([node["NodeID"] for node in wanted], START_S if first else REPORT_S)
        seen = [Node(node["NodeID"], node["NodeID"] in leaving, reports.get(node["NodeID"])) for node in wanted]
        for node_id in self._membership.drained(seen):
            if self._written_bytes(self._id_of(node_id) or ""):
                continue  # what it alone has of what was written is to get to the source first
            self._gone.add(node_id)
            self._save_leaving()
        seen = [node for node in seen if node.node_id not in self._gone]
        replicas = {name: retention.replicas for name, retention in self._retentions().items()}
        self._spread(self._membership.step(seen, replicas, time.monotonic()))
        for node_id in self._gone:
            self._end(node_id)
        self._finished = number

    def _spread(self, view: View) -> None:
        """Record a new view, and have the workers know it before the clients do."""
        if view.number > self._saved:
            self._register.put("view", pickle.dumps(view))
            self._saved = view.number
        if view.number > self._settled:
            nodes = [worker.node_id for worker in view.workers]
            self._configure(nodes, SPREAD_S)
            self._settled = view.number
            for node_id in nodes:
                self._call(node_id, "configure", *self._news(node_id, None))

    def _configure(self, node_ids: Sequence[str], timeout_s: float) -> dict[str, Report]:
        """Tell workers of the view; the reports of those that answer in time."""
        retentions = self._retentions()
        calls = {node_id: self._call(node_id, "configure", *self._news(node_id, retentions)) for node_id in node_ids}
        refs = {ref: node_id for node_id, ref in calls.items() if ref is not None}
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=timeout_s) if refs else ([], [])
        reports: dict[str, Report] = {}
        for ref in done:
            try:
                reports[refs[ref]] = get(ref, METHOD_TIMEOUT_S, f"the worker of node {refs[ref][:8]}")
            except Unavailable as error:
                _log.warning("%s", error)
        return reports

    def _news(self, node_id: str, retentions: Mapping[str, Retention] | None) -> tuple[Any, ...]:
        """What ``WorkerActor.configure`` is told: the view, and this worker's share of what datasets may keep."""
        view = self._membership.view
        me = view.find(self._id_of(node_id) or "")
        if me is None or retentions is None:
            return view, me and me.worker_id, self._settled, None
        total_bytes = sum(worker.capacity_bytes for worker in view.workers)
        shares = {name: each.share(me.capacity_bytes, total_bytes) for name, each in retentions.items()}
        return view, me.worker_id, self._settled, shares

    def _id_of(self, node_id: str) -> str | None:
        workers = self._membership.view.workers
        return next((worker.worker_id for worker in workers if worker.node_id == node_id), None)

    def _call(self, node_id: str, method: str, *args: Any) -> Any | None:
        """A call under way, or None when there is no worker to call."""
        try:
            handle = ray.get_actor(worker_name(node_id), namespace=self._settings.namespace)
            return getattr(handle, method).remote(*args)
        except (ValueError, ray.exceptions.RayError):
            return None

    def _ensure(self, node: dict[str, Any]) -> None:
        """Give a node its worker, if it has none."""
        node_id, total_bytes = node["NodeID"], store_bytes(node)
        # More than the object store holds would make Ray spill what we keep.
        quota_bytes = min(parse_memory(self._settings.mem, total_bytes), total_bytes)
        options = worker_options(self._settings.namespace, node_id)
        _REMOTE_WORKER.options(**options).remote(self._settings, quota_bytes, node["NodeName"])

    def _end(self, node_id: str) -> None:
        """End the worker of a node that is drained, so that nothing of it keeps the node from going."""
        try:
            handle = ray.get_actor(worker_name(node_id), namespace=self._settings.namespace)
        except ValueError:
            return
        ray.kill(handle, no_restart=True)

    def _find(self, node: str, alive: Sequence[Mapping[str, Any]]) -> str:
        ids = {worker.node_id: worker.worker_id for worker in self._membership.view.workers}
        found = [
            each["NodeID"]
            for each in alive
            if node and (each["NodeID"].startswith(node) or ids.get(each["NodeID"], "").startswith(node))
        ]
        found = found or [each["NodeID"] for each in alive if node == each["NodeName"]]
        if not found:
            raise NotFound(f"no live node {node!r}; `raycache status` lists them")
        if len(found) > 1:
            raise InvalidInput(f"{len(found)} nodes are called {node!r}: give more of the id")
        return str(found[0])

    def _forget_dead(self, alive: set[str]) -> None:
        if not (self._leaving | self._gone) <= alive:
            self._leaving &= alive
            self._gone &= alive
            self._save_leaving()

    def _save_leaving(self) -> None:
        self._register.put("leaving", json.dumps(sorted(self._leaving)).encode())
        self._register.put("gone", json.dumps(sorted(self._gone)).encode())


def store_bytes(node: Mapping[str, Any]) -> int:
    """Size of the object store of a node."""
    return int(node["Resources"].get("object_store_memory", 0))


def _alive_nodes() -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]
