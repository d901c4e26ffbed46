"""A cache on a Ray cluster, as a client sees it: find or start it, and talk to it.

``RemoteMaster`` and ``RemotePool`` are the client's protocols over Ray. ``current()`` is the one connection of this
process; whoever needs another cluster or namespace opens a ``Cluster`` of their own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray

from raycache.actors.calls import Callers, RemoteCall, ThreadCall
from raycache.actors.flight import Asked, Ranges
from raycache.actors.keepers import RemoteKeepers
from raycache.actors.master import MasterActor
from raycache.actors.names import MASTER, RUNTIME_ENV_FIELD, master_options, worker_name
from raycache.actors.plasma import BACKUP, Vault
from raycache.actors.remotemaster import RemoteMaster
from raycache.actors.segments import RemoteSegments
from raycache.actors.transport import NoAnswer, get, get_views, is_in_job, join_ray
from raycache.client.changing import Changing
from raycache.client.filesystem import FileSystem
from raycache.client.following import keep_following
from raycache.client.keeping import Keeping, dataset_figures
from raycache.client.leases import LEASE_S, keep_renewing
from raycache.client.namespace import Namespace
from raycache.client.persisting import Persisting
from raycache.client.protocols import Call, Ended
from raycache.client.reader import Reader
from raycache.client.segments import Segments
from raycache.client.treerefresh import refresh_tree
from raycache.config import Settings, load_settings
from raycache.core.arguments import check_change
from raycache.core.membership import View
from raycache.core.persisting import Behind
from raycache.core.scheduling import THREADS
from raycache.core.values import Failed, Fetch, Fetched, Filed, ListingJob, Sealed, Served, Worker
from raycache.errors import ClusterUnavailable, InvalidInput, RaycacheError, Unavailable, WorkerLost
from raycache.store.segmentfile import NodeSegments
from raycache.ufs.registry import capture_access

VIEW_BYTES_MIN = 256 * 2**20
"""What a client may map even where no worker is on its node."""
VIEW_S = 5.0
"""Deadline for a worker to tell who is there."""
BROUGHT_S, RANGES_S = 5.0, 60.0
"""How long Ray may take to bring blocks to this node (after the death of another one it was seen to take for ever), and
how long only ranges are asked of their worker then."""
FIXED_SETTINGS = ("mem", "tiers", "eviction", "block_bytes")
"""What shapes a cache, and cannot be changed while it runs."""
_REMOTE_MASTER: Any = ray.remote(MasterActor)
_log = logging.getLogger("raycache")


class _NotBrought(Exception):
    """A worker has answered, with blocks that did not come."""


class RemotePool:
    """The client's WorkerPool over Ray."""

    def __init__(self, master: RemoteMaster, namespace: str) -> None:
        self.calls = 0
        """Calls made to workers, as in RemoteMaster."""
        self._master = master
        self._namespace = namespace
        self.node_id = ray.get_runtime_context().get_node_id()
        self._job_id = ray.get_runtime_context().get_job_id()
        self._lock = threading.Lock()
        self._view = View()
        self._handles: dict[str, Any] = {}
        self._ranges = Ranges()
        self._callers = Callers()
        self._not_brought: dict[str, float] = {}
        """Until when no blocks are asked of a worker, only ranges; of those that it is not over for."""
        self._newer: tuple[int, str] = (0, "")
        """Number of the newest view that a worker told of, and that worker."""

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        """See WorkerPool. A later view that a worker told of is fetched from that worker: reads wait for no master."""
        if refresh or not self._view.workers:
            self._adopt(self._master.view())
        elif self._newer[0] > self._view.number:
            self._follow(*self._newer)
        return self._view.workers

    def replicas(self, dataset: str) -> int:
        """See WorkerPool."""
        return self._view.copies(dataset)

    def _follow(self, number: int, worker_id: str) -> None:
        with self._lock:
            if self._newer[0] != number:
                return  # another thread is at it
            self._newer = (0, "")
        try:
            self._adopt(get(self.handle(worker_id).view.remote(), VIEW_S, f"worker {worker_id[:8]}"))
        except (ValueError, RaycacheError, ray.exceptions.RayError):
            return  # the next answer tells of it again

    def _adopt(self, view: View) -> None:
        with self._lock:
            if view.number < self._view.number:
                return
            local = (replace(worker, local=worker.node_id == self.node_id) for worker in view.workers)
            self._view = replace(view, workers=tuple(local))
            self._handles.clear()

    def hint(self, calls: Mapping[str, Sequence[bytes]]) -> None:
        """See WorkerPool. A worker that is gone misses nothing."""
        for worker_id, plans in calls.items():
            self.calls += 1
            try:
                self.handle(worker_id).hint.remote(list(plans))
            except (ValueError, ray.exceptions.RayError):
                continue

    def kept(self, worker_id: str, block_ids: Sequence[bytes], read: Sequence[bytes]) -> list[bool]:
        """See leases.StillKept. Counts as no call: it is no part of a read."""
        if not is_in_job(self._job_id):
            raise WorkerLost(f"worker {worker_id[:8]} is of a Ray that this process has left")
        try:
            ref = self.handle(worker_id).kept.remote(list(block_ids), list(read))
        except (ValueError, ray.exceptions.RayError) as error:
            raise WorkerLost(f"worker {worker_id[:8]} is gone: {error}") from error
        try:
            return get(ref, LEASE_S, f"worker {worker_id[:8]}")  # type: ignore[no-any-return]
        except NoAnswer as silent:
            raise Unavailable(str(silent)) from silent

    def begin(self, worker_id: str, requests: Sequence[Fetch], timeout_s: float) -> Call:
        """See WorkerPool."""
        self.calls += 1
        if self._not_brought.get(worker_id, 0.0) > time.monotonic():
            requests = [replace(request, whole=False) for request in requests]
        if not any(request.whole or request.named for request in requests):
            sent = self._ranges.ask(self._view, {worker_id: requests}, timeout_s)
            if worker_id in sent:
                deadline = time.monotonic() + timeout_s
                return ThreadCall(
                    self._callers.submit(lambda: self._receive_bytes(worker_id, requests, sent, deadline))
                )
        try:
            return self._begin_remote(worker_id, requests, timeout_s)
        except WorkerLost as lost:
            return Ended(lost)

    def wait(self, calls: Sequence[Call], timeout_s: float) -> Sequence[Call]:
        """See WorkerPool."""
        return self._callers.first(calls, timeout_s)

    def _begin_remote(self, worker_id: str, requests: Sequence[Fetch], timeout_s: float) -> RemoteCall:
        try:
            ref = self.handle(worker_id).fetch.remote(list(requests), timeout_s)
        except (ValueError, ray.exceptions.RayError) as error:
            raise WorkerLost(f"worker {worker_id[:8]} is gone: {error}") from error
        deadline = time.monotonic() + timeout_s

        def receive(ref: Any) -> Served:
            try:
                return self._receive(worker_id, ref, timeout_s)
            except _NotBrought as late:
                _log.warning("%s; asking for ranges of them for %g s", late, RANGES_S)
                now = time.monotonic()
                still = {each: until for each, until in self._not_brought.items() if until > now}
                self._not_brought = {**still, worker_id: now + RANGES_S}
            return self.begin(worker_id, requests, max(0.1, deadline - time.monotonic())).answers()

        return RemoteCall(ref, receive, timeout_s + 1)

    def _receive_bytes(
        self, worker_id: str, requests: Sequence[Fetch], sent: Mapping[str, Asked], deadline: float
    ) -> Served:
        """The answers of a call by Flight. What does not come that way is asked of Ray, which knows whether the worker
        lives. Raises WorkerLost."""
        for number, found in self._ranges.receive(sent).values():
            self._note(number, worker_id)
            return found
        return self._begin_remote(worker_id, requests, max(0.1, deadline - time.monotonic())).answers()

    def _note(self, number: int, worker_id: str) -> None:
        if number > self._view.number:
            self._newer = (number, worker_id)

    def _receive(self, worker_id: str, ref: Any, timeout_s: float) -> Served:
        what = f"worker {worker_id[:8]}"
        number, source_s, wire = get(ref, timeout_s + 1, what)
        self._note(number, worker_id)
        refs = {answer[0][0].binary(): answer[0][0] for answer in wire if isinstance(answer, tuple)}
        try:
            views = dict(zip(refs, get_views(list(refs.values()), min(timeout_s + 1, BROUGHT_S), what), strict=True))
        except NoAnswer as late:
            raise _NotBrought(f"{what} has {len(refs)} blocks that Ray did not bring here in {BROUGHT_S:g} s") from late

        def received(answer: Any) -> Fetched:
            if isinstance(answer, tuple):
                return Sealed(views[answer[0][0].binary()], answer[1])
            return answer if isinstance(answer, Filed | Failed) else memoryview(answer).cast("B")

        return Served([received(answer) for answer in wire], source_s)

    def handle(self, worker_id: str) -> Any:
        """The actor of a worker. Raises ValueError when it is gone."""
        with self._lock:
            handle = self._handles.get(worker_id)
            if handle is None:
                worker = self._view.find(worker_id)
                if worker is None:
                    raise ValueError(f"it is not in view {self._view.number}")
                handle = ray.get_actor(worker_name(worker.node_id), namespace=self._namespace)
                self._handles[worker_id] = handle
        return handle


class Cluster:
    """A connection to a running cache: its master, its workers, and the file system over them."""

    def __init__(self, settings: Settings, address: str, master: RemoteMaster) -> None:
        self.settings = settings
        self.address = address
        self.master = master
        self.pool = RemotePool(master, settings.namespace)
        self.namespace = Namespace(master, tree=master.tree)
        local_bytes = sum(worker.memory_bytes for worker in self.pool.workers() if worker.local)
        self.keepers = RemoteKeepers(self.pool.workers, self.pool.handle)
        view_bytes = max(local_bytes, VIEW_BYTES_MIN)
        self.reader = Reader(self.pool, view_bytes, settings.read_timeout_s, waits=self.keepers.keep_log())
        keep_renewing(self.reader, self.pool.kept, THREADS)
        calls = RemoteSegments(
            self.pool.workers, self.pool.handle, master.tree.segment_places, master.tree.moved_segments
        )
        self.segments = Segments(calls, NodeSegments(), self.namespace, self.reader, settings.read_timeout_s)
        self.persisting = Persisting(self.namespace, master, master.tree)
        changing = Changing(self.namespace, master.tree, self.segments, self.persisting.wait)
        self.files = FileSystem(self.namespace, self.reader, changing)
        self.keeping = Keeping(self.namespace, master, self.keepers)

    @staticmethod
    def open(settings: Settings, *, start: bool = True) -> Cluster:
        """Join Ray, find the cache's actors and, with ``start``, make those that are missing.

        Raises ClusterUnavailable, AccessDenied, InvalidInput (a setting that the running cache does not have).
        """
        address = join_ray(settings)
        try:
            handle = ray.get_actor(MASTER, namespace=settings.namespace)
        except ValueError:
            if not start:
                raise ClusterUnavailable(
                    f"no cache runs on the Ray cluster at {address} (namespace {settings.namespace}); "
                    "`raycache start` makes one"
                ) from None
            if settings.backup_to is not None:
                access = capture_access(settings.backup_to, None)
                Vault(settings.namespace)[BACKUP] = json.dumps(access)
            handle = _REMOTE_MASTER.options(**_master_options(settings.namespace)).remote(settings)
        master = RemoteMaster(handle, settings)
        _check_same(settings, master.settings())
        return Cluster(settings, address, master)

    def follow(self) -> None:
        """Keep near what other processes write, from now on: see client.following. Call it once; mounts follow by
        themselves."""
        job_id = ray.get_runtime_context().get_job_id()
        self.namespace.begin_following()
        keep_following(self.namespace, lambda: is_in_job(job_id))

    @property
    def portable_settings(self) -> Settings:
        """Settings that find this cache from any process of the cluster, whatever its environment says."""
        return self.settings.model_copy(update={"address": self.address})

    def refresh_tree(self, uri: str, show: Callable[[ListingJob], object] = lambda _: None) -> ListingJob:
        """See client.treerefresh."""
        return refresh_tree(self.namespace, self.master, uri, show)

    def view(self, snapshot: bool | int) -> FileSystem:
        """The file system as it is now for ever (True), as of a change number, or as it moves on (False).

        A snapshot has listings of its own; what was read is shared. Raises InvalidInput for a number that is none, or
        that has not been reached.
        """
        if snapshot is False:
            return self.files
        newest = self.namespace.settled_change()
        change = newest if snapshot is True else check_change(snapshot, newest)
        return FileSystem(Namespace(self.master, change), self.reader)

    def status(self) -> dict[str, Any]:
        """Master, workers, datasets, and the workers' counters added up. A new dict that prints as JSON."""
        found = {"address": self.address, "namespace": self.settings.namespace, **self.master.status()}
        totals: dict[str, int] = {}
        for worker in found["workers"]:
            _add(totals, worker.get("counters", {}))
        dataset_figures(found)
        return {**found, "totals": totals}

    def finish(
        self, wait_s: float | None = None, show: Callable[[Behind], object] = lambda _: None
    ) -> dict[str, Behind]:
        """Wait before ``stop`` for what sources have not got yet, ``stop_wait_s`` where nothing is said; what is left,
        by dataset. Where the master does not answer it cannot be asked for, and nothing is waited for."""
        wait_s = self.settings.stop_wait_s if wait_s is None else wait_s
        try:
            return self.persisting.finish(wait_s, show)
        except Unavailable as error:
            _log.warning("ending without knowing what sources have not got yet: %s", error)
            return {}

    def stop(self) -> None:
        """End all actors of the cache. What is in memory is gone; the catalog stays for the next start."""
        for name in self.actor_names():
            with contextlib.suppress(ValueError):  # it has gone by itself meanwhile
                ray.kill(ray.get_actor(name, namespace=self.settings.namespace), no_restart=True)

    def actor_names(self) -> list[str]:
        """The master first, so that it does not replace the workers that follow."""
        listed: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)
        mine = [actor["name"] for actor in listed if actor["namespace"] == self.settings.namespace]
        return sorted((name for name in mine if name.startswith("raycache-")), key=lambda name: name != MASTER)


def _master_options(namespace: str) -> dict[str, Any]:
    """Options of the master. Where a job makes it, it takes no part in the job's mounts: they would never end."""
    options = master_options(namespace)
    if RUNTIME_ENV_FIELD in ray.get_runtime_context().runtime_env:
        options["runtime_env"][RUNTIME_ENV_FIELD] = {"mounts": {}}
    return options


def _add(totals: dict[str, int], more: Mapping[str, int]) -> None:
    for name, value in more.items():
        totals[name] = totals.get(name, 0) + value


def _check_same(wanted: Settings, running: Settings) -> None:
    """Settings that shape the cache are fixed when it starts; asking for others later must not be ignored."""
    shown = running.model_dump(mode="json"), wanted.model_dump(mode="json")
    for name in FIXED_SETTINGS:
        if name in wanted.model_fields_set and getattr(wanted, name) != getattr(running, name):
            raise InvalidInput(
                f"this cache runs with {name}={shown[0][name]}, not {shown[1][name]}; "
                "`raycache stop` it first, or leave the setting out"
            )


class _Current:
    """The connection of this process, made on first use; void in a forked child, where Ray would hang."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cluster: Cluster | None = None
        self._parents: Cluster | None = None
        self.forked = False
        """Whether this process was forked from one that uses Ray."""
        os.register_at_fork(after_in_child=self._in_child)

    def _in_child(self) -> None:
        self._lock = threading.Lock()
        self.forked = self.forked or self._cluster is not None or ray.is_initialized()
        # Kept: to let go of its views would tell the object store, in the parent's name, that nobody needs them.
        self._parents = self._cluster or self._parents
        self._cluster = None

    def get(self, settings: Settings | None, *, start: bool) -> Cluster:
        cluster = self._cluster  # without the lock: each call of the path API comes through here
        if cluster is not None and settings is None and ray.is_initialized():
            return cluster
        if self.forked:
            raise Unavailable(
                "this process was forked from one that uses Ray, and Ray does not survive that; read through the "
                "mount, or use the 'spawn' or 'forkserver' start method"
            )
        with self._lock:
            if self._cluster is not None and not ray.is_initialized():
                self._cluster = None  # the user shut Ray down; a new ray.init() means a new connection
            if self._cluster is None:
                self._cluster = Cluster.open(settings or load_settings(), start=start)
                self._cluster.follow()
            elif settings is not None and settings != self._cluster.settings:
                raise InvalidInput("this process is connected with other settings; raycache.disconnect() first")
            return self._cluster

    def settings(self) -> Settings | None:
        with self._lock:
            return self._cluster.settings if self._cluster is not None else None

    def forget(self) -> None:
        with self._lock:
            self._cluster = None


_current = _Current()


def current(settings: Settings | None = None, *, start: bool = True) -> Cluster:
    """The connection of this process. Raises what Cluster.open raises."""
    return _current.get(settings, start=start)


def disconnect() -> None:
    """Forget the connection of this process; the cache goes on."""
    _current.forget()


def is_forked() -> bool:
    """Whether this process was forked from one that uses Ray, and so cannot use it."""
    return _current.forked


def connected_settings() -> Settings | None:
    """Settings of this process's connection, or None when it has none yet."""
    return _current.settings()
