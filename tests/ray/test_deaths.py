"""Parts that die under verified reads."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.actors import cluster
from raycache.actors.transport import NoAnswer
from raycache.errors import Unavailable
from raycache.testing import ObjectStoreServer
from raycache.testing.pages import drop_pages

FILES = 60


@pytest.fixture
def files(bucket: str, s3_env: ObjectStoreServer) -> str:
    client = s3_env.client()
    for number in range(FILES):
        client.put_object(Bucket=bucket, Key=f"{number:02d}", Body=body(number))
    return f"s3://{bucket}"


def body(number: int) -> bytes:
    return random.Random(number).randbytes(200_000)


def verify_for(seconds: float, root: Path, failures: list[str]) -> int:
    """Read random files until the time is up; the page cache is dropped so that the gateway is really asked."""
    until, reads, rng = time.monotonic() + seconds, 0, random.Random(1)
    while time.monotonic() < until:
        number = rng.randrange(FILES)
        try:
            if (root / f"{number:02d}").read_bytes() != body(number):
                failures.append(f"{number}: other bytes")
        except OSError as error:
            failures.append(f"{number}: {error}")
        reads += 1
        if reads % 50 == 0:
            drop_pages(root)
    return reads


def test_a_killed_worker_costs_no_failed_read(files: str, cache: Any, mountpoint: Path) -> None:
    failures: list[str] = []
    with raycache.mount(files, mountpoint):
        reader = threading.Thread(target=verify_for, args=(8, mountpoint, failures))
        reader.start()
        killed = []
        for _ in range(3):
            time.sleep(1.5)
            pid = raycache.status()["workers"][0]["pid"]
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            # A client that maps nothing must come through as well.
            number = random.randrange(FILES)
            assert raycache.read_many([f"{files}/{number:02d}"])[0] == body(number)
        reader.join(60)
        assert not reader.is_alive()
        assert failures == []
        assert len(set(killed)) == 3


def test_reads_go_on_without_the_master_and_it_returns_with_all_it_knew(
    files: str, cache: Any, mountpoint: Path
) -> None:
    failures: list[str] = []
    with raycache.mount(files, mountpoint):
        names = sorted(os.listdir(mountpoint))
        datasets = cache.master.datasets()
        reader = threading.Thread(target=verify_for, args=(6, mountpoint, failures))
        reader.start()
        for _ in range(2):
            time.sleep(1)
            os.kill(cache.master.status()["pid"], signal.SIGKILL)
            assert cache.master.datasets() == datasets, "the call waited for the master to be back"
        reader.join(60)
        assert failures == []
        assert sorted(os.listdir(mountpoint)) == names
        # Credentials survived it too: a new directory can be listed.
        assert raycache.refresh(files) == 1


def test_a_read_ends_with_an_error_when_the_source_is_away(
    files: str, s3_env: ObjectStoreServer, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raycache.testing.proxy import CountingProxy

    with CountingProxy(s3_env.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        raycache.dataset("away", files)
        assert raycache.read_many([f"{files}/00"])[0] == body(0)
        raycache.read_many([f"{files}/{number:02d}" for number in range(FILES // 2)])
        proxy.down = True
        started = time.monotonic()
        failed: list[str] = []
        for number in range(FILES - 1, FILES - 3, -1):
            try:
                if raycache.read_many([f"{files}/{number:02d}"])[0] != body(number):
                    failed.append("other bytes")
            except Unavailable as error:
                failed.append(str(error))
        assert time.monotonic() - started < 90
        assert all(f"s3://{files[5:]}/" in text for text in failed)
        proxy.down = False
        assert raycache.read_many([f"{files}/{FILES - 1:02d}"])[0] == body(FILES - 1)


def test_a_recursive_refresh_survives_the_master(
    files: str, s3_env: ObjectStoreServer, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raycache.testing.proxy import CountingProxy

    with CountingProxy(s3_env.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        raycache.dataset("data", files)
        s3_env.client().put_object(Bucket=files[5:], Key="sub/new", Body=b"new")
        jobs: list[Any] = []
        refresh = threading.Thread(target=lambda: jobs.append(raycache.refresh("raycache://data", recursive=True)))
        with proxy.hold("list-type=2") as gate:
            refresh.start()
            assert gate.wait_arrived()
            (job,) = raycache.status()["datasets"][0]["listings"]
            assert (job["state"], job["changed"]) == ("running", 0)
            os.kill(cache.master.status()["pid"], signal.SIGKILL)
        refresh.join(60)
        assert [(job.state, job.files, job.directories, job.changed) for job in jobs] == [("done", FILES + 1, 2, 2)]
        assert raycache.listdir("raycache://data/sub") == ["new"]


def test_blocks_that_ray_does_not_bring_are_read_as_ranges(
    cache: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"bytes" * 1000)
    raycache.dataset("data", str(tmp_path))
    raycache.load("raycache://data").wait(60)
    asked: list[int] = []

    def never(refs: Sequence[Any], timeout_s: float, what: str) -> list[memoryview]:
        asked.append(len(refs))
        if refs:
            raise NoAnswer(f"{what} did not answer")
        return []

    monkeypatch.setattr(cluster, "get_views", never)
    for _ in range(2):
        assert raycache.read_many(["raycache://data/file"]) == [b"bytes" * 1000]
    assert asked.count(1) == 1, "ranges alone are asked for, for a while"
