"""Tiers: files per second from memory and from an SSD against ext4 on that disk, hit rates of policies, the start.

"speed": the page cache is dropped before each epoch, of raycache's block files as of ext4's. The source is the ext4
directory itself. "hits": a real worker store, counted by its own counters. "scan": how long a worker with many block
files takes to start.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import workload

SIZES = {"300 KiB": 300 * 1024, "100 KB": 100_000}
READERS = (1, 4)
FILES = 2000
BATCH = 64
EPOCHS = 5
BLOCKS = 400
FILES_PER_PACK = 20
FRACTIONS = (0.25, 0.5, 0.75)
POLICIES = ("keep", "sieve", "lru")
SCAN_FILES = 500_000
TIERS = {"memory": {"RAYCACHE_MEM": "2GiB", "RAYCACHE_TIERS": ""}, "SSD": {"RAYCACHE_MEM": "1MiB"}}
TITLES = {"speed": "memory and SSD against ext4", "hits": "hit rates", "scan": "starting with many block files"}
Found = dict[str, Any]

READER = """
import json, random, sys, time
import raycache
source = sys.argv[1]
raycache.listdir(source)
for line in sys.stdin:
    names, seed, batch = json.loads(line)
    uris = [f"{source}/{name}" for name in names]
    random.Random(seed).shuffle(uris)
    began, size = time.perf_counter(), 0
    for start in range(0, len(uris), batch):
        size += sum(len(data) for data in raycache.read_many(uris[start : start + batch]))
    print(json.dumps({"seconds": time.perf_counter() - began, "bytes": size}), flush=True)
"""


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="speed,hits,scan", help="which parts, comma separated")
    parser.add_argument("--directory", type=Path, help="where the files and the SSD tier lie; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--dry-run", action="store_true", help="do not write RESULTS.md")
    arguments = parser.parse_args()
    command = f"python benchmarks/tiers.py --rounds {arguments.rounds} --parts {arguments.parts}"
    found: Found = {}
    for part in arguments.parts.split(","):
        print(f"== {part}", flush=True)
        with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
            measured = PARTS[part](Path(scratch), arguments.rounds)
        text = DESCRIBE[part](measured, arguments.rounds)
        if not arguments.dry_run:
            report.write_section(f"Tiers: {TITLES[part]}", command, text)
        print(text, flush=True)
        found.update(measured)
    if arguments.json:
        print(json.dumps(found))


class Readers:
    """Processes that read with ``raycache.read_many``: connected already, and told when to begin."""

    def __init__(self, source: Path, count: int) -> None:
        command = [sys.executable, "-c", READER, str(source)]
        pipe = subprocess.PIPE
        self._processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]

    def epoch(self, names: list[str], seed: int, readers: int) -> float:
        """Files per second; they share the files."""
        for number, process in enumerate(self._processes[:readers]):
            assert process.stdin is not None
            process.stdin.write(json.dumps([names[number::readers], seed + number, BATCH]) + "\n")
            process.stdin.flush()
        seconds = 0.0
        for process in self._processes[:readers]:
            assert process.stdout is not None
            seconds = max(seconds, json.loads(process.stdout.readline())["seconds"])
        return len(names) / seconds

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.communicate(timeout=60)


def speed(home: Path, rounds: int) -> Found:
    """Files per second by case, and the ratios of SSD tier and ext4."""
    import ray

    import raycache

    rates: dict[str, list[float]] = defaultdict(list)
    os.environ.update(RAY_AUTH_MODE="disabled", RAYCACHE_STATE_DIR=str(home / "state"))
    ray.init(
        address="local", object_store_memory=4 << 30, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    os.environ["RAYCACHE_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        for label, size_bytes in SIZES.items():
            source = home / label.replace(" ", "-")
            names = workload.make_files(source, FILES, size_bytes)
            for tier, environ in TIERS.items():
                os.environ.update({"RAYCACHE_TIERS": f"{home / 'tier'}:8GB", **environ})
                mountpoint = home / "mnt"
                mountpoint.mkdir(exist_ok=True)
                with raycache.mount(str(source), mountpoint, session="kernel"):
                    fill(mountpoint, names)
                    readers = Readers(source, max(READERS))
                    for number in range(rounds):
                        for count in READERS:
                            seed = 100 * number + 10 * count
                            one_round(f"{tier}, {label}, {count} reader(s)", seed, count, rates,
                                      names, source, mountpoint, readers)  # fmt: skip
                        print(f"{tier}, {label}, round {number + 1} of {rounds}", flush=True)
                    readers.close()
                raycache.shutdown()
    finally:
        ray.shutdown()
    return {"rates": dict(rates), "ssd_vs_ext4": ssd_vs_ext4(rates)}


def fill(mountpoint: Path, names: list[str]) -> None:
    """Read all of it until it is kept, and the gateway knows where."""
    import raycache

    for seed in range(4):
        workload.read_epoch(mountpoint, names, seed)
        deadline = time.monotonic() + 60
        while any(worker.get("filling", 1) for worker in raycache.status()["workers"]) and time.monotonic() < deadline:
            time.sleep(0.2)
        workload.drop_page_cache()
    before = raycache.status()["totals"]["ufs_requests"]
    workload.read_epoch(mountpoint, names, 5)
    if asked := raycache.status()["totals"]["ufs_requests"] - before:
        raise RuntimeError(f"{asked} requests to the source: not all of it is kept")


def one_round(
    case: str, seed: int, count: int, rates: dict[str, list[float]],
    names: list[str], source: Path, mountpoint: Path, readers: Readers,
) -> None:  # fmt: skip
    """Everybody in turn, with the page cache dropped."""
    runs: dict[str, Callable[[], float]] = {
        "ext4": lambda: workload.read_epoch(source, names, seed, count),
        "mount": lambda: workload.read_epoch(mountpoint, names, seed + 1, count),
        "read_many": lambda: readers.epoch(names, seed + 2, count),
    }
    for who, run in runs.items():
        workload.drop_page_cache()
        rates[f"{who}: {case}"].append(run())


def ssd_vs_ext4(rates: dict[str, list[float]]) -> dict[str, float]:
    """Medians of the ratios, by way and case."""
    found = {}
    for case, values in rates.items():
        who, _, what = case.partition(": ")
        if who != "ext4" and what.startswith("SSD"):
            ratio = statistics.median(report.ratios(values, rates[f"ext4: {what}"]))
            found[f"{who}, {what.removeprefix('SSD, ')}"] = round(ratio, 3)
    return found


class Source:
    """Stands in for the sources of a worker: files of a few bytes."""

    def call(self, dataset: str, use: Callable[[Any], Any]) -> Any:
        """See Sources.call."""
        return use(self)

    def get(self, path: str, start: int, length: int, etag: str) -> bytes:
        """See UnderFileSystem.get."""
        return bytes(length)


def hits(home: Path, rounds: int) -> Found:
    """Hit rates of EPOCHS epochs after one that fills, by policy and cached fraction."""
    rates: dict[str, dict[str, dict[str, float]]] = {"hit_rate": {}, "hit_rate_packs": {}}
    for name, files in (("hit_rate", 1), ("hit_rate_packs", FILES_PER_PACK)):
        for policy in POLICIES:
            rates[name][policy] = {str(share): hit_rate(policy, share, files) for share in FRACTIONS}
    return rates


def hit_rate(policy: Any, fraction: float, files_per_block: int) -> float:
    """Of a store with room for a fraction of BLOCKS blocks."""
    from raycache.core.values import BlockPlan, Fetch, Part
    from raycache.store import blocks
    from raycache.store.accounts import Accounts
    from raycache.store.tiers import Tiers
    from raycache.testing.inprocess import PlainMemory

    size = 64
    # What a worker holds besides its tiers is nothing beside 500 GB, and more than all of this. 1 % of it for packs.
    blocks.PROBE_BYTES = size * BLOCKS // 4 if files_per_block > 1 else 0
    parts = [Part(str(number), "", 0, size * number, size) for number in range(files_per_block)]
    plans = [
        BlockPlan(number.to_bytes(16, "big"), "data", size * files_per_block, tuple(parts)) for number in range(BLOCKS)
    ]
    reads = [Fetch(plan.block_id, plan.pack(), part.block_offset, size, False) for plan in plans for part in parts]
    quota_bytes = int(fraction * BLOCKS) * size * files_per_block
    tiers = Tiers(PlainMemory(), quota_bytes, (), Accounts(policy))
    store = blocks.BlockStore(tiers, Source(), 2)  # type: ignore[arg-type]
    store.start()
    rng = random.Random(7)
    before: dict[str, int] = {}
    for epoch in range(EPOCHS + 1):
        rng.shuffle(reads)
        for read in reads:
            store.fetch([read], 60)
            store.settle(60)
        if epoch == 0:
            before = store.status()["counters"]
    after = store.status()["counters"]
    store.stop()
    rate: float = (after["hits"] - before["hits"]) / (after["reads"] - before["reads"])
    return round(rate, 4)


def scan(home: Path, rounds: int) -> Found:
    """Seconds until a worker answers, and until it knows all of SCAN_FILES block files."""
    from raycache.store.accounts import Accounts
    from raycache.store.directory import Directory

    for number in range(256):
        (home / f"{number:02x}").mkdir()
    for number in range(SCAN_FILES):
        name = f"{random.Random(number).randbytes(16).hex()}-{number % 1000:016x}"
        fd = os.open(home / name[:2] / name, os.O_CREAT | os.O_WRONLY)
        os.ftruncate(fd, 8192)
        os.close(fd)
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for cache in ("cold", "warm"):
            if cache == "cold":
                os.sync()
                Path("/proc/sys/vm/drop_caches").write_text("3")
            directory = Directory(home, SCAN_FILES * 8192, Accounts())
            began = time.perf_counter()
            directory.open(wait=False)
            found[f"answers, {cache}"].append(time.perf_counter() - began)
            while directory.status()["looking"]:
                time.sleep(0.01)
            found[f"has found all, {cache}"].append(time.perf_counter() - began)
            if directory.status()["blocks"] != SCAN_FILES:
                raise RuntimeError(directory.status())
            directory.close()
    return {"scan_s": dict(found)}


def describe_speed(found: Found, rounds: int) -> str:
    """Rates and ratios."""
    rates = found["rates"]
    rows = []
    for case, ext4 in rates.items():
        if case.startswith("ext4: "):
            what = case.removeprefix("ext4: ")
            ours = [rates[f"{who}: {what}"] for who in ("mount", "read_many")]
            rows.append([what, *(report.spread(each) for each in (ext4, *ours)),
                         *(report.spread(report.ratios(each, ext4), ".2f") for each in ours)])  # fmt: skip
    head = ["files per second", "ext4", "mount", "read_many", "mount / ext4", "read_many / ext4"]
    return (
        f"{FILES:,} files in random order, page cache dropped, {rounds} rounds side by side. read_many in batches "
        f"of {BATCH}; from memory it returns views that nobody looks into. Median (range).\n\n"
        + report.table(head, rows)
    )


def describe_hits(found: Found, rounds: int) -> str:
    """Rates beside the formulas."""
    rows = []
    for name, what in (("hit_rate", "one file a block"), ("hit_rate_packs", f"{FILES_PER_PACK} files a block")):
        for share in FRACTIONS:
            measured = [f"{found[name][policy][str(share)]:.3f}" for policy in POLICIES]
            law = share + (1 - share) * math.log(1 - share)
            rows.append([f"{what}, c = {share}", *measured, f"{share:.3f}", f"{law:.3f}" if name == "hit_rate" else ""])
    return (
        f"{BLOCKS} blocks, {EPOCHS} shuffled epochs after one that fills the cache; c is the share of the data that "
        "fits. A pack is read once for each of its files, in random order: then all policies hit about c, and what "
        "they differ in is what they fetch for it.\n\n"
        + report.table(["hit rate", *POLICIES, "c", "c + (1 - c) ln(1 - c)"], rows)
    )


def describe_scan(found: Found, rounds: int) -> str:
    """Seconds."""
    rows = [[what, report.spread(values, ".2f")] for what, values in found["scan_s"].items()]
    return f"{SCAN_FILES:,} block files.\n\n" + report.table(["seconds", ""], rows)


PARTS: dict[str, Callable[[Path, int], Found]] = {"speed": speed, "hits": hits, "scan": scan}
DESCRIBE: dict[str, Callable[[Found, int], str]] = {
    "speed": describe_speed, "hits": describe_hits, "scan": describe_scan,
}  # fmt: skip

if __name__ == "__main__":
    main()
