"""A mount moves on when its source is refreshed, and forgets only what changed."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.errors import Changed, MountError
from raycache.fuse.mount import list_mounts, upgrade
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


def test_a_snapshot_stays_beside_a_mount_that_moves_on(
    files: str, s3_env: ObjectStoreServer, cache: Any, mountpoint: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    with (
        raycache.mount(files, mountpoint, session="kernel"),
        raycache.mount(files, kept, session="kernel", snapshot=True) as pinned,
    ):
        names = sorted(os.listdir(kept / "sub"))
        assert sorted(os.listdir(mountpoint / "sub")) == names
        view = raycache.snapshot()
        assert view.listdir(f"{files}/sub") == names
        change_all(s3_env, files)
        wait_for(mountpoint / "sub" / "new")
        time.sleep(1.2)  # a mount that follows would have followed by now
        assert not (kept / "sub" / "new").exists()
        assert sorted(os.listdir(kept / "sub")) == names
        assert view.listdir(f"{files}/sub") == names
        for changed in ("01", "02"):
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                (kept / "sub" / changed).read_bytes()
            with pytest.raises(Changed), view.open(f"{files}/sub/{changed}") as file:
                file.read()
        assert (kept / "sub" / "03").read_bytes() == b"03" * 1000
        assert (mountpoint / "sub" / "01").read_bytes() == b"replaced"
        assert {about["mountpoint"]: about["snapshot"] for about in raycache.status()["mounts"]} == {
            str(mountpoint): None,
            str(kept): 0,
        }
        assert raycache.snapshot().change == 1
        # A script that starts again finds its snapshot, and nobody gets a mount that shows something else.
        for same in (True, 0):
            assert raycache.mount(files, kept, snapshot=same).gateway_pid == pinned.gateway_pid
        for directory, other in ((kept, False), (kept, 1), (mountpoint, True)):
            with pytest.raises(MountError, match="already"):
                raycache.mount(files, directory, snapshot=other)


def test_a_snapshot_outlives_its_gateway(files: str, s3_env: ObjectStoreServer, cache: Any, mountpoint: Path) -> None:
    later_on = mountpoint.parent / "later"
    later_on.mkdir()
    with raycache.mount(files, mountpoint, session="kernel", snapshot=True) as pinned:
        names = sorted(os.listdir(mountpoint / "sub"))
        change_all(s3_env, files)
        successor = upgrade(mountpoint)  # this one began after the change
        assert successor != pinned.gateway_pid
        assert not (mountpoint / "sub" / "new").exists()
        assert sorted(os.listdir(mountpoint / "sub")) == names
        os.kill(successor, signal.SIGKILL)
        assert not (mountpoint / "sub" / "newer").exists()
        assert sorted(os.listdir(mountpoint / "sub")) == names
        assert raycache.filesystem(snapshot=0).ls(f"{files}/sub", detail=False) == [
            f"{files}/sub/{each}" for each in names
        ]
        with raycache.mount(files, later_on, session="kernel", snapshot=0) as later:
            assert sorted(os.listdir(os.path.join(later, "sub"))) == names


def change_all(s3_env: ObjectStoreServer, files: str) -> None:
    """A file replaced, one removed and two added, and their directory listed anew."""
    client, name = s3_env.client(), files.removeprefix("s3://")
    client.put_object(Bucket=name, Key="sub/01", Body=b"replaced")
    client.delete_object(Bucket=name, Key="sub/02")
    client.put_object(Bucket=name, Key="sub/new", Body=b"added")
    client.put_object(Bucket=name, Key="sub/newer", Body=b"added too")
    assert raycache.refresh(f"{files}/sub") == 2


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline, "the refresh did not reach the mount"
        time.sleep(0.05)
