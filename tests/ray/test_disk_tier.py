"""A disk tier under a real worker that is killed: nothing fails, and what was on disk is not fetched again."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.testing import ObjectStoreServer
from raycache.testing.proxy import CountingProxy

FILES, FILE_BYTES, BLOCK_BYTES = 120, 100_000, 1 << 20


def body(number: int) -> bytes:
    return random.Random(number).randbytes(FILE_BYTES)


@pytest.fixture
def tiered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a cache whose memory has room for two blocks, and its disk for the rest."""
    monkeypatch.setenv("RAYCACHE_BLOCK_BYTES", str(BLOCK_BYTES))
    monkeypatch.setenv("RAYCACHE_MEM", str(2 * BLOCK_BYTES))
    monkeypatch.setenv("RAYCACHE_TIERS", f"{tmp_path}/tier:100MB")
    return tmp_path / "tier"


def epoch(uris: list[str], seed: int) -> None:
    order = list(uris)
    random.Random(seed).shuffle(order)
    for start in range(0, len(order), 20):
        some = order[start : start + 20]
        for uri, data in zip(some, raycache.read_many(some), strict=True):
            assert data == body(int(uri[-3:]))


def wait_filled(blocks: int) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        worker: dict[str, Any] = raycache.status()["workers"][0]
        if "tiers" in worker and sum(tier["blocks"] for tier in worker["tiers"]) >= blocks and not worker["filling"]:
            return worker
        time.sleep(0.05)
    raise AssertionError(f"not filled: {raycache.status()['workers']}")


def test_a_killed_worker_finds_its_disk_again(
    bucket: str, s3_env: ObjectStoreServer, tiered: Path, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = s3_env.client()
    for number in range(FILES):
        client.put_object(Bucket=bucket, Key=f"{number:03d}", Body=body(number))
    uris = [f"s3://{bucket}/{number:03d}" for number in range(FILES)]
    with CountingProxy(s3_env.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        raycache.dataset("tiered", f"s3://{bucket}")
        epoch(uris, 1)
        blocks = -(-FILES // (BLOCK_BYTES // FILE_BYTES))
        worker = wait_filled(blocks)
        on_disk = worker["tiers"][1]["blocks"]
        assert on_disk == blocks - 2
        failures: list[str] = []
        stop = threading.Event()

        def verify() -> None:
            rng = random.Random(5)
            while not stop.is_set():
                number = rng.randrange(FILES)
                try:
                    if raycache.read_many([uris[number]])[0] != body(number):
                        failures.append(f"{number}: other bytes")
                except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                    failures.append(f"{number}: {error!r}")

        reader = threading.Thread(target=verify)
        reader.start()
        proxy.reset()
        for _ in range(2):
            os.kill(raycache.status()["workers"][0]["pid"], signal.SIGKILL)
            time.sleep(1)
        stop.set()
        reader.join(60)
        assert failures == []
        wait_filled(on_disk)
        epoch(uris, 2)
        # Only the two blocks that were in memory alone are fetched again, once for each worker that lost them.
        lost_files = (blocks - on_disk) * (BLOCK_BYTES // FILE_BYTES)
        assert proxy.counts().get("GET", 0) <= 2 * 2 * lost_files
        paths = sorted(tiered.glob("blocks-*/??/*"))
        assert len(paths) >= on_disk
        proxy.reset()
        epoch(uris, 3)
        assert proxy.counts().get("GET", 0) == 0


def test_status_shows_tiers(tiered: Path, cache: Any, cli: Any) -> None:
    (worker,) = raycache.status()["workers"]
    memory, disk = worker["tiers"]
    assert (memory["medium"], memory["quota_bytes"]) == ("memory", 2 * BLOCK_BYTES)
    assert (Path(disk["directory"]).parent, disk["quota_bytes"], disk["out_of_service"]) == (tiered, 10**8, None)
    shown = cli("status", COLUMNS="300").stdout
    assert disk["directory"] in shown
    assert "100.0 MB" in shown


def test_a_mount_needs_not_be_told_the_tiers(
    tiered: Path, cache: Any, tmp_path: Path, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(body(1))
    for name in ("TIERS", "MEM", "BLOCK_BYTES"):
        monkeypatch.delenv(f"RAYCACHE_{name}")
    raycache.disconnect()
    with raycache.mount(str(tmp_path / "source"), mountpoint):
        assert (mountpoint / "a").read_bytes() == body(1)
