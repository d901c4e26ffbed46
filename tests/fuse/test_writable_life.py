"""Mounts that are written, on a real cluster: what is acknowledged is there, whoever dies; others see it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.config import load_settings
from raycache.errors import InvalidInput, MountError
from raycache.fuse import device
from raycache.fuse.mount import list_mounts
from raycache.fuse.records import log_path

WRITER = Path(__file__).with_name("verified_writer.py")
WRITERS = 2


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A directory with a file in it, as a source."""
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "listed").write_bytes(b"listed " * 10_000)
    return f"file://{tmp_path}/source"


def keep_in_cache(cache: Any) -> None:
    """Have nothing persisted: that is not what these tests are about."""
    (dataset,) = cache.master.datasets()
    cache.master.tree.set_write_type(dataset.name, "cache")


@pytest.fixture
def mounted(source: str, cache: Any, mountpoint: Path) -> Iterator[Path]:
    with raycache.mount(source, mountpoint, mode="w"):
        keep_in_cache(cache)
        yield mountpoint


def status_of(mountpoint: Path) -> dict[str, Any]:
    return next(about for about in list_mounts() if about["mountpoint"] == str(mountpoint))


def wait_until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


@contextmanager
def verified_writers(directory: Path, seconds: float) -> Iterator[None]:
    """Writers that run while the block does, and must not meet an error nor a wrong byte."""
    writers = [
        subprocess.Popen([sys.executable, str(WRITER), str(seed), str(seconds)], cwd=directory, stdout=subprocess.PIPE)
        for seed in range(WRITERS)
    ]
    try:
        yield
        for writer in writers:
            said, _ = writer.communicate(timeout=120)
            assert writer.returncode == 0
            assert json.loads(said)["files"] > 0
    finally:
        for writer in writers:
            writer.kill()
            writer.wait(10)


def test_a_mount_is_written_through_and_leaves_nothing_when_it_ends(
    source: str, cache: Any, mountpoint: Path, tmp_path: Path
) -> None:
    with raycache.mount(source, mountpoint, mode="w") as mount:
        keep_in_cache(cache)
        assert mount.mode == "w"
        (mountpoint / "new").write_bytes(b"new")
        with open(mountpoint / "sub" / "listed", "ab") as file:
            file.write(b"more")
        os.rename(mountpoint / "sub", mountpoint / "moved")
        assert (mountpoint / "moved" / "listed").read_bytes() == b"listed " * 10_000 + b"more"
        assert status_of(mountpoint)["mode"] == "w"
    assert device.find_mount(str(mountpoint)) is None
    wait_until(lambda: list_mounts() == [])
    with raycache.mount(source, mountpoint, mode="w"):
        assert sorted(os.listdir(mountpoint)) == ["moved", "new"]
        assert (mountpoint / "new").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path / "source")) == ["sub"]


def test_what_is_open_is_read_on_after_it_was_moved_in_the_source(
    source: str, cache: Any, mountpoint: Path, tmp_path: Path
) -> None:
    """The source has no inodes: there, what is moved is another file."""
    for name in ("clean", "changed", "by-api"):
        (tmp_path / "source" / name).write_bytes(name.encode() * 1000)
    with raycache.mount(source, mountpoint, mode="w") as mount:
        held = [os.open(mountpoint / name, os.O_RDWR) for name in ("clean", "changed")]
        by_api = raycache.open(f"{source}/by-api", "r+b")
        os.write(held[1], b"CHANGED")  # and not closed
        for name in ("clean", "changed", "by-api"):
            os.rename(mountpoint / name, mountpoint / f"{name}.moved")
        cache.persisting.persist(source, 60)
        assert sorted(os.listdir(tmp_path / "source")) == ["by-api.moved", "changed.moved", "clean.moved", "sub"]
        assert os.pread(held[0], 10_000, 0) == b"clean" * 1000
        assert os.pread(held[1], 10_000, 0) == b"CHANGED" + b"changed" * 999
        assert by_api.read() == b"by-api" * 1000
        by_api.discard()
        for fd in held:
            os.close(fd)
        assert (mountpoint / "clean.moved").read_bytes() == b"clean" * 1000
        assert mount.mode == "w"


def test_what_cannot_be_chosen_together_is_refused(source: str, cache: Any, mountpoint: Path) -> None:
    for choice in ({"mode": "x"}, {"mode": "w", "session": "pyfuse3"}, {"mode": "w", "snapshot": True}):
        with pytest.raises(InvalidInput):
            raycache.mount(source, mountpoint, **choice)
    with raycache.mount(source, mountpoint), pytest.raises(MountError) as error:
        raycache.mount(source, mountpoint, mode="w")
    assert error.value.errno == errno.EBUSY
    with raycache.mount(source, mountpoint, mode="w") as first, raycache.mount(source, mountpoint, mode="w") as again:
        assert again.gateway_pid == first.gateway_pid


def test_the_command_line_mounts_to_write(source: str, cache: Any, mountpoint: Path, cli: Any) -> None:
    done = cli("mount", source, str(mountpoint), "--mode", "w", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["mode"] == "w"
    keep_in_cache(cache)
    (mountpoint / "new").write_bytes(b"x")
    assert cli("umount", str(mountpoint)).returncode == 0
    assert device.find_mount(str(mountpoint)) is None


def test_two_mounts_see_what_each_has_closed(source: str, cache: Any, mounted: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with raycache.mount(source, other, mode="w"):
        for number in range(3):
            (mounted / "shared").write_bytes(b"%d" % number * 100_000)
            (other / "theirs").write_bytes(b"%d" % number * 10)
            wait_until(lambda: (other / "shared").read_bytes() == b"%d" % number * 100_000, 10)  # noqa: B023
            wait_until(lambda: (mounted / "theirs").read_bytes() == b"%d" % number * 10, 10)  # noqa: B023
        with open(other / "shared", "rb") as held:
            before = held.read(10)
            (mounted / "shared").write_bytes(b"short")
            wait_until(lambda: os.fstat(held.fileno()).st_size == 5, 10)
            wait_until(lambda: os.pread(held.fileno(), 100, 0) == b"short", 10)
        assert before == b"2" * 10
        os.unlink(mounted / "shared")
        wait_until(lambda: not (other / "shared").exists(), 10)
        with pytest.raises(FileExistsError):
            os.mkdir(other / "theirs")


def test_writers_notice_nothing_of_gateways_that_are_killed(mounted: Path) -> None:
    with verified_writers(mounted, 12):
        for _ in range(3):
            time.sleep(1.5)
            pid = status_of(mounted)["gateway_pid"]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: status_of(mounted)["gateway_pid"] != pid)  # noqa: B023
    assert status_of(mounted)["restarts"] == 3
    assert not status_of(mounted)["degraded"]


def test_an_upgrade_swaps_the_gateway_under_its_writers(mounted: Path, cli: Any) -> None:
    before = status_of(mounted)["gateway_pid"]
    with verified_writers(mounted, 8):
        time.sleep(1)
        done = cli("mount", "--upgrade", str(mounted), "--json")
        assert done.returncode == 0, done.stderr
    about = status_of(mounted)
    assert about["gateway_pid"] == json.loads(done.stdout)["gateway_pid"] != before
    assert about["restarts"] == 0


def test_writers_wait_while_the_master_is_away(cache: Any, mounted: Path) -> None:
    with verified_writers(mounted, 8):
        time.sleep(1)
        os.kill(cache.master.status()["pid"], signal.SIGKILL)


def test_a_worker_that_hangs_holds_up_neither_names_nor_writes(cache: Any, mounted: Path) -> None:
    (mounted / "before").write_bytes(b"the worker is known")
    (worker,) = raycache.status()["workers"]
    os.kill(worker["pid"], signal.SIGSTOP)
    try:
        took: list[float] = []
        for number in range(16):  # longer than it is believed without being asked again
            began = time.monotonic()
            (mounted / f"file-{number}").write_bytes(b"written")
            assert (mounted / f"file-{number}").read_bytes() == b"written"
            assert len(os.listdir(mounted)) == number + 3
            took.append(time.monotonic() - began)
            time.sleep(0.25)
    finally:
        os.kill(worker["pid"], signal.SIGCONT)
    assert max(took) < 5, took


def test_what_was_closed_or_synced_is_there_after_everything_of_the_mount_was_killed(
    source: str, cache: Any, mountpoint: Path
) -> None:
    mount = raycache.mount(source, mountpoint, mode="w")
    keep_in_cache(cache)
    (mountpoint / "closed").write_bytes(b"closed" * 1000)
    held = os.open(mountpoint / "synced", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(held, b"synced" * 300_000)
        os.fsync(held)
        os.write(held, b"and not synced")
        os.kill(status_of(mountpoint)["holder_pid"], signal.SIGKILL)
        time.sleep(0.2)
        os.kill(mount.gateway_pid, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{mount.gateway_pid}").exists())
    finally:
        with pytest.raises(OSError):  # noqa: PT011 - nobody serves it
            os.close(held)
    with raycache.mount(source, mountpoint, mode="w"):
        assert (mountpoint / "closed").read_bytes() == b"closed" * 1000
        assert (mountpoint / "synced").read_bytes() == b"synced" * 300_000
        log = log_path(load_settings().state_dir, str(mountpoint))
        assert len(list(log.parent.glob(f"{log.stem}.*.manifests"))) == 1  # what the dead ones had is gone
