"""Clients of a simulation: they read random rows or sweep over all, check every byte, and list the directory again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from raycache.client.reader import Reader
from raycache.core.manifest import Manifest
from raycache.core.values import Buffer
from raycache.errors import Changed, ClusterUnavailable, RaycacheError, Unavailable
from raycache.testing.simulation.cluster import Cluster, SimulatedPool
from raycache.testing.simulation.faults import Errors, Faults
from raycache.testing.simulation.machinery import Process
from raycache.testing.simulation.source import SimulatedSource, content

THREADS = 2
UNDISTURBED_S = 1.0
"""What a read may take when nothing is wrong: a wakeup that is lost, and made up for by a deadline, takes longer."""
SLACK_S = 3.0
"""What a read may take beyond its deadline: the second that a call has for its way back, and a last pause."""


@dataclass
class Figures:
    """What the clients of a run saw."""

    reads: int = 0
    errors: int = 0
    changed: int = 0
    slowest_s: float = 0.0


class Client:
    """A process with a reader, used by a few threads."""

    def __init__(self, cluster: Cluster, faults: Faults, figures: Figures, number: int) -> None:
        self._cluster = cluster
        self._faults = faults
        self._figures = figures
        self._random = cluster.simulation.random
        self._number = number
        self._host = f"c{number}"
        self.stopping = False
        self._make(0)

    def _make(self, lives: int) -> None:
        self.process = Process(self._cluster.simulation, f"{self._host}.{lives}")
        # Every other client is on a node.
        nodes = list(self._cluster.nodes)
        host = self._host if self._number % 2 else nodes[lives % len(nodes)]
        self._pool = SimulatedPool(self._cluster, self.process, host)
        shape = self._cluster.shape
        self.reader = Reader(self._pool, shape.view_bytes, shape.read_timeout_s, self.process)
        self.manifest: Manifest | None = None

    def start(self) -> None:
        """Begin to read."""
        for number in range(THREADS):
            self.process.spawn(self._loop, f"reader-{number}")

    def _loop(self) -> None:
        self.process.sleep(self._random.random())
        self._connect()
        while not self.stopping:
            if self.manifest is None or self._random.random() < 0.04:
                self.refresh()
            elif self._random.random() < 0.7:
                self.read_one()
            else:
                self.read_some()
            self.process.sleep(self._random.random() * 0.2)

    def _connect(self) -> None:
        """Learn who is there, as a client does before it reads."""
        while True:
            try:
                self._pool.workers()
            except ClusterUnavailable:
                continue
            return

    def refresh(self) -> None:
        """List the directory again, through the master."""
        source = SimulatedSource(self.process, self._cluster.origin)
        start_s = self.process.monotonic()
        try:
            manifest = self._pool.ask_master(lambda: self._cluster.list_again(source), "refresh")
        except RaycacheError as error:
            self._check_error(error, start_s, (Unavailable,))
            return
        if self.manifest is None or manifest.directory.version >= self.manifest.directory.version:
            self.manifest = manifest

    def read_one(self) -> None:
        """A random range of a random row."""
        manifest = self.manifest
        assert manifest is not None
        rows = list(manifest.rows())
        if not rows:
            return  # every file is gone
        row = self._random.choice(rows)
        size = manifest.size(row)
        offset = int(self._random.random() * size) if self._random.random() < 0.3 else 0
        length = size - offset
        self._read(
            manifest, [row], offset, length, lambda: [self.reader.held(manifest, row, offset, length)
            or self.reader.read(manifest, row, offset, length)],
        )  # fmt: skip

    def read_some(self) -> None:
        """Several rows in one call, sometimes all."""
        manifest = self.manifest
        assert manifest is not None
        rows = list(manifest.rows())
        if self._random.random() < 0.7:
            rows = self._random.sample(rows, min(len(rows), 4))
        self._read(manifest, rows, 0, None, lambda: self.reader.read_many([(manifest, row) for row in rows]))

    def read_all(self) -> None:
        """Every row, one by one: for the end, when nothing may fail."""
        manifest = self.manifest
        assert manifest is not None
        for row in manifest.rows():
            size = manifest.size(row)
            self._read(manifest, [row], 0, size, partial(self.reader.read_many, [(manifest, row)]))

    def _read(
        self, manifest: Manifest, rows: list[int], offset: int, length: int | None, read: Callable[[], list[Buffer]]
    ) -> None:
        simulation, start_s = self._cluster.simulation, self.process.monotonic()
        self._figures.reads += 1
        simulation.note(f"reads rows {rows}")
        try:
            found = read()
        except Changed:
            self._figures.changed += 1
            versions = self._cluster.origin.versions
            assert any(str(versions.get(manifest.path(row))) != manifest.etag(row) for row in rows), "nothing changed"
            simulation.note("it changed")
        except RaycacheError as error:
            self._check_error(error, start_s)
        else:
            for row, data in zip(rows, found, strict=True):
                path, size = manifest.path(row), manifest.size(row)
                expected = content(path, int(manifest.etag(row)), size)[
                    offset : None if length is None else offset + length
                ]
                assert bytes(data) == expected, f"{path}: {len(data)} bytes, and not those of its version"
            simulation.note("it has them")
        took_s = self.process.monotonic() - start_s
        self._figures.slowest_s = max(self._figures.slowest_s, took_s)
        limit_s = (
            self._cluster.shape.read_timeout_s + SLACK_S
            if self._faults.met_by(start_s, start_s + took_s)
            else UNDISTURBED_S
        )
        assert took_s <= limit_s, f"a read took {took_s:.1f} s"

    def _check_error(self, error: RaycacheError, start_s: float, always: Errors = ()) -> None:
        self._figures.errors += 1
        self._cluster.simulation.note(f"{type(error).__name__}: {error}")
        met = self._faults.met_by(start_s, self.process.monotonic())
        permitted = tuple({each: None for fault in met for each in fault.permits}) + (always if met else ())
        assert isinstance(error, permitted), (
            f"{type(error).__name__}: {error}; what was wrong meanwhile permits {[each.__name__ for each in permitted]}"
        )
