"""Running an example as its user does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from raycache.fuse import device

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *words: str, timeout_s: float = 150) -> str:
    """What it prints. It must end well, and leave no mount behind."""
    command = [sys.executable, str(EXAMPLES / name), *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as example:
        try:
            out, err = example.communicate(timeout=timeout_s)
        finally:
            if example.poll() is None:
                os.killpg(example.pid, signal.SIGKILL)
    assert example.returncode == 0, out + err
    assert not [mount for mount in device.mounts() if mount.source.startswith("s3://tones")]
    return out
