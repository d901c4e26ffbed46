"""What a user gets wrong: one clear line, the right exit code, and nothing half-made."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.fuse import device
from raycache.testing import ObjectStoreServer


def one_line(done: Any, code: int, *parts: str) -> None:
    """Standard error is one line that holds all of ``parts``, standard output is empty."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def nothing_made(cache: Any, mountpoint: Path) -> None:
    assert cache.master.datasets() == []
    assert device.find_mount(str(mountpoint)) is None
    assert raycache.status()["mounts"] == []


def test_no_such_bucket(s3_env: ObjectStoreServer, cache: Any, mountpoint: Path, cli: Any) -> None:
    one_line(cli("mount", "s3://no-such-bucket", str(mountpoint)), 1, "s3://no-such-bucket", "no such bucket")
    nothing_made(cache, mountpoint)


def test_nothing_under_the_prefix(bucket: str, cache: Any, mountpoint: Path, cli: Any) -> None:
    one_line(cli("mount", f"s3://{bucket}/trian", str(mountpoint)), 1, f"s3://{bucket}/trian", "spelling")
    nothing_made(cache, mountpoint)


def test_a_file_is_no_directory(bucket: str, s3_env: ObjectStoreServer, cache: Any, mountpoint: Path, cli: Any) -> None:
    s3_env.client().put_object(Bucket=bucket, Key="a/file", Body=b"x")
    one_line(cli("mount", f"s3://{bucket}/a/file", str(mountpoint)), 1, "is a file")
    nothing_made(cache, mountpoint)


@pytest.mark.parametrize(
    "environ",
    [{"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "nobody"}],
    ids=["wrong secret", "unknown key"],
)
def test_wrong_credentials(bucket: str, cache: Any, mountpoint: Path, cli: Any, environ: dict[str, str]) -> None:
    done = cli("mount", f"s3://{bucket}", str(mountpoint), **environ)
    one_line(done, 1, f"s3://{bucket}", "access denied", "credentials")
    assert "wrong" not in done.stderr, "a secret does not belong in a message"
    nothing_made(cache, mountpoint)


def test_a_typo_in_the_scheme(cache: Any, mountpoint: Path, cli: Any) -> None:
    one_line(cli("mount", "s4://bucket/train", str(mountpoint)), 2, "'s4'", "did you mean s3://")
    one_line(cli("mount", "s3:/bucket/train", str(mountpoint)), 2, "two slashes")
    nothing_made(cache, mountpoint)


def test_a_path_that_leaves_the_dataset(bucket: str, s3_env: ObjectStoreServer, cache: Any, cli: Any) -> None:
    s3_env.client().put_object(Bucket=bucket, Key="train/a", Body=b"x")
    raycache.dataset("train", f"s3://{bucket}/train")
    one_line(cli("cat", "raycache://train/../secret"), 2, "..")
    one_line(cli("cat", f"s3://{bucket}/train/../secret"), 2, "..")
    one_line(cli("cat", "raycache://train/b"), 1, "no such file")
    one_line(cli("cat", "raycache://train"), 1, "is a directory")
    one_line(cli("ls", "raycache://nobody"), 1, "no dataset is named 'nobody'", "train")


def test_mount_points(bucket: str, s3_env: ObjectStoreServer, cache: Any, mountpoint: Path, cli: Any) -> None:
    s3_env.client().put_object(Bucket=bucket, Key="a", Body=b"x")
    source = f"s3://{bucket}"
    missing = mountpoint / "missing"
    one_line(cli("mount", source, str(missing)), 1, str(missing), "does not exist", "mkdir")
    (mountpoint / "file").write_text("x")
    one_line(cli("mount", source, str(mountpoint / "file")), 1, "not a directory")
    one_line(cli("mount", source, str(mountpoint)), 1, "not empty")
    (mountpoint / "file").unlink()
    one_line(cli("mount", source, "/proc"), 1, "/proc", "mount point")
    one_line(cli("mount", source, str(mountpoint), "--at", "99"), 2, "snapshot 99", "newest change")
    one_line(cli("mount", source, str(mountpoint), "--refresh", "0.2"), 2, "seconds")
    one_line(cli("umount", str(mountpoint)), 1, "not a raycache mount")
    nothing_made(cache, mountpoint)

    assert cli("mount", source, str(mountpoint)).returncode == 0
    one_line(cli("mount", source, str(mountpoint)), 1, "already", "umount")
    with raycache.mount(source, mountpoint):  # a program that starts again finds its mount, uses it and leaves it
        assert os.listdir(mountpoint) == ["a"]
    assert os.listdir(mountpoint) == ["a"]
    assert cli("umount", str(mountpoint)).returncode == 0
    assert device.find_mount(str(mountpoint)) is None


def test_no_fuse_device(bucket: str, s3_env: ObjectStoreServer, cache: Any, mountpoint: Path, cli: Any) -> None:
    s3_env.client().put_object(Bucket=bucket, Key="a", Body=b"x")
    # A mount namespace of its own, in which /dev/fuse is hidden.
    hide = 'mount --bind /dev/null /dev/fuse && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", hide, "sh", sys.executable, "-m", "raycache.cli", "mount", f"s3://{bucket}",
         str(mountpoint)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    one_line(done, 1, "/dev/fuse", "modprobe fuse")
    nothing_made(cache, mountpoint)


def test_no_ray(mountpoint: Path, cli: Any, tmp_path: Path) -> None:
    started = time.monotonic()
    done = cli(
        "mount", "s3://bucket", str(mountpoint), RAYCACHE_ADDRESS="127.0.0.1:1", RAYCACHE_STATE_DIR=str(tmp_path)
    )
    one_line(done, 1, "no Ray cluster answers at", ":1")
    assert time.monotonic() - started < 10


def test_wrong_token(tmp_path: Path, mountpoint: Path, cli: Any) -> None:
    """A cluster of its own, which asks for a token: the wrong one, and none, are an error within seconds."""
    home = tmp_path / "home"
    home.mkdir()
    own = {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAYCACHE_STATE_DIR": str(tmp_path / "state")}
    for name in ("RAY_ADDRESS", "RAYCACHE_ADDRESS"):
        os.environ.pop(name, None)
    started = cli("start", "--new-ray", **own, timeout_s=120)
    assert started.returncode == 0, started.stderr
    try:
        address = started.stdout.split(" on ")[-1].split()[0]
        wrong = {**own, "RAY_AUTH_TOKEN": "f" * 64}
        begun = time.monotonic()
        one_line(cli("status", "--address", address, **wrong), 1, "token")
        elsewhere = {**own, "HOME": str(tmp_path)}
        one_line(cli("status", "--address", address, **elsewhere), 1, "token")
        unset = {**elsewhere, "RAY_AUTH_MODE": ""}
        one_line(cli("status", "--address", address, **unset), 1, "token")
        assert time.monotonic() - begun < 15
        assert cli("status", "--address", address, **own).returncode == 0
    finally:
        assert "ended the Ray cluster" in cli("stop", **own).stdout


def test_wrong_settings_and_options(bucket: str, cache: Any, mountpoint: Path, cli: Any) -> None:
    one_line(cli("start", "--mem", "lots"), 2, "'lots'", "is not a size")
    one_line(cli("start", "--mem", "1MB"), 2, "this cache runs with mem=40%")
    one_line(cli("mount", f"s3://{bucket}", str(mountpoint), "-o", "endpoint"), 2, "KEY=VALUE")
    one_line(cli("mount", f"s3://{bucket}", str(mountpoint), "-o", "colour=red"), 2, "no option colour")
    done = cli("mount", f"s3://{bucket}", str(mountpoint), "-o", "secret=hidden")
    one_line(done, 2, "-o secret", "AWS_SECRET_ACCESS_KEY")
    assert "hidden" not in done.stderr
    done = cli("mount", "ftp://user:hidden@host/dir", str(mountpoint))
    one_line(done, 2, "password", "storage option")
    assert "hidden" not in done.stderr
    nothing_made(cache, mountpoint)


def test_a_refused_mount_leaves_good_credentials_alone(
    bucket: str, s3_env: ObjectStoreServer, cache: Any, mountpoint: Path, cli: Any
) -> None:
    s3_env.client().put_object(Bucket=bucket, Key="a", Body=b"kept")
    raycache.dataset("train", f"s3://{bucket}")
    done = cli("mount", f"s3://{bucket}", str(mountpoint), AWS_SECRET_ACCESS_KEY="wrong")
    one_line(done, 1, "access denied")
    assert bytes(raycache.read_many([f"s3://{bucket}/a"])[0]) == b"kept"


def test_api_errors_say_what_to_do(bucket: str, s3_env: ObjectStoreServer, cache: Any) -> None:
    s3_env.client().put_object(Bucket=bucket, Key="a", Body=b"x")
    with pytest.raises(raycache.errors.NotFound, match="no dataset has this source"):
        raycache.open("s3://elsewhere/x")
    raycache.dataset("train", f"s3://{bucket}")
    with pytest.raises(raycache.errors.Exists):
        raycache.open(f"s3://{bucket}/a", "xb").close()
    with pytest.raises(raycache.errors.InvalidInput, match="no mode"):
        raycache.open(f"s3://{bucket}/a", "q")
    with pytest.raises(raycache.errors.InvalidInput, match="already"):
        raycache.dataset("train", "s3://other")
    with pytest.raises(raycache.errors.InvalidInput, match="cannot name a dataset"):
        raycache.dataset("no/slash", f"s3://{bucket}")
