"""A mount moves on when its source is refreshed, and forgets only what changed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.fuse.mount import list_mounts
from raycache.testing import ObjectStoreServer


@pytest.fixture
def files(bucket: str, s3_env: ObjectStoreServer) -> str:
    client = s3_env.client()
    for number in range(50):
        client.put_object(Bucket=bucket, Key=f"sub/{number:02d}", Body=b"%02d" % number * 1000)
    return f"s3://{bucket}"


def reads() -> int:
    time.sleep(1)  # the gateway reports its counters four times a second
    return int(list_mounts()[0]["counters"]["reads"])


def test_a_refresh_reaches_a_mount_and_costs_what_did_not_change_nothing(
    files: str, s3_env: ObjectStoreServer, cache: Any, mountpoint: Path
) -> None:
    client, name = s3_env.client(), files.removeprefix("s3://")
    with raycache.mount(files, mountpoint, session="kernel"):
        directory = mountpoint / "sub"
        for number in range(50):
            assert (directory / f"{number:02d}").read_bytes() == b"%02d" % number * 1000
        assert not (directory / "new").exists(), "and the kernel remembers that it does not"
        with open(directory / "01", "rb") as held:
            assert held.read(4) == b"0101"
            client.put_object(Bucket=name, Key="sub/01", Body=b"replaced")
            client.delete_object(Bucket=name, Key="sub/02")
            client.put_object(Bucket=name, Key="sub/new", Body=b"added")
            assert raycache.refresh(f"{files}/sub") == 2
            deadline = time.monotonic() + 10
            while not (directory / "new").exists():
                assert time.monotonic() < deadline, "the refresh did not reach the mount"
                time.sleep(0.05)
            assert held.read() == b"01" * 998, "an open file is the file that was opened"
        assert (directory / "01").read_bytes() == b"replaced"
        assert (directory / "new").read_bytes() == b"added"
        assert not (directory / "02").exists()
        assert sorted(os.listdir(directory)) == sorted({f"{number:02d}" for number in range(50)} - {"02"} | {"new"})
        before = reads()
        for number in range(3, 50):
            assert (directory / f"{number:02d}").read_bytes() == b"%02d" % number * 1000
        assert reads() == before, "pages of unchanged files stayed with the kernel"
