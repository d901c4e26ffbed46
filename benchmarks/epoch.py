"""An epoch of small files in random order: through the mount, through read_many, from ext4, through s3fs-fuse.

One reader process that opens, reads and closes each file. Rounds are interleaved. "cold": nothing cached anywhere but
in the source; "memory": in the workers' memory, page cache dropped; "warm": in the page cache (mount, ext4, s3fs-fuse)
or mapped in the reader (read_many).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import report
import workload

from raycache.testing import ObjectStoreServer

BATCH = 64


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--size", type=int, default=300 * 1024, help="bytes per file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    arguments = parser.parse_args()
    found = measure(arguments.files, arguments.size, arguments.rounds)
    command = (
        f"python benchmarks/epoch.py --files {arguments.files} --size {arguments.size} --rounds {arguments.rounds}"
    )
    report.write_section("An epoch of small files", command, describe(found, arguments))
    print(report.RESULTS.read_text())
    if arguments.json:
        print(json.dumps(found))


def measure(files: int, size_bytes: int, rounds: int) -> dict[str, list[float]]:
    """Files per second by case, one figure per round."""
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    found: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch, ObjectStoreServer() as server:
        home = Path(scratch)
        os.environ.update(server.environ, RAYCACHE_STATE_DIR=str(home / "state"))
        names = workload.make_files(home / "ext4", files, size_bytes)
        server.create_bucket("epoch")
        workload.upload(server, "epoch", home / "ext4", "train")
        store_bytes = int(2.8 * files * size_bytes) + (256 << 20)
        ray.init(
            address="local", object_store_memory=store_bytes, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR,
        )  # fmt: skip
        try:
            for number in range(rounds):
                one_round(home, server, names, number, found)
                print(
                    f"round {number + 1}: " + ", ".join(f"{case} {values[-1]:,.0f}" for case, values in found.items())
                )
        finally:
            ray.shutdown()
    return dict(found)


def one_round(
    home: Path, server: ObjectStoreServer, names: list[str], number: int, found: dict[str, list[float]]
) -> None:
    """Every case once."""
    seed = 100 * number
    workload.drop_page_cache()
    found["ext4 cold"].append(workload.read_epoch(home / "ext4", names, seed))
    found["ext4 warm"].append(workload.read_epoch(home / "ext4", names, seed + 1))
    raycache_cases(home, names, seed, found)
    for label, cache in (("s3fs-fuse", None), ("s3fs-fuse with use_cache", home / "s3fs-cache")):
        with workload.s3fs_mount(server, "epoch", home / "s3fs", cache) as mounted:
            os.listdir(mounted / "train")
            workload.drop_page_cache()
            found[f"{label} cold"].append(workload.read_epoch(mounted / "train", names, seed))
            found[f"{label} warm"].append(workload.read_epoch(mounted / "train", names, seed + 1))


def raycache_cases(home: Path, names: list[str], seed: int, found: dict[str, list[float]]) -> None:
    """A fresh cache for the mount, and one for read_many."""
    import raycache

    mountpoint = home / "mnt"
    mountpoint.mkdir(exist_ok=True)
    with raycache.mount("s3://epoch/train", mountpoint):
        os.listdir(mountpoint)
        found["mount cold"].append(workload.read_epoch(mountpoint, names, seed))
        wait_filled(len(names))
        workload.drop_page_cache()
        workload.read_epoch(mountpoint, names, seed + 1)  # maps the blocks that were sealed last
        workload.drop_page_cache()
        found["mount memory"].append(workload.read_epoch(mountpoint, names, seed + 2))
        found["mount warm"].append(workload.read_epoch(mountpoint, names, seed + 3))
    raycache.shutdown()
    raycache.dataset("epoch-train", "s3://epoch/train")  # the name that the mount gave it
    raycache.listdir("s3://epoch/train")
    found["read_many cold"].append(read_many_epoch(names, seed))
    wait_filled(len(names))
    read_many_epoch(names, seed + 1)
    found["read_many warm"].append(read_many_epoch(names, seed + 2))
    raycache.shutdown()


def read_many_epoch(names: list[str], seed: int) -> float:
    """Files per second by read_many in batches of BATCH: views, which nobody looks into."""
    import raycache

    uris = [f"s3://epoch/train/{name}" for name in names]
    random.Random(seed).shuffle(uris)
    began = time.perf_counter()
    for start in range(0, len(uris), BATCH):
        raycache.read_many(uris[start : start + BATCH])
    return len(uris) / (time.perf_counter() - began)


def wait_filled(files: int) -> None:
    """Until the workers have fetched everything, so that the next epoch is a warm one."""
    import raycache

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        status = raycache.status()
        if status["totals"]["ufs_requests"] >= files and not any(one["filling"] for one in status["workers"]):
            return
        time.sleep(0.1)
    raise RuntimeError("the cache did not fill")


def describe(found: dict[str, list[float]], arguments: argparse.Namespace) -> str:
    """The section's text."""
    rows = [[case, report.spread(values)] for case, values in found.items()]
    pairs = [
        ("mount warm", "s3fs-fuse warm"), ("mount warm", "s3fs-fuse with use_cache warm"),
        ("mount memory", "s3fs-fuse with use_cache warm"), ("mount cold", "s3fs-fuse cold"),
        ("mount warm", "ext4 warm"), ("mount memory", "ext4 cold"), ("read_many warm", "ext4 warm"),
    ]  # fmt: skip
    compared = [
        [f"{over} / {under}", report.spread(report.ratios(found[over], found[under]), ".2f")] for over, under in pairs
    ]
    return (
        f"{arguments.files:,} files of {arguments.size / 1024:.0f} KiB, random order, one reader, "
        f"{arguments.rounds} rounds side by side; S3 is SeaweedFS on the same machine. Median (range).\n\n"
        + report.table(["files per second", "median (range)"], rows)
        + "\n\n"
        + report.table(["ratio", "median (range)"], compared)
    )


if __name__ == "__main__":
    main()
