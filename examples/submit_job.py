"""Submit a Ray job that finds its data at a path: FUSE without planning for it.

    pip install 'raycache[demo,dev]'
    python examples/submit_job.py

Everything runs on this machine: an S3 server, a Ray head node with its dashboard, and the job. On a cluster of yours
the nodes are started with RAY_RUNTIME_ENV_PLUGINS as ``head`` has it, and what remains is ``submit``; from a shell it
is ``raycache submit --mount s3://bucket/train:/data -- python train.py``.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tones_in_s3 import tones_bucket

import raycache

TRAIN = """
import os, sys
where = sys.argv[1]
tones = {name: len(os.listdir(os.path.join(where, name))) for name in sorted(os.listdir(where))}
size = sum(os.path.getsize(os.path.join(root, name)) for root, _, names in os.walk(where) for name in names)
print("the job sees", tones, "with", size, "bytes at", where)
"""
"""What the job runs. It knows a path, and nothing of Ray or raycache."""


def submit(uri: str, mountpoint: Path, working_dir: Path, dashboard: str) -> tuple[str, str]:
    """Run the job to its end; its state, and what it printed."""
    from ray.job_submission import JobSubmissionClient

    # The source becomes a dataset, with the credentials of this shell: no node needs any.
    raycache.dataset("tones", uri)
    client = JobSubmissionClient(dashboard)
    job = client.submit_job(
        entrypoint=f"{sys.executable} train.py {mountpoint}",
        runtime_env={
            "working_dir": str(working_dir),
            "raycache": {"mounts": {str(mountpoint): uri}},
            "env_vars": {name: value for name, value in os.environ.items() if name.startswith("RAYCACHE_")},
        },
    )
    deadline = time.monotonic() + 120
    while not (state := client.get_job_status(job)).is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(job)
            raise TimeoutError(f"the job did not end:\n{client.get_job_logs(job)}")
        time.sleep(0.5)
    return str(state.value), client.get_job_logs(job)


@contextmanager
def head(scratch: Path) -> Iterator[str]:
    """A Ray head node of its own, whose runtime-env agent knows raycache's mounts; yields its dashboard's address."""
    port, dashboard, agent = _free_port(), _free_port(), _free_port()
    os.environ["RAYCACHE_ADDRESS"] = f"127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
        "--include-dashboard=true", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        "--object-store-memory=300000000", "--disable-usage-stats",
    ]  # fmt: skip
    plugins = '[{"class": "raycache.actors.runtime_env.MountPlugin"}]'
    with open(scratch / "ray.log", "wb") as log:
        ray = subprocess.Popen(
            command, env={**os.environ, "RAY_RUNTIME_ENV_PLUGINS": plugins}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (scratch / "ray.log").read_text(errors="replace"):
            if ray.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Ray did not start: {(scratch / 'ray.log').read_text(errors='replace')}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        ray.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            ray.wait(5)
        with suppress(ProcessLookupError):
            os.killpg(ray.pid, signal.SIGKILL)
        ray.wait(20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=100)
    options = parser.parse_args()
    with tones_bucket(options.recordings) as (uri, scratch), head(scratch) as dashboard:
        (scratch / "app").mkdir()
        (scratch / "app" / "train.py").write_text(TRAIN)
        mountpoint = scratch / "data"
        state, said = submit(uri, mountpoint, scratch / "app", dashboard)
        print(f"{state}: {said.strip().splitlines()[-1]}")
        deadline = time.monotonic() + 60
        while mountpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        print("left behind:", [name for name in ("data",) if (scratch / name).exists()])
        raycache.shutdown()


if __name__ == "__main__":
    main()
