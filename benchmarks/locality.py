"""How much is read where it is kept: four Ray nodes on this machine, everything cached, one reader on each.

Of Ray Data's ``read_files``, and of ``StreamDataset`` with and without ``near``, the share of bytes that a process read
on the node whose worker owns the block. Exact: each sample says on which node it was read.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import nodes
import numpy as np
import pyarrow as pa
import report
import workload

from raycache.data.packs import PackSource
from raycache.testing import ObjectStoreServer

COUNT, FILES, BUCKET = 4, 4000, "locality"
Read = Iterator[tuple[str, str]]
"""Paths, and the node that each was read on."""


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line and write nothing")
    arguments = parser.parse_args()
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_DEDUP_LOGS="0")
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch, ObjectStoreServer() as server:
        os.environ["RAYCACHE_STATE_DIR"] = f"{scratch}/state"
        workload.make_files(Path(scratch) / "files", FILES, nodes.SIZE_BYTES)
        server.create_bucket(BUCKET)
        workload.upload(server, BUCKET, Path(scratch) / "files", "files")
        cluster = nodes.Nodes(COUNT, server, BUCKET, times=1)
        try:
            found = measure(cluster.source, arguments.epochs)
        finally:
            cluster.close()
    rows = [[case, report.spread([100 * share for share in shares], ".1f")] for case, shares in found.items()]
    about = f"{FILES:,} files of {nodes.SIZE_BYTES // 1000} kB in blocks of 1 MiB, {arguments.epochs} epochs."
    text = f"{about}\n\n" + report.table(["bytes read on the node that owns them", "% (range)"], rows)
    print(text)
    if arguments.json:
        print(json.dumps(found))
    else:
        command = f"python benchmarks/locality.py --epochs {arguments.epochs}"
        report.write_section("Loaders: where four nodes read", command, text)


def measure(source: str, epochs: int) -> dict[str, list[float]]:
    """Shares, by case, one per epoch."""
    import ray

    import raycache

    ray.data.DataContext.get_current().enable_progress_bars = False
    raycache.load(source).wait(nodes.WAIT_S)
    owner = owners(source)
    cases = {
        "read_files": lambda epoch: of_ray_data(source),
        "StreamDataset, near": lambda epoch: of_streams(source, epoch, near=True),
        "StreamDataset": lambda epoch: of_streams(source, epoch, near=False),
    }
    found: dict[str, list[float]] = {case: [] for case in cases}
    read: Any
    for epoch in range(epochs):
        for case, read in cases.items():
            here = [owner[path] == node for path, node in read(epoch)]
            if len(here) != FILES:
                raise RuntimeError(f"{case}: {len(here)} of {FILES} files were read")
            found[case].append(sum(here) / FILES)
    return found


def owners(source: str) -> dict[str, str]:
    """The node that owns each file; files are equally long, and none is in two blocks."""
    from raycache.actors.cluster import current
    from raycache.core.placement import rank
    from raycache.data.routes import Files

    files, workers = Files.select(source), current().pool.workers(refresh=True)
    manifests = files.selection.manifests
    found: dict[str, str] = {}
    start = 0
    for part, block, count in zip(*(column.tolist() for column in files.packs), strict=True):
        node = rank(manifests[part].block_id(block), workers)[0].node_id
        found.update(dict.fromkeys(files.paths(np.arange(start, start + count)), node))
        start += count
    return found


def located(make_task: Any) -> Any:
    """``PackSource._task``, whose tasks say in every row where they ran."""

    def make(*arguments: Any) -> Any:
        task = make_task(*arguments)
        read = task._read_fn

        def read_here() -> Iterator[Any]:
            import ray

            node = ray.get_runtime_context().get_node_id()
            for table in read():
                yield table.append_column("node", pa.array([node] * len(table)))

        task._read_fn = read_here
        return task

    return make


def of_ray_data(source: str) -> Read:
    """Of the read tasks: what follows them runs wherever there is a CPU."""
    import raycache

    with mock.patch.object(PackSource, "_task", located(PackSource._task)):
        read = raycache.data.read_files(source).materialize()
    for batch in read.iter_batches(batch_format="pyarrow"):
        yield from zip(batch["path"].to_pylist(), batch["node"].to_pylist(), strict=True)


class Rank:
    """An actor that reads a rank's share."""

    def __init__(self, source: str, rank: int, near: Any) -> None:
        from raycache.data.torch import StreamDataset

        self._stream = StreamDataset(source, lambda buffer, path: path, rank=rank, ranks=COUNT, near=near)

    def read(self, epoch: int) -> list[str]:
        """Paths."""
        self._stream.set_epoch(epoch)
        return list(self._stream)


def of_streams(source: str, epoch: int, *, near: bool) -> Read:
    """A rank on each node."""
    import ray

    from raycache.actors.cluster import current

    at = [worker.node_id for worker in current().pool.workers(refresh=True)]
    actor: Any = ray.remote(Rank)
    ranks = [
        actor.options(num_cpus=0, label_selector={"ray.io/node-id": node}).remote(source, rank, at if near else False)
        for rank, node in enumerate(at)
    ]
    for node, paths in zip(at, ray.get([rank.read.remote(epoch) for rank in ranks], timeout=nodes.WAIT_S), strict=True):
        yield from ((path, node) for path in paths)


if __name__ == "__main__":
    main()
