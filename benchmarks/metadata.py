"""Metadata at scale: ingest, memory, disk, lookups, restarts, the mount's view of it, and JuiceFS beside it.

The scale part makes a real master take in a source that is made up row by row (``raycache.testing.synthetic``), in
directories of 1,000 to 1,000,000 files with four kinds of names, so that no store is the bottleneck; making the rows up
is part of the time. "at rest": 5 s after the last call. Resident memory leaves out what is shared with
others through the object store, which the mapped figure counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peers
import report

from raycache.testing import ObjectStoreServer

SOURCE = "s3://synthetic/train"
LOOKUPS = 200_000
ROUNDS = 10
"""Parts in which names are looked up, each name once: the median of their rates is not one disturbance."""
BATCH = 1_000_000
KEYS = 200_000
PEER_FILES = 1_000_000
REST_S = 5.0
REDIS_PORT = 7391
Found = dict[str, Any]


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=20_000_000)
    parser.add_argument("--parts", default="scale,s3,peers", help="which parts, comma separated")
    parser.add_argument("--peer-files", type=int, default=PEER_FILES)
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    arguments = parser.parse_args()
    asked = f"--files {arguments.files} --parts {arguments.parts} --peer-files {arguments.peer_files}"
    command = f"python benchmarks/metadata.py {asked}"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    found: Found = {}
    with tempfile.TemporaryDirectory() as scratch:
        runs = {
            "scale": lambda: scale(Path(scratch) / "scale", arguments.files),
            "s3": lambda: from_s3(Path(scratch) / "s3"),
            "peers": lambda: juicefs(Path(scratch) / "peers", arguments.peer_files),
        }
        for part in arguments.parts.split(","):
            print(f"== {part}", flush=True)
            figures = runs[part]()
            found |= figures
            title = {"scale": f"{arguments.files:,} synthetic files", "s3": "listing S3", "peers": "JuiceFS"}[part]
            rows = [[name, f"{value:,.2f}" if value < 100 else f"{value:,.0f}"] for name, value in figures.items()]
            text = report.table(["figure", ""], rows)
            report.write_section(f"Metadata: {title}", command, text)
            print(text, flush=True)
    if arguments.json:
        print(json.dumps(found))


# ---- a synthetic source in a real master


def synthetic_master(files: int) -> Any:
    """A master actor class whose sources are made up: everything else in it is the real one."""
    from raycache.actors.master import MasterActor
    from raycache.meta import metadata
    from raycache.testing.synthetic import SyntheticUfs
    from raycache.ufs import registry, sources

    class SyntheticMaster(MasterActor):
        def __init__(self, settings: Any) -> None:
            made = SyntheticUfs(SOURCE, files)
            open_real = registry.open_ufs
            for module in (sources, metadata):
                module.open_ufs = (  # type: ignore[attr-defined]
                    lambda uri, *rest: made if uri == SOURCE else open_real(uri, *rest)
                )
            super().__init__(settings)

    return SyntheticMaster


def scale(home: Path, files: int) -> Found:
    """Ingest ``files`` files and look at what they cost."""
    import ray

    import raycache
    from raycache.actors.cluster import Cluster
    from raycache.actors.names import MASTER, master_options
    from raycache.config import load_settings

    home.mkdir(parents=True)
    os.environ.update(RAYCACHE_STATE_DIR=str(home / "state"), RAYCACHE_MEM="1GB")
    # The manifests of all files must fit twice: beside each other while a second client asks.
    store_bytes = int(max(4 << 30, min(12 << 30, 8 * 64 * files)))
    ray.init(
        address="local", object_store_memory=store_bytes, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR,
    )  # fmt: skip
    try:
        settings = load_settings()
        actor = ray.remote(synthetic_master(files))
        actor.options(**master_options(settings.namespace)).remote(settings)
        raycache.init()
        cluster = Cluster.open(settings)
        pid = cluster.master.status()["pid"]
        watch = MemoryWatch(pid)
        found: Found = {"files": files}
        raycache.dataset("train", SOURCE)
        began = time.perf_counter()
        raycache.refresh("raycache://train", recursive=True)
        took_s = time.perf_counter() - began
        found["ingest_files_per_s"] = files / took_s
        found["master_peak_rss_bytes"] = watch.peak_bytes
        time.sleep(REST_S)
        found["master_rest_rss_bytes"] = watch.stop()
        found["disk_bytes_per_file"] = disk_bytes(home / "state") / files
        found |= look_up(cluster, files)
        found |= through_the_mount(home / "mnt", files)
        found["restart_s"] = restart(cluster, pid, ray.get_actor(MASTER, namespace=settings.namespace))
        return found
    finally:
        raycache.shutdown()
        ray.shutdown()


class MemoryWatch:
    """Resident memory of a process, its own and its files', sampled until ``stop``."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stopped = threading.Event()
        self.peak_bytes = own_rss_bytes(pid)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.02):
            self.peak_bytes = max(self.peak_bytes, own_rss_bytes(self._pid))

    def stop(self) -> int:
        """Resident memory now."""
        self._stopped.set()
        self._thread.join()
        return own_rss_bytes(self._pid)


def own_rss_bytes(pid: int) -> int:
    """Resident memory of a process less what it shares through shared memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssFile")))


def disk_bytes(state: Path) -> int:
    """Bytes of the catalog, its log included."""
    return sum(path.stat().st_size for path in state.glob("catalog-*"))


def look_up(cluster: Any, files: int) -> Found:
    """What the manifests cost mapped, and how fast names are found in them."""
    import raycache
    from raycache.core import archive

    uri = "raycache://train"
    names = raycache.listdir(uri)
    mapped_bytes = seen = 0
    for name in names:
        manifest = cluster.namespace.walk(*cluster.namespace.locate(f"{uri}/{name}")).manifest
        mapped_bytes += len(archive.to_mapped(manifest))
        seen += manifest.file_count
    if seen != files:
        raise RuntimeError(f"{seen} files of {files}")
    picked = random.Random(1).choices(names, k=64)
    manifests = {name: cluster.namespace.walk(*cluster.namespace.locate(f"{uri}/{name}")).manifest for name in picked}
    chosen = random.Random(2)
    paths = []
    for _ in range(LOOKUPS):
        name = chosen.choice(picked)
        manifest = manifests[name]
        paths.append(f"{uri}/{name}/{manifest.name(chosen.randrange(manifest.row_count)).decode()}")
    exists_s, stat_s = [], []
    for start in range(0, LOOKUPS, LOOKUPS // ROUNDS):
        some = paths[start : start + LOOKUPS // ROUNDS]
        began = time.perf_counter()
        there = sum(raycache.exists(path) for path in some)
        exists_s.append(time.perf_counter() - began)
        if there != len(some):
            raise RuntimeError("a file was not found")
        began = time.perf_counter()
        for path in reversed(some):
            raycache.stat(path)
        stat_s.append(time.perf_counter() - began)
    largest = max(manifests, key=lambda name: manifests[name].row_count)
    rows = np.random.default_rng(3).integers(0, manifests[largest].row_count, min(BATCH, files))
    wanted = [manifests[largest].name(row).decode() for row in rows.tolist()]
    began = time.perf_counter()
    answer = raycache.lookup_many(f"{uri}/{largest}", wanted)
    batch_s = time.perf_counter() - began
    if answer.size_bytes.tolist() != [manifests[largest].size(row) for row in rows.tolist()]:
        raise RuntimeError("a batch found other files than were meant")
    return {
        "mapped_bytes_per_file": mapped_bytes / files,
        "lookups_per_s": LOOKUPS / ROUNDS / statistics.median(exists_s),
        "stats_per_s": LOOKUPS / ROUNDS / statistics.median(stat_s),
        "batch_lookups_per_s": len(wanted) / batch_s,
    }


_LOOK = """
import os, random, sys, time
root, largest = sys.argv[1], sys.argv[2]
names = open(sys.argv[3]).read().split("\\n")
began = time.perf_counter()
for name in names: os.stat(os.path.join(root, largest, name))
print(len(names) / (time.perf_counter() - began))
began = time.perf_counter()
count = sum(1 for _ in os.scandir(os.path.join(root, largest)))
print(count / (time.perf_counter() - began))
"""


def through_the_mount(mountpoint: Path, files: int) -> Found:
    """Random stats and one listing of a large directory, nothing of it in the kernel."""
    import raycache

    mountpoint.mkdir()
    entries = {
        name: raycache.stat(f"raycache://train/{name}").extra["entries"]
        for name in raycache.listdir("raycache://train")
    }
    largest = max(entries, key=lambda name: entries[name])
    names = random.Random(4).sample(raycache.listdir(f"raycache://train/{largest}"), min(20_000, files // 20))
    chosen = mountpoint.with_name("names")
    chosen.write_text("\n".join(names))
    rates = []
    for _ in range(3):
        with raycache.mount(SOURCE, mountpoint, session="kernel"):
            os.stat(mountpoint / largest / names[0])  # the gateway maps the manifest
            command = [sys.executable, "-c", _LOOK, str(mountpoint), largest, str(chosen)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            rates.append([float(line) for line in done.stdout.split()])
    stats, entries = np.median(np.array(rates), axis=0)
    return {"mount_cold_stats_per_s": float(stats), "mount_readdir_entries_per_s": float(entries)}


def restart(cluster: Any, pid: int, handle: Any) -> float:
    """Seconds from kill -9 of the master, with callers at work, until it answers and knows what it knew."""
    import ray

    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            cluster.master.changes(0)

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for asker in askers:
        asker.start()
    before = cluster.master.datasets()
    took = []
    for _ in range(3):
        os.kill(pid, signal.SIGKILL)
        began = time.perf_counter()
        while True:
            try:
                after = ray.get(handle.datasets.remote(), timeout=10)
                break
            except ray.exceptions.RayError:
                time.sleep(0.01)
        took.append(time.perf_counter() - began)
        if after != before:
            raise RuntimeError("the master forgot a dataset")
        pid = cluster.master.status()["pid"]
    stop.set()
    for asker in askers:
        asker.join(60)
    return float(np.median(took))


# ---- a real S3


def from_s3(home: Path) -> Found:
    """Take in KEYS keys of SeaweedFS's S3, beside obstore's own listing of them."""
    import obstore
    import ray
    from mount import put_tiny

    import raycache

    home.mkdir(parents=True)
    ratios, rates = [], []
    with ObjectStoreServer() as server:
        os.environ.update(server.environ, RAYCACHE_STATE_DIR=str(home / "state"), RAYCACHE_MEM="100MB")
        server.create_bucket("keys")
        put_tiny(server, "keys", [f"train/c{number % 200:03d}/{number:07d}.jpg" for number in range(KEYS)])
        store = server.bucket_store("keys")
        ray.init(
            address="local", object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR,
        )  # fmt: skip
        try:
            for number in range(5):
                began = time.perf_counter()
                listed = sum(batch.num_rows for batch in obstore.list(store, "train", return_arrow=True))
                bare_s = time.perf_counter() - began
                raycache.dataset(f"run{number}", "s3://keys/train")
                began = time.perf_counter()
                raycache.refresh(f"raycache://run{number}", recursive=True)
                ours_s = time.perf_counter() - began
                raycache.shutdown()
                for path in (home / "state").glob("catalog-*"):
                    path.unlink()
                if listed != KEYS:
                    raise RuntimeError(f"{listed} keys of {KEYS}")
                ratios.append(bare_s / ours_s)
                rates.append(KEYS / ours_s)
        finally:
            ray.shutdown()
    return {
        "s3_ingest_files_per_s": float(np.median(rates)),
        "s3_ingest_over_obstore_listing": float(np.median(ratios)),
        "s3_ingest_over_obstore_listing_least": min(ratios),
    }


# ---- JuiceFS


def juicefs(home: Path, files: int) -> Found:
    """JuiceFS's own metadata test: creating files in SQLite and in Redis, listing them, and what they take."""
    found: Found = {}
    for name, engine in (("sqlite3", sqlite3_engine), ("redis", redis_engine)):
        at = home / name
        at.mkdir(parents=True)
        with engine(at) as (meta, used_bytes):
            volume = ["--storage", "file", "--bucket", f"{at / 'data'}/", "--trash-days", "0"]
            run_quietly([peers.program("juicefs"), "format", *volume, meta, "bench"])
            tree = ["--threads", "8", "--dirs", "10", "--depth", "1", "--files", str(files // (8 * 11))]
            began, before = time.perf_counter(), used_bytes()
            run_quietly([peers.program("juicefs"), "mdtest", meta, "/m", *tree])
            made_s, taken_bytes = time.perf_counter() - began, used_bytes() - before
            mounted = at / "mnt"
            mount = [peers.program("juicefs"), "mount", "--no-usage-report", "--no-syslog", meta, str(mounted)]
            with peers.mounted_by(mount, mounted):
                began = time.perf_counter()
                done = subprocess.run(["find", str(mounted)], check=True, capture_output=True, timeout=900)
            listed = done.stdout.count(b"\n")
            found |= {
                f"juicefs_{name}_files": listed,
                f"juicefs_{name}_create_files_per_s": listed / made_s,
                f"juicefs_{name}_find_files_per_s": listed / (time.perf_counter() - began),
                f"juicefs_{name}_bytes_per_file": taken_bytes / listed,
            }
    return found


@contextlib.contextmanager
def sqlite3_engine(home: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """Metadata in a file: its address, and its size."""
    yield f"sqlite3://{home / 'meta.db'}", lambda: sum(path.stat().st_size for path in home.glob("meta.db*"))


@contextlib.contextmanager
def redis_engine(home: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """Metadata in a Redis of our own: its address, and its memory."""
    command = ["redis-server", "--port", str(REDIS_PORT), "--save", "", "--dir", str(home)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def ask(*words: str) -> str:
        done = subprocess.run(["redis-cli", "-p", str(REDIS_PORT), *words], capture_output=True, text=True, check=False)
        return done.stdout

    try:
        deadline = time.monotonic() + 10
        while "PONG" not in ask("ping") and time.monotonic() < deadline:
            time.sleep(0.05)
        memory = re.compile(r"used_memory:(\d+)")
        yield f"redis://127.0.0.1:{REDIS_PORT}/1", lambda: int(memory.findall(ask("info", "memory"))[0])
    finally:
        server.terminate()
        server.wait(10)


def run_quietly(command: list[str]) -> None:
    """Run a program that has to succeed; its output is shown when it does not."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
