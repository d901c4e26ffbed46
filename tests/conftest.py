"""Fixtures that tests of several kinds share: a real S3 server, a real Ray, a cache on it, mounts that always end."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from raycache.testing import ObjectStoreServer

RAY_STORE_BYTES = 1 << 30


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStoreServer]:
    """A real S3 server, one for the whole session: give each test a bucket name of its own."""
    with ObjectStoreServer() as server:
        yield server


@pytest.fixture(scope="session")
def ray_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a Ray cluster of one node; this process is a driver of it."""
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    # A node that was killed is known to be dead after three seconds, not after fifteen.
    os.environ |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
    os.environ["RAYCACHE_STATE_DIR"] = str(tmp_path_factory.mktemp("state"))
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=RAY_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture
def cache(ray_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A fresh cache on that cluster: its own Ray namespace and its own state, ended afterwards."""
    import raycache
    from raycache.actors.cluster import current
    from raycache.config import load_settings

    monkeypatch.setenv("RAYCACHE_NAMESPACE", f"test-{uuid.uuid4().hex[:8]}")
    monkeypatch.setenv("RAYCACHE_ADDRESS", ray_address)
    raycache.disconnect()
    yield current(load_settings())
    raycache.shutdown(wait_s=0)


@pytest.fixture
def s3_env(object_store: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch) -> ObjectStoreServer:
    """The S3 server, with the environment that AWS tools need to reach it."""
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    return object_store


@pytest.fixture
def bucket(s3_env: ObjectStoreServer) -> Iterator[str]:
    """Name of a new bucket, gone after the test."""
    name = f"b{uuid.uuid4().hex[:10]}"
    s3_env.create_bucket(name)
    yield name
    # A bucket holds on to its volumes, of which a server has only so many. The name is not used again.
    with suppress(ClientError):
        s3_env.client().delete_bucket(Bucket=name)


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """An empty directory; whatever is mounted on it is taken away afterwards, by force if need be."""
    from raycache.fuse import device

    directory = tmp_path / "mnt"
    directory.mkdir()
    yield directory
    while device.find_mount(str(directory)) is not None:
        device.unmount(str(directory), lazy=True)


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli() -> Cli:
    """Runs the command line as a user would: another process, with a deadline."""

    def run(*words: str, timeout_s: float = 60, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "raycache.cli", *words],
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run
