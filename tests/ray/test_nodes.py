"""Nodes that join, drain and die. Real nodes of Ray on this machine, beside the one that the other tests have."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.actors.cluster import current
from raycache.client.filesystem import FileSystem
from raycache.client.reader import Reader
from raycache.core.placement import owners
from raycache.testing import ObjectStoreServer
from raycache.testing.proxy import CountingProxy

FILES, FILE_BYTES, BLOCK_BYTES = 240, 50_000, 1 << 18
STORE_BYTES = 100 << 20


def body(number: int) -> bytes:
    return random.Random(number).randbytes(FILE_BYTES)


BODIES = [body(number) for number in range(FILES)]


class Nodes:
    """Ray nodes that are added to the tests' Ray cluster, and taken away again."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=False)
        head: Any = ray._private.worker._global_node
        self.cluster.head_node, self.cluster.redis_address = head, head.redis_address
        self.cluster.global_state = ray._private.state.state
        self.nodes: dict[str, Any] = {}
        self.ids: dict[str, str] = {}

    def add(self, name: str) -> str:
        node = self.cluster.add_node(
            num_cpus=0, object_store_memory=STORE_BYTES, node_name=name, resources={}, include_dashboard=False
        )
        self.nodes[name], self.ids[name] = node, str(node.node_id)
        return str(node.node_id)

    def kill(self, *names: str) -> None:
        """End raylets at once, and all that they started."""
        for name in names:
            for process in self.nodes[name].all_processes["raylet"]:
                process.process.kill()
        for name in names:
            self.cluster.remove_node(self.nodes.pop(name), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes(ray_address: str) -> Iterator[Nodes]:
    nodes = Nodes()
    nodes.add("n1")
    yield nodes
    for name in list(nodes.nodes):
        with suppress(Exception):
            nodes.kill(name)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a cache of small blocks, with the same memory on each node."""
    monkeypatch.setenv("RAYCACHE_BLOCK_BYTES", str(BLOCK_BYTES))
    monkeypatch.setenv("RAYCACHE_MEM", "40MB")


class Data:
    """A dataset behind a proxy that counts what is read from its source."""

    def __init__(self, bucket: str, proxy: CountingProxy, client: Any) -> None:
        self.proxy = proxy
        self.hedged: dict[int, int] = {}
        """``hedged_reads`` at the last reset."""
        self.uris = [f"s3://{bucket}/{number:03d}" for number in range(FILES)]
        for uri, data in zip(self.uris, BODIES, strict=True):
            client.put_object(Bucket=bucket, Key=uri[-3:], Body=data)
        raycache.dataset("data", f"s3://{bucket}")
        cluster = current()
        # Holds no views: each read asks a worker.
        self.files = FileSystem(cluster.namespace, Reader(cluster.pool, 0, timeout_s=60))

    def epoch(self, seed: int) -> None:
        """Read and compare all, in random order."""
        order = list(range(FILES))
        random.Random(seed).shuffle(order)
        for start in range(0, FILES, 20):
            some = order[start : start + 20]
            assert self.files.read_many([self.uris[number] for number in some]) == [BODIES[number] for number in some]

    def fill(self, copies: int = 1) -> None:
        """Have it all in the cache, and the counters of the source at nothing."""
        self.epoch(0)
        wait_for(lambda: held() >= copies * BLOCKS and not busy())
        self.reset()

    def reset(self) -> None:
        """Have the counters of the source at nothing."""
        self.hedged = hedged_reads()
        self.proxy.reset()

    def gets(self) -> int:
        """Requests for bytes since the last reset."""
        return self.proxy.counts().get("GET", 0)

    def needless_gets(self, lost: Collection[bytes] = ()) -> int:
        """The same without those for files of blocks that were lost, and without what hedging explains: who is asked in
        the place of a worker that is slow, as all are at times on a busy machine, asks the source for what it lacks."""
        block_of = block_of_each()
        asked = [
            int(path.rpartition("/")[2].partition("?")[0]) for method, path in self.proxy.requests() if method == "GET"
        ]
        hedged = sum(count - self.hedged.get(pid, 0) for pid, count in hedged_reads().items())
        return max(0, sum(block_of[number] not in lost for number in asked) - hedged)


BLOCKS = FILES // (BLOCK_BYTES // FILE_BYTES)


@pytest.fixture
def data(bucket: str, s3_env: ObjectStoreServer, small: None, cache: Any, monkeypatch: Any) -> Iterator[Data]:
    with CountingProxy(s3_env.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield Data(bucket, proxy, s3_env.client())


def workers() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = raycache.status()["workers"]
    return found


def hedged_reads() -> dict[int, int]:
    """Reads that each worker's process was asked for in the place of a slow one."""
    return {worker["pid"]: worker["counters"]["hedged"] for worker in workers() if "counters" in worker}


def drained_by_ray(node_id: str) -> None:
    import ray
    from ray.core.generated import autoscaler_pb2

    gcs: Any = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, refusal = gcs.drain_node(node_id, reason, "test", time.time_ns() // 10**6 + 60_000)
    assert accepted, refusal


def held() -> int:
    """Blocks in all tiers of all workers."""
    return sum(tier["blocks"] for worker in workers() for tier in worker.get("tiers", ()))


def by_node() -> dict[str, dict[str, Any]]:
    return {worker["node_id"]: worker for worker in workers()}


def busy() -> bool:
    return any("error" in worker or worker["filling"] for worker in workers())


def wait_for(there: Callable[[], Any], timeout_s: float = 40) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := there():
            return found
        time.sleep(0.1)
    raise AssertionError(raycache.status())


def block_of_each() -> list[bytes]:
    """Ids of the blocks that the dataset's files lie in."""
    master = current().master
    dataset = next(one for one in master.datasets() if one.name == "data")
    manifest = master.manifest(dataset.root_id)
    return [manifest.block_id(piece.block) for row in range(FILES) for piece in manifest.pieces(row, 0, 1)]


def owned(node_id: str, replicas: int = 1) -> list[bytes]:
    """Ids of the dataset's blocks that lie on a node."""
    view = current().master.view()
    ids = set(block_of_each())
    assert len(ids) == BLOCKS
    return [one for one in ids if node_id in {owner.node_id for owner in owners(one, view.workers, replicas)}]


def test_nodes_that_join_drain_and_die_move_their_share(nodes: Nodes, data: Data) -> None:
    assert len(workers()) == 2
    data.fill()
    joined = nodes.add("n2")
    wait_for(lambda: joined in by_node() and "error" not in by_node()[joined], 20)
    data.epoch(1)
    assert data.needless_gets() == 0
    moved = owned(joined)
    wait_for(lambda: by_node()[joined]["blocks"] == len(moved))
    block_bytes = BLOCK_BYTES // FILE_BYTES * FILE_BYTES
    figures = {node_id: worker["counters"] for node_id, worker in by_node().items()}
    assert figures.pop(joined)["peer_bytes"] == len(moved) * block_bytes
    assert [each["peer_bytes"] for each in figures.values()] == [0, 0]
    assert sum(each["given_blocks"] for each in figures.values()) == len(moved)

    leaving = nodes.ids["n1"]
    assert raycache.drain(leaving[:12]) == leaving
    wait_for(lambda: raycache.status()["drained"] == [leaving])
    assert leaving not in by_node()
    data.epoch(2)
    assert data.needless_gets() == 0
    raycache.drain("n1", undo=True)
    wait_for(lambda: leaving in by_node())
    data.epoch(3)
    assert data.needless_gets() == 0

    wait_for(lambda: not busy())
    lost = owned(joined)
    nodes.kill("n2")
    data.epoch(4)  # nothing fails, whoever knows of the loss by now
    wait_for(lambda: joined not in by_node())
    data.epoch(5)
    wait_for(lambda: not busy())
    assert data.gets() <= 2 * len(lost) * (BLOCK_BYTES // FILE_BYTES)
    assert data.needless_gets(lost) == 0
    data.reset()
    data.epoch(6)
    assert data.needless_gets() == 0


def test_copies_outlive_their_workers(nodes: Nodes, data: Data) -> None:
    raycache.dataset("data", data.uris[0].rpartition("/")[0], replicas=2)
    data.fill(copies=2)
    failures: list[str] = []
    stop = threading.Event()

    def verify() -> None:
        rng = random.Random(5)
        while not stop.is_set():
            number = rng.randrange(FILES)
            try:
                if data.files.read_many([data.uris[number]])[0] != BODIES[number]:
                    failures.append(f"{number}: other bytes")
            except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                failures.append(f"{number}: {error!r}")

    reader = threading.Thread(target=verify)
    reader.start()
    victim = by_node()[nodes.ids["n1"]]
    os.kill(victim["pid"], signal.SIGKILL)
    wait_for(lambda: by_node()[nodes.ids["n1"]].get("pid", victim["pid"]) != victim["pid"])
    wait_for(lambda: sum(worker.get("blocks", 0) for worker in workers()) >= 2 * BLOCKS and not busy())
    stop.set()
    reader.join(60)
    assert failures == []
    assert data.needless_gets() == 0
    data.epoch(1)
    assert data.needless_gets() == 0


def test_two_nodes_at_once_lose_only_what_lay_on_both(nodes: Nodes, data: Data) -> None:
    names = ("n3", "n4")
    for name in names:
        nodes.add(name)
    wait_for(lambda: all(nodes.ids[name] in by_node() for name in names))
    raycache.dataset("data", data.uris[0].rpartition("/")[0], replicas=2)
    data.fill(copies=2)
    lost = set(owned(nodes.ids["n3"], 2)) & set(owned(nodes.ids["n4"], 2))
    nodes.kill(*names)
    wait_for(lambda: not {nodes.ids[name] for name in names} & by_node().keys())
    data.epoch(1)
    assert data.gets() > 0 == data.needless_gets(lost)
    # The copies that were lost are made anew from those that are left.
    wait_for(lambda: sum(worker.get("blocks", 0) for worker in workers()) == 2 * BLOCKS and not busy())
    # Each of the two new owners of a lost block may ask for it.
    assert data.gets() <= 2 * len(lost) * (BLOCK_BYTES // FILE_BYTES)
    assert data.needless_gets(lost) == 0


def test_a_worker_with_disks_is_the_same_after_a_restart_and_numbers_go_on(
    nodes: Nodes, bucket: str, s3_env: ObjectStoreServer, tmp_path: Path, small: None, request: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("RAYCACHE_TIERS", f"{tmp_path}/{{node}}:100MB")
    in_memory = 4
    monkeypatch.setenv("RAYCACHE_MEM", str(in_memory * BLOCK_BYTES))
    cache = request.getfixturevalue("cache")
    data: Data = request.getfixturevalue("data")
    joined = nodes.add("n5")
    wait_for(lambda: joined in by_node())
    before = {worker["worker_id"]: worker["capacity_bytes"] for worker in workers()}
    assert set(before.values()) == {100_000_000 + in_memory * BLOCK_BYTES}
    number = raycache.status()["view"]["number"]
    os.kill(cache.master.status()["pid"], signal.SIGKILL)
    assert raycache.status()["view"]["number"] == number
    data.fill()

    kept = by_node()[joined]
    nodes.kill("n5")
    wait_for(lambda: joined not in by_node())
    joined = nodes.add("n5")
    again = wait_for(lambda: by_node().get(joined))
    assert again["worker_id"] == kept["worker_id"] != joined
    assert {worker["worker_id"] for worker in workers()} == before.keys()
    assert raycache.status()["view"]["number"] > number
    # What was on its disk is found again; what was in its memory alone is not.
    data.epoch(1)
    assert by_node()[joined]["tiers"][1]["blocks"] > in_memory
    assert data.needless_gets() <= in_memory * (BLOCK_BYTES // FILE_BYTES)
    # Ray takes the node away, as its autoscaler does: what it holds has moved by then.
    data.reset()
    drained_by_ray(joined)
    wait_for(lambda: joined not in by_node())
    data.epoch(2)
    assert data.needless_gets() == 0


def test_a_node_leaves_when_the_source_has_all_that_was_written_on_it(
    nodes: Nodes, cache: Any, bucket: str, s3_env: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    here = ray.get_runtime_context().get_node_id()
    with CountingProxy(s3_env.endpoint) as proxy:
        options = {**s3_env.storage_options, "endpoint_url": proxy.endpoint}
        raycache.dataset("data", f"s3://{bucket}", options)
        proxy.down = True
        files = {f"raycache://data/{number}": body(number) for number in range(5)}
        raycache.write_many(files)
        assert by_node()[here]["written_bytes"] == 5 * FILE_BYTES
        raycache.drain(here)
        wait_for(lambda: by_node()[here]["draining"])
        time.sleep(3)
        later = {f"raycache://data/later-{number}": body(number) for number in range(5)}
        raycache.write_many(later)
        about = by_node()
        assert about.pop(here)["written_bytes"] == 5 * FILE_BYTES
        assert sum(worker["written_bytes"] for worker in about.values()) == 5 * FILE_BYTES
        proxy.down = False
        raycache.persist("raycache://data", timeout_s=60)
        wait_for(lambda: raycache.status()["drained"] == [here], 60)
        found = raycache.read_many([*files, *later])
        assert [bytes(data) for data in found] == [*files.values(), *later.values()]
        raycache.drain(here, undo=True)
