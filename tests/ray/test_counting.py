"""What a read costs: requests to S3, and calls to actors, counted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.testing import ObjectStoreServer
from raycache.testing.pages import drop_pages
from raycache.testing.proxy import CountingProxy

FILES = 400
FILE_BYTES = 100_000
BLOCK_BYTES = 4 << 20


@pytest.fixture
def proxy(bucket: str, s3_env: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingProxy]:
    """A proxy that counts, in front of a bucket with FILES files of FILE_BYTES."""
    client = s3_env.client()
    for number in range(FILES):
        client.put_object(Bucket=bucket, Key=f"train/{number:04d}", Body=body(number))
    with CountingProxy(s3_env.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten blocks rather than two, so that calls per block and calls per file differ clearly."""
    monkeypatch.setenv("RAYCACHE_BLOCK_BYTES", str(BLOCK_BYTES))


def body(number: int) -> bytes:
    return random.Random(number).randbytes(FILE_BYTES)


def wait_sealed(blocks: int) -> None:
    deadline = time.monotonic() + 20
    while raycache.status()["workers"][0]["blocks"] < blocks and time.monotonic() < deadline:
        time.sleep(0.05)
    assert raycache.status()["workers"][0]["blocks"] == blocks


def epoch(uris: list[str], seed: int, batch: int = 50) -> None:
    order = list(uris)
    random.Random(seed).shuffle(order)
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        for uri, data in zip(some, raycache.read_many(some), strict=True):
            assert data == body(int(uri[-4:]))


def test_an_epoch_asks_the_source_once_per_file_and_actors_once_per_block(
    bucket: str, proxy: CountingProxy, small_blocks: None, cache: Any
) -> None:
    source = f"s3://{bucket}/train"
    raycache.dataset("train", source)
    uris = [f"{source}/{name}" for name in raycache.listdir(source)]
    blocks = -(-FILES // (BLOCK_BYTES // FILE_BYTES))
    proxy.reset()

    epoch(uris, seed=1)
    wait_sealed(blocks)
    assert proxy.counts() == {"GET": FILES}, "a cold epoch is one GET per file"

    epoch(uris, seed=2)  # maps the blocks that were sealed behind the first epoch's back
    proxy.reset()
    before = (cache.master.calls, cache.pool.calls)
    for seed in range(3, 6):
        epoch(uris, seed)
    assert proxy.counts() == {}, "a warm epoch asks the source for nothing"
    assert (cache.master.calls, cache.pool.calls) == before, "and no actor, once the blocks are mapped"

    # A fresh client has nothing mapped: it pays per block and per directory, whatever the number of files.
    raycache.disconnect()
    from raycache.actors.cluster import current

    fresh = current()
    epoch(uris, seed=7, batch=1)
    assert proxy.counts() == {}
    assert blocks <= fresh.pool.calls <= 2 * blocks, "a call per block, and a hint now and then"
    assert fresh.master.calls <= 6


def test_a_mount_makes_no_call_per_file(
    bucket: str, proxy: CountingProxy, small_blocks: None, cache: Any, mountpoint: Path
) -> None:
    blocks = -(-FILES // (BLOCK_BYTES // FILE_BYTES))
    with raycache.mount(f"s3://{bucket}/train", mountpoint):
        names = sorted(os.listdir(mountpoint))
        assert len(names) == FILES
        for name in names:
            assert (mountpoint / name).read_bytes() == body(int(name))
        wait_sealed(blocks)
        read_all(mountpoint, names)  # maps every block
        counters, began = mount_counters(), time.monotonic()
        proxy.reset()
        for _ in range(2):
            drop_pages(mountpoint)
            read_all(mountpoint, names)
        after = mount_counters()
        assert proxy.counts() == {}
        assert after["reads"] - counters["reads"] >= FILES, "the page cache was dropped, so the gateway was asked"
        assert after["worker_calls"] - counters["worker_calls"] <= 2 * blocks
        # The gateway asks once a second whether anything was refreshed, and nothing besides.
        assert after["master_calls"] - counters["master_calls"] <= time.monotonic() - began + 2 < FILES


def read_all(mountpoint: Path, names: list[str]) -> None:
    for name in random.Random(0).sample(names, len(names)):
        assert (mountpoint / name).read_bytes() == body(int(name))


def mount_counters() -> dict[str, int]:
    time.sleep(1.5)  # the gateway brings its record up to date once a second
    counters: dict[str, int] = raycache.status()["mounts"][0]["counters"]
    return counters


TRAIN = """
import os, random, sys, time
root, seed = sys.argv[1], int(sys.argv[2])
names = sorted(os.listdir(root))
random.Random(seed).shuffle(names)
for at, name in enumerate(names):
    with open(os.path.join(root, name), "rb") as file:
        assert len(file.read()) == 100_000
    if at == len(names) // 2:
        print("half", flush=True)
print("done", flush=True)
"""


def test_a_killed_training_starts_again_warm(
    bucket: str, proxy: CountingProxy, small_blocks: None, cache: Any, mountpoint: Path
) -> None:
    with raycache.mount(f"s3://{bucket}/train", mountpoint):
        command = [sys.executable, "-c", TRAIN, str(mountpoint)]
        with subprocess.Popen([*command, "1"], stdout=subprocess.PIPE, text=True) as first:
            assert first.stdout is not None
            assert first.stdout.readline() == "half\n"
            first.send_signal(signal.SIGKILL)
        assert first.returncode == -signal.SIGKILL
        wait_sealed(-(-FILES // (BLOCK_BYTES // FILE_BYTES)))
        assert proxy.counts()["GET"] <= FILES + 2, "one per file, and the listings"
        proxy.reset()
        again = subprocess.run([*command, "2"], capture_output=True, text=True, timeout=60, check=True)
        assert again.stdout.endswith("done\n")
        assert proxy.counts() == {}
