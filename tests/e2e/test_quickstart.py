"""The demo runs, small, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raycache.fuse import device

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.py"


def started_by(pid: int) -> list[int]:
    """Processes of the session that a process leads, and of the sessions that its mounts lead."""
    done = subprocess.run(["pgrep", "-s", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()]


def demo_mounts() -> set[str]:
    """Mounts of demos; others may come and go while it runs."""
    return {mount.mountpoint for mount in device.mounts() if "raycache-demo-" in mount.mountpoint}


@pytest.mark.timeout(400)
def test_the_quick_start_trains_and_cleans_up(tmp_path: Path) -> None:
    before = demo_mounts()
    command = [sys.executable, str(EXAMPLE), "--files-per-language", "20", "--epochs", "2", "--out", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "COLUMNS": "120"},
    ) as demo:  # fmt: skip
        try:
            out, err = demo.communicate(timeout=300)
        finally:
            if demo.poll() is None:
                os.killpg(demo.pid, signal.SIGKILL)
    assert demo.returncode == 0, out + err
    rows = {
        row[0]: row for row in (re.split(r"\s*│\s*", line.strip("│ ")) for line in out.splitlines()) if len(row) == 6
    }
    assert float(rows["1 (cold)"][3]) > 40, "160 files of 300 KiB came from S3"
    assert rows["2 (warm)"][3:5] == ["0", "100%"], "the second epoch asked S3 for nothing"
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000
    deadline = time.monotonic() + 20  # Ray's processes and torch's fork server take a moment to notice
    while started_by(demo.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert started_by(demo.pid) == []
    assert demo_mounts() == before


def test_the_quick_start_says_what_is_wrong_with_its_arguments(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--files-per-language", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--files-per-language" in done.stderr
