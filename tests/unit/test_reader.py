"""Whom a reader asks, and for how long, when somebody does not answer. Over a pool that does what the test says."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest

from raycache.client.protocols import Call, Ended
from raycache.client.reader import Reader
from raycache.core.listing import LISTING_SCHEMA, build
from raycache.core.manifest import Directory, Manifest
from raycache.core.placement import rank
from raycache.core.values import Fetch, Fetched, Served, Worker
from raycache.errors import ClusterUnavailable, Unavailable, WorkerLost

WORKERS = [Worker(name, 1) for name in ("a", "b", "c")]


def manifest() -> Manifest:
    rows = [{"name": b"file", "is_dir": False, "size_bytes": 10, "mtime_ns": 1, "etag": b"1"}]
    listing = pa.RecordBatch.from_pylist(rows, schema=LISTING_SCHEMA)
    return build(Directory(1, "data", "s3://b", "", 1, 0, 100), listing, np.zeros(0, np.uint64))


MANIFEST = manifest()
RANKED = [worker.worker_id for worker in rank(MANIFEST.block_id(0), WORKERS)]


class Pool:
    """A WorkerPool. ``lost``: workers that are gone; ``master``: set while the master answers."""

    def __init__(self) -> None:
        self.lost: set[str] = set()
        self.master = threading.Event()
        self.known: Sequence[Worker] = WORKERS
        self.asked: list[str] = []

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        if refresh and not self.master.wait(0.5):
            raise ClusterUnavailable("the master is away")
        return self.known

    def replicas(self, dataset: str) -> int:
        return 1

    def hint(self, calls: Mapping[str, Sequence[bytes]]) -> None:
        pass

    def begin(self, worker_id: str, requests: Sequence[Fetch], timeout_s: float) -> Ended:
        self.asked.append(worker_id)
        return Ended(WorkerLost("gone") if worker_id in self.lost else Served(served(requests)))

    def wait(self, calls: Sequence[Call], timeout_s: float) -> Sequence[Call]:
        return calls


def served(requests: Sequence[Fetch]) -> list[Fetched]:
    return [b"0123456789"[request.offset : request.offset + request.length] for request in requests]


def test_a_read_goes_on_with_the_second_worker_though_the_master_is_away_too() -> None:
    pool = Pool()
    pool.lost = {RANKED[0]}
    assert Reader(pool, 0, 10).read(MANIFEST, 0, 2, 3) == b"234"  # within the half second that the master takes
    assert pool.asked == RANKED[:2]


def test_a_read_without_any_worker_ends_by_its_deadline_and_says_that_the_master_is_away() -> None:
    pool = Pool()
    pool.lost = set(RANKED)
    with pytest.raises(Unavailable, match="no worker answered within") as caught:
        Reader(pool, 0, 0.8).read(MANIFEST, 0, 0, 10)
    assert isinstance(caught.value.__cause__, ClusterUnavailable)
