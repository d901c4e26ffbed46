"""What a gateway serves once it is told to: a session, with what goes on beside it.

Responsible for: finding the cluster, going with it, following refreshes. Not responsible for: the process and what it
tells its holder (``gateway``). Mounts that are written have their own (``writeservice``).

Threading: ``begin``, then the session's ``serve``, then ``end``, by one thread; ``counters`` by any.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from raycache.client.direct import Shelf
from raycache.config import load_settings
from raycache.core.paths import RAYCACHE_SCHEME
from raycache.errors import MountError
from raycache.fuse.kernel import KernelSession
from raycache.fuse.misses import Limits
from raycache.fuse.session import Ended, Session
from raycache.fuse.task import Task
from raycache.fuse.vfs import Vfs
from raycache.fuse.wire import Agreed

if TYPE_CHECKING:
    from raycache.actors.cluster import Cluster

FOLLOW_S = 1.0
"""How often a gateway asks the master whether a listing was refreshed: one call, whatever it holds."""
WATCH_S = 0.5
REFUSED_MAX = 4
"""A cluster whose head refuses connections this often in a row, every WATCH_S, is gone."""
_log = logging.getLogger("raycache.gateway")


class Service(ABC):
    """See the module."""

    session: Session[Any]
    root: dict[str, Any]
    """Where the mount's root is: see Task."""
    followed = 0
    """Up to which change of listings the kernel was told to forget."""

    @abstractmethod
    def counters(self) -> dict[str, int]:
        """What was done, and what it cost."""

    @abstractmethod
    def begin(self, since: int) -> None:
        """This gateway is the one that serves. ``since``: what its predecessor had ``followed``."""

    @abstractmethod
    def end(self, why: Ended) -> None:
        """It serves no more. Raises nothing."""


class Served(NamedTuple):
    """What a mount that is read is answered from."""

    vfs: Vfs
    root: dict[str, Any]
    calls: Callable[[], dict[str, int]]
    """Counters of what reads cost."""


class ReadService(Service):
    """A mount that is read."""

    def __init__(self, task: Task, served: Served) -> None:
        self._task = task
        self._served = served
        self.root = served.root
        self.session = KernelSession(served.vfs, task.fd, task.owner, Agreed.from_json(task.agreed), limits_of(task))

    def counters(self) -> dict[str, int]:
        """See Service."""
        return {**asdict(self._served.vfs.counters), **self._served.calls()}

    def begin(self, since: int) -> None:
        """See Service."""
        self.followed = since
        if self._task.direct:
            self._served.vfs.forget()  # what stands by for long has old listings; the shelf has the newest
        elif self._task.snapshot is None:
            threading.Thread(target=self._follow, name="follow", daemon=True).start()

    def end(self, why: Ended) -> None:
        """See Service."""
        if why is Ended.UNMOUNTED:
            Shelf(Path(self._task.shelf)).clear()

    def _follow(self) -> None:
        """Move on to listings that somebody refreshed, and make the kernel forget what changed and nothing else."""
        while True:
            try:
                newest, names, inodes = self._served.vfs.follow(self.followed)
                self.session.invalidate(names, inodes)
                self.followed = newest  # only now: what was not forgotten must be tried again
            except Exception as error:  # noqa: BLE001 - the master is away, or the mount is ending; readers go on
                _log.info("cannot follow refreshes: %s", error)
            time.sleep(FOLLOW_S)


def limits_of(task: Task) -> Limits:
    """How long a request may wait."""
    return Limits(deadline_s=load_settings(**task.settings).read_timeout_s)


def open_cluster(task: Task) -> Cluster:
    """The cluster that a mount is of. One that was restarted has neither our master nor the source's credentials any
    more: they are made and given again, so that a mount comes back by itself."""
    from raycache.actors.cluster import Cluster

    cluster = Cluster.open(load_settings(**task.settings))
    if not task.source.startswith(f"{RAYCACHE_SCHEME}://"):
        cluster.files.attach(task.source, None, task.options)
    return cluster


def check_root(task: Task, root: dict[str, Any]) -> None:
    """Raise MountError where a catalog gives other inode numbers than the mount's first gateway knew."""
    if task.root and task.root != root:
        raise MountError(
            f"the cache's catalog is not the one that {task.mountpoint} was mounted with, and has other inode numbers; "
            "unmount it and mount it again"
        )


def leave_with(cluster: Cluster) -> None:
    """End this process soon after its cluster ended. Ray does so itself, but only after a minute of hanging calls."""
    threading.Thread(target=_watch, args=(cluster.address,), name="watch", daemon=True).start()


def _watch(address: str) -> None:
    host, _, port = address.rpartition(":")
    refused = 0
    while refused < REFUSED_MAX:
        time.sleep(WATCH_S)
        try:
            socket.create_connection((host, int(port)), timeout=WATCH_S).close()
            refused = 0
        except ConnectionRefusedError:
            refused += 1
        except OSError:
            continue  # slow is not gone
    _log.warning("the Ray cluster at %s is gone", address)
    os._exit(1)
