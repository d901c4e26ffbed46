"""A whole cache in one process, without Ray: the real master's brain, the real block stores, the real client.

For tests of what lies above the transport, ours and users'. ``InProcessPool.kill`` makes a worker vanish with all that
it kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raycache.client.blockfiles import BlockFiles
from raycache.client.changing import Changing
from raycache.client.filesystem import FileSystem
from raycache.client.keeping import Keeping, sum_freed
from raycache.client.namespace import Namespace
from raycache.client.protocols import Call, Ended
from raycache.client.reader import Reader
from raycache.client.segments import Segments
from raycache.client.treeapi import TreeApi
from raycache.client.treerefresh import refresh_tree
from raycache.core import archive
from raycache.core.inode import Extent, Place
from raycache.core.manifest import Manifest
from raycache.core.membership import View
from raycache.core.persisting import Behind
from raycache.core.segment import Home, SegmentRange, SourceRange
from raycache.core.values import (
    Buffer,
    Dataset,
    Failed,
    Fetch,
    Fetched,
    Filed,
    Freed,
    ListingJob,
    Sealed,
    Served,
    Worker,
)
from raycache.errors import Unavailable, WorkerLost
from raycache.meta.catalog import Catalog
from raycache.meta.metadata import Metadata
from raycache.store.accounts import Accounts
from raycache.store.blocks import Answer, BlockStore
from raycache.store.contents import WrittenFiles
from raycache.store.directory import Directory
from raycache.store.segmentfile import NodeSegments
from raycache.store.segments import SegmentStore
from raycache.store.tiers import Kept, Tiers
from raycache.ufs.base import Limits
from raycache.ufs.sources import Sources

CALLS_MAX = 64
"""Calls to workers under way in an InProcessPool."""
SLOW_MAX_S = 60.0


class PlainMemory:
    """A BlockMemory in ordinary memory; ``full`` makes it refuse."""

    def __init__(self) -> None:
        self.full = False

    def put(self, block: bytearray) -> tuple[Any, memoryview]:
        """See BlockMemory."""
        if self.full:
            raise Unavailable("the test's memory is full")
        return block, memoryview(block).toreadonly()


class InProcessMaster:
    """A MasterApi and ListingsApi; counts its calls."""

    def __init__(self, metadata: Metadata, view: Callable[[], View], tell: Callable[[], object] = lambda: None) -> None:
        """``tell``: has the workers know what datasets may keep."""
        self.calls = 0
        self._tell = tell
        self._metadata = metadata
        self._view = view
        self.tree: TreeApi = metadata.tree

    def attach(self, source: str, name: str | None, options: Mapping[str, Any]) -> Dataset:
        """See MasterApi."""
        self.calls += 1
        return self._told(self._metadata.attach(source, name, options))

    def _told(self, dataset: Dataset) -> Dataset:
        self._tell()
        return dataset

    def datasets(self) -> list[Dataset]:
        """See MasterApi."""
        self.calls += 1
        return self._metadata.datasets()

    def manifest(self, dir_id: int, at_least: int = 0) -> Manifest:
        """See MasterApi. Goes through bytes, as over the wire."""
        self.calls += 1
        return archive.from_bytes(archive.to_mapped(self._metadata.manifest(dir_id, at_least)))

    def manifests(self, dir_ids: Sequence[int]) -> list[Manifest | Failed]:
        """See MasterApi."""
        self.calls += 1

        def hand_out(dir_id: int) -> Manifest:
            return archive.from_bytes(archive.to_mapped(self._metadata.manifest(dir_id)))

        return self._metadata.manifests(dir_ids, hand_out)

    def changes(self, since: int) -> tuple[int, list[int]]:
        """See MasterApi."""
        self.calls += 1
        return self._metadata.changes(since)

    def newest_change(self) -> int:
        """See MasterApi."""
        self.calls += 1
        return self._metadata.newest_change()

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """See MasterApi."""
        self.calls += 1
        return self._metadata.set_refresh(name, every_s)

    def set_retention(self, name: str, changes: Mapping[str, Any]) -> Dataset:
        """See MasterApi."""
        self.calls += 1
        return self._told(self._metadata.retentions.set(name, changes))

    def pin(self, name: str, path: str, size_bytes: int) -> Dataset:
        """See MasterApi."""
        self.calls += 1
        capacity_bytes = sum(worker.capacity_bytes for worker in self._view().workers)
        return self._told(self._metadata.retentions.pin(name, path, size_bytes, capacity_bytes))

    def unpin(self, name: str, path: str) -> Dataset:
        """See MasterApi."""
        self.calls += 1
        return self._told(self._metadata.retentions.unpin(name, path))

    def remove(self, name: str) -> None:
        """See MasterApi."""
        self.calls += 1
        self._metadata.remove(name)
        self._tell()

    def refresh(self, dir_id: int) -> int:
        """See MasterApi."""
        self.calls += 1
        return self._metadata.refresh(dir_id)

    def wait_persisted(self, places: Sequence[Place], wait_s: float) -> Behind:
        """See PersistApi."""
        self.calls += 1
        return self._metadata.handout.wait(places, wait_s)

    def overwrite_conflicts(self, dataset: str, path: str) -> int:
        """See PersistApi."""
        self.calls += 1
        return self._metadata.handout.overwrite(dataset, path)

    def start_listing(self, dir_id: int) -> int:
        """See ListingsApi."""
        self.calls += 1
        return self._metadata.listings.start(dir_id)

    def listing(self, job_id: int, wait_s: float) -> ListingJob:
        """See ListingsApi."""
        self.calls += 1
        return self._metadata.listings.job(job_id, wait_s)

    def cancel_listing(self, job_id: int) -> None:
        """See ListingsApi."""
        self.calls += 1
        self._metadata.listings.cancel(job_id)

    def view(self) -> View:
        """See MasterApi."""
        self.calls += 1
        return self._view()


@dataclass(eq=False)
class _FutureCall:
    """A Call in a thread."""

    future: Future[Served]

    def answers(self) -> Served:
        """See Call."""
        return self.future.result()


class InProcessPool:
    """A WorkerPool over block stores; counts its calls. A lost worker is replaced by an empty one when asked anew."""

    def __init__(self, make: Callable[[str], BlockStore], workers: int) -> None:
        """``make``: a worker's store, by its id."""
        self.calls = 0
        self._make = make
        self._lock = threading.Lock()
        self._names = [f"worker-{number}" for number in range(workers)]
        self.stores: dict[str, BlockStore] = {name: make(name) for name in self._names}
        self.slow: dict[str, threading.Event] = {}
        """Workers that answer when their event is set, or after SLOW_MAX_S."""
        self._callers = ThreadPoolExecutor(CALLS_MAX, "call")

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        """See WorkerPool."""
        with self._lock:
            if refresh:
                for name in self._names:
                    if name not in self.stores:
                        self.stores[name] = self._make(name)
        return [Worker(name, 1 << 20, local=True) for name in self._names]

    def replicas(self, dataset: str) -> int:
        """See WorkerPool."""
        return 1

    def kill(self, name: str) -> None:
        """Lose a worker and all that it kept."""
        with self._lock:
            self.stores.pop(name).stop()

    def hint(self, calls: Mapping[str, Sequence[bytes]]) -> None:
        """See WorkerPool."""
        for name, plans in calls.items():
            self.calls += 1
            if name in self.stores:
                self.stores[name].hint(plans)

    def begin(self, worker_id: str, requests: Sequence[Fetch], timeout_s: float) -> Call:
        """See WorkerPool."""
        self.calls += 1
        store, gate = self.stores.get(worker_id), self.slow.get(worker_id)
        if store is None:
            return Ended(WorkerLost(f"{worker_id} is gone"))

        def fetch() -> Served:
            if gate is not None:
                gate.wait(SLOW_MAX_S)
            answers, source_s = store.fetch(requests, timeout_s)
            return Served([fetched(answer) for answer in answers], source_s)

        return _FutureCall(self._callers.submit(fetch))

    def wait(self, calls: Sequence[Call], timeout_s: float) -> Sequence[Call]:
        """See WorkerPool."""
        futures = {call.future: call for call in calls if isinstance(call, _FutureCall)}
        if len(futures) < len(calls):
            return [call for call in calls if isinstance(call, Ended)]
        done, _ = wait(futures, timeout_s, FIRST_COMPLETED)
        return [futures[future] for future in done]

    def load(self, calls: Mapping[str, Sequence[bytes]]) -> Mapping[str, Sequence[str] | WorkerLost]:
        """See KeepingPool."""
        self.calls += len(calls)
        stores = {name: self.stores.get(name) for name in calls}
        return {
            name: WorkerLost(f"{name} is gone") if store is None else store.load(calls[name])
            for name, store in stores.items()
        }

    def free(self, dataset: str, path: str, blocks: Collection[bytes] | None) -> Freed:
        """See KeepingPool."""
        return sum_freed([store.tiers.free(dataset, path, blocks) for store in self.stores.values()])

    def close(self) -> None:
        """Stop all stores, and let the slow ones answer."""
        for gate in self.slow.values():
            gate.set()
        self._callers.shutdown(wait=False)
        for store in self.stores.values():
            store.stop()


class InProcessSegments:
    """Segments of all workers of an InProcessPool, on disk: a client.segments.SegmentCalls; counts its calls."""

    pool: InProcessPool

    def __init__(self, base: Path | None, tree: TreeApi, sources: Sources, quota_bytes: int) -> None:
        """``base``: gets a directory for each worker. Set ``pool`` before use."""
        self.calls = 0
        self._base = base
        self._tree = tree
        self._sources = sources
        self._quota_bytes = quota_bytes
        self._stores: dict[str, SegmentStore] = {}

    def store(self, worker_id: str) -> SegmentStore:
        """The segments of a worker that lives. Raises WorkerLost."""
        if worker_id not in self.pool.stores:
            self._stores.pop(worker_id, None)
            raise WorkerLost(f"{worker_id} is gone")
        if worker_id not in self._stores:
            directories = [] if self._base is None else [self._base / worker_id]
            store = self._stores[worker_id] = SegmentStore(directories, self._quota_bytes)
            store.worker_id = worker_id
            store.open()
        return self._stores[worker_id]

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        """See SegmentCalls."""
        return self.pool.workers(refresh)

    def homes(self) -> Sequence[Home]:
        """See SegmentCalls."""
        return [self.store(worker.worker_id).home() for worker in self.pool.workers()]

    def places(self, segments: Sequence[str]) -> Sequence[Sequence[str]]:
        """See SegmentCalls."""
        return self._tree.segment_places(segments)

    def moved(self, dataset: str, extents: Sequence[Extent]) -> Sequence[Sequence[Extent]]:
        """See SegmentCalls."""
        return self._tree.moved_segments(dataset, extents)

    def read(self, worker_id: str, ranges: Sequence[SegmentRange], timeout_s: float) -> Sequence[Buffer | Failed]:
        """See SegmentCalls."""
        self.calls += 1
        return self.store(worker_id).read(ranges)

    def read_source(self, worker_id: str, ranges: Sequence[SourceRange], timeout_s: float) -> Sequence[Buffer | Failed]:
        """See SegmentCalls."""
        self.calls += 1
        return self._sources.read(ranges)

    def make(self, worker_id: str) -> str:
        """See SegmentCalls."""
        return self.store(worker_id).make()

    def resume(self, worker_id: str, segment: str) -> int:
        """See SegmentCalls."""
        return self.store(worker_id).resume(segment)

    def write(self, worker_id: str, segment: str, offset: int, data: Buffer) -> None:
        """See SegmentCalls."""
        self.store(worker_id).write(segment, offset, data)

    def sync(self, worker_id: str, segment: str) -> None:
        """See SegmentCalls."""
        self.store(worker_id).sync(segment)

    def hold(self, worker_id: str, segments: Sequence[str]) -> None:
        """See SegmentCalls."""
        self.store(worker_id).hold(segments)

    def release(self, worker_id: str, segment: str, discard: bool) -> None:
        """See SegmentCalls."""
        self.store(worker_id).release(segment, discard)


class InProcessCache:
    """Master, workers and client. ``close`` it, or use it in a ``with``."""

    def __init__(
        self,
        *,
        workers: int = 1,
        quota_bytes: int = 1 << 30,
        block_bytes: int = 1 << 20,
        view_bytes: int = 1 << 30,
        catalog: str = ":memory:",
        fetchers: int = 4,
        directories: Callable[[Accounts], Sequence[Directory]] = lambda _: (),
        files: BlockFiles | None = None,
        segments: Path | None = None,
        write_quota: int = 1 << 30,
    ) -> None:
        """``directories``: makes the disk tiers of one worker, open. ``files``: how the client reads them.
        ``segments``: where what is written lies, a directory for each worker; without it nothing can be written."""
        limits = Limits(request_timeout_s=5)
        ticks = iter(range(1, 1 << 60))
        self.metadata = Metadata(Catalog.open(catalog), {}, limits, block_bytes, lambda: next(ticks))
        self.memory = PlainMemory()
        self.sources = Sources(self.metadata.access, limits)

        def make(name: str) -> BlockStore:
            accounts = Accounts()
            tiers = Tiers(self.memory, quota_bytes, directories(accounts), accounts)
            written = None if segments is None else self._written(name, limits.request_timeout_s)
            store = BlockStore(tiers, self.sources, fetchers, written=written)
            store.configure(self.metadata.retentions.all())
            store.start()
            return store

        self.segment_calls = InProcessSegments(segments, self.metadata.tree, self.sources, write_quota)
        self.pool = self.segment_calls.pool = InProcessPool(make, workers)
        self.master = InProcessMaster(self.metadata, lambda: View(workers=tuple(self.pool.workers())), self._tell)
        self.namespace = Namespace(self.master, tree=self.master.tree)
        self.reader = Reader(self.pool, view_bytes, timeout_s=10, files=files)
        self.keeping = Keeping(self.namespace, self.master, self.pool)
        self.files = FileSystem(self.namespace, self.reader)
        if segments is not None:
            self.segments = Segments(self.segment_calls, NodeSegments(), self.namespace, self.reader, timeout_s=10)
            self.files = self._files(self.namespace)

    def __enter__(self) -> InProcessCache:
        return self

    def _tell(self) -> None:
        retentions = self.metadata.retentions.all()
        for store in list(self.pool.stores.values()):
            store.configure({name: each.share(1, len(self.pool.stores)) for name, each in retentions.items()})

    def __exit__(self, *_: object) -> None:
        self.close()

    def _written(self, worker_id: str, source_s: float) -> WrittenFiles:
        def here(ranges: Sequence[SegmentRange]) -> Sequence[Buffer | Failed]:
            return self.segment_calls.store(worker_id).read(ranges)

        return WrittenFiles(self.metadata.tree.contents, here, self.segment_calls, self.sources, source_s)

    def refresh_tree(self, uri: str, show: Callable[[ListingJob], object] = lambda _: None) -> ListingJob:
        """See client.treerefresh."""
        return refresh_tree(self.namespace, self.master, uri, show)

    def view(self, change: int | None = None) -> FileSystem:
        """A client that holds nothing yet, and shows everything as of a change number where one is given."""
        return FileSystem(Namespace(self.master, change), self.reader)

    def another(self) -> tuple[Namespace, FileSystem]:
        """A client that holds nothing yet, and writes."""
        namespace = Namespace(self.master, tree=self.master.tree)
        return namespace, self._files(namespace)

    def _files(self, namespace: Namespace) -> FileSystem:
        return FileSystem(namespace, self.reader, Changing(namespace, self.master.tree, self.segments))

    def close(self) -> None:
        """Stop the stores and check their books."""
        for store in self.pool.stores.values():
            store.check()
        self.pool.close()


def fetched(answer: Answer) -> Fetched:
    """What a client gets of a store's answer, where both are in one process."""
    if isinstance(answer, Kept):
        return Sealed(answer.view, answer.holes)
    return answer if isinstance(answer, Filed | Failed) else memoryview(answer)
