"""A Ray cluster of one node for who has none: started by ``raycache start``, ended by ``raycache stop``.

It is ``ray start --head --block`` in a session of its own; ending that process ends what it started and nothing else,
while ``ray stop`` would end every Ray on the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from raycache.actors.names import AUTH_MODE, MOUNT_PLUGIN, PLUGINS
from raycache.config import Settings
from raycache.errors import ClusterUnavailable

START_S = 60.0
STOP_S = 20.0


def start_local_ray(settings: Settings) -> str:
    """Start a head node on this machine and return its address. Raises ClusterUnavailable when it does not come up."""
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = settings.state_dir / "ray-head.log"
    port = _free_port()
    environ = {AUTH_MODE: "token", PLUGINS: MOUNT_PLUGIN, **os.environ}
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    if environ[AUTH_MODE] == "token":
        # A token that exists is kept; clients on this machine find it by themselves.
        subprocess.run(
            [*ray, "get-auth-token", "--generate"], env=environ, capture_output=True, timeout=60, check=False
        )
    command = [
        *ray,
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--include-dashboard=false",
        "--disable-usage-stats",
    ]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    try:
        address = _wait_ready(process, port, log)
        _record(settings).write_text(json.dumps({"pid": process.pid, "address": address}), encoding="utf-8")
    except BaseException:  # an interrupt too must not leave a cluster that nobody knows of
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return address


def local_ray(settings: Settings) -> str | None:
    """Address of the head node that ``start_local_ray`` started, if it still runs."""
    about = _running(settings)
    return None if about is None else str(about["address"])


def stop_local_ray(settings: Settings) -> str | None:
    """End the head node that ``start_local_ray`` started; its address, or None when there is none."""
    about = _running(settings)
    _record(settings).unlink(missing_ok=True)
    if about is None:
        return None
    os.kill(about["pid"], signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while _is_head(about["pid"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    # It waits for its own children, and one of them may wait for a driver that does not leave. The group is ours.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(about["pid"], signal.SIGKILL)
    _forget_address(about["address"])
    return str(about["address"])


def _running(settings: Settings) -> dict[str, Any] | None:
    try:
        about: dict[str, Any] = json.loads(_record(settings).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return about if _is_head(about["pid"]) else None


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        text = log.read_text(encoding="utf-8", errors="replace")
        if "Ray runtime started" in text:
            from ray._private.utils import read_ray_address

            return read_ray_address() or f"127.0.0.1:{port}"
        time.sleep(0.1)
    if process.poll() is None:
        process.terminate()
    tail = " / ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])
    raise ClusterUnavailable(f"Ray did not start on this machine: {tail}; see {log}")


def _is_head(pid: int) -> bool:
    """Whether a process is our ``ray start`` still, not another one that got its number."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"--head" in words and b"--block" in words


def _forget_address(address: str) -> None:
    """Ray leaves the address of the last head behind, and the next ``ray.init()`` would try to join it."""
    from ray._private import utils as ray_utils

    if ray_utils.read_ray_address() == address:
        file: str = ray_utils.get_ray_address_file(None)  # type: ignore[attr-defined]
        Path(file).unlink(missing_ok=True)


def _record(settings: Settings) -> Path:
    return settings.state_dir / "ray-head.json"


def _free_port() -> int:
    """6379, as ``ray start`` has it, or any that is free."""
    for port in (6379, 0):
        with socket.socket() as probe:
            # As Ray binds it: a cluster that has just ended does not keep its port from the next.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ClusterUnavailable("no TCP port is free on this machine")
