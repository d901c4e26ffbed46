"""Mounts that are written: raycache, ext4, JuiceFS (write-back off and on) and rclone; a large file, small ones, moves.

All but ext4 keep their data in the same S3 server. raycache persists in the background (its write type is ``async``),
as do JuiceFS with write-back and rclone; JuiceFS without it uploads before ``close`` returns. Before each measurement
everybody has brought to S3 what it had. ext4 is what the machine can do.

``source``: what ``raycache.write_many`` writes until it has returned, and until S3 has it, beside obstore's own ``put``
from as many threads as a worker of the cache uses.

Rounds are interleaved. Programs that write are processes of their own: threads of one interpreter would wait for each
other more than for a file system.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import obstore.store
import peers
import report
import workload

from raycache.config import load_settings
from raycache.testing import ObjectStoreServer

LARGE_BYTES = 1 << 30
SMALL_BYTES = 4096
SMALL_FILES = 4000
WRITERS = (1, 8)
DIRECTORIES = 100
RACE_S = 600.0
SOURCE_CASES = {"4 KiB": (4096, 4000), "100 KB": (100_000, 4000), "64 MiB": (64 << 20, 16)}
"""Bytes of a file, and files."""
TITLES = {
    "large": "one large file",
    "small": "small files",
    "rename": "a tree is moved",
    "source": "through the API, to S3",
}
Found = dict[str, list[float]]
WRITER = """
import json, os, sys, time
root, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = os.urandom(size)
os.mkdir(root)
began = time.perf_counter()
for number in range(count):
    fd = os.open(f"{root}/{number:06d}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, data)
    os.close(fd)
print(json.dumps(time.perf_counter() - began))
"""


def main() -> None:
    """Measure and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default="large,small,rename,source", help="which parts, comma separated")
    parser.add_argument("--who", default=",".join(MOUNTS), help="which file systems, comma separated")
    parser.add_argument("--files", type=int, default=100_000, help="files of the tree that is moved")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    arguments = parser.parse_args()
    who = arguments.who.split(",")
    command = "python benchmarks/writing.py " + " ".join(
        f"--{name} {getattr(arguments, name)}" for name in ("rounds", "parts", "who", "files")
    )
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, ObjectStoreServer() as server:
        home = Path(scratch)
        os.environ.update(server.environ, RAYCACHE_STATE_DIR=str(home / "state"))
        ray.init(
            address="local", object_store_memory=2 << 30, include_dashboard=False, log_to_driver=False,
            logging_level=logging.ERROR,
        )  # fmt: skip
        try:
            for part in arguments.parts.split(","):
                print(f"== {part}", flush=True)
                with contextlib.ExitStack() as stack:
                    places = [stack.enter_context(MOUNTS[name](server, home / part / name)) for name in who]
                    found[part] = PARTS[part](dict(zip(who, places, strict=True)), arguments)
                text = DESCRIBE[part](found[part], who, arguments)
                report.write_section(f"Writing: {TITLES[part]}", command, text)
                print(text, flush=True)
        finally:
            ray.shutdown()
    if arguments.json:
        print(json.dumps(found))


class Place:
    """A file system that is written to."""

    def __init__(self, root: Path, settle: Callable[[], object] = lambda: None, uri: str = "") -> None:
        self.root = root
        self.uri = uri
        """Of the bucket that it writes to, where files can be written by URI."""
        self.settle = settle
        """Returns when nothing is on its way to S3 any more."""


@contextlib.contextmanager
def ext4(server: ObjectStoreServer, home: Path) -> Iterator[Place]:
    """A directory."""
    home.mkdir(parents=True)
    yield Place(home)


@contextlib.contextmanager
def raycache_written(server: ObjectStoreServer, home: Path) -> Iterator[Place]:
    """A fresh cache, and a mount of a new bucket."""
    import raycache
    from raycache.actors.cluster import current

    bucket, root = f"raycache-{home.parent.name}", home / "mnt"
    server.create_bucket(bucket)
    root.mkdir(parents=True)
    with raycache.mount(f"s3://{bucket}", root, mode="w"):
        uri = f"s3://{bucket}"
        yield Place(root, lambda: current(load_settings()).persisting.persist(uri, RACE_S), uri)
    raycache.shutdown()


@contextlib.contextmanager
def juicefs(server: ObjectStoreServer, home: Path, *options: str) -> Iterator[Place]:
    """A new volume, its metadata in SQLite."""
    volume = peers.JuiceFS(server, home)
    with volume.mounted(home / "mnt", *options):
        yield Place(home / "mnt", lambda: wait_until(lambda: not volume.staged()))


@contextlib.contextmanager
def juicefs_writeback(server: ObjectStoreServer, home: Path) -> Iterator[Place]:
    """The same; what is written lies on this disk first."""
    with juicefs(server, home, "--writeback") as place:
        yield place


@contextlib.contextmanager
def rclone(server: ObjectStoreServer, home: Path) -> Iterator[Place]:
    """A mount of a new bucket, whole files kept on this disk."""
    with peers.rclone_mounted(server, f"rclone-{home.parent.name}", home) as root:
        yield Place(root, lambda: time.sleep(2 * peers.RCLONE_WRITE_BACK_S))


MOUNTS: dict[str, Callable[[ObjectStoreServer, Path], contextlib.AbstractContextManager[Place]]] = {
    "ext4": ext4,
    "raycache": raycache_written,
    "juicefs": juicefs,
    "juicefs-writeback": juicefs_writeback,
    "rclone": rclone,
}


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when it holds."""
    deadline = time.monotonic() + RACE_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"data did not get to S3 within {RACE_S:g} s")
        time.sleep(0.2)


def large_file(places: dict[str, Place], arguments: argparse.Namespace) -> Found:
    """GB per second of writing a file and closing it, with fsync, and of reading it back from what the cache has."""
    found: Found = defaultdict(list)
    data = Path("/dev/shm/raycache-writing")  # neither a disk nor a compressor is to be measured
    with open(data, "wb") as file:
        for _ in range(LARGE_BYTES >> 24):
            file.write(os.urandom(1 << 24))
    try:
        for number in range(arguments.rounds):
            one_large_round(places, data, number, found)
            print(f"round {number + 1}", flush=True)
    finally:
        data.unlink()
    return dict(found)


def one_large_round(places: dict[str, Place], data: Path, number: int, found: Found) -> None:
    """Everybody in turn."""
    for who, place in places.items():
        plain, synced = place.root / f"plain-{number}", place.root / f"synced-{number}"
        for case, path, words in (("written", plain, []), ("written and synced", synced, ["conv=fsync"])):
            place.settle()
            workload.drop_page_cache()
            found[f"{who}, {case}"].append(dd(data, path, *words))
        workload.drop_page_cache()
        found[f"{who}, read back"].append(dd(plain, Path("/dev/null")))
        plain.unlink()
        synced.unlink()


def dd(source: Path, target: Path, *words: str) -> float:
    """GB per second of copying LARGE_BYTES by 1 MiB, the end of the program included."""
    began = time.perf_counter()
    command = ["dd", f"if={source}", f"of={target}", "bs=1M", "status=none", *words]
    subprocess.run(command, check=True, timeout=RACE_S)
    return LARGE_BYTES / 1e9 / (time.perf_counter() - began)


def small_files(places: dict[str, Place], arguments: argparse.Namespace) -> Found:
    """Files per second that are made, written and closed."""
    found: Found = defaultdict(list)
    for number in range(arguments.rounds):
        for writers in WRITERS:
            for who, place in places.items():
                place.settle()
                root = place.root / f"small-{writers}-{number}"
                root.mkdir()
                try:
                    found[f"{who}, {writers} writers"].append(create(root, SMALL_FILES, writers))
                except ValueError as error:
                    raise RuntimeError(f"{who}: a program that writes has ended with an error") from error
        print(f"round {number + 1}", flush=True)
    return dict(found)


def create(root: Path, count: int, writers: int, size_bytes: int = SMALL_BYTES) -> float:
    """Files per second by so many processes, each in a directory of its own."""
    command = [sys.executable, "-S", "-c", WRITER]
    processes = [
        subprocess.Popen(
            [*command, str(root / f"w{writer}"), str(count // writers), str(size_bytes)],
            stdout=subprocess.PIPE, text=True,
        )
        for writer in range(writers)
    ]  # fmt: skip
    seconds = [float(process.communicate(timeout=RACE_S)[0]) for process in processes]
    return count / max(seconds)


def moved_tree(places: dict[str, Place], arguments: argparse.Namespace) -> Found:
    """Seconds to rename a directory with many files below it, and to remove it."""
    found: Found = defaultdict(list)
    for who, place in places.items():
        root = place.root / "tree"
        root.mkdir()
        rates = []
        for first in range(0, DIRECTORIES, 4):
            (root / str(first)).mkdir()
            rates.append(create(root / str(first), arguments.files * 4 // DIRECTORIES, 4, 16))
        found[f"{who}, files/s made"] = [sum(rates) / len(rates)]
        for number in range(arguments.rounds):
            began = time.perf_counter()
            os.rename(place.root / ("tree" if not number else f"moved-{number - 1}"), place.root / f"moved-{number}")
            found[f"{who}, seconds"].append(time.perf_counter() - began)
        last = place.root / f"moved-{arguments.rounds - 1}"
        listed = subprocess.run(["find", str(last), "-type", "f"], stdout=subprocess.PIPE, check=True, timeout=RACE_S)
        if listed.stdout.count(b"\n") != arguments.files:
            raise RuntimeError(f"{who} does not show every file of the tree that was moved")
        print(f"{who}: {found[f'{who}, seconds']}", flush=True)
    return dict(found)


def to_source(places: dict[str, Place], arguments: argparse.Namespace) -> Found:
    """Files per second, written by URI, and put straight into the bucket."""
    import raycache

    place = places["raycache"]
    store = obstore.store.from_url(place.uri, client_options={"allow_http": True})
    found: Found = defaultdict(list)
    for number in range(arguments.rounds):
        for case, (size_bytes, count) in SOURCE_CASES.items():
            data = os.urandom(size_bytes)
            place.settle()
            began = time.perf_counter()
            raycache.write_many((f"{place.uri}/{case}-{number}/{each:06d}", data) for each in range(count))
            found[f"acknowledged, {case}"].append(count / (time.perf_counter() - began))
            place.settle()
            found[f"in S3, {case}"].append(count / (time.perf_counter() - began))
            paths = [f"straight/{case}-{number}/{each:06d}" for each in range(count)]
            began = time.perf_counter()
            with ThreadPoolExecutor(load_settings().persist_concurrency) as pool:
                list(pool.map(lambda path, data=data: store.put(path, data), paths))
            found[f"obstore, {case}"].append(count / (time.perf_counter() - began))
        print(f"round {number + 1}", flush=True)
    return dict(found)


def rows_of(found: Found, who: Sequence[str], cases: Sequence[str], form: str) -> list[list[str]]:
    """For each case what everybody comes to, and the ratio of raycache to each."""
    rows = []
    for case in cases:
        ours = found[f"raycache, {case}"]
        rows.append([case, *(report.spread(found[f"{name}, {case}"], form) for name in who)])
        over = [report.spread(report.ratios(ours, found[f"{name}, {case}"]), ",.3g") for name in who]
        rows.append(
            ["raycache / it", *("" if name == "raycache" else ratio for name, ratio in zip(who, over, strict=True))]
        )
    return rows


def describe_large(found: Found, who: Sequence[str], arguments: argparse.Namespace) -> str:
    """GB/s."""
    head = (
        f"{LARGE_BYTES >> 20:,} MiB by 1 MiB, {arguments.rounds} rounds side by side. Written: until the program that "
        "closed it has ended. Read back with the page cache dropped. GB/s, median (range).\n\n"
    )
    rows = rows_of(found, who, ["written", "written and synced", "read back"], ",.2f")
    return head + report.table(["GB/s", *who], rows)


def describe_small(found: Found, who: Sequence[str], arguments: argparse.Namespace) -> str:
    """Files per second."""
    head = f"{SMALL_FILES:,} files of {SMALL_BYTES} bytes, {arguments.rounds} rounds side by side. Median (range).\n\n"
    return head + report.table(
        ["files/s", *who], rows_of(found, who, [f"{writers} writers" for writers in WRITERS], ",.0f")
    )


def describe_rename(found: Found, who: Sequence[str], arguments: argparse.Namespace) -> str:
    """Seconds."""
    head = (
        f"A tree of {arguments.files:,} files in {DIRECTORIES} directories, made by 4 processes and renamed "
        f"{arguments.rounds} times. Less is better; median (range).\n\n"
    )
    rows = [
        ["files/s made", *(report.spread(found[f"{name}, files/s made"]) for name in who)],
        *rows_of(found, who, ["seconds"], ".4f"),
    ]
    return head + report.table(["rename", *who], rows)


def describe_source(found: Found, who: Sequence[str], arguments: argparse.Namespace) -> str:
    """Files per second."""
    counts = ", ".join(f"{count:,} of {case}" for case, (_, count) in SOURCE_CASES.items())
    head = (
        f"Files by `raycache.write_many`: {counts}, {arguments.rounds} rounds side by side; beside it obstore's `put` "
        f"of the same from {load_settings().persist_concurrency} threads. Files/s, median (range).\n\n"
    )
    rows = []
    for case in SOURCE_CASES:
        ours, straight = found[f"in S3, {case}"], found[f"obstore, {case}"]
        rates = [report.spread(found[f"{name}, {case}"], ",.0f") for name in ("acknowledged", "in S3", "obstore")]
        rows.append([case, *rates, report.spread(report.ratios(ours, straight), ",.2f")])
    return head + report.table(["files/s", "acknowledged", "in S3", "obstore", "in S3 / obstore"], rows)


PARTS: dict[str, Callable[[dict[str, Place], argparse.Namespace], Found]] = {
    "large": large_file, "small": small_files, "rename": moved_tree, "source": to_source,
}  # fmt: skip
DESCRIBE: dict[str, Callable[[Found, Sequence[str], argparse.Namespace], str]] = {
    "large": describe_large, "small": describe_small, "rename": describe_rename, "source": describe_source,
}  # fmt: skip

if __name__ == "__main__":
    main()
