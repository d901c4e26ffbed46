"""The cluster of a simulation: nodes with a disk and a worker, a master, and the pool through which clients reach them.

Real are the stores and all below them, the reader, placement and manifests. The master is what a reader needs of it:
one directory's newest manifest, and one worker on each node, started again when it is found dead. Its catalog has a
model test of its own (tests/model), and to open one takes longer than a whole run here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from raycache.client.patience import ask_until_there
from raycache.client.protocols import Call
from raycache.config import Eviction
from raycache.core.listing import build, prepare_listing
from raycache.core.manifest import Directory as About
from raycache.core.manifest import Manifest
from raycache.core.values import Fetch, Fetched, Worker
from raycache.errors import Unavailable
from raycache.meta.versions import next_version
from raycache.store.accounts import Accounts
from raycache.store.blocks import BlockStore
from raycache.store.directory import Directory
from raycache.store.tiers import Tiers
from raycache.testing.inprocess import fetched
from raycache.testing.simulation.disk import Disk, SimulatedFiles
from raycache.testing.simulation.machinery import Process, Simulation
from raycache.testing.simulation.network import Network, Reply, first
from raycache.testing.simulation.source import Origin, SimulatedSource

MASTER_CALL_S = 5.0
MASTER_TIMEOUT_S = 10.0
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

    def opened(self) -> BlockStore:
        """Its store, once it is there."""
        while self.store is None:
            self.process.sleep(0.01)
        return self.store


@dataclass
class Node:
    """A machine: its disk stays when its processes go."""

    name: str
    disk: Disk
    up: bool = True
    lives: int = 0
    worker: RunningWorker | None = None
    master_calls: int = field(default=0, repr=False)


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
        running.store = self.make_store(running.tiers, source, process)
        running.store.start()

    def make_store(self, tiers: Tiers, source: Any, process: Process) -> BlockStore:
        """A worker's store; tests put broken ones here."""
        return BlockStore(tiers, source, 3, process)

    def start_master(self) -> None:
        """Start the master, unless there is one. What it has published, it finds again."""
        if self.master is None:
            self.master = Process(self.simulation, "master")

    def kill_master(self) -> None:
        """As kill -9 does."""
        if self.master is not None:
            self.master.kill()
            self.master = None

    def live_workers(self) -> list[Worker]:
        """What the master says of the workers; it starts the dead ones first."""
        for node in self.nodes.values():
            self.start_worker(node)
        return [Worker(node.name, 1 << 20) for node in self.nodes.values() if node.up]

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
        self._workers: tuple[Worker, ...] = ()

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
        if refresh or not self._workers:
            found: list[Worker] = self.ask_master(self._cluster.live_workers, "workers")
            self._workers = tuple(replace(worker, local=worker.worker_id == self._host) for worker in found)
        return self._workers

    def replicas(self, dataset: str) -> int:
        """See WorkerPool."""
        return 1

    def hint(self, calls: Mapping[str, Sequence[bytes]]) -> None:
        """See WorkerPool."""
        for worker_id, plans in calls.items():
            self._begin(worker_id, lambda worker, plans=plans: worker.opened().hint(plans), "hint")

    def begin(self, worker_id: str, requests: Sequence[Fetch], timeout_s: float) -> Call:
        """See WorkerPool."""

        def ask(worker: RunningWorker) -> list[Fetched]:
            return [fetched(answer) for answer in worker.opened().fetch(requests, timeout_s)]

        return self._begin(worker_id, ask, "fetch")

    def wait(self, calls: Sequence[Any], timeout_s: float) -> Sequence[Call]:
        """See WorkerPool."""
        first(self._process, calls, timeout_s)
        return [reply for reply in calls if reply.done]

    def _begin(self, worker_id: str, run: Any, what: str) -> Reply:
        node = self._cluster.nodes.get(worker_id)
        worker = node.worker if node is not None else None
        process = worker.process if worker is not None else None
        return self._cluster.network.begin(
            (self._host, self._process), (worker_id, process), lambda: run(worker), f"{what} from {self._process.name}"
        )
