"""Files of a dataset for the processes of a node, and the ways to their bytes.

``Files`` is made in a process that may use Ray, and pickles as what it was selected by, a few hundred bytes: whoever
unpickles it selects the same files again, as of the same change. How a process gets at bytes depends on what it is:

* One that may use Ray reads through its own connection, which it makes if it has none: the driver, tasks and actors,
  DataLoader workers that were spawned or came from a forkserver (one second and 100 MB each, once).
* One that was *forked* from a process that uses Ray must not: Ray's threads are not in it, and its calls would hang. It
  reads through a mount of this node. There is no third way, and no falling back from one to the other in silence.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raycache.actors.cluster import Cluster, current, is_forked
from raycache.actors.connection import current_for
from raycache.client.namespace import Namespace
from raycache.client.reader import Reader
from raycache.client.selection import Numbers, Packs, Selection
from raycache.config import Settings
from raycache.core import paths
from raycache.core.placement import rank
from raycache.core.values import Dataset, Worker
from raycache.core.waits import ReaderName
from raycache.data.nodeview import NodeView
from raycache.errors import Changed, NotFound
from raycache.ufs.registry import capture_access


class Route(Protocol):
    """A way to the bytes of a selection."""

    def read(self, numbers: Numbers) -> list[memoryview]:
        """Whole files, read-only, in order. Raises as ``Reader.read`` does, for the first file that fails."""
        ...

    def expect(self, packs: Sequence[int]) -> None:
        """These packs will be wanted soon."""
        ...


class ClusterRoute:
    """Through this process's connection: views of shared memory where this node has the blocks."""

    def __init__(self, reader: Reader, selection: Selection, packs: Packs) -> None:
        self.reader = reader
        self._selection = selection
        self._packs = packs

    def read(self, numbers: Numbers) -> list[memoryview]:
        """See Route. One call per owner for what is not mapped here."""
        return [memoryview(data) for data in self.reader.read_many(self._selection.rows(numbers))]

    def expect(self, packs: Sequence[int]) -> None:
        """See Route. Their owners fill them."""
        manifests = self._selection.manifests
        blocks = [(manifests[self._packs.part[pack]], int(self._packs.block[pack])) for pack in packs]
        # A directory of empty files has no block.
        self.reader.expect([(manifest, block) for manifest, block in blocks if block < manifest.block_count])


class MountRoute:
    """Through a mount, with the plain calls of an operating system. The page cache is the only read-ahead."""

    def __init__(self, directory: str, inside: str, selection: Selection) -> None:
        """``directory`` shows what is at the path ``inside`` of the dataset."""
        self._directory = directory
        self._skip = len(inside) + 1 if inside else 0
        self._selection = selection

    def read(self, numbers: Numbers) -> list[memoryview]:
        """See Route. Raises Changed where the mount shows another version of a file than was selected."""
        known = zip(
            self._selection.paths(numbers),
            self._selection.sizes(numbers).tolist(),
            self._selection.mtimes_ns(numbers).tolist(),
            strict=True,
        )
        return [self._read(path, size, mtime_ns) for path, size, mtime_ns in known]

    def expect(self, packs: Sequence[int]) -> None:
        """See Route. The gateway sees for itself what is read."""

    def _read(self, path: str, size: int, mtime_ns: int) -> memoryview:
        place = os.path.join(self._directory, path[self._skip :])
        try:
            with open(place, "rb", buffering=0) as file:
                about = os.fstat(file.fileno())
                data = _whole(file.fileno(), size) if stat.S_ISREG(about.st_mode) else b""
        except FileNotFoundError:
            raise NotFound(f"{place}: no such file; the mount follows refreshes, and it went since") from None
        if (about.st_size, len(data)) != (size, size) or mtime_ns not in (0, about.st_mtime_ns):
            raise Changed(f"{place}: the mount shows another version than the dataset was made of; make it anew")
        return memoryview(data)


def _whole(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data


@dataclass(frozen=True)
class Wanted:
    """What files were selected by: all that another process needs to select them again."""

    settings: Settings
    name: str
    """Of the dataset."""
    source: str
    """Its URI."""
    path: str
    """Directory inside the dataset."""
    pattern: str
    change: int
    without: str = ""
    """A directory whose files are not meant, as ``dataset/path``."""
    job: str = ""
    """Whose reads these are, see core.waits."""


class Files:
    """Files below a directory of a dataset, as of one change. Threading: safe."""

    def __init__(self, wanted: Wanted, selection: Selection | None = None) -> None:
        self.wanted = wanted
        self._lock = threading.Lock()
        self._selection = selection
        self._route: Route | None = None
        self._packs: Packs | None = None
        self._owned: tuple[Sequence[tuple[str, int]], NDArray[np.intp] | None] = (), None
        self._view = NodeView(wanted.settings, wanted.name, wanted.source, wanted.path, wanted.change)
        if not is_forked():
            self._view.hold()  # forks of this process may need it

    @staticmethod
    def select(
        uri: str,
        pattern: str = "**",
        options: Mapping[str, Any] | None = None,
        change: int | None = None,
        without: str = "",
    ) -> Files:
        """Files below ``uri`` that match ``pattern``, relative to it, now or as of a change number.

        A source that is no dataset yet becomes one; ``options`` are its storage options. ``without``: see Wanted.
        Raises InvalidInput, NotFound, NotADirectory, and what listing a source raises.
        """
        cluster = current()
        dataset, path = locate(cluster, uri, options)
        pinned = cluster.view(True if change is None else change).change
        assert pinned is not None
        job = cluster.reader.waits.name.job
        wanted = Wanted(cluster.portable_settings, dataset.name, dataset.source, path, pattern, pinned, without, job)
        return Files(wanted, _select(cluster, wanted))

    def __len__(self) -> int:
        return len(self.selection)

    @property
    def selection(self) -> Selection:
        """The files, by number."""
        if self._selection is not None:
            return self._selection  # without the lock, which a thread may hold at the moment of a fork
        with self._lock:
            if self._selection is None:
                self._selection = _select(current_for(self.wanted.settings), self.wanted)
            return self._selection

    @property
    def packs(self) -> Packs:
        """See Selection.packs."""
        if self._packs is None:
            self._packs = self.selection.packs()
        return self._packs

    def owned(self, owners: Sequence[tuple[str, int]]) -> NDArray[np.intp] | None:
        """Which of ``owners``, workers by id and capacity, each pack belongs to; None where there are none."""
        if not owners:
            return None
        if owners != self._owned[0]:
            workers = [Worker(*owner) for owner in owners]
            places = {worker.worker_id: place for place, worker in enumerate(workers)}
            manifests, packs = self.selection.manifests, self.packs

            def owner_of(part: int, block: int) -> int:
                manifest = manifests[part]  # a directory of empty files has no block
                name = manifest.block_id(block) if block < manifest.block_count else b""
                return places[rank(name, workers)[0].worker_id]

            found = map(owner_of, packs.part.tolist(), packs.block.tolist())
            self._owned = owners, np.fromiter(found, np.intp, len(packs.part))
        return self._owned[1]

    def paths(self, numbers: Numbers) -> list[str]:
        """Path of each file below the directory that was asked for."""
        skip = len(self.wanted.path) + 1 if self.wanted.path else 0
        return [path[skip:] for path in self.selection.paths(numbers)]

    def read(self, numbers: Numbers) -> list[memoryview]:
        """See Route.read."""
        return self._way().read(np.asarray(numbers))

    def expect(self, packs: Sequence[int]) -> None:
        """See Route.expect."""
        self._way().expect(packs)

    def reads_as(self, rank: int | None, worker: int | None, epoch: int | None = None) -> None:
        """Who this process is, for ``raycache explain``. One that reads through a mount is not told of there: it waits
        for the mount's gateway."""
        if not is_forked():
            waits = current_for(self.wanted.settings).reader.waits
            waits.begin(ReaderName(self.wanted.job, rank, worker, epoch))

    def tell_waits(self) -> None:
        """This process may end."""
        if not is_forked():
            current_for(self.wanted.settings).reader.waits.tell()

    def near(self) -> tuple[str, list[Worker]]:
        """The node that this process is on, and the workers that keep the files, for readers to agree about."""
        cluster = current_for(self.wanted.settings)
        workers = [replace(worker, local=False) for worker in cluster.pool.workers(refresh=True)]
        return cluster.pool.node_id, [worker for worker in workers if not worker.draining]

    def as_of(self, change: int) -> Files:
        """The same selection as of another change."""
        wanted = replace(self.wanted, change=change)
        return Files(wanted, _select(current_for(wanted.settings), wanted))

    def _way(self) -> Route:
        """As this process is now: it may have been forked since, or have left one Ray for another."""
        if is_forked():
            if not isinstance(self._route, MountRoute):
                self._route = MountRoute(self._view.directory(), self.wanted.path, self.selection)
            return self._route
        reader = current_for(self.wanted.settings).reader
        if not isinstance(self._route, ClusterRoute) or self._route.reader is not reader:
            self._route = ClusterRoute(reader, self.selection, self.packs)
        return self._route

    def __reduce__(self) -> tuple[type[Files], tuple[Wanted]]:
        return Files, (self.wanted,)


def locate(cluster: Cluster, uri: str, options: Mapping[str, Any] | None) -> tuple[Dataset, str]:
    """The dataset that a URI belongs to, and the path inside it. A source that is in no dataset becomes one.

    Raises InvalidInput, NotFound, and what listing a source raises.
    """
    try:
        return cluster.namespace.locate(uri)
    except NotFound:
        if uri.startswith(f"{paths.RAYCACHE_SCHEME}://"):
            raise
        cluster.files.attach(uri, None, capture_access(uri, options))
        return cluster.namespace.locate(uri)


def _select(cluster: Cluster, wanted: Wanted) -> Selection:
    namespace = Namespace(cluster.master, wanted.change)
    uri = f"{paths.RAYCACHE_SCHEME}://{paths.join(wanted.name, wanted.path)}"
    found = Selection.of(namespace, uri, wanted.pattern)
    return found.without(wanted.without.partition("/")[2]) if wanted.without.startswith(f"{wanted.name}/") else found
