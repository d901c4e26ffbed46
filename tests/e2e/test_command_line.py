"""The commands, as a user types them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.testing import ObjectStoreServer
from raycache.testing.proxy import CountingProxy


@pytest.fixture
def source(bucket: str, s3_env: ObjectStoreServer) -> str:
    client = s3_env.client()
    for key, body in {"a/one.txt": b"one", "a/two\n.txt": b"two!", "b": b"root"}.items():
        client.put_object(Bucket=bucket, Key=key, Body=body)
    return f"s3://{bucket}"


def test_look_and_read(source: str, cache: Any, mountpoint: Path, cli: Any) -> None:
    assert "no datasets yet" in cli("ls").stdout
    options = ("--name", "data", "--snapshot", "--refresh", "3600", "--json")
    made = json.loads(cli("mount", source, str(mountpoint), *options).stdout)
    assert (made["source"], made["snapshot"]) == (source, 0)
    assert cli("ls", "raycache://data").stdout == "a/\nb\n"
    assert cli("ls", f"{source}/a").stdout == "one.txt\ntwo\\n.txt\n", "a newline in a name stays within its line"
    assert [entry["size_bytes"] for entry in json.loads(cli("ls", "raycache://data/a", "--json").stdout)] == [3, 4]
    assert "4" in cli("ls", "-l", f"{source}/a").stdout
    assert cli("cat", f"{source}/a/one.txt", "raycache://data/a/two\n.txt").stdout == "onetwo!"
    about = json.loads(cli("stat", f"{source}/b", "--json").stdout)
    assert (about["is_dir"], about["size_bytes"]) == (False, 4)
    assert "version" in cli("stat", f"{source}/b").stdout
    (dataset,) = json.loads(cli("ls", "--json").stdout)
    assert (dataset["name"], dataset["refresh_every_s"]) == ("data", 3600)
    assert json.loads(cli("refresh", source, "--json").stdout) == {"uri": source, "version": 1}
    tree = json.loads(cli("refresh", "--recursive", source, "--json").stdout)
    assert tree.pop("seconds") >= 0
    assert tree == {"uri": source, "files": 3, "directories": 2, "changed": 0}
    assert "3 files in 2 directories, 0 of them changed" in cli("refresh", "-r", "raycache://data").stdout
    assert "is a file" in cli("refresh", "-r", f"{source}/b").stderr

    status = json.loads(cli("status", "--json").stdout)
    (mount,) = status["mounts"]
    assert (mount["mountpoint"], mount["snapshot"]) == (str(mountpoint), 0)
    assert [job["state"] for job in status["datasets"][0]["listings"]] == ["done", "done"]
    assert {"session", "gateway_pid", "holder_pid", "restarts", "degraded"} <= set(mount)
    assert status["workers"][0]["mem_quota_bytes"] > 0
    assert {"reads", "hits", "misses", "ufs_requests", "ufs_bytes", "read_through"} <= set(status["totals"])
    shown = cli("status", COLUMNS="200").stdout
    assert source in shown
    assert "3600 s" in shown
    assert str(mountpoint) in shown
    assert cli("umount", str(mountpoint)).returncode == 0


def test_copy_move_and_remove(cache: Any, cli: Any, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    raycache.dataset("data", str(tmp_path / "source"))
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "one").write_bytes(b"one")
    root = "raycache://data"
    made = cli("cp", "-r", "--write-type", "through", "--json", str(tmp_path / "local"), f"{root}/tree")
    assert json.loads(made.stdout) == {"to": f"{root}/tree", "files": 1, "size_bytes": 3, "left_out": 0}
    assert (tmp_path / "source" / "tree" / "one").read_bytes() == b"one"
    assert cli("mv", f"{root}/tree", f"{root}/moved").returncode == 0
    assert cli("mkdir", "-p", f"{root}/deep/er").returncode == 0
    assert cli("cp", f"{root}/moved/one", "-").stdout == "one"
    refused = cli("rm", f"{root}/moved")
    assert (refused.returncode, "rm -r" in refused.stderr) == (1, True)
    assert json.loads(cli("rm", "-r", f"{root}/moved", f"{root}/deep", "--json").stdout) == {"removed": 4}
    assert raycache.listdir(root) == []


def test_an_interrupt_cancels_a_recursive_refresh(
    source: str, cache: Any, s3_env: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CountingProxy(s3_env.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        raycache.dataset("data", source)
        command = [sys.executable, "-m", "raycache.cli", "refresh", "-r", "raycache://data"]
        with proxy.hold("list-type=2") as gate:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                assert gate.wait_arrived(timeout_s=30)
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=30)
            assert process.returncode != 0
            assert "Traceback" not in said
            job = cache.master.listing(raycache.status()["datasets"][0]["listings"][0]["job_id"], 5)
            assert (job.state, job.changed) == ("cancelled", 0)
        assert raycache.refresh("raycache://data", recursive=True).state == "done"


def test_a_reader_that_goes_away_is_no_error_message(source: str, cache: Any, cli: Any) -> None:
    raycache.dataset("data", source)
    command = f"{sys.executable} -m raycache.cli ls raycache://data | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "a/\n"
    assert "Traceback" not in done.stderr


def test_help_and_wrong_words(cli: Any) -> None:
    assert "mount" in cli("--help").stdout
    for words in (("mount",), ("nonsense",), ("ls", "--colour")):
        done = cli(*words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_stop_ends_mounts_actors_and_the_ray_that_start_started(
    source: str, tmp_path: Path, mountpoint: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYCACHE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS", "RAYCACHE_ADDRESS", "RAYCACHE_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    started = json.loads(cli("start", "--new-ray", "--json", timeout_s=120).stdout)
    assert started["started_ray"]
    assert started["workers"] == 1
    assert cli("mount", source, str(mountpoint)).returncode == 0
    assert (mountpoint / "b").read_bytes() == b"root"
    stopped = cli("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert f"unmounted {mountpoint}" in stopped.stdout
    assert "ended the cache" in stopped.stdout
    assert f"ended the Ray cluster at {started['address']}" in stopped.stdout
    assert not (mountpoint / "b").exists()
