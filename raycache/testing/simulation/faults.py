"""What goes wrong in a run, when, and what reads may suffer by it.

A seed draws the kinds of faults that its run has, and then moments and victims ("swarm testing": Groce et al., ISSTA
2012: runs with few kinds find what runs with all of them hide). Each fault is recorded with its time and with the
errors that a read which met it may end in; a read that ends in another one, or met none, is a bug.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from raycache.errors import SourceUnavailable, Unavailable
from raycache.testing.simulation.cluster import Cluster, Node

Errors = tuple[type[Exception], ...]
NOTHING: Errors = ()
AFTERMATH_S = 12.0
"""For how long after a fault its errors are understood: whatever began under it has ended by its deadline then."""


@dataclass
class Fault:
    """Something that was wrong for a while, and the errors that a read may end in by it."""

    kind: str
    start_s: float
    stop_s: float
    permits: Errors


class Faults:
    """The faults of one run."""

    def __init__(self, cluster: Cluster, kinds: tuple[str, ...] | None = None) -> None:
        """``kinds``: those to have; None draws them."""
        self._cluster = cluster
        self._simulation = cluster.simulation
        self._random = cluster.simulation.random
        self.history: list[Fault] = []
        self.met: tuple[str, ...] = ()
        """Kinds that happened, known when they are over."""
        self._makers: dict[str, Callable[[float], Errors | None]] = {
            "kill worker": self._kill_worker,
            "power": self._power,
            "join": self._join,
            "leave": self._leave,
            "drain": self._drain,
            "cut": self._cut,
            "slow host": self._slow_host,
            "pause": self._pause,
            "loss": self._loss,
            "source down": self._source_down,
            "source errors": lambda stop_s: self._source(stop_s, "error_rate", 0.3, (SourceUnavailable,)),
            "source lies": lambda stop_s: self._source(stop_s, "short_rate", 0.3, (SourceUnavailable,)),
            "source hangs": lambda stop_s: self._source(stop_s, "hang_rate", 0.1, (SourceUnavailable, Unavailable)),
            "source slow": lambda stop_s: self._source(stop_s, "delay_s", 0.5, (Unavailable,)),
            "file changes": self._file_changes,
            "file goes": self._file_goes,
            "disk errors": self._disk_errors,
            "disk flips": self._disk_flips,
            "disk slow": self._disk_slow,
            "memory full": self._memory_full,
            "kill master": self._kill_master,
        }
        self.known = tuple(self._makers)
        self.kinds = kinds if kinds is not None else self._draw_kinds()

    def _draw_kinds(self) -> tuple[str, ...]:
        share = self._random.choice((0.0, 0.1, 0.2, 0.4, 0.7))
        return tuple(kind for kind in self._makers if self._random.random() < share)

    def plan(self, count: int, until_s: float) -> None:
        """Have faults of the drawn kinds begin, and end, before a moment."""
        for _ in range(count if self.kinds else 0):
            kind = self._random.choice(self.kinds)
            start_s, stop_s = sorted((self._random.random() * until_s, self._random.random() * until_s))
            self._simulation.at(start_s, partial(self._begin, kind, stop_s))

    def met_by(self, start_s: float, stop_s: float) -> list[Fault]:
        """What was wrong, or had been shortly before, while a read lasted."""
        return [one for one in self.history if one.start_s <= stop_s and start_s <= one.stop_s + AFTERMATH_S]

    def over(self) -> None:
        """Nothing that was wrong excuses anything from now on."""
        self.met = tuple(dict.fromkeys(fault.kind for fault in self.history))
        self.history.clear()

    def _begin(self, kind: str, stop_s: float) -> None:
        permits = self._makers[kind](stop_s)
        if permits is not None:
            self._simulation.note(f"fault: {kind} until {stop_s:.2f}")
            self.history.append(Fault(kind, self._simulation.now, stop_s, permits))

    def _end(self, stop_s: float, run: Callable[[], object]) -> None:
        self._simulation.at(max(0.0, stop_s - self._simulation.now), run)

    def _node(self, needed: int = 1) -> Node | None:
        up = [node for node in self._cluster.nodes.values() if node.up]
        return self._random.choice(up) if len(up) >= needed else None

    def _kill_worker(self, stop_s: float) -> Errors | None:
        node = self._node(2)
        if node is None:
            return None
        self._cluster.kill_worker(node)
        self._end(stop_s, lambda: self._cluster.start_worker(node))
        return NOTHING if self._others_answer(node.name) else (Unavailable,)

    def _others_answer(self, *lost: str) -> bool:
        """Whether some worker is left that everybody reaches, so that a read need not fail."""
        cut = {host for pair in self._cluster.network.cuts for host in pair}
        return any(
            node.worker is not None and node.name not in lost and node.name not in cut
            for node in self._cluster.nodes.values()
        )

    def _power(self, stop_s: float) -> Errors | None:
        node = self._node(2)
        if node is None:
            return None
        self._cluster.stop_node(node)

        def back() -> None:
            node.up = True
            self._cluster.start_worker(node)

        self._end(stop_s, back)
        return NOTHING if self._others_answer(node.name) else (Unavailable,)

    def _join(self, stop_s: float) -> Errors | None:
        if len(self._cluster.nodes) >= 5:
            return None
        self._cluster.join()
        return NOTHING

    def _leave(self, stop_s: float) -> Errors | None:
        node = self._node(3)
        if node is None:
            return None
        self._cluster.leave(node)
        return NOTHING if self._others_answer(node.name) else (Unavailable,)

    def _drain(self, stop_s: float) -> Errors | None:
        node = self._node(3)
        if node is None or len(self._cluster.nodes) - len(self._cluster.fleet.leaving) < 2:
            return None
        self._cluster.fleet.leaving[node.name] = None
        return NOTHING if self._others_answer(node.name) else (Unavailable,)

    def _hosts(self) -> list[str]:
        return [*self._cluster.nodes, *(f"c{number}" for number in range(self._cluster.shape.clients)), "master"]

    def _cut(self, stop_s: float) -> Errors | None:
        one, other = self._random.sample(self._hosts(), 2)
        pair, breaks = frozenset((one, other)), self._random.random() < 0.5
        if pair in self._cluster.network.cuts:
            return None
        self._cluster.network.cuts[pair] = breaks
        self._end(stop_s, partial(self._cluster.network.cuts.pop, pair, None))
        return NOTHING if "master" in pair or (breaks and self._others_answer(*pair)) else (Unavailable,)

    def _slow_host(self, stop_s: float) -> Errors | None:
        host, slow = self._random.choice(self._hosts()), self._cluster.network.slow
        slow[host] = self._random.choice((0.05, 0.5, 3.0))
        self._end(stop_s, partial(slow.pop, host, None))
        return NOTHING if host == "master" else (Unavailable,)

    def _pause(self, stop_s: float) -> Errors | None:
        node = self._node()
        if node is None or node.worker is None:
            return None
        node.worker.process.paused_until = stop_s
        return (Unavailable,)

    def _loss(self, stop_s: float) -> Errors | None:
        network = self._cluster.network
        network.loss = 0.05

        def end() -> None:
            network.loss = 0.0

        self._end(stop_s, end)
        return (Unavailable,)

    def _source_down(self, stop_s: float) -> Errors | None:
        origin = self._cluster.origin
        origin.down = True

        def end() -> None:
            origin.down = False

        self._end(stop_s, end)
        return (SourceUnavailable,)

    def _source(self, stop_s: float, name: str, value: float, permits: Errors) -> Errors | None:
        origin = self._cluster.origin
        usual = type(origin).__dataclass_fields__[name].default
        setattr(origin, name, value)
        self._end(stop_s, lambda: setattr(origin, name, usual))
        return permits

    def _file_changes(self, stop_s: float) -> Errors | None:
        origin = self._cluster.origin
        path = self._random.choice(list(origin.sizes))
        origin.change(path)
        return NOTHING

    def _file_goes(self, stop_s: float) -> Errors | None:
        origin = self._cluster.origin
        path = self._random.choice(list(origin.sizes))
        origin.versions.pop(path, None)
        self._end(stop_s, lambda: origin.change(path))
        return NOTHING

    def _disk_errors(self, stop_s: float) -> Errors | None:
        node = self._node()
        if node is None:
            return None
        verb = self._random.choice(("open", "pread", "write", "sync", "rename", "remove"))
        number = errno.ENOSPC if verb == "write" and self._random.random() < 0.5 else errno.EIO
        node.disk.errors[verb] = number
        self._end(stop_s, partial(node.disk.errors.pop, verb, None))
        return NOTHING

    def _disk_flips(self, stop_s: float) -> Errors | None:
        node = self._node()
        return None if node is None or node.disk.flip(self._random) is None else NOTHING

    def _disk_slow(self, stop_s: float) -> Errors | None:
        node = self._node()
        if node is None:
            return None
        node.disk.delay_s = self._random.choice((0.02, 0.3))

        def end() -> None:
            node.disk.delay_s = 0.0

        self._end(stop_s, end)
        return (Unavailable,)

    def _memory_full(self, stop_s: float) -> Errors | None:
        node = self._node()
        if node is None or node.worker is None:
            return None
        memory = node.worker.memory
        memory.full = True

        def end() -> None:
            memory.full = False

        self._end(stop_s, end)
        return NOTHING

    def _kill_master(self, stop_s: float) -> Errors | None:
        self._cluster.kill_master()
        self._end(stop_s, self._cluster.start_master)
        return NOTHING
