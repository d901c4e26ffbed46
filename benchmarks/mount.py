"""The mount against ext4, JuiceFS and SeaweedFS's mount: small files, directories, one large file, and what it costs.

"warm": in the page cache. "dropped": page cache dropped; then raycache has its blocks in the workers' memory, JuiceFS
in its cache on disk, ext4 reads the disk. Rounds are interleaved.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peers
import report
import workload

from raycache.testing import ObjectStoreServer

SIZES = {"300 KiB": 300 * 1024, "100 KB": 100_000}
READERS = (1, 4)
FILES = 2000
ENTRIES = 100_000
LARGE_BYTES = 4 << 30
MILLION = 1_000_000
IDLE_S = 10.0
TITLES = {"small": "small files", "directories": "directories", "large": "a large file", "cost": "what it costs"}
Found = dict[str, list[float]]


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="small,directories,large,cost", help="which parts, comma separated")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    command = f"python benchmarks/mount.py --rounds {arguments.rounds} --parts {arguments.parts}"
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, ObjectStoreServer() as server:
        home = Path(scratch)
        os.environ.update(server.environ, RAYCACHE_STATE_DIR=str(home / "state"), RAYCACHE_MEM="85%")
        ray.init(
            address="local", object_store_memory=6 << 30, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR,
        )  # fmt: skip
        try:
            runs = {"small": small_files, "directories": directories, "large": large_file, "cost": cost}
            for part in parts:
                print(f"== {part}", flush=True)
                found[part] = runs[part](home / part, server, arguments.rounds)
                text = DESCRIBE[part](found[part], arguments.rounds)
                report.write_section(f"The mount: {TITLES[part]}", command, text)
                print(text, flush=True)
        finally:
            ray.shutdown()
    if arguments.json:
        print(json.dumps(found))


@contextlib.contextmanager
def raycache_mounted(source: str, mountpoint: Path) -> Any:
    """A fresh cache and a mount of a source."""
    import raycache

    mountpoint.mkdir(parents=True, exist_ok=True)
    with raycache.mount(source, mountpoint, session="kernel"):
        yield mountpoint
    raycache.shutdown()


def small_files(home: Path, server: ObjectStoreServer, rounds: int) -> Found:
    """Files per second by case."""
    found: Found = defaultdict(list)
    juicefs = peers.JuiceFS(server, home)
    with juicefs.mounted(home / "jfs") as jfs:
        for label, size_bytes in SIZES.items():
            slug = label.replace(" ", "-").lower()
            names = workload.make_files(home / slug, FILES, size_bytes)
            server.create_bucket(slug)
            workload.upload(server, slug, home / slug, "train")
            shutil.copytree(home / slug, jfs / slug)
            with raycache_mounted(f"s3://{slug}/train", home / "mnt") as mounted:
                roots = {"ext4": home / slug, "raycache": mounted, "JuiceFS": jfs / slug}
                settle(roots, names)
                for number in range(rounds):
                    one_round(roots, names, number, label, found)
                    print(f"{label}, round {number + 1} of {rounds}", flush=True)
    return dict(found)


def settle(roots: dict[str, Path], names: list[str]) -> None:
    """Read all of it until everybody has it in their cache."""
    for root in roots.values():
        for seed in range(2):
            workload.read_epoch(root, names, seed)
            time.sleep(2)
            workload.drop_page_cache()


def one_round(roots: dict[str, Path], names: list[str], number: int, label: str, found: Found) -> None:
    """Each case once, everybody in turn."""
    for readers in READERS:
        for case in ("dropped", "warm"):
            for who, root in roots.items():
                if case == "dropped":
                    workload.drop_page_cache()
                else:
                    workload.read_epoch(root, names, number)
                rate = workload.read_epoch(root, names, 10 * number + readers, readers)
                found[f"{who}, {label}, {readers} reader(s), {case}"].append(rate)


def directories(home: Path, server: ObjectStoreServer, rounds: int) -> Found:
    """Seconds of find and ls -lR over ENTRIES files in one directory, the first and the second time."""
    found: Found = defaultdict(list)
    server.create_bucket("entries")
    client_files = [f"d/{number:06d}.txt" for number in range(ENTRIES)]
    put_tiny(server, "entries", client_files)
    juicefs = peers.JuiceFS(server, home)
    with juicefs.mounted(home / "jfs") as jfs:
        (jfs / "d").mkdir()
        for name in client_files:
            (jfs / name).touch()  # empty: only names and attributes matter here, and it uploads nothing
    for number in range(min(rounds, 3)):
        with juicefs.mounted(home / "jfs") as mounted:
            look_around("JuiceFS", mounted, found)
        with peers.seaweedfs_mounted(server, "entries", home / "weed") as mounted:
            look_around("SeaweedFS", mounted, found)
        with raycache_mounted("s3://entries", home / "mnt") as mounted:
            look_around("raycache", mounted, found)
        print(f"round {number + 1}", flush=True)
    return dict(found)


def put_tiny(server: ObjectStoreServer, bucket: str, keys: list[str]) -> None:
    """Objects of one byte."""
    import obstore

    store = server.bucket_store(bucket)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: obstore.put(store, key, b"x", use_multipart=False), keys))


def look_around(who: str, mounted: Path, found: Found) -> None:
    """Time find and ls -lR, twice each; find comes first and so pays for the first listing."""
    for time_of in ("first", "second"):
        for what, command in (("find", ["find", str(mounted)]), ("ls -lR", ["ls", "-lR", str(mounted)])):
            began = time.perf_counter()
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=600)
            found[f"{who}, {what}, {time_of}"].append(time.perf_counter() - began)
            if done.stdout.count(b".txt") != ENTRIES:
                raise RuntimeError(f"{who}: {what} did not show every file")


def large_file(home: Path, server: ObjectStoreServer, rounds: int) -> Found:
    """GB per second of one large file, sequentially: read by one process, and copied through a pipe."""
    found: Found = defaultdict(list)
    source = home / "source"
    source.mkdir(parents=True)
    chunk = os.urandom(1 << 24)
    with open(source / "large", "wb") as file:
        for number in range(LARGE_BYTES // len(chunk)):
            file.write(number.to_bytes(8, "little") + chunk[8:])
    with raycache_mounted(str(source), home / "mnt") as mounted:
        for _ in range(2):
            copy_rate(mounted / "large")
            time.sleep(2)
            workload.drop_page_cache()
        for number in range(rounds):
            workload.drop_page_cache()
            found["ext4, dropped, read"].append(read_rate(source / "large"))
            found["ext4, warm, through a pipe"].append(copy_rate(source / "large"))
            workload.drop_page_cache()
            found["raycache, dropped, read"].append(read_rate(mounted / "large"))
            workload.drop_page_cache()
            found["raycache, dropped, through a pipe"].append(copy_rate(mounted / "large"))
            print(f"round {number + 1}", flush=True)
    return dict(found)


def read_rate(path: Path) -> float:
    """GB per second of reading a file once, by 1 MiB."""
    began = time.perf_counter()
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"], check=True)
    return LARGE_BYTES / 1e9 / (time.perf_counter() - began)


def copy_rate(path: Path) -> float:
    """GB per second of ``cat FILE | cat``."""
    began = time.perf_counter()
    subprocess.run(["sh", "-c", 'cat "$1" | cat > /dev/null', "sh", str(path)], check=True)
    return LARGE_BYTES / 1e9 / (time.perf_counter() - began)


def cost(home: Path, server: ObjectStoreServer, rounds: int) -> Found:
    """What a mount costs idle, and after a million files were looked up."""
    from raycache.fuse.mount import list_mounts

    source = home / "million"
    for directory in range(100):
        (source / f"{directory:02d}").mkdir(parents=True)
        for number in range(MILLION // 100):
            os.close(os.open(source / f"{directory:02d}" / f"{number:05d}", os.O_CREAT | os.O_WRONLY))
    with raycache_mounted(str(source), home / "mnt") as mounted:
        time.sleep(5)  # until those that stand by are ready
        gateway, holder = (list_mounts()[0][name] for name in ("gateway_pid", "holder_pid"))
        before = cpu_s(gateway), cpu_s(holder)
        time.sleep(IDLE_S)
        idle = [100 * (cpu_s(pid) - was) / IDLE_S for pid, was in zip((gateway, holder), before, strict=True)]
        began = time.perf_counter()
        done = subprocess.run(["find", str(mounted), "-size", "-1"], stdout=subprocess.PIPE, check=True, timeout=900)
        seconds = time.perf_counter() - began
        if done.stdout.count(b"\n") < MILLION:
            raise RuntimeError("not every file was looked up")
        gateway = list_mounts()[0]["gateway_pid"]
        return {
            "gateway, idle, % of a core": [idle[0]],
            "holder, idle, % of a core": [idle[1]],
            "gateway, 1 M files looked up, anonymous MB": [rss_anon_bytes(gateway) / 1e6],
            "holder, anonymous MB": [rss_anon_bytes(holder) / 1e6],
            "stat of 1 M files, first time, files/s": [MILLION / seconds],
        }


def cpu_s(pid: int) -> float:
    """CPU seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_anon_bytes(pid: int) -> int:
    """Resident memory of a process that is its own: neither files nor shared memory."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def describe_small(found: Found, rounds: int) -> str:
    """Ratios of small files."""
    cases = sorted({case.partition(", ")[2] for case in found})
    rows = []
    for case in cases:
        ours, ext4, juicefs = (found[f"{who}, {case}"] for who in ("raycache", "ext4", "JuiceFS"))
        rows.append(
            [case, *(report.spread(each) for each in (ours, ext4, juicefs)),
             report.spread(report.ratios(ours, ext4), ".2f"), report.spread(report.ratios(ours, juicefs), ".2f")]
        )  # fmt: skip
    head = ["files per second", "raycache", "ext4", "JuiceFS", "raycache / ext4", "raycache / JuiceFS"]
    return f"{FILES:,} files in random order, {rounds} rounds side by side. Median (range).\n\n" + report.table(
        head, rows
    )


def describe_directories(found: Found, rounds: int) -> str:
    """Seconds of looking around."""
    cases = [f"{what}, {when}" for what in ("find", "ls -lR") for when in ("first", "second")]
    whom = ("raycache", "JuiceFS", "SeaweedFS")
    rows = [[case, *(report.spread(found[f"{who}, {case}"], ".2f") for who in whom)] for case in cases]
    return f"{ENTRIES:,} files in one directory, fresh mounts, seconds.\n\n" + report.table(["seconds", *whom], rows)


def describe_large(found: Found, rounds: int) -> str:
    """GB/s of a large file."""
    rows = [[case, report.spread(values, ".2f")] for case, values in found.items()]
    piped = found["ext4, warm, through a pipe"]
    for case in ("raycache, dropped, read", "raycache, dropped, through a pipe"):
        rows.append([f"{case} / ext4, warm, through a pipe", report.spread(report.ratios(found[case], piped), ".2f")])
    return (
        "One file of 4 GiB, blocks of raycache in memory. Read: `dd bs=1M of=/dev/null`. Through a pipe: "
        "`cat FILE | cat`, which a file system in user space cannot be faster than by much.\n\n"
        + report.table(["GB/s", ""], rows)
    )


def describe_cost(found: Found, rounds: int) -> str:
    """What a mount costs."""
    return report.table(["cost", ""], [[what, report.spread(values, ",.1f")] for what, values in found.items()])


DESCRIBE = {
    "small": describe_small, "directories": describe_directories, "large": describe_large, "cost": describe_cost,
}  # fmt: skip

if __name__ == "__main__":
    main()
