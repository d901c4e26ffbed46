"""Many nodes on one machine: epochs over more than a node holds, nodes that join and die, bytes between nodes.

"epochs", "scale" and "change" run Ray nodes of ray.cluster_utils on a SeaweedFS bucket behind a proxy that counts;
readers are actors, one on each node, that hold no views. "net" runs two Ray nodes in two network namespaces, joined by
a veth pair: it needs root and ``ip``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import report
import workload

from raycache.testing import ObjectStoreServer
from raycache.testing.proxy import CountingProxy

NODES = 4
STORE_BYTES = 640 << 20
MEM_BYTES = 160_000_000
BLOCK_BYTES = 1 << 20
SIZE_BYTES = 100_000
FILES = 3 * MEM_BYTES // SIZE_BYTES
EPOCHS = 6
LONGER = 3
"""So many times the memory and the files for "epochs": short ones differ by chance."""
BATCH = 64
WAIT_S = 120.0
BATCHES = (1, 16, 64, 256)
RANGE_BYTES = 300 * 1024
SPACES = (("raycache-a", "10.231.7.1"), ("raycache-b", "10.231.7.2"))
PORT = 6399
TITLES = {
    "epochs": "epochs over three times what one holds",
    "scale": "1, 2 and 4 nodes",
    "change": "a join and a loss",
    "net": "bytes between two network namespaces",
}
Found = dict[str, Any]


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default=",".join(TITLES), help="which parts, comma separated")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--dry-run", action="store_true", help="do not write RESULTS.md")
    arguments = parser.parse_args()
    command = f"python benchmarks/nodes.py --rounds {arguments.rounds} --parts {arguments.parts}"
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_DEDUP_LOGS="0")
    found: Found = {}
    for part in arguments.parts.split(","):
        print(f"== {part}", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["RAYCACHE_STATE_DIR"] = f"{scratch}/state"
            measured, text = PARTS[part](Path(scratch), arguments.rounds)
        if not arguments.dry_run:
            report.write_section(f"Nodes: {TITLES[part]}", command, text)
        print(text, flush=True)
        found[part] = measured
    if arguments.json:
        print(json.dumps(found))


class Reader:
    """An actor that reads a share of the files through raycache and keeps nothing."""

    def __init__(self, source: str) -> None:
        from raycache.actors.cluster import current
        from raycache.client.filesystem import FileSystem
        from raycache.client.reader import Reader as Views

        cluster = current()
        self._source = source
        self._files = FileSystem(cluster.namespace, Views(cluster.pool, 0, timeout_s=WAIT_S))
        self._files.listdir(source)

    def read(self, names: list[str], seed: int) -> float:
        """Seconds that it took."""
        order = [f"{self._source}/{name}" for name in names]
        random.Random(seed).shuffle(order)
        began = time.perf_counter()
        for start in range(0, len(order), BATCH):
            read = self._files.read_many(order[start : start + BATCH])
            if any(len(data) != SIZE_BYTES for data in read):
                raise RuntimeError("a file came short")
        return time.perf_counter() - began


class Nodes:
    """A Ray cluster of several nodes on this machine, raycache on it, and a bucket behind a proxy."""

    def __init__(self, count: int, server: ObjectStoreServer, bucket: str, times: int) -> None:
        import ray
        from ray.cluster_utils import Cluster

        import raycache

        self._ray = ray
        self.proxy = CountingProxy(server.endpoint)
        self.proxy.start()
        os.environ.update(server.environ, AWS_ENDPOINT_URL=self.proxy.endpoint)
        os.environ.update(RAYCACHE_MEM=str(times * MEM_BYTES), RAYCACHE_BLOCK_BYTES=str(BLOCK_BYTES))
        options: dict[str, Any] = {
            "num_cpus": 1,
            "object_store_memory": times * STORE_BYTES,
            "include_dashboard": False,
        }
        self._options = options
        self._cluster = Cluster(initialize_head=True, head_node_args=options)
        os.environ["RAYCACHE_ADDRESS"] = self._cluster.address
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        self._added = [self._cluster.add_node(**options) for _ in range(count - 1)]
        raycache.disconnect()
        raycache.init()
        self.source = f"s3://{bucket}/files"
        raycache.dataset("bench", self.source)
        self.wait(lambda: len(self.workers()) == count)
        self.readers = {worker["node_id"]: self._reader(worker["node_id"]) for worker in self.workers()}

    def _reader(self, node_id: str) -> Any:
        actor: Any = self._ray.remote(Reader)
        return actor.options(num_cpus=0, label_selector={"ray.io/node-id": node_id}).remote(self.source)

    def epoch(self, names: list[str], seed: int) -> float:
        """Seconds until all readers have read their share."""
        readers = list(self.readers.values())
        shuffled = list(names)
        random.Random(seed).shuffle(shuffled)
        began = time.perf_counter()
        calls = [reader.read.remote(shuffled[n :: len(readers)], seed) for n, reader in enumerate(readers)]
        self._ray.get(calls, timeout=10 * WAIT_S)
        return time.perf_counter() - began

    def fill(self, names: list[str]) -> None:
        """An epoch that brings all in."""
        self.epoch(names, 0)
        self.wait(lambda: not any(worker["filling"] for worker in self.workers()))
        self.proxy.reset()

    def workers(self) -> list[dict[str, Any]]:
        """As ``raycache status`` has them, those that answer."""
        import raycache

        return [worker for worker in raycache.status()["workers"] if "error" not in worker]

    def wait(self, there: Callable[[], bool]) -> None:
        """Until it is so."""
        deadline = time.monotonic() + WAIT_S
        while not there():
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited in vain: {self.workers()}")
            time.sleep(0.1)

    def join(self) -> str:
        """One node more; its id."""
        node = self._cluster.add_node(**self._options)
        self._added.append(node)
        return str(node.node_id)

    def kill(self) -> str:
        """End the oldest node but the head, at once; its id."""
        node = self._added.pop(0)
        for process in node.all_processes["raylet"]:
            process.process.kill()
        self._cluster.remove_node(node, allow_graceful=False)
        self.readers.pop(node.node_id, None)
        return str(node.node_id)

    def oldest(self) -> str:
        """Id of the node that ``kill`` ends."""
        return str(self._added[0].node_id)

    def share(self, node_id: str) -> float:
        """Of the dataset's blocks, that of a node by placement."""
        from raycache.actors.cluster import current
        from raycache.core.placement import rank

        cluster = current()
        workers = cluster.master.view().workers
        dataset = cluster.master.datasets()[0]
        manifest = cluster.master.manifest(dataset.root_id)
        blocks = {manifest.block_id(piece.block) for row in range(FILES) for piece in manifest.pieces(row, 0, 1)}
        return sum(rank(block, workers)[0].node_id == node_id for block in blocks) / len(blocks)

    def close(self) -> None:
        """End it all."""
        import raycache

        with contextlib.suppress(Exception):  # half of it may be gone
            raycache.shutdown()
        self._ray.shutdown()
        self._cluster.shutdown()  # type: ignore[no-untyped-call]
        self.proxy.stop()


@contextlib.contextmanager
def bucket_of_files(scratch: Path, times: int = 1) -> Iterator[tuple[ObjectStoreServer, list[str]]]:
    """A bucket with the dataset; its server and the names."""
    names = workload.make_files(scratch / "files", times * FILES, SIZE_BYTES)
    with ObjectStoreServer() as server:
        server.create_bucket("nodes")
        workload.upload(server, "nodes", scratch / "files", "files")
        os.sync()  # the server's disk is this machine's: what it still has to write is no part of an epoch
        yield server, names


@contextlib.contextmanager
def running(count: int, server: ObjectStoreServer, times: int = 1) -> Iterator[Nodes]:
    """That many nodes."""
    nodes = Nodes(count, server, "nodes", times)
    try:
        yield nodes
    finally:
        nodes.close()


def epochs(scratch: Path, rounds: int) -> tuple[Found, str]:
    """Seconds of each epoch, and what it read from S3."""
    with bucket_of_files(scratch, LONGER) as (server, names), running(NODES, server, LONGER) as nodes:
        seconds, from_source = [], []
        for epoch in range(EPOCHS):
            nodes.proxy.reset()
            seconds.append(nodes.epoch(names, epoch))
            nodes.wait(lambda: not any(worker["filling"] for worker in nodes.workers()))
            from_source.append(nodes.proxy.bytes_out)
    warm = seconds[1:]
    spread = (max(warm) - min(warm)) / statistics.median(warm)
    measured = {"seconds": seconds, "s3_bytes": from_source, "spread": spread}
    rows = [
        [f"{number + 1}", f"{took:.2f}", f"{len(names) / took:,.0f}", f"{size / 1e6:,.1f}"]
        for number, (took, size) in enumerate(zip(seconds, from_source, strict=True))
    ]
    text = (
        f"{NODES} nodes on one machine, {LONGER * MEM_BYTES / 1e6:.0f} MB each for blocks; {len(names):,} files of "
        f"{SIZE_BYTES / 1e3:.0f} KB, three times that; one reader on each node.\n\n"
        + report.table(["epoch", "seconds", "files/s", "MB from S3"], rows)
        + f"\n\nEpochs 2 to {EPOCHS}: longest less shortest is {spread:.1%} of the median."
    )
    return measured, text


def scale(scratch: Path, rounds: int) -> tuple[Found, str]:
    """Files per second of 1, 2 and 4 nodes, a reader on each, over what one node holds."""
    rates: dict[int, list[float]] = defaultdict(list)
    with bucket_of_files(scratch) as (server, names):
        some = names[: FILES // 4]
        for count in (1, 2, 4):
            with running(count, server) as nodes:
                nodes.fill(some)
                for number in range(rounds):
                    rates[count].append(len(some) / nodes.epoch(some, number + 1))
    rows = [[str(count), report.spread(found)] for count, found in rates.items()]
    text = (
        f"{FILES // 4:,} files of {SIZE_BYTES / 1e3:.0f} KB that lie in the nodes' memory, one reader on each node "
        f"that keeps no views, batches of {BATCH}. All nodes share the cores of one machine: this shows what more "
        "nodes cost, not what they bring.\n\n" + report.table(["nodes", "files/s"], rows)
    )
    return {str(count): found for count, found in rates.items()}, text


def change(scratch: Path, rounds: int) -> tuple[Found, str]:
    """Bytes moved by a node that joins and by one that dies, in the middle of an epoch."""
    with bucket_of_files(scratch) as (server, every), running(NODES - 1, server) as nodes:
        names = every[: FILES * 2 // 3]  # with room to spare on each, however uneven their shares are
        total = len(names) * SIZE_BYTES
        nodes.fill(names)
        joined = during(nodes, names, nodes.join)
        nodes.wait(lambda: any(worker["node_id"] == joined for worker in nodes.workers()))
        nodes.epoch(names, 2)
        nodes.wait(lambda: not any(worker["filling"] for worker in nodes.workers()))
        share = nodes.share(joined)
        peers = sum(worker["counters"]["peer_bytes"] for worker in nodes.workers())
        join = {"ideal_bytes": share * total, "peer_bytes": peers, "s3_bytes": nodes.proxy.bytes_out}
        nodes.proxy.reset()
        share = nodes.share(nodes.oldest())
        during(nodes, names, nodes.kill)
        nodes.wait(lambda: len(nodes.workers()) == NODES - 1)
        nodes.epoch(names, 4)
        nodes.wait(lambda: not any(worker["filling"] for worker in nodes.workers()))
        loss = {"ideal_bytes": share * total, "peer_bytes": 0, "s3_bytes": nodes.proxy.bytes_out}
        nodes.proxy.reset()
        nodes.epoch(names, 5)
        after = nodes.proxy.bytes_out
    rows = [
        [name, *(f"{each[key] / 1e6:,.1f}" for key in ("ideal_bytes", "peer_bytes", "s3_bytes"))]
        for name, each in (("a node joins", join), ("a node dies", loss))
    ]
    text = (
        f"{NODES - 1} nodes hold {len(names):,} files of {SIZE_BYTES / 1e3:.0f} KB ({total / 1e6:.0f} MB); the change "
        "comes in the middle of an epoch and is followed by one more. "
        f"Read from S3 in the epoch after that: {after / 1e6:.1f} MB."
        "\n\n" + report.table(["MB", "its share of the blocks", "from other workers", "from S3"], rows)
    )
    return {"join": join, "loss": loss, "s3_bytes_after": after}, text


def during(nodes: Nodes, names: list[str], act: Callable[[], str]) -> str:
    """Do something in the middle of an epoch; what it returned."""
    epoch = threading.Thread(target=nodes.epoch, args=(names, 1))
    epoch.start()
    time.sleep(0.5)
    result = act()
    epoch.join(10 * WAIT_S)
    return result


NET_DRIVER = """
import json, random, sys, time
from dataclasses import replace
import ray, raycache
from raycache.actors.cluster import current
from raycache.core.placement import rank
from raycache.core.values import Fetch

source, rounds, batches, range_bytes = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
raycache.dataset("net", source)
cluster = current()
deadline = time.monotonic() + 60
while len(cluster.pool.workers(refresh=True)) < 2 and time.monotonic() < deadline:
    time.sleep(0.2)
names = raycache.listdir(source)
for name in names:
    raycache.read_many([f"{source}/{name}"])
pool = cluster.pool
remote = next(worker for worker in pool.workers() if not worker.local)
manifest = cluster.master.manifest(cluster.master.datasets()[0].root_id)
blocks = sorted({piece.block for row in range(len(names)) for piece in manifest.pieces(row, 0, manifest.size(row))})
mine = [block for block in blocks if rank(manifest.block_id(block), pool.workers())[0] == remote]
plans = {block: manifest.plan(block) for block in mine}
packed = {block: plan.pack() for block, plan in plans.items()}
while sum(worker.get("blocks", 0) for worker in raycache.status()["workers"]) < len(blocks):
    if time.monotonic() > deadline + 60:
        raise SystemExit(f"not all is kept: {raycache.status()['workers']}")
    time.sleep(0.2)
rng = random.Random(1)


def request():
    block = rng.choice(mine)
    offset = rng.randrange(plans[block].size_bytes - range_bytes)
    return Fetch(plans[block].block_id, packed[block], offset, range_bytes, False)


def rate(batch, seconds):
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        answers = pool.fetch({remote.worker_id: [request() for _ in range(batch)]}, 60)[remote.worker_id]
        done += len(answers)
        assert all(len(answer) == range_bytes for answer in answers)
    return done / (time.perf_counter() - began)


began = time.perf_counter()
for block in mine:  # each once: Ray keeps a copy of what it has brought
    whole = Fetch(plans[block].block_id, packed[block], 0, plans[block].size_bytes, True)
    (answer,) = pool.fetch({remote.worker_id: [whole]}, 60)[remote.worker_id]
    assert len(answer.view) == plans[block].size_bytes
found = {"flight": {}, "ray": {"whole blocks": [len(mine) / (time.perf_counter() - began)]}}
for _ in range(rounds):
    for way in found:
        address = remote.bytes_at if way == "flight" else ""
        pool._view = replace(pool._view, workers=tuple(
            replace(worker, bytes_at=address) if worker.worker_id == remote.worker_id else worker
            for worker in pool._view.workers))
        for batch in batches:
            found[way].setdefault(str(batch), []).append(rate(batch, 2))
print(json.dumps(found))
"""


def net(scratch: Path, rounds: int) -> tuple[Found, str]:
    """Reads per second from a worker in another network namespace, over Flight and through Ray."""
    directory = scratch / "files"
    workload.make_files(directory, 16, 32 << 20)
    environ = {**os.environ, "RAYCACHE_ADDRESS": f"{SPACES[0][1]}:{PORT}", "RAYCACHE_MEM": "700MB"}
    with namespaces(), ray_nodes(scratch):
        words = [str(directory), str(rounds), json.dumps(BATCHES), str(RANGE_BYTES)]
        done = subprocess.run(
            ["ip", "netns", "exec", SPACES[0][0], sys.executable, "-c", NET_DRIVER, *words],
            env=environ, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
    found: Found = json.loads(done.stdout.splitlines()[-1])
    rows = [
        [f"300 KiB, {batch} at once", *(report.spread(found[way][str(batch)]) for way in ("flight", "ray"))]
        for batch in BATCHES
    ]
    rows.append(["32 MiB blocks, one at once", "-", report.spread(found["ray"]["whole blocks"], ",.1f")])
    text = (
        "Two Ray nodes in two network namespaces joined by a veth pair; one reader asks the other node's worker for "
        f"random ranges of blocks that lie in its memory, {rounds} rounds.\n\n"
        + report.table(["reads per second", "Arrow Flight", "Ray"], rows)
    )
    return found, text


@contextlib.contextmanager
def namespaces() -> Iterator[None]:
    """Two network namespaces that reach each other."""

    def ip(*words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, timeout=30, capture_output=True)

    try:
        ip("link", "add", "rcveth-a", "type", "veth", "peer", "name", "rcveth-b")
        for (name, address), link in zip(SPACES, ("rcveth-a", "rcveth-b"), strict=True):
            ip("netns", "add", name)
            ip("link", "set", link, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name, _ in SPACES:
            ip("netns", "del", name, check=False)


@contextlib.contextmanager
def ray_nodes(scratch: Path) -> Iterator[None]:
    """A Ray head in the first namespace and a node in the second."""
    ray = str(Path(sys.executable).with_name("ray"))
    (first, head), (second, other) = SPACES
    common = ["--block", "--disable-usage-stats", "--num-cpus=2", f"--object-store-memory={2 << 30}"]
    commands = [
        [first, ray, "start", "--head", f"--node-ip-address={head}", f"--port={PORT}", "--include-dashboard=false",
         f"--temp-dir={scratch}/ray", *common],
        [second, ray, "start", f"--address={head}:{PORT}", f"--node-ip-address={other}", *common],
    ]  # fmt: skip
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
            time.sleep(10)
        yield
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


PARTS: dict[str, Callable[[Path, int], tuple[Found, str]]] = {
    "epochs": epochs,
    "scale": scale,
    "change": change,
    "net": net,
}

if __name__ == "__main__":
    main()
