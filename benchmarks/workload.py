"""What the benchmarks read, and how: files in a bucket and on ext4, a reader in a process of its own, peers."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from raycache.testing import ObjectStoreServer

READER = """
import json, os, random, sys, time
root, names_file, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
names = json.load(open(names_file))
random.Random(seed).shuffle(names)
began, size = time.perf_counter(), 0
for name in names:
    with open(os.path.join(root, name), "rb", buffering=0) as file:
        while data := file.read(1 << 20):
            size += len(data)
print(json.dumps({"seconds": time.perf_counter() - began, "files": len(names), "bytes": size}))
"""


def make_files(directory: Path, count: int, size_bytes: int) -> list[str]:
    """Files that differ, in one directory; their names."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(size_bytes)
    for number in range(count):
        (directory / f"{number:06d}.bin").write_bytes(rng.randbytes(size_bytes))
    return [f"{number:06d}.bin" for number in range(count)]


def upload(server: ObjectStoreServer, bucket: str, directory: Path, prefix: str) -> None:
    """Copy a directory into a bucket."""
    import obstore

    store = server.bucket_store(bucket)

    def put(path: Path) -> None:
        obstore.put(store, f"{prefix}/{path.name}", path.read_bytes(), use_multipart=False)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, sorted(directory.iterdir())))


def read_epoch(root: Path | str, names: list[str], seed: int, readers: int = 1) -> float:
    """Files per second of an epoch in random order, by processes that do nothing else; they share the files."""
    with tempfile.TemporaryDirectory() as scratch:
        processes = []
        for reader in range(readers):
            share = Path(scratch) / f"{reader}.json"
            share.write_text(json.dumps(names[reader::readers]))
            command = [sys.executable, "-S", "-c", READER, str(root), str(share), str(seed + reader)]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        found = []
        for process in processes:
            out, _ = process.communicate(timeout=900)
            if process.returncode:
                raise RuntimeError(f"a reader of {root} failed")
            found.append(json.loads(out))
    rate: float = sum(each["files"] for each in found) / max(each["seconds"] for each in found)
    return rate


def drop_page_cache() -> None:
    """As if nobody had read anything yet; dentries and inodes stay."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


def cpu_s(pid: int, without: tuple[str, ...] = ()) -> float:
    """CPU time of a process and of all that it has started: its children that have ended, and those that run, but for
    those, with theirs, whose command line has one of some words."""
    stats = {int(entry.name): _stat(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    total, left = 0.0, [pid]
    while left:
        each = left.pop()
        total += stats.get(each, (0, 0.0))[1]
        left += [child for child, (parent, _) in stats.items() if parent == each and not _has(child, without)]
    return total


def _stat(process: Path) -> tuple[int, float]:
    """Parent, and seconds of CPU with those of children that have ended; nothing of one that has gone."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, 0.0
    return int(fields[1]), sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _has(pid: int, words: tuple[str, ...]) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return any(word in command for word in words)


@contextlib.contextmanager
def s3fs_mount(server: ObjectStoreServer, bucket: str, directory: Path, cache: Path | None) -> Iterator[Path]:
    """s3fs-fuse over a bucket, with a local cache if one is given."""
    directory.mkdir(parents=True, exist_ok=True)
    options = server.storage_options
    secret = directory.parent / "s3fs-password"
    secret.write_text(f"{options['key']}:{options['secret']}")
    secret.chmod(0o600)
    words = [
        "s3fs", bucket, str(directory), "-f", "-o", f"url={server.endpoint}", "-o", "use_path_request_style",
        "-o", f"passwd_file={secret}", "-o", "multireq_max=20", "-o", "max_stat_cache_size=1000000", "-o", "ro",
    ]  # fmt: skip
    if cache is not None:
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        words += ["-o", f"use_cache={cache}"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not os.path.ismount(directory):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("s3fs-fuse did not mount; apt install s3fs")
            time.sleep(0.05)
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=False, capture_output=True)
        process.terminate()
        process.wait(30)
