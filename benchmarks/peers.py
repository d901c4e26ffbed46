"""Peers of raycache, mounted as their manuals say for read-mostly data: JuiceFS, SeaweedFS's own mount, rclone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from raycache.testing import ObjectStoreServer

MOUNT_S = 60


def program(name: str) -> str:
    """A program of this virtual environment, or of the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is missing; pip install {name}-bin")
    return found


class JuiceFS:
    """A JuiceFS volume on a bucket, its metadata in SQLite, its cache on this disk."""

    def __init__(self, server: ObjectStoreServer, home: Path) -> None:
        self._home = home / "juicefs"
        self._home.mkdir(parents=True)
        self._meta = f"sqlite3://{self._home / 'meta.db'}"
        options = server.storage_options
        bucket = f"juicefs-{uuid.uuid4().hex[:8]}"
        server.create_bucket(bucket)
        subprocess.run(
            [
                program("juicefs"), "format", "--storage", "s3", "--bucket", f"{server.endpoint}/{bucket}",
                "--access-key", options["key"], "--secret-key", options["secret"], "--trash-days", "0",
                self._meta, "bench",
            ],
            check=True, capture_output=True,
        )  # fmt: skip

    @contextlib.contextmanager
    def mounted(self, directory: Path, *options: str) -> Iterator[Path]:
        """Mounted, with the kernel's caches kept for an hour. ``options``: more of its own."""
        lifetimes = [word for name in ("attr", "entry", "dir-entry") for word in (f"--{name}-cache", "3600")]
        command = [
            program("juicefs"), "mount", "--no-usage-report", "--no-syslog", "--cache-dir", str(self._home / "cache"),
            "--cache-size", "20480", *lifetimes, *options, self._meta, str(directory),
        ]  # fmt: skip
        with mounted_by(command, directory):
            yield directory

    def staged(self) -> bool:
        """Whether something that was written with ``--writeback`` is still not in the bucket."""
        return any(path.is_file() for path in (self._home / "cache").glob("*/rawstaging/**/*"))


RCLONE_WRITE_BACK_S = 1
"""How long after it was closed rclone begins to upload a file."""


@contextlib.contextmanager
def rclone_mounted(server: ObjectStoreServer, bucket: str, home: Path) -> Iterator[Path]:
    """rclone's mount of a new bucket, with whole files in its cache."""
    server.create_bucket(bucket)
    directory, options = home / "mnt", server.storage_options
    remote = f":s3,provider=SeaweedFS,access_key_id={options['key']},secret_access_key={options['secret']}"
    command = [
        program("rclone"), "mount", f"{remote},endpoint='{server.endpoint}':{bucket}", str(directory),
        "--vfs-cache-mode", "full", "--cache-dir", str(home / "cache"), "--dir-cache-time", "1h",
        "--vfs-write-back", f"{RCLONE_WRITE_BACK_S}s", "--config", "/dev/null",
    ]  # fmt: skip
    home.mkdir(parents=True, exist_ok=True)
    with mounted_by(command, directory):
        yield directory


@contextlib.contextmanager
def seaweedfs_mounted(server: ObjectStoreServer, bucket: str, directory: Path) -> Iterator[Path]:
    """SeaweedFS's mount of a bucket's directory in its filer."""
    cache = directory.parent / "weed-cache"
    cache.mkdir(exist_ok=True)
    command = [
        program("weed"), "mount", f"-filer={server.filer}", f"-dir={directory}",
        f"-filer.path=/buckets/{bucket}", f"-cacheDir={cache}", "-cacheCapacityMB=4096", "-cacheMetaTtlSec=3600",
    ]  # fmt: skip
    with mounted_by(command, directory):
        yield directory


@contextlib.contextmanager
def mounted_by(command: list[str], directory: Path) -> Iterator[None]:
    """Run a program that mounts and stays in the foreground; take the mount away afterwards."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory.parent / f"{directory.name}.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + MOUNT_S
        while not os.path.ismount(directory):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not mount: {Path(log.name).read_text()[-500:]}")
            time.sleep(0.05)
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=False, capture_output=True)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
