"""The kernel session through real mounts: what programs see equals the local directory, whatever happens to the server.

Needs ``/dev/fuse`` and the right to mount; without them these tests fail, as the session would.
"""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import random
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import reading
from mounting import Mounted, Server
from reading import Reader

from raycache.errors import MountError
from raycache.fuse import device

ODD_NAMES = ["a b", "new\nline", "tab\t", "'quoted\"", "\\back", "%41#?*", "ünïcödé", "\udcff\udc80bytes", "-rf", "..."]
LONG_NAME = "x" * 255
ORDINARY_UID = 65534 if os.geteuid() == 0 else os.geteuid()
Mount = Callable[..., Mounted]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a directory on ``tmp_path/mnt``, once."""
    made: list[Mounted] = []

    def make(source: Path, **options: Any) -> Mounted:
        made.append(Mounted(source, options.pop("mountpoint", tmp_path / "mnt"), **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def readers(mount: Mount) -> Iterator[Callable[..., Reader]]:
    """Makes readers, and ends them before the mount goes, or if they hang in it, after."""
    made: list[Reader] = []

    def make() -> Reader:
        made.append(Reader())
        return made[-1]

    yield make
    for each in made:
        each.kill()
    for each in made:
        each.gone(1.0)
    # ``mount`` ends the mount after this, and with it what hangs; the processes are reaped at exit.


@pytest.fixture
def reader(readers: Callable[..., Reader]) -> Reader:
    return readers()


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with everything that is odd in it."""
    root = tmp_path_factory.mktemp("sample")
    generator = random.Random(7)
    for name in [*ODD_NAMES, LONG_NAME]:
        (root / name).write_bytes(generator.randbytes(generator.randrange(1, 9000)))
    (root / "empty").write_bytes(b"")
    (root / "one").write_bytes(b"1")
    (root / "page").write_bytes(generator.randbytes(4096))
    (root / "large").write_bytes(generator.randbytes(9 * 2**20 + 13))
    (root / "old").write_bytes(b"old")
    os.utime(root / "old", ns=(10**9, -123_456_789))
    deep = root
    for level in range(40):
        deep = deep / f"level-{level}"
        deep.mkdir()
        (deep / "file").write_bytes(str(level).encode())
    many = root / "many"
    many.mkdir()
    for at in range(3000):
        (many / f"{at:05d}").write_bytes(generator.randbytes(at % 5000))
    (root / "nothing").mkdir()
    return root


# ---- what is there --------------------------------------------------------------------------------------------------


def test_whole_tree_equals_the_directory(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample, block_bytes=4 * 2**20)
    assert reader.call(reading.tree, mounted.path) == reading.tree(str(sample))
    assert sorted(reader.call(reading.names, mounted.path)) == sorted(os.listdir(sample))


def test_stat_shows_a_file_of_the_owner_that_cannot_be_written(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample)
    for name in ("empty", "one", "page", "large", "old"):
        seen, real = reader.call(reading.status, mounted.join(name)), os.lstat(sample / name)
        assert stat.S_IMODE(seen["st_mode"]) == 0o444
        assert stat.S_ISREG(seen["st_mode"])
        assert seen["st_nlink"] == 1
        assert (seen["st_uid"], seen["st_gid"]) == (os.getuid(), os.getgid())
        assert seen["st_size"] == real.st_size
        assert seen["st_mtime_ns"] == real.st_mtime_ns
        assert seen["st_blocks"] == -(-real.st_size // 512)
        assert seen["st_blksize"] == 4096
    for path in (mounted.path, mounted.join("many")):
        seen = reader.call(reading.status, path)
        assert seen["st_mode"] == stat.S_IFDIR | 0o555
        assert seen["st_nlink"] == 2


def test_inode_numbers_are_the_same_however_they_are_asked(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample)
    listed = {name: ino for ino, name, _ in reader.call(reading.raw_entries, mounted.path)}
    for name in os.listdir(sample):
        assert reader.call(reading.status, mounted.join(name))["st_ino"] == listed[name]
    assert len(set(listed.values())) == len(listed) - 1  # the two dots share theirs


def test_directories_begin_with_the_dots_as_local_ones_do(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample)
    for name, where in (("many", sample / "many"), ("nothing", sample / "nothing"), ("", sample)):
        seen = [(name, kind) for _, name, kind in reader.call(reading.raw_entries, mounted.join(name))]
        real = [(name, kind) for _, name, kind in reading.raw_entries(str(where))]
        assert sorted(seen) == sorted(real)
        assert [name for name, _ in seen[:2]] == [".", ".."]
        again = [(name, kind) for _, name, kind in reader.call(reading.raw_entries, mounted.join(name))]
        assert again == seen


@pytest.mark.parametrize(
    "command",
    [
        "ls -A -1",
        "ls -a -R",
        # Modes, owners and links differ by design, and directories have no time of their own.
        "ls -l -R --time-style=full-iso | grep ^- | tr -s ' ' | cut -d ' ' -f 5-",
        "find . -printf '%P %y\\n' | sort",
        "find . -type f -printf '%P %s %T@\\n' | sort",
        "find . -type f -size +2k | sort",
        "du -a -b many/* | sort",
        "cat many/* | sha256sum; wc -c large; tail -c 5 page | od -x",
        "tar -c --sort=name --mtime=@0 --mode=0 --owner=0 --group=0 -f - many | sha256sum",
        "cmp large large; diff -r -q many nothing; grep -r -l -a aaa many | sort",
    ],
)
def test_programs_print_what_they_print_of_the_directory(
    sample: Path, mount: Mount, reader: Reader, command: str
) -> None:
    mounted = mount(sample)
    script = ["sh", "-c", f'cd "$0" && ({command}) 2>&1 | base64']
    assert reader.call(reading.run, [*script, mounted.path]) == reading.run([*script, str(sample)])


def test_statfs_is_that_of_a_full_read_only_file_system(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample / "many")
    assert len(reader.call(reading.names, mounted.path)) == 3000
    seen = reader.call(reading.file_system, mounted.path)
    assert seen["f_bfree"] == seen["f_bavail"] == seen["f_ffree"] == 0
    assert seen["f_files"] == 3000
    assert seen["f_blocks"] * seen["f_frsize"] >= sum(at % 5000 for at in range(3000))
    assert seen["f_namemax"] == 255
    assert seen["f_flag"] & os.ST_RDONLY


# ---- ways to read ---------------------------------------------------------------------------------------------------


def test_every_way_to_read_gives_the_same_bytes(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample, block_bytes=2**20)
    for name in ("large", "page", "one"):
        expected = reading.digest(str(sample / name))
        for way in (reading.direct, reading.mapped, reading.sent, reading.digest):
            assert reader.call(way, mounted.join(name)) == expected, (name, way.__name__)
    assert reader.call(reading.digest, mounted.join("empty")) == hashlib.sha256().hexdigest()
    assert reader.call(reading.direct, mounted.join("empty")) == hashlib.sha256().hexdigest()


def test_ranges_at_odd_offsets(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample, block_bytes=3 * 2**20 + 1)
    assert reader.call(reading.compare_ranges, mounted.join("large"), str(sample / "large"), 3, 300) == 0


def test_a_thousand_files_open_at_once(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample)
    paths = [mounted.join("many", f"{at:05d}") for at in range(1, 1001)]
    assert reader.call(reading.hold_open, paths) == 1000


def test_a_hundred_thousand_entries(tmp_path: Path, mount: Mount, reader: Reader) -> None:
    big = tmp_path / "big"
    big.mkdir()
    for at in range(100_000):
        (big / f"entry-{at:06d}").touch()
    mounted = mount(big)
    seen = reader.call(reading.names, mounted.path)
    assert len(seen) == 100_000
    assert set(seen) == set(os.listdir(big))
    started = time.monotonic()
    assert reader.call(reading.run, ["sh", "-c", 'ls -lR "$0" | wc -l', mounted.path]).strip() == "100002"
    assert time.monotonic() - started < 20
    assert reader.call(reading.run, ["sh", "-c", 'find "$0" -name "*99" | wc -l', mounted.path]).strip() == "1000"


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_every_write_is_refused_as_on_a_read_only_file_system(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample)
    file, new = mounted.join("one"), mounted.join("new")
    refused = [
        ("open", file, os.O_WRONLY),
        ("open", file, os.O_RDWR),
        ("open", file, os.O_RDONLY | os.O_TRUNC),
        ("open", new, os.O_WRONLY | os.O_CREAT),
        ("truncate", file, 0),
        ("unlink", file),
        ("rename", file, new),
        ("link", file, new),
        ("symlink", "target", new),
        ("mkdir", new),
        ("rmdir", mounted.join("nothing")),
        ("mkfifo", new),
        ("chmod", file, 0o600),
        ("chown", file, 0, 0),
        ("utime", file, [1, 1]),
        ("setxattr", file, "user.x"),
        ("removexattr", file, "user.x"),
    ]
    seen = {each[0]: reader.call(reading.refusal, *each) for each in refused}
    assert seen == dict.fromkeys(seen, errno.EROFS)


def test_errors_of_reading(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample)
    assert reader.call(reading.refusal, "stat", mounted.join("absent")) == errno.ENOENT
    assert reader.call(reading.refusal, "stat", mounted.join("absent")) == errno.ENOENT
    assert reader.call(reading.refusal, "stat", mounted.join("y" * 256)) == errno.ENAMETOOLONG
    assert reader.call(reading.refusal, "stat", mounted.join("one", "below")) == errno.ENOTDIR
    assert reader.call(reading.refusal, "listdir", mounted.join("one")) == errno.ENOTDIR
    assert reader.call(reading.refusal, "readlink", mounted.join("one")) == errno.EINVAL
    assert reader.call(reading.refusal, "getxattr", mounted.join("one"), "user.x") == errno.EOPNOTSUPP
    assert reader.call(reading.refusal, "getxattr", mounted.join("one"), "user.x") == errno.EOPNOTSUPP
    assert reader.call(reading.refusal, "listxattr", mounted.join("one")) == errno.EOPNOTSUPP
    assert reader.call(reading.refusal, "ioctl", mounted.join("one"), 0x5401) == errno.ENOTTY
    reader.call(reading.harmless, mounted.join("large"))


def test_a_source_that_is_away_is_an_io_error_and_a_line_in_the_log(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample, fail=True)
    with pytest.raises(OSError, match="Input/output error"):
        reader.call(reading.digest, mounted.join("one"))
    assert reader.call(reading.exists, mounted.join("page"))
    assert mounted.server.command("stats", "stats")["counters"]["errors"] > 0
    log = mounted.close()
    assert "read one" in log
    assert "is away, as the test wants it" in log


# ---- misses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slow_by", [{"delay_s": 2.0, "delay_blocks": 4}, {"hang_s": 2.0}], ids=["miss", "disk"])
def test_a_miss_delays_no_hit(
    sample: Path, mount: Mount, readers: Callable[..., Reader], slow_by: dict[str, Any]
) -> None:
    mounted = mount(sample, block_bytes=2**20, **slow_by)
    fast, slow = readers(), readers()
    slow.begin(reading.digest, mounted.join("large"))
    fast.call(reading.digest, mounted.join("one"))
    started, count = time.monotonic(), 0
    while time.monotonic() - started < 1.5:
        before = time.monotonic()
        fast.call(reading.direct, mounted.join("one"))
        assert time.monotonic() - before < 0.5
        count += 1
    assert count > 50
    assert slow.result() == reading.digest(str(sample / "large"))


def test_more_misses_than_threads(sample: Path, mount: Mount, readers: Callable[..., Reader]) -> None:
    mounted = mount(sample, block_bytes=2**12, delay_s=0.2, threads=3)
    crowd = [readers() for _ in range(12)]
    for at, each in enumerate(crowd):
        each.begin(reading.digest, mounted.join("many", f"{4000 - at:05d}" if at > 6 else f"{2999 - at:05d}"))
    results = []
    for each in crowd:
        try:
            results.append(each.result())
        except FileNotFoundError:
            results.append("absent")
    assert results.count("absent") == 5
    assert results[0] == reading.digest(str(sample / "many" / "02999"))


def test_the_deadline_ends_in_an_io_error(sample: Path, mount: Mount, readers: Callable[..., Reader]) -> None:
    mounted = mount(sample, block_bytes=2**20, delay_s=30.0, delay_blocks=3, deadline_s=1.0)
    slow, fast = readers(), readers()
    assert fast.call(reading.exists, mounted.join("one")) is True
    started = time.monotonic()
    with pytest.raises(OSError, match="Input/output error"):
        slow.call(reading.direct, mounted.join("large"))
    assert 0.9 < time.monotonic() - started < 5
    assert "no answer before the deadline" in mounted.close()


@pytest.mark.parametrize(
    ("way", "name", "delays"),
    [
        (reading.direct, "large", {"delay_s": 20.0}),
        (reading.direct, "large", {"hang_s": 20.0}),
        (reading.digest, "page", {"delay_s": 20.0}),
        (reading.names, "many", {"delay_listing_s": 20.0}),
        (reading.status, "one", {"delay_listing_s": 20.0}),
    ],
)
def test_a_killed_reader_does_not_wait_for_its_miss(
    sample: Path, mount: Mount, reader: Reader, way: Callable[[str], Any], name: str, delays: dict[str, float]
) -> None:
    mounted = mount(sample, block_bytes=2**20, **delays)
    reader.begin(way, mounted.join(name))
    time.sleep(0.5)
    assert reading.state_of(reader.pid) in "SD"
    reader.kill()
    assert reader.gone(3.0), f"it hangs in state {reading.state_of(reader.pid)}"


def test_signals_that_do_not_kill_do_not_fail_a_read(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample, block_bytes=2**20, delay_s=0.3)
    assert reader.call(reading.interrupted_read, mounted.join("large"), 0.02) == reading.digest(str(sample / "large"))


def test_four_processes_read_at_random(sample: Path, mount: Mount, readers: Callable[..., Reader]) -> None:
    mounted = mount(sample, block_bytes=2**19, view_bytes=2**21)
    expected = _digests(sample)
    crowd = [readers() for _ in range(4)]
    for seed, each in enumerate(crowd):
        each.begin(reading.read_at_random, mounted.path, expected, seed, 4.0)
    for each in crowd:
        done = each.result()
        assert done["wrong"] == done["errors"] == []
        assert done["reads"] > 50


# ---- refresh --------------------------------------------------------------------------------------------------------


def test_a_refresh_is_seen_and_open_files_keep_their_bytes(tmp_path: Path, mount: Mount, reader: Reader) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "same").write_bytes(b"same")
    (source / "changed").write_bytes(b"before" * 1000)
    (source / "sub" / "gone").write_bytes(b"gone")
    mounted = mount(source)
    assert sorted(reader.call(reading.names, mounted.path)) == ["changed", "same", "sub"]
    assert reader.call(reading.names, mounted.join("sub")) == ["gone"]
    assert reader.call(reading.refusal, "stat", mounted.join("added")) == errno.ENOENT
    reader.call(reading.keep, mounted.join("changed"))
    before = hashlib.sha256(b"before" * 1000).hexdigest()
    assert list(reader.call(reading.check_kept, mounted.join("changed"))) == [before, before]

    (source / "changed").write_bytes(b"after")
    (source / "added").write_bytes(b"added")
    (source / "sub" / "gone").unlink()
    assert reader.call(reading.digest, mounted.join("changed")) == before
    assert reader.call(reading.refusal, "stat", mounted.join("added")) == errno.ENOENT
    mounted.server.command("refresh", "refreshed")

    assert sorted(reader.call(reading.names, mounted.path)) == ["added", "changed", "same", "sub"]
    assert reader.call(reading.names, mounted.join("sub")) == []
    assert reader.call(reading.refusal, "stat", mounted.join("sub", "gone")) == errno.ENOENT
    assert reader.call(reading.digest, mounted.join("added")) == hashlib.sha256(b"added").hexdigest()
    assert reader.call(reading.digest, mounted.join("changed")) == hashlib.sha256(b"after").hexdigest()
    assert list(reader.call(reading.check_kept, mounted.join("changed"))) == [before, before]


# ---- another server -------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_no_read_notices_a_killed_server(sample: Path, mount: Mount, readers: Callable[..., Reader]) -> None:
    mounted = mount(sample, block_bytes=2**19, view_bytes=2**21)
    expected, holder = _digests(sample), readers()
    large = mounted.join("large")
    holder.call(reading.keep, large)
    crowd = [readers() for _ in range(4)]
    for seed, each in enumerate(crowd):
        each.begin(reading.read_at_random, mounted.path, expected, seed, 14.0)
    generator = random.Random(1)
    for _ in range(10):
        time.sleep(generator.uniform(0.05, 0.4))
        mounted.kill_server()
        mounted.start_server()
        assert list(holder.call(reading.check_kept, large)) == [expected["large"]] * 2
    for each in crowd:
        done = each.result()
        assert done["wrong"] == done["errors"] == []
        assert done["reads"] > 50


def test_a_miss_of_a_killed_server_is_answered_by_its_successor(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample, delay_s=60.0)
    reader.begin(reading.direct, mounted.join("large"))
    time.sleep(0.5)
    mounted.kill_server()
    time.sleep(0.2)
    mounted.start_server(delay_s=0.0)
    assert reader.result(20.0) == reading.digest(str(sample / "large"))


def test_a_stopped_server_hands_over(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample, delay_s=60.0)
    reader.begin(reading.digest, mounted.join("one"))
    time.sleep(0.3)
    assert mounted.server.command("stop", "ended")["how"] == "stopped"
    mounted.start_server(delay_s=0.0)
    assert reader.result(20.0) == reading.digest(str(sample / "one"))
    assert reader.call(reading.digest, mounted.join("page")) == reading.digest(str(sample / "page"))


def test_an_idle_server_stops(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample)
    assert mounted.server.command("stop", "ended")["how"] == "stopped"
    mounted.start_server()
    assert reader.call(reading.exists, mounted.join("one")) is True


def test_without_anyone_who_keeps_the_descriptor_a_crash_is_an_error_not_a_hang(
    sample: Path, mount: Mount, reader: Reader
) -> None:
    mounted = mount(sample, delay_s=60.0)
    reader.begin(reading.direct, mounted.join("large"))
    time.sleep(0.3)
    mounted.release()
    mounted.kill_server()
    with pytest.raises(OSError, match=r"Software caused connection abort|not connected"):
        reader.result(10.0)


# ---- mounting -------------------------------------------------------------------------------------------------------


def test_unmounting_waits_for_open_files_unless_it_is_lazy(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample)
    large, expected = mounted.join("large"), reading.digest(str(sample / "large"))
    reader.call(reading.keep, large)
    with pytest.raises(MountError, match="in use") as caught:
        device.unmount(mounted.path)
    assert caught.value.errno == errno.EBUSY
    device.unmount(mounted.path, lazy=True)
    assert device.find_mount(mounted.path) is None
    assert list(reader.call(reading.check_kept, large)) == [expected] * 2
    reader.call(reading.let_go, large)
    assert mounted.server.event("ended")["how"] == "unmounted"
    with pytest.raises(MountError, match="not a raycache mount"):
        device.unmount(mounted.path)


def test_unmounting_lazily_while_a_miss_is_under_way(sample: Path, mount: Mount, reader: Reader) -> None:
    mounted = mount(sample, block_bytes=2**20, delay_s=0.3)
    reader.begin(reading.digest, mounted.join("large"))
    time.sleep(0.5)
    device.unmount(mounted.path, lazy=True)
    assert reader.result() == reading.digest(str(sample / "large"))
    assert mounted.server.event("ended")["how"] == "unmounted"


def test_the_mount_table_shows_the_source(tmp_path: Path, mount: Mount) -> None:
    source = tmp_path / "a b, c\\d"
    source.mkdir()
    mounted = mount(source)
    found = device.find_mount(mounted.path)
    assert found is not None
    assert (found.source, found.fstype, found.mountpoint) == (f"file://{source}", "fuse.raycache", mounted.path)
    assert int(Path(f"/sys/class/bdi/{found.device}/read_ahead_kb").read_text()) == 1024


def test_a_mount_point_may_be_named_through_links(sample: Path, tmp_path: Path, mount: Mount, reader: Reader) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "other").symlink_to("real")
    (tmp_path / "link").symlink_to(tmp_path / "other")
    mounted = mount(sample, mountpoint=tmp_path / "link")
    found = device.find_mount(str(tmp_path / "other"))
    assert found is not None
    assert found.mountpoint == str(real)
    assert reader.call(reading.exists, mounted.join("one")) is True
    (tmp_path / "loop").symlink_to("loop")
    assert device.find_mount(str(tmp_path / "loop")) is None
    with pytest.raises(MountError, match="is not a directory"):
        device.mount("file:///x", str(tmp_path / "loop"))
    device.unmount(str(tmp_path / "link"))
    assert device.find_mount(str(real)) is None


def test_mounting_twice_or_nowhere_says_why(sample: Path, tmp_path: Path, mount: Mount) -> None:
    mounted = mount(sample)
    with pytest.raises(MountError, match=r"is mounted on .* already") as caught:
        device.mount("file:///x", mounted.path)
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(MountError, match="does not exist"):
        device.mount("file:///x", str(tmp_path / "absent"))
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match="is not a directory"):
        device.mount("file:///x", str(tmp_path / "file"))
    with pytest.raises(MountError, match="not a raycache mount"):
        device.unmount("/proc")


def test_missing_parts_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(MountError, match=r"modprobe fuse.*--device /dev/fuse"):
        device._open_device()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MountError, match="apt install fuse3"):
        device._run_fusermount(["-V"])


def test_a_kernel_that_says_nothing_is_not_waited_for() -> None:
    silent, other = os.pipe()
    try:
        with pytest.raises(MountError, match=r"no INIT within 0\.1 s"):
            device.handshake(silent, timeout_s=0.1)
    finally:
        os.close(silent)
        os.close(other)


@pytest.fixture
def open_device() -> Iterator[None]:
    """``/dev/fuse`` for everyone, as udev makes it; containers and small machines without udev have it for root."""
    mode = stat.S_IMODE(os.stat(device.DEVICE).st_mode)
    if mode & 0o006 != 0o006:
        os.chmod(device.DEVICE, mode | 0o666)
    yield
    if mode & 0o006 != 0o006:
        os.chmod(device.DEVICE, mode)


@pytest.fixture
def user_dir() -> Iterator[Path]:
    """A directory of an ordinary user, on a path that one may walk."""
    with tempfile.TemporaryDirectory(prefix="raycache-user-") as made:
        os.chown(made, ORDINARY_UID, -1)
        os.chmod(made, 0o755)
        yield Path(made)


@pytest.mark.usefixtures("open_device")
def test_an_ordinary_user_mounts_through_fusermount(sample: Path, user_dir: Path) -> None:
    source, where = "file:///a,b\\c", user_dir / "user, mnt"
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def mount_and_send() -> None:
            where.mkdir()
            socket.send_fds(theirs, [b"fd"], [device.mount(source, str(where))])

        _as_ordinary_user(mount_and_send)
        _, (fd,), _, _ = socket.recv_fds(ours, 2, 1)
    try:
        found = device.find_mount(str(where))
        assert found is not None
        assert (found.source, found.fstype) == (source, device.FSTYPE)
        server = Server(fd, {"source": str(sample), "owner": (ORDINARY_UID, 0)})
        try:
            command = ["sh", "-c", 'sha256sum < "$0/large"; stat -c %u "$0/large"; touch "$0/new"', str(where)]
            done = subprocess.run(command, user=ORDINARY_UID, capture_output=True, text=True, timeout=30, check=False)
            assert done.stdout.split() == [reading.digest(str(sample / "large")), "-", str(ORDINARY_UID)]
            assert "Read-only file system" in done.stderr
            _as_ordinary_user(lambda: device.unmount(str(where)))
            assert server.event("ended")["how"] == "unmounted"
        finally:
            server.close()
    finally:
        os.close(fd)
        if device.find_mount(str(where)) is not None:
            device.unmount(str(where), lazy=True)


def _as_ordinary_user(action: Callable[[], None]) -> None:
    """In a fork, as the interpreter need not be readable for everyone."""

    def run() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresuid(ORDINARY_UID, ORDINARY_UID, ORDINARY_UID)
        action()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(30)
    assert process.exitcode == 0


def _digests(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name.isascii()]
    return {str(path.relative_to(root)): reading.digest(str(path)) for path in files if "\n" not in path.name}
