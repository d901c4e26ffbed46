"""A mount outlives whoever serves it: gateways killed and stopped, the cluster gone and back, the holder killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.fuse import device
from raycache.fuse.children import Gateway
from raycache.fuse.holder import Holder
from raycache.fuse.mount import list_mounts
from raycache.fuse.records import is_runnable
from raycache.fuse.task import Lines, Task
from raycache.testing import ObjectStoreServer

FILES, FILE_BYTES, READERS = 120, 150_000, 4
KILLS = int(os.environ.get("RAYCACHE_TEST_KILLS", "50"))
LONGEST_S = 1.0


@pytest.fixture
def files(bucket: str, s3_env: ObjectStoreServer, tmp_path: Path) -> tuple[str, Path]:
    """URI of a bucket with files that differ, and a JSON file with their sha256."""
    client, sums = s3_env.client(), {}
    for number in range(FILES):
        body = random.Random(number).randbytes(FILE_BYTES)
        client.put_object(Bucket=bucket, Key=f"{number:03d}", Body=body)
        sums[f"{number:03d}"] = hashlib.sha256(body).hexdigest()
    (tmp_path / "sums.json").write_text(json.dumps(sums))
    return f"s3://{bucket}", tmp_path / "sums.json"


@contextlib.contextmanager
def verified_readers(root: Path, sums: Path) -> Iterator[list[dict[str, Any]]]:
    """Readers that run while the block does; their reports are in the list afterwards."""
    script = Path(__file__).with_name("verified_reader.py")
    readers = [
        subprocess.Popen(
            [sys.executable, str(script), str(root), str(sums), str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for seed in range(READERS)
    ]  # fmt: skip
    reports: list[dict[str, Any]] = []
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
        yield reports
        reports += [json.loads(reader.communicate("\n", timeout=60)[0]) for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait(10)


def drop_page_cache() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("1")


def mount_status() -> dict[str, Any]:
    (about,) = list_mounts()
    return dict(about)


def wait_until(condition: Any, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def is_read_without_it() -> bool:
    """Whether the source is read, not the pages that the kernel has: those go first, each time."""
    drop_page_cache()
    about = mount_status()
    return bool(about["degraded"] and about["counters"]["degraded_reads"] > 0)


def no_failed_read(reports: list[dict[str, Any]]) -> None:
    assert len(reports) == READERS
    assert [report["failures"] for report in reports] == [[]] * READERS
    assert all(report["reads"] > 0 for report in reports)


def somebody_stands_by() -> bool:
    """Whether the nursery has forked a gateway: a grandchild of the holder."""
    holder = mount_status()["holder_pid"]
    return any(children_of(child) for child in children_of(holder))


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_gateways_killed_at_random_moments_cost_no_failed_read(
    files: tuple[str, Path], cache: Any, mountpoint: Path
) -> None:
    rng = random.Random(11)
    with raycache.mount(files[0], mountpoint, session="kernel"):
        with verified_readers(mountpoint, files[1]) as reports:
            wait_until(somebody_stands_by)
            for _ in range(KILLS):
                time.sleep(rng.uniform(0.05, 1.0))
                drop_page_cache()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(mount_status()["gateway_pid"], signal.SIGKILL)
            time.sleep(1)
        no_failed_read(reports)
        longest = max(report["longest_s"] for report in reports)
        assert longest < LONGEST_S, f"a read took {longest:.2f} s"
        assert mount_status()["restarts"] >= KILLS * 0.8
        wait_until(lambda: not mount_status()["degraded"])


def test_a_stopped_gateway_is_replaced(files: tuple[str, Path], cache: Any, mountpoint: Path) -> None:
    with raycache.mount(files[0], mountpoint, session="kernel"):
        with verified_readers(mountpoint, files[1]) as reports:
            time.sleep(1)
            stopped = mount_status()["gateway_pid"]
            os.kill(stopped, signal.SIGSTOP)
            drop_page_cache()
            wait_until(lambda: mount_status()["gateway_pid"] != stopped)
            time.sleep(0.5)
        no_failed_read(reports)
        wait_until(lambda: not Path(f"/proc/{stopped}").exists())


@pytest.mark.parametrize(
    ("does", "silent_s", "is_replaced"),
    [("while True: pass", 3, False), ("while True: pass", 11, True), ("input()", 3, True), ("input()", 1, False)],
)
def test_a_gateway_that_wants_to_run_and_may_not_has_longer(
    tmp_path: Path, does: str, silent_s: float, is_replaced: bool
) -> None:
    process = subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{does}"], stdin=-1, stdout=-1)
    assert process.stdout is not None
    process.stdout.readline()
    ours, theirs = socket.socketpair()
    holder = Holder(Task({"state_dir": str(tmp_path)}, "", "", "", (0, 0), False, "kernel", {}), None)
    gateway = Gateway(process.pid, Lines(ours), direct=False, process=process)
    try:
        gateway.serving = True
        holder._gateways.append(gateway)
        wait_until(lambda: is_runnable(process.pid) == does.startswith("while"))
        gateway.heard = time.monotonic() - silent_s
        holder._check_time()
        if is_replaced:
            assert process.wait(10) == -signal.SIGKILL
        else:
            assert process.poll() is None
    finally:
        process.kill()
        process.wait(10)
        theirs.close()


def test_an_upgrade_swaps_the_gateway_under_its_readers(
    files: tuple[str, Path], cache: Any, mountpoint: Path, cli: Any
) -> None:
    with raycache.mount(files[0], mountpoint, session="kernel") as mount:
        with verified_readers(mountpoint, files[1]) as reports:
            done = cli("mount", "--upgrade", str(mountpoint), "--json")
            assert done.returncode == 0, done.stderr
            drop_page_cache()
            time.sleep(0.5)
        no_failed_read(reports)
        about = mount_status()
        assert about["gateway_pid"] == json.loads(done.stdout)["gateway_pid"] != mount.gateway_pid
        assert about["restarts"] == 0


def test_a_mount_whose_holder_was_killed_goes_on_and_can_be_replaced(
    files: tuple[str, Path], cache: Any, mountpoint: Path
) -> None:
    first = raycache.mount(files[0], mountpoint, session="kernel")
    about = mount_status()
    os.kill(about["holder_pid"], signal.SIGKILL)
    drop_page_cache()
    assert len((mountpoint / "007").read_bytes()) == FILE_BYTES, "its gateway still serves"
    os.kill(about["gateway_pid"], signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{about['gateway_pid']}").exists())
    wait_until(lambda: mount_status()["state"] == "stale")
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        os.listdir(mountpoint)
    with raycache.mount(files[0], mountpoint, session="kernel") as again:
        assert again.gateway_pid != first.gateway_pid
        assert len((mountpoint / "007").read_bytes()) == FILE_BYTES
    assert device.find_mount(str(mountpoint)) is None


def test_a_full_disk_under_the_state_directory_costs_no_read(
    files: tuple[str, Path], cache: Any, mountpoint: Path, tmp_path: Path, cli: Any
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=True)
    try:
        assert cli("mount", files[0], str(mountpoint), RAYCACHE_STATE_DIR=str(small)).returncode == 0
        with contextlib.suppress(OSError), open(small / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        (about,) = json.loads(cli("status", "--json", RAYCACHE_STATE_DIR=str(small)).stdout)["mounts"]
        with verified_readers(mountpoint, files[1]) as reports:
            os.kill(about["gateway_pid"], signal.SIGKILL)
            drop_page_cache()
            time.sleep(1)
        no_failed_read(reports)
        (small / "filler").unlink()
        assert cli("umount", "--lazy", str(mountpoint), RAYCACHE_STATE_DIR=str(small)).returncode == 0
        wait_until(lambda: not Path(f"/proc/{about['holder_pid']}").exists())
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def ray_head(port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``ray start --head`` as a child; ending it ends all of it."""
    command = ["start", "--head", "--block", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats"]
    with open(log, "ab") as output:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *command, "--num-cpus=2", "--object-store-memory=500000000"],
            stdout=output, stderr=output, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: b"Ray runtime started" in log.read_bytes().rpartition(b"== start")[2], 60)
        yield head
    finally:
        head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            head.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait(10)


@pytest.mark.timeout(300)
def test_the_cluster_ends_under_an_epoch_and_comes_back(
    files: tuple[str, Path], mountpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    port, log = free_port(), tmp_path / "ray.log"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAYCACHE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("RAYCACHE_ADDRESS", f"127.0.0.1:{port}")
    with contextlib.ExitStack() as mounted:
        with ray_head(port, log):
            assert cli("mount", files[0], str(mountpoint)).returncode == 0
            mounted.callback(cli, "umount", "--lazy", str(mountpoint))
            assert sorted(os.listdir(mountpoint)) == [f"{number:03d}" for number in range(FILES)]
            wait_until(lambda: not mount_status()["degraded"])
            time.sleep(2)  # until those that stand by are ready, as in any mount older than that
            readers = mounted.enter_context(contextlib.ExitStack())
            reports = readers.enter_context(verified_readers(mountpoint, files[1]))
            time.sleep(1)
        # Ray is gone, with all that it kept.
        wait_until(is_read_without_it)
        time.sleep(2)
        log.write_bytes(log.read_bytes() + b"== start")
        with ray_head(port, log):
            wait_until(lambda: not mount_status()["degraded"], 90)
            drop_page_cache()
            time.sleep(2)
            readers.close()
            no_failed_read(reports)
            status = json.loads(cli("status", "--json").stdout)
            assert status["totals"]["ufs_requests"] > 0, "the new cluster's workers serve it"
            assert cli("umount", "--lazy", str(mountpoint)).returncode == 0
            assert cli("stop").returncode == 0
