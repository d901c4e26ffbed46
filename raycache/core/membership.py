"""Who is in the cluster, as numbered views: nodes join, drain and die, and everybody agrees on what came later. Pure.

The master steps a ``Membership`` with what it sees of the nodes and with what their workers report. A view is pushed to
the workers first, which tell each other what of their blocks has moved; only then it is *settled*, and clients follow.
The idea of views that replace each other in one order is that of virtual synchrony (Birman and Joseph, 1987), without
its guarantees: a client with an old view is served all the same, by a worker that asks the right one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raycache.core.values import Worker

SILENT_S = 30.0
"""How long a worker that does not answer stays in the view while its node lives: its process may be starting anew, and
what moves away from it would have to move back."""


@dataclass(frozen=True, slots=True)
class View:
    """Who is there, and how many copies each dataset has. A higher number is later."""

    number: int = 0
    workers: tuple[Worker, ...] = ()
    replicas: tuple[tuple[str, int], ...] = ()
    """By name of dataset, where it is more than one."""

    def find(self, worker_id: str) -> Worker | None:
        """A worker by its id."""
        return next((worker for worker in self.workers if worker.worker_id == worker_id), None)

    def copies(self, dataset: str | None) -> int:
        """On how many workers a block of a dataset lies; the most there are, where the dataset is not known."""
        if dataset is None:
            return max((copies for _, copies in self.replicas), default=1)
        return dict(self.replicas).get(dataset, 1)


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says of itself."""

    identity: str | None
    """The id that it found in its directories; None when it has none to keep one in."""
    incarnation: str
    memory_bytes: int
    capacity_bytes: int
    number: int = 0
    """Of the view that it knows."""
    moving: int = 0
    """Blocks that it has still to offer or to move to other workers."""
    bytes_at: str = ""
    """See Worker."""


@dataclass(frozen=True, slots=True)
class Node:
    """A live node, as the master sees it. ``report`` is None while its worker does not answer."""

    node_id: str
    draining: bool
    report: Report | None


class Membership:
    """See the module. Time is an argument."""

    def __init__(self, view: View) -> None:
        """``view``: the last one, where a master goes on."""
        self.view = view
        self._heard: dict[str, float] = {}

    def step(self, nodes: Sequence[Node], replicas: Mapping[str, int], now: float) -> View:
        """The view that follows from what is seen at ``now``: the same one when nothing has changed."""
        workers = tuple(sorted(self._workers(nodes, now), key=lambda worker: worker.worker_id))
        copies = tuple(sorted((name, count) for name, count in replicas.items() if count > 1))
        if (workers, copies) != (self.view.workers, self.view.replicas):
            self.view = View(self.view.number + 1, workers, copies)
        return self.view

    def drained(self, nodes: Sequence[Node]) -> list[str]:
        """Ids of nodes that are draining and have moved all there is to move: none while nobody who stays answers."""
        if not any(node.report is not None and not node.draining and self._known(node) for node in nodes):
            return []
        return [node.node_id for node in nodes if self._is_drained(node)]

    def _is_drained(self, node: Node) -> bool:
        """Only when it has seen the view in which it leaves."""
        worker = self._known(node)
        return (
            worker is not None
            and worker.draining
            and node.report is not None
            and node.report.number == self.view.number
            and node.report.moving == 0
        )

    def _workers(self, nodes: Sequence[Node], now: float) -> list[Worker]:
        self._heard = {node.node_id: self._heard.get(node.node_id, now) for node in nodes}
        found: dict[str, Worker] = {}
        # Who has an id already keeps it, should a copied disk bring the same one again.
        for node in sorted(nodes, key=lambda node: (self._known(node) is None, node.node_id)):
            if node.report is not None:
                self._heard[node.node_id] = now
                worker = _worker(node, node.report, found)
            else:
                known = self._known(node)
                if known is None or now - self._heard[node.node_id] > SILENT_S:
                    continue
                worker = replace(known, draining=node.draining)
            found[worker.worker_id] = worker
        return list(found.values())

    def _known(self, node: Node) -> Worker | None:
        return next((worker for worker in self.view.workers if worker.node_id == node.node_id), None)


def _worker(node: Node, report: Report, taken: Mapping[str, Worker]) -> Worker:
    worker_id = report.identity if report.identity and report.identity not in taken else node.node_id
    return Worker(
        worker_id,
        report.capacity_bytes,
        node_id=node.node_id,
        memory_bytes=report.memory_bytes,
        draining=node.draining,
        incarnation=report.incarnation,
        bytes_at=report.bytes_at,
    )
