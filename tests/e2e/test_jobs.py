"""``ray job submit`` finds its mounts on the node, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from raycache.actors.names import MOUNT_PLUGIN, PLUGINS
from raycache.actors.runtime_env import MountPlugin
from raycache.fuse import device

TASK = """
import os, sys, ray
where = sys.argv[1]
print("driver:", sorted(os.listdir(where)))
ray.init()

@ray.remote
def read(name):
    with open(os.path.join(where, name), "rb") as file:
        return file.read(), os.environ["RAYCACHE_ADDRESS"]

import raycache
print("task:", ray.get(read.remote("a"), timeout=60)[0], "cache:", len(raycache.status()["workers"]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def job_environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a shell on the head node of a cluster with a dashboard, whose nodes load the plugin."""
    home = tmp_path_factory.mktemp("jobs")
    temp = Path("/tmp") / f"ray-{os.getpid()}"  # Ray's sockets have no room for a long path
    port, dashboard, agent = free_port(), free_port(), free_port()
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAYCACHE_"))},
        "RAY_AUTH_MODE": "disabled",
        "RAYCACHE_STATE_DIR": str(home / "state"),
        "RAYCACHE_NAMESPACE": "jobs",
    }
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", "--include-dashboard=true",
        f"--temp-dir={temp}", "--object-store-memory=300000000", "--disable-usage-stats",
    ]  # fmt: skip
    with open(home / "ray.log", "wb") as log:
        head = subprocess.Popen(
            command,
            env={**environ, PLUGINS: MOUNT_PLUGIN},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (home / "ray.log").read_text(errors="replace"):
            is_up = head.poll() is None and time.monotonic() < deadline
            assert is_up, (home / "ray.log").read_text(errors="replace")
            time.sleep(0.2)
        yield {
            **environ,
            "RAY_ADDRESS": f"127.0.0.1:{port}",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        }
    finally:
        head.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(5)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait(20)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"bytes of a")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "task.py").write_text(TASK)
    return tmp_path / "source"


def run(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], env=environ, capture_output=True, text=True, timeout=150, check=False
    )


def ray_submit(environ: dict[str, str], mounts: dict[str, str], working_dir: Path, *command: str) -> Any:
    cache = {name: value for name, value in environ.items() if name.startswith("RAYCACHE_")}
    fields = json.dumps({"raycache": {"mounts": mounts}, "env_vars": cache})
    words = ("job", "submit", "--working-dir", str(working_dir), "--runtime-env-json", fields, "--", *command)
    shell = {**environ}
    del shell["RAY_ADDRESS"]  # which this command would take for the dashboard's
    return run(shell, "-m", "ray.scripts.scripts", *words)


def wait_gone(mountpoint: Path) -> None:
    deadline = time.monotonic() + 40
    while device.find_mount(str(mountpoint)) is not None or mountpoint.exists():
        assert time.monotonic() < deadline, f"{mountpoint} is still there"
        time.sleep(0.2)


@pytest.mark.timeout(400)
def test_a_job_has_its_mount_and_leaves_nothing(job_environ: dict[str, str], source: Path, tmp_path: Path) -> None:
    where = tmp_path / "data" / "train"
    done = ray_submit(job_environ, {str(where): str(source)}, tmp_path / "app", sys.executable, "task.py", str(where))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "driver: ['a']" in done.stdout
    assert "task: b'bytes of a' cache: 1" in done.stdout
    wait_gone(where)


def test_submit_hands_on_how_the_job_ended(job_environ: dict[str, str], source: Path, tmp_path: Path) -> None:
    where = tmp_path / "data"
    words = ("-m", "raycache.cli", "submit", "--mount", f"{source}:{where}", "--")
    done = run(job_environ, *words, "bash", "-c", f"cat {where}/a; exit 3")
    assert "bytes of a" in done.stdout, done.stderr
    assert (done.returncode, "ended as FAILED" in done.stderr) == (1, True)
    wait_gone(where)


def test_what_was_mounted_before_the_job_stays(
    job_environ: dict[str, str], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, other = tmp_path / "before", tmp_path / "new"
    where.mkdir()
    made = run(job_environ, "-m", "raycache.cli", "mount", str(source), str(where))
    assert made.returncode == 0, made.stderr
    for name, value in job_environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["agent", f"--gcs-address={job_environ['RAY_ADDRESS']}"])
    plugin, log = MountPlugin(), logging.getLogger("test")

    def env(**sources: str) -> dict[str, Any]:
        return {"raycache": {"mounts": {str(tmp_path / name): at for name, at in sources.items()}}}

    first, second = env(before=str(source), new=str(source)), {**env(new=str(source)), "env_vars": {"RAYCACHE_X": "1"}}
    try:
        for wanted in (first, second):
            for uri in plugin.get_uris(wanted):
                asyncio.run(plugin.create(uri, wanted, None, log))
        for uri in plugin.get_uris(first):
            plugin.delete_uri(uri, log)
        assert device.find_mount(str(where)) is not None, "it was there before"
        assert device.find_mount(str(other)) is not None, "another environment has it still"
        for uri in plugin.get_uris(second):
            plugin.delete_uri(uri, log)
        wait_gone(other)
        wrong = env(new=str(source / "nothing"))
        with pytest.raises(RuntimeError, match=r"nothing could not be mounted on .*new: raycache: "):
            asyncio.run(plugin.create(*plugin.get_uris(wrong), wrong, None, log))
    finally:
        ended = run(job_environ, "-m", "raycache.cli", "umount", "--lazy", str(where))
    assert ended.returncode == 0, ended.stderr


def test_bad_input(job_environ: dict[str, str], tmp_path: Path) -> None:
    wrong = run(job_environ, "-m", "raycache.cli", "submit", "--mount", "s3://bucket/train", "--", "true")
    assert (wrong.returncode, "write SOURCE:DIR" in wrong.stderr) == (2, True)
    away = {**job_environ, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{free_port()}"}
    alone = run(away, "-m", "raycache.cli", "submit", "--", "true")
    assert (alone.returncode, "needs Ray's dashboard" in alone.stderr) == (1, True), alone.stderr
