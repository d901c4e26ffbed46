"""A mount over a disk tier whose block files are spoilt, at rest and while they are read: no reader sees it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.testing.pages import drop_pages

FILES, BLOCK_BYTES = 80, 1 << 20
SPOIL_S = 4.0


@pytest.fixture
def disk_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a cache whose memory has room for no block."""
    monkeypatch.setenv("RAYCACHE_BLOCK_BYTES", str(BLOCK_BYTES))
    monkeypatch.setenv("RAYCACHE_MEM", "1000")
    monkeypatch.setenv("RAYCACHE_TIERS", f"{tmp_path}/tier:200MB")
    return tmp_path / "tier"


def disk() -> dict[str, Any]:
    (worker,) = raycache.status()["workers"]
    found: dict[str, Any] = worker["tiers"][1]
    return found


def flip(path: Path, rng: random.Random) -> None:
    """Change a few bytes of a block file in place, if it is there still."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    size = os.fstat(fd).st_size
    for _ in range(4):
        at = rng.randrange(size) if size else 0
        if old := os.pread(fd, 1, at):
            os.pwrite(fd, bytes([old[0] ^ 0x55]), at)
    os.close(fd)


def read_all(root: Path, sums: dict[str, str]) -> None:
    for name, wanted in sums.items():
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == wanted, name


def test_spoilt_block_files_are_never_seen_through_a_mount(
    disk_only: Path, cache: Any, tmp_path: Path, mountpoint: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    sums = {}
    for number in range(FILES):
        body = random.Random(number).randbytes(60_000 + 3_000 * number)
        (source / f"{number:02d}").write_bytes(body)
        sums[f"{number:02d}"] = hashlib.sha256(body).hexdigest()
    (tmp_path / "sums.json").write_text(json.dumps(sums))
    script = Path(__file__).with_name("verified_reader.py")
    rng = random.Random(3)
    with raycache.mount(str(source), mountpoint, session="kernel"):
        deadline = time.monotonic() + 30
        while disk()["blocks"] < 10:
            assert time.monotonic() < deadline, disk()
            read_all(mountpoint, sums)
            drop_pages(mountpoint)
        reader = subprocess.Popen(
            [sys.executable, str(script), str(mountpoint), str(tmp_path / "sums.json"), "1"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        ends = time.monotonic() + SPOIL_S
        while time.monotonic() < ends:
            paths = sorted(disk_only.glob("blocks-*/??/*"))
            for path in rng.sample(paths, min(3, len(paths))):
                flip(path, rng)
            drop_pages(mountpoint)
            time.sleep(0.02)
        report = json.loads(reader.communicate(timeout=60)[0].splitlines()[-1])
        assert report["failures"] == []
        assert report["reads"] > 100
        for path in disk_only.glob("blocks-*/??/*"):
            flip(path, rng)
        drop_pages(mountpoint)
        read_all(mountpoint, sums)
        found = disk()
        assert found["corrupt"] + found["torn"] > 5, found
        assert found["out_of_service"] is None
