"""The cluster of a simulation: nodes with a disk and a worker, a master, and the pool through which clients reach them.

Real are the stores and all below them, the reader, placement and manifests. The master is what a reader needs of it:
one directory's newest manifest, and one worker on each node, started again when it is found dead. Its catalog has a
model test of its own (tests/model), and to open one takes longer than a whole run here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raycache.client.patience import ask_until_there
from raycache.client.protocols import Call
from raycache.config import Eviction
from raycache.core.listing import build, prepare_listing
from raycache.core.manifest import Directory as About
from raycache.core.manifest import Manifest
from raycache.core.membership import View
from raycache.core.values import Fetch, Served, Worker
from raycache.errors import Unavailable, WorkerLost
from raycache.meta.versions import next_version
from raycache.store.accounts import Accounts
from raycache.store.blocks import BlockStore
from raycache.store.directory import Directory
from raycache.store.moving import Mover
from raycache.store.peers import Peers
from raycache.store.tiers import Tiers
from raycache.testing.inprocess import fetched
from raycache.testing.simulation.disk import Disk, SimulatedFiles
from raycache.testing.simulation.fleet import Fleet, SimulatedPeers
from raycache.testing.simulation.machinery import Process, Simulation
from raycache.testing.simulation.network import Network, Reply, first
from raycache.testing.simulation.source import Origin, SimulatedSource

MASTER_CALL_S = 5.0
MASTER_TIMEOUT_S = 10.0
VIEW_S = 2.0
DATASET = "data"
_NO_IDS = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class Shape:
    """What a cluster is made of."""

    nodes: int
    clients: int
    memory_bytes: int
    disk_bytes: int
    """0: no disk tier."""
    eviction: Eviction
    block_bytes: int
    view_bytes: int
    replicas: int = 1
    read_timeout_s: float = 10.0


class SimulatedMemory:
    """A BlockMemory that takes a while, and refuses while ``full``."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.full = False

    def put(self, block: bytearray) -> tuple[Any, memoryview]:
        """See BlockMemory."""
        self._process.sleep(1e-4)
        if self.full:
            raise Unavailable("the memory is full")
        return block, memoryview(block).toreadonly()


@dataclass
class RunningWorker:
    """One life of a worker. It has no store until its directories are open."""

    process: Process
    memory: SimulatedMemory
    store: BlockStore | None = None
    tiers: Tiers | None = None
    peers: Peers | None = None
    offered: set[bytes] | None = None
    """What others held when it was introduced, once it is, and it has not held since."""
    mover: Mover | None = None

    def store_when_open(self) -> BlockStore:
        """Its store, once it is there."""
        self.opened()
        assert self.store is not None
        return self.store

    def opened(self) -> Mover:
        """The same of what it tells others."""
        while self.mover is None:
            self.process.sleep(0.01)
        return self.mover


@dataclass
class Node:
    """A machine: its disk stays when its processes go."""

    name: str
    disk: Disk
    up: bool = True
    lives: int = 0
    worker: RunningWorker | None = None


class Cluster:
    """See the module."""

    def __init__(self, simulation: Simulation, shape: Shape, origin: Origin) -> None:
        self.simulation = simulation
        self.shape = shape
        self.origin = origin
        self.network = Network(simulation)
        self.nodes: dict[str, Node] = {}
        self.workers: dict[Process, RunningWorker] = {}
        """Every worker that lives."""
        self.master: Process | None = None
        self.manifest: Manifest | None = None
        self._listed: dict[str, int] = {}
        self._joined = 0
        self.fleet = Fleet(self, {DATASET: shape.replicas})

    def join(self) -> Node:
        """A new node comes up, with its worker."""
        node = Node(f"n{self._joined}", Disk(self.shape.disk_bytes))
        self._joined += 1
        self.nodes[node.name] = node
        self.start_worker(node)
        return node

    def leave(self, node: Node) -> None:
        """A node goes for ever."""
        self.stop_node(node)
        del self.nodes[node.name]

    def stop_node(self, node: Node) -> None:
        """The power of a node goes."""
        node.up = False
        self.kill_worker(node)
        node.disk.lose_power(self.simulation.random)

    def kill_worker(self, node: Node) -> None:
        """As kill -9 does."""
        if node.worker is not None:
            self.workers.pop(node.worker.process, None)
            node.worker.process.kill()
            node.worker = None

    def start_worker(self, node: Node) -> None:
        """Start it, unless there is one."""
        if node.worker is not None or not node.up:
            return
        node.lives += 1
        process = Process(self.simulation, f"{node.name}.{node.lives}")
        running = node.worker = RunningWorker(process, SimulatedMemory(process))
        self.workers[process] = running
        process.spawn(lambda: self._open(node, running), "start")

    def _open(self, node: Node, running: RunningWorker) -> None:
        process, shape = running.process, self.shape
        accounts = Accounts(shape.eviction, scheduler=process)
        directories = []
        if shape.disk_bytes:
            files = SimulatedFiles(process, node.disk)
            path = Path("/simulated") / node.name
            directories.append(Directory(path, shape.disk_bytes, accounts, files, process))
            directories[0].open()
        running.tiers = Tiers(running.memory, shape.memory_bytes, directories, accounts, process)
        source: Any = SimulatedSource(process, self.origin)
        peers = Peers(SimulatedPeers(self, process, node.name), process, process.name)
        store = BlockStore(running.tiers, source, 3, process, peers)
        mover = Mover(store, running.tiers, peers, None, scheduler=process)
        store.start()
        mover.start()
        running.store, running.mover, running.peers = store, mover, peers
        self.network.begin((node.name, process), ("master", self.master), self.fleet.view, "view")

    def start_master(self) -> None:
        """Start the master, unless there is one. What it has published, it finds again."""
        if self.master is None:
            self.master = Process(self.simulation, "master")
            self.fleet.lead(self.master)

    def kill_master(self) -> None:
        """As kill -9 does."""
        if self.master is not None:
            self.master.kill()
            self.master = None

    def list_again(self, source: SimulatedSource) -> Manifest:
        """The newest manifest, after the source was listed. Raises SourceUnavailable."""
        listed = source.list_directory("")
        if self.manifest is not None and self._listed == self.origin.versions:
            return self.manifest  # as ``next_version`` would find out, and at a tenth of the time
        self._listed = dict(self.origin.versions)
        listing, hidden = prepare_listing(listed)
        about = About(1, DATASET, source.uri, "", 1, 1, self.shape.block_bytes, hidden)
        new = next_version(about, self.manifest, listing, lambda names: ())
        self.manifest = new or self.manifest or build(about, listing, _NO_IDS)
        return self.manifest


class SimulatedPool:
    """The WorkerPool of one client: as actors.cluster.RemotePool, over the simulated network."""

    def __init__(self, cluster: Cluster, process: Process, host: str) -> None:
        self._cluster = cluster
        self._process = process
        self._host = host
        self._view = View()
        self._newer: tuple[int, str] = (0, "")
        """As in RemotePool."""

    def ask_master(self, run: Any, what: str) -> Any:
        """Ask the master until it is there. Raises ClusterUnavailable, and what ``run`` raises."""
        network = self._cluster.network

        def ask() -> Any:
            callee = ("master", self._cluster.master)
            return network.call((self._host, self._process), callee, run, what, MASTER_CALL_S)

        return ask_until_there(
            ask, "the master", MASTER_TIMEOUT_S, self._process.monotonic, self._process.sleep,
            self._cluster.simulation.random.random,
        )  # fmt: skip

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        """See WorkerPool."""
        if refresh or not self._view.workers:
            self._adopt(self.ask_master(self._cluster.fleet.view, "view"))
        elif self._newer[0] > self._view.number:
            self._follow(self._newer[1])
        return self._view.workers

    def replicas(self, dataset: str) -> int:
        """See WorkerPool."""
        return self._view.copies(dataset)

    def _follow(self, worker_id: str) -> None:
        self._newer = (0, "")
        reply = self._begin(worker_id, lambda worker: worker.opened().view, "view")
        if first(self._process, [reply], VIEW_S) is not None:
            with suppress(WorkerLost):  # the next answer tells of it again
                self._adopt(reply.answers())

    def _adopt(self, view: View) -> None:
        if view.number >= self._view.number:
            local = (replace(worker, local=worker.node_id == self._host) for worker in view.workers)
            self._view = replace(view, workers=tuple(local))

    def hint(self, calls: Mapping[str, Sequence[bytes]]) -> None:
        """See WorkerPool."""
        for worker_id, plans in calls.items():
            self._begin(worker_id, partial(_hint, plans), "hint")

    def begin(self, worker_id: str, requests: Sequence[Fetch], timeout_s: float) -> Call:
        """See WorkerPool."""

        def ask(worker: RunningWorker) -> Served:
            answers, source_s = worker.store_when_open().fetch(requests, timeout_s)
            settled = worker.opened().settled
            if settled > self._view.number:
                self._newer = (settled, worker_id)  # it travels with the answers
            return Served([fetched(answer) for answer in answers], source_s)

        return self._begin(worker_id, ask, "fetch")

    def wait(self, calls: Sequence[Any], timeout_s: float) -> Sequence[Call]:
        """See WorkerPool."""
        first(self._process, calls, timeout_s)
        return [reply for reply in calls if reply.done]

    def _begin(self, worker_id: str, run: Callable[[RunningWorker], Any], what: str) -> Reply:
        known = self._view.find(worker_id)
        name = known.node_id if known is not None else worker_id
        node = self._cluster.nodes.get(name)
        worker = node.worker if node is not None else None
        process = worker.process if worker is not None else None

        def serve() -> Any:
            assert worker is not None
            return run(worker)

        return self._cluster.network.begin(
            (self._host, self._process), (name, process), serve, f"{what} from {self._process.name}"
        )


def _hint(plans: Sequence[bytes], worker: RunningWorker) -> None:
    worker.store_when_open().hint(plans)
