"""The life of a mount: made, used, crashed, replaced, ended; and files that change underneath it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.errors import MountError
from raycache.fuse import device
from raycache.fuse.records import read_record
from raycache.testing import ObjectStoreServer


@pytest.fixture
def files(bucket: str, s3_env: ObjectStoreServer) -> str:
    """A bucket with a few files; its URI."""
    client = s3_env.client()
    for number in range(20):
        client.put_object(Bucket=bucket, Key=f"{number:02d}", Body=b"%02d" % number * 50_000)
    return f"s3://{bucket}"


@pytest.fixture(params=["kernel", "pyfuse3"])
def make_mount(request: pytest.FixtureRequest) -> Any:
    """``raycache.mount`` through either session: both are held to the same."""
    return partial(raycache.mount, session=request.param)


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_a_mount_ends_with_its_block_and_leaves_nothing(
    files: str, cache: Any, mountpoint: Path, make_mount: Any
) -> None:
    with make_mount(files, mountpoint) as mount:
        assert len(os.listdir(mountpoint)) == 20
        assert mount.gateway_pid > 0
        (about,) = raycache.status()["mounts"]
        assert about["mountpoint"] == str(mountpoint)
        assert about["state"] == "served"
    assert device.find_mount(str(mountpoint)) is None
    wait_gone(mount.gateway_pid)
    assert raycache.status()["mounts"] == []
    assert os.listdir(mountpoint) == []


def test_a_mount_outlives_the_process_that_made_it(files: str, cache: Any, mountpoint: Path, cli: Any) -> None:
    assert cli("mount", files, str(mountpoint)).returncode == 0
    assert (mountpoint / "07").read_bytes() == b"07" * 50_000
    assert cli("umount", str(mountpoint)).returncode == 0
    assert os.listdir(mountpoint) == []


def test_what_a_crashed_gateway_left_is_replaced(files: str, cache: Any, mountpoint: Path) -> None:
    crashed = raycache.mount(files, mountpoint, session="pyfuse3")
    os.kill(crashed.gateway_pid, signal.SIGKILL)
    wait_gone(crashed.gateway_pid)
    with pytest.raises(OSError, match="not connected") as failure:
        os.listdir(mountpoint)
    assert failure.value.errno == errno.ENOTCONN
    assert raycache.status()["mounts"][0]["state"] == "stale"
    with raycache.mount(files, mountpoint, session="pyfuse3") as again:
        assert again.gateway_pid != crashed.gateway_pid
        assert (mountpoint / "03").read_bytes() == b"03" * 50_000


def test_a_busy_mount_says_so_and_a_lazy_one_lets_files_finish(
    files: str, cache: Any, mountpoint: Path, make_mount: Any
) -> None:
    mount = make_mount(files, mountpoint)
    with open(mountpoint / "05", "rb") as held:
        assert held.read(10) == b"0505050505"
        with pytest.raises(raycache.errors.MountError, match="in use") as failure:
            mount.unmount()
        assert failure.value.errno == errno.EBUSY
        mount.unmount(lazy=True)
        assert os.listdir(mountpoint) == []
        assert held.read() == b"05" * 49_995
    wait_gone(mount.gateway_pid)


def test_writing_is_refused(files: str, cache: Any, mountpoint: Path, make_mount: Any) -> None:
    with make_mount(files, mountpoint):
        for attempt in (
            lambda: (mountpoint / "new").write_bytes(b"x"),
            lambda: (mountpoint / "05").write_bytes(b"x"),
            (mountpoint / "05").unlink,
            lambda: (mountpoint / "05").rename(mountpoint / "06"),
            (mountpoint / "dir").mkdir,
            lambda: os.truncate(mountpoint / "05", 1),
        ):
            with pytest.raises(OSError, match="Read-only") as failure:
                attempt()
            assert failure.value.errno == errno.EROFS
        with pytest.raises(OSError, match="No such file"):
            (mountpoint / "missing").read_bytes()
        with pytest.raises(OSError, match="Not a directory"):
            os.listdir(mountpoint / "05")


def test_a_file_that_changed_since_it_was_listed_is_stale_not_mixed(
    files: str, s3_env: ObjectStoreServer, cache: Any, mountpoint: Path, make_mount: Any
) -> None:
    client, name = s3_env.client(), files.removeprefix("s3://")
    with make_mount(files, mountpoint):
        os.listdir(mountpoint)
        client.put_object(Bucket=name, Key="01", Body=b"ZZ" * 50_000)
        client.delete_object(Bucket=name, Key="02")
        client.put_object(Bucket=name, Key="03", Body=b"short")
        for changed in ("01", "02", "03"):
            with pytest.raises(OSError, match="Stale") as failure:
                (mountpoint / changed).read_bytes()
            assert failure.value.errno == errno.ESTALE
            with pytest.raises(raycache.errors.Changed, match=changed):
                raycache.read_many([f"{files}/{changed}"])
        for whole in range(4, 20):
            assert (mountpoint / f"{whole:02d}").read_bytes() == b"%02d" % whole * 50_000

    # After a refresh the new bytes are there, the deleted file is not, and the rest was not fetched again.
    requests = raycache.status()["totals"]["ufs_requests"]
    assert raycache.refresh(files) == 2
    assert raycache.listdir(files) == sorted({f"{n:02d}" for n in range(20)} - {"02"})
    assert bytes(raycache.read_many([f"{files}/01"])[0]) == b"ZZ" * 50_000
    assert bytes(raycache.read_many([f"{files}/03"])[0]) == b"short"
    assert bytes(raycache.read_many([f"{files}/10"])[0]) == b"10" * 50_000
    assert raycache.status()["totals"]["ufs_requests"] - requests == 2
    with make_mount(files, mountpoint):
        assert (mountpoint / "03").read_bytes() == b"short"


RANK = """
import os, sys, time, raycache
with raycache.mount(sys.argv[1], sys.argv[2]):
    print(len(os.listdir(sys.argv[2])), flush=True)
    sys.stdin.readline()
"""


def test_ranks_that_mount_at_the_same_moment_share_one_mount(files: str, cache: Any, mountpoint: Path) -> None:
    command = [sys.executable, "-c", RANK, files, str(mountpoint)]
    ranks = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        for rank in ranks:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "20\n"
        (about,) = raycache.status()["mounts"]
        assert about["state"] == "served"
        for rank in ranks:
            rank.communicate("\n", timeout=30)
        assert [rank.returncode for rank in ranks] == [0] * 4
        wait_gone(about["gateway_pid"])
        assert device.find_mount(str(mountpoint)) is None
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait(10)


def test_a_mount_that_another_rank_has_not_recorded_yet_is_waited_for(
    files: str, cache: Any, mountpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with raycache.mount(files, mountpoint) as made:
        answers = [None]  # the first look comes too early

        def late(*place: Any) -> Any:
            return answers.pop() if answers else read_record(*place)

        with monkeypatch.context() as patch:
            patch.setattr("raycache.fuse.mount.read_record", late)
            with raycache.mount(files, mountpoint) as found:
                assert found.gateway_pid == made.gateway_pid
        with monkeypatch.context() as patch:
            patch.setattr("raycache.fuse.mount.read_record", lambda *place: None)
            with pytest.raises(MountError, match="another user or state directory"):
                raycache.mount(files, mountpoint)


READ_FOR_EVER = """
import os, random, sys
root = sys.argv[1]
names = sorted(os.listdir(root))
print("reading", flush=True)
while True:
    name = random.choice(names)
    with open(os.path.join(root, name), "rb", buffering=0) as file:
        assert file.read() == name.encode() * 50_000, name
"""


def test_a_reader_killed_in_the_middle_harms_nobody(files: str, cache: Any, mountpoint: Path, make_mount: Any) -> None:
    with make_mount(files, mountpoint):
        for _ in range(5):
            reader = subprocess.Popen(
                [sys.executable, "-c", READ_FOR_EVER, str(mountpoint)], stdout=subprocess.PIPE, text=True
            )
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"
            time.sleep(0.1)
            reader.kill()
            assert reader.wait(10) == -signal.SIGKILL
            reader.stdout.close()
        for number in range(20):
            assert (mountpoint / f"{number:02d}").read_bytes() == b"%02d" % number * 50_000


def test_another_user_is_kept_out_unless_let_in(files: str, cache: Any, mountpoint: Path, make_mount: Any) -> None:
    code = "import os, sys; os.setgid(65534); os.setuid(65534); print(len(os.listdir(sys.argv[1])))"
    as_nobody = [sys.executable, "-S", "-c", code]
    for directory in (mountpoint, *mountpoint.parents):
        if directory != Path("/"):
            os.chmod(directory, os.stat(directory).st_mode | 0o005)
    with make_mount(files, mountpoint):
        done = subprocess.run([*as_nobody, str(mountpoint)], capture_output=True, text=True, timeout=20, check=False)
        assert "Permission denied" in done.stderr
    with make_mount(files, mountpoint, allow_other=True):
        done = subprocess.run([*as_nobody, str(mountpoint)], capture_output=True, text=True, timeout=20, check=False)
        assert done.stdout == "20\n", done.stderr
