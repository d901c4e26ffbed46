"""One run of the simulation: a cluster drawn from a seed, clients, faults, and what must hold after every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from raycache.core.placement import rank
from raycache.store.blocks import PROBE_BYTES, PROBES_MAX
from raycache.testing.simulation.clients import Client, Figures
from raycache.testing.simulation.cluster import Cluster, RunningWorker, Shape
from raycache.testing.simulation.faults import AFTERMATH_S, Faults
from raycache.testing.simulation.machinery import Process, Simulation
from raycache.testing.simulation.source import Origin

FAULTY_S = 2.0
"""For how long things go wrong."""
CHECK_EVERY = 4
"""Of the steps of a worker, which of them are followed by the checks that look at all its books."""


@dataclass(frozen=True)
class Outcome:
    """What a run did."""

    seed: int
    digest: str
    """Equal for equal runs."""
    steps: int
    figures: Figures
    met: tuple[str, ...]
    """Kinds of faults that happened."""
    known: tuple[str, ...]
    """Kinds of faults that there are."""
    requests: int
    """Made to the source."""


class Failure(AssertionError):
    """A run that broke a promise. Says the seed; the trace has what led to it."""


class Run:
    """See the module. ``make_cluster``: tests make broken ones."""

    def __init__(
        self,
        seed: int,
        *,
        keep_trace: bool = False,
        kinds: tuple[str, ...] | None = None,
        make_cluster: Callable[[Simulation, Shape, Origin], Cluster] = Cluster,
    ) -> None:
        self.seed = seed
        random = Random(f"shape {seed}")
        self.simulation = Simulation(seed, random.choice((0.0, 0.02, 0.2)), keep_trace)
        sizes = {f"f{number:02d}": random.randrange(20, 500) for number in range(random.randrange(4, 12))}
        sizes["large"] = 2500
        origin = Origin(sizes, dict.fromkeys(sizes, 1))
        self.cluster = make_cluster(self.simulation, _shape(random, sum(sizes.values())), origin)
        self.faults = Faults(self.cluster, kinds)
        self.figures = Figures()
        self._random = random
        self._steps = 0
        self.simulation.after_step = self._after_step
        origin.on_request = self._on_request

    def run(self) -> Outcome:
        """Run to the end. Raises Failure."""
        try:
            self._run()
        except BaseException as error:
            raise Failure(
                f"seed {self.seed}, {self.simulation.now:.3f} s: {type(error).__name__}: {error}\n"
                f"again, with its trace: python -m raycache.testing.simulation --seed {self.seed}"
            ) from error
        finally:
            self._end()
        return Outcome(
            self.seed, self.simulation.digest, self.simulation.steps, self.figures, self.faults.met,
            self.faults.known, self.cluster.origin.requests,
        )  # fmt: skip

    def _run(self) -> None:
        cluster, simulation, shape = self.cluster, self.simulation, self.cluster.shape
        cluster.start_master()
        for _ in range(shape.nodes):
            cluster.join()
        self.clients = [Client(cluster, self.faults, self.figures, number) for number in range(shape.clients)]
        for client in self.clients:
            client.start()
        self.faults.plan(self._random.choice((3, 8, 20)), FAULTY_S)
        simulation.run(FAULTY_S + 1)
        for client in self.clients:
            client.stopping = True
        simulation.run(simulation.now + shape.read_timeout_s + AFTERMATH_S)
        self._settle()

    def _settle(self) -> None:
        """Nothing is wrong any more: every read succeeds, and what was begun has ended."""
        done: list[Client] = []

        def read_all(client: Client) -> None:
            client.refresh()
            client.read_all()
            done.append(client)

        self.faults.over()
        for client in self.clients:
            client.process.spawn(partial(read_all, client), "end")
        self.simulation.run(self.simulation.now + 60)
        assert len(done) == len(self.clients), "a client waits for ever"
        for running in self.cluster.workers.values():
            self._check_settled(running)

    def _check_settled(self, running: RunningWorker) -> None:
        store = running.store
        assert store is not None, f"{running.process.name} does not come up"
        store.check()
        status = store.status()
        assert not status["filling"], f"{running.process.name}: {status['filling']} fills never end"
        assert running.tiers is not None
        ledgers = [running.tiers._ledger, *(directory._ledger for directory in running.tiers._directories)]
        assert not any(ledger.reserved_bytes for ledger in ledgers), "bytes are reserved for what will never come"
        assert not any(flight.waiters for flight in store._flights.values()), "somebody waits for a flight"

    def _after_step(self, process: Process) -> None:
        running = self.cluster.workers.get(process)
        if running is None or running.store is None:
            return
        self._steps += 1
        if self._steps % CHECK_EVERY == 0:
            running.store.check()
        self._note_introduction(running)
        assert len(running.store._flights) <= PROBES_MAX
        assert running.store._probe_bytes <= PROBE_BYTES

    def _note_introduction(self, running: RunningWorker) -> None:
        if running.offered is None and running.peers is not None and running.peers._introduced:
            running.offered = self._held_by_others(running)
        if running.offered:
            running.offered -= _held(running)

    def _held_by_others(self, running: RunningWorker) -> set[bytes]:
        return {held for one in self.cluster.workers.values() if one is not running for held in _held(one)}

    def _on_request(self, process: Process, path: str, etag: str, start: int) -> None:
        """A worker asks the source: for nothing that it holds, and in quiet times for nothing that another one owns.
        One that was killed and is there again asks for nothing that others have held for it all the while."""
        self.simulation.note(f"source: {path} {etag} from {start}")
        manifest, running = self.cluster.manifest, self.cluster.workers.get(process)
        row = None if manifest is None else manifest.find(path.encode())
        if manifest is None or row is None or manifest.etag(row) != etag or running is None or running.tiers is None:
            return
        block_id = manifest.block_id(manifest.pieces(row, start, 1)[0].block)
        require = self.simulation.require
        require(running.tiers._kept.get(block_id) is None, f"{process.name} holds {path} and asks the source for it")
        assert running.peers is not None
        require(running.peers.introduced, f"{process.name} asks the source for {path} before it knows who has it")
        if [fault.kind for fault in self.faults.history] == ["kill worker"] and block_id in (running.offered or ()):
            there = block_id in self._held_by_others(running)
            require(not there, f"{process.name} asks the source for {path}, which another one has for it")
        # A copy whose pull fails, as the first owner has evicted the block meanwhile, is filled from the source; and
        # whoever is asked in the place of one that has much to do asks the source.
        hedged = any(client.reader.asker.hedging.hedges for client in self.clients)
        if self.cluster.shape.replicas == 1 and not (hedged or self.faults.history or self.faults.met):
            owner = rank(block_id, self.cluster.fleet.membership.view.workers)[0].node_id
            require(
                process.name.startswith(f"{owner}."), f"{process.name} asks the source for {path}, which is {owner}'s"
            )

    def _end(self) -> None:
        for client in getattr(self, "clients", []):
            client.process.kill()
        self.cluster.kill_master()
        for node in self.cluster.nodes.values():
            self.cluster.kill_worker(node)


def _held(running: RunningWorker) -> set[bytes]:
    """Ids of the blocks that a worker has, between two steps of it."""
    tiers = running.tiers
    return set() if tiers is None else set(tiers._kept).union(*(each._ledger._held for each in tiers._directories))


def _shape(random: Random, total_bytes: int) -> Shape:
    return Shape(
        nodes=random.randrange(1, 4),
        clients=random.randrange(1, 4),
        memory_bytes=int(total_bytes * random.choice((0.0, 0.3, 0.6, 2.0))),
        disk_bytes=random.choice((0, 0, 1, 2, 4)) * 8192 + 1000 if random.random() < 0.7 else 0,
        eviction=random.choice(("keep", "sieve", "lru")),
        block_bytes=random.choice((300, 1000)),
        view_bytes=random.choice((0, 1500, 100_000)),
        replicas=random.choice((1, 1, 2)),
    )


def simulate(seed: int, *, keep_trace: bool = False, kinds: tuple[str, ...] | None = None) -> Outcome:
    """Run one seed. Raises Failure."""
    return Run(seed, keep_trace=keep_trace, kinds=kinds).run()
