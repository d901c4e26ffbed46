"""What a gateway of a mount that is written serves: see ``service``.

While the cluster is away such a mount waits for it: there is nothing that could be done with what is written. Its
gateways of the *direct* kind keep requests waiting, and take over as soon as one with a cluster dies.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from raycache.client.namespace import Namespace
from raycache.core.inode import directory_ino, split_ino
from raycache.errors import NotADirectory
from raycache.fuse.away import AwaySession
from raycache.fuse.draftlog import DraftLog
from raycache.fuse.files import Files
from raycache.fuse.grouped import Grouped
from raycache.fuse.service import Service, check_root, leave_with, limits_of, open_cluster
from raycache.fuse.session import Ended
from raycache.fuse.task import Task
from raycache.fuse.wire import Agreed
from raycache.fuse.writable import WritableVfs
from raycache.fuse.writesession import WriteSession

if TYPE_CHECKING:
    from raycache.actors.cluster import Cluster

TIDY_S = 0.5
STALE_MAX = 65_536
"""Files with pages to be forgotten; of more, the pages stay until the files are opened again."""
DRAFTS = "drafts"
_log = logging.getLogger("raycache.gateway")


class WriteService(Service):
    """A mount that is written."""

    def __init__(self, task: Task, cluster: Cluster) -> None:
        dataset, path = Namespace(cluster.master).locate(task.source)
        about = cluster.master.tree.getattr((dataset.name, path))
        if not about.is_dir:
            raise NotADirectory(f"{task.source} is a file; mount the directory that it is in")
        dir_id, _ = split_ino(about.ino)
        self.root = {"root_id": dir_id, "source": dataset.source, "attached_ns": dataset.attached_ns}
        check_root(task, self.root)
        self._cluster = cluster
        self._stale: queue.Queue[int] = queue.Queue(STALE_MAX)
        self._master = Grouped(cluster.master.tree)
        self._log = DraftLog(Path(task.shelf) / DRAFTS)
        files = Files(self._master, cluster.segments, dataset.name, self._log, self._is_stale)
        self._vfs = WritableVfs(self._master, files, self._log, directory_ino(dir_id), task.mount_id)
        agreed, stream = Agreed.from_json(task.agreed), cluster.master.verb_stream()
        session = WriteSession(self._vfs, task.fd, task.owner, agreed, limits_of(task), stream)
        self.session: WriteSession = session

    def counters(self) -> dict[str, int]:
        """See Service."""
        beside = self.session.beside.calls if self.session.beside is not None else 0
        return {**asdict(self.session.counters), "master_calls": self._master.calls + beside}

    def begin(self, since: int) -> None:
        """See Service."""
        self._log.open()
        self._vfs.recover()
        for target, name in ((self._tidy, "tidy"), (self._forget_pages, "stale")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def _tidy(self) -> None:
        while True:
            time.sleep(TIDY_S)
            try:
                self._vfs.tidy()
            except Exception as error:  # noqa: BLE001 - the master is away, or the disk is full; it is tried again
                _log.info("cannot tidy: %s", error)

    def _is_stale(self, ino: int) -> None:
        """In a thread that answers requests, which must not wait for the kernel."""
        if not self._stale.full():
            self._stale.put(ino)

    def _forget_pages(self) -> None:
        while True:
            ino = self._stale.get()
            try:
                self.session.invalidate([], [ino])
            except Exception as error:  # noqa: BLE001 - the mount is ending
                _log.info("cannot have the kernel forget: %s", error)

    def end(self, why: Ended) -> None:
        """See Service. A successor goes on with what is not committed; after the end of the mount there is none."""
        if why is Ended.UNMOUNTED:
            self._vfs.end()


class WaitingService(Service):
    """A mount that is written, while its cluster is away."""

    def __init__(self, task: Task) -> None:
        self.root = task.root
        self.session = AwaySession(task.fd, Agreed.from_json(task.agreed), limits_of(task))

    def counters(self) -> dict[str, int]:
        """See Service."""
        return {}

    def begin(self, since: int) -> None:
        """See Service."""

    def end(self, why: Ended) -> None:
        """See Service."""


def join(task: Task) -> Service:
    """Serve from the cluster. Raises what finding it raises, MountError, NotFound, NotADirectory."""
    cluster = open_cluster(task)
    service = WriteService(task, cluster)
    leave_with(cluster)
    return service


def wait_for_cluster(task: Task) -> Service:
    """Serve without it."""
    return WaitingService(task)
