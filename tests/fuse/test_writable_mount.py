"""Mounts that are written, over a real tree, without Ray: what programs see equals what a local directory shows them,
whatever happens to the server.

Needs ``/dev/fuse`` and the right to mount; without them these tests fail, as the session would.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mounting import MountedToWrite
from twins import make_tree

HERE = Path(__file__).parent
POSIX = HERE / "posix.py"
SEQUENCES = int(os.environ.get("RAYCACHE_MOUNT_SEQUENCES", "100"))
"""Drawn at random, each of up to 40 steps."""
CASES = sorted(
    line.removeprefix("def ").partition("(")[0]
    for before, line in zip(POSIX.read_text().splitlines(), POSIX.read_text().splitlines()[1:], strict=False)
    if before == "@case"
)
Mount = Callable[..., MountedToWrite]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a new directory on ``tmp_path/mnt``, once."""
    made: list[MountedToWrite] = []

    def make(source: Path | None = None, **options: Any) -> MountedToWrite:
        for name in ("source", "state"):
            (tmp_path / name).mkdir(exist_ok=True)
        options = {"state": str(tmp_path / "state"), **options}
        made.append(MountedToWrite(source or tmp_path / "source", tmp_path / "mnt", **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def run(*command: str, cwd: str, timeout_s: float = 60, **environ: str) -> str:
    """Output of a program inside a mount, which must succeed. It is killed when it hangs."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, **environ}
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def python(code: str, *arguments: str, cwd: str, timeout_s: float = 60) -> str:
    return run(sys.executable, "-c", code, *arguments, cwd=cwd, timeout_s=timeout_s)


# ---- system calls ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What each case of ``posix`` comes to in a local directory, and in a mount."""
    base = Path(tempfile.mkdtemp(prefix="raycache-posix-"))
    base.chmod(0o755)  # some cases are about other users, whom pytest's directories keep out
    for name in ("local", "source", "state"):
        (base / name).mkdir()
    local = run(sys.executable, str(POSIX), str(base / "local"), cwd="/")
    mounted = MountedToWrite(base / "source", base / "mnt", state=str(base / "state"), allow_other=os.geteuid() == 0)
    try:
        written = run(sys.executable, str(POSIX), mounted.path, cwd="/", timeout_s=120)
    finally:
        log = mounted.close()
    assert "defect" not in log, log
    yield json.loads(local), json.loads(written)
    shutil.rmtree(base)


@pytest.mark.parametrize("name", CASES)
def test_system_calls_do_what_they_do_locally(name: str, outcomes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    local, mounted = outcomes
    assert mounted[name] == local[name]


def test_what_is_listed_is_read_and_written_over(mount: Mount, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        (source / name).write_bytes(os.urandom(300_000))
    mounted = mount()
    code = """if True:
        import os, shutil
        b = open("b", "rb").read()
        with open("a", "r+b") as file:
            file.seek(1000)
            file.write(b"over")
        with open("b", "ab") as file:
            file.write(b"end")
        os.rename("sub", "moved")
        os.unlink("moved/c")
        shutil.copy("b", "moved/d")
    """
    python(code, cwd=mounted.path)
    a, b = (source / "a").read_bytes(), (source / "b").read_bytes()
    expected = {"a": a[:1000] + b"over" + a[1004:], "b": b + b"end", "moved/d": b + b"end"}
    for name, data in expected.items():
        assert run("md5sum", name, cwd=mounted.path).split()[0] == _md5(data)
    assert run("find", ".", "-type", "f", cwd=mounted.path).split().sort() == ["./a", "./b", "./moved/d"].sort()
    assert sorted(os.listdir(source)) == ["a", "b", "sub"]  # this dataset is written to the cache alone


def _md5(data: bytes) -> str:
    return subprocess.run(["md5sum"], input=data, capture_output=True, check=True).stdout.decode().split()[0]


def test_room_runs_out_and_programs_are_told(mount: Mount) -> None:
    mounted = mount(room_bytes=3_000_000)
    code = """if True:
        import errno, os
        try:
            with open("big", "wb", buffering=0) as file:
                for _ in range(10):
                    file.write(bytes(1_000_000))
        except OSError as error:
            print(errno.errorcode[error.errno], os.path.getsize("big"))
    """
    assert python(code, cwd=mounted.path).split() == ["ENOSPC", "3000000"]


def test_what_there_is_not_is_refused_as_such(mount: Mount) -> None:
    mounted = mount()
    code = """if True:
        import errno, fcntl, os, struct
        kept = os.open("f", os.O_CREAT | os.O_RDWR)
        fs_ioc_fiemap = 0xC020660B
        acl = struct.pack("<IHHIHHIHHI", 2, 1, 6, 0, 4, 4, 0, 32, 4, 0)
        for call in (
            lambda: os.open(".", os.O_TMPFILE | os.O_RDWR),
            lambda: os.setxattr("f", "system.posix_acl_access", acl),
            lambda: fcntl.ioctl(kept, fs_ioc_fiemap, bytearray(32)),
        ):
            try:
                call()
            except OSError as error:
                print(errno.errorcode[error.errno])
    """
    assert python(code, cwd=mounted.path).split() == ["ENOTSUP"] * 3


# ---- when the server dies -------------------------------------------------------------------------------------------


WRITER = HERE / "verified_writer.py"


def test_writers_notice_nothing_of_servers_that_are_killed(mount: Mount) -> None:
    mounted = mount()
    writers = [
        subprocess.Popen(
            [sys.executable, str(WRITER), str(seed), "8"], cwd=mounted.path, stdout=subprocess.PIPE, text=True
        )
        for seed in range(3)
    ]
    try:
        for pause_s in (0.4, 0.1, 0.9, 0.05, 0.6):
            time.sleep(pause_s)
            mounted.kill_server()
            mounted.start_server()
        for writer in writers:
            said, _ = writer.communicate(timeout=90)
            assert writer.returncode == 0, said
            assert json.loads(said)["files"] > 0
    finally:
        for writer in writers:
            writer.kill()


def test_what_is_open_goes_on_with_the_next_server(mount: Mount) -> None:
    mounted = mount()
    code = """if True:
        import os, sys, time
        kept = open("kept", "w+b", buffering=0)
        kept.write(b"one ")
        lost = open("unlinked", "w+b", buffering=0)
        lost.write(b"nameless")
        os.unlink("unlinked")
        listed = os.open("many", os.O_RDONLY)
        print("ready", flush=True)
        sys.stdin.readline()
        kept.write(b"two")
        kept.seek(0)
        lost.write(b" still")
        lost.seek(0)
        print(kept.read(), lost.read(), os.fstat(lost.fileno()).st_nlink, len(os.listdir(listed)))
    """
    python("import os; os.mkdir('many'); [open(f'many/{n}', 'w').close() for n in range(50)]", cwd=mounted.path)
    program = subprocess.Popen(
        [sys.executable, "-c", code], cwd=mounted.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    mounted.kill_server()
    mounted.start_server()
    said, _ = program.communicate("\n", timeout=30)
    assert said == "b'one two' b'nameless still' 0 50\n"
    assert run("cat", "kept", cwd=mounted.path) == "one two"


# ---- programs that nobody here wrote --------------------------------------------------------------------------------


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate"])
def test_sqlite_in_each_journal_mode(mount: Mount, journal: str) -> None:
    mounted = mount()
    code = """if True:
        import os, sqlite3, sys
        db = sqlite3.connect("db")
        assert db.execute(f"PRAGMA journal_mode = {sys.argv[1]}").fetchone()[0] == sys.argv[1]
        db.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)")
        for number in range(40):
            with db:
                db.executemany("INSERT INTO t (b) VALUES (?)", [(os.urandom(500),) for _ in range(20)])
                db.execute("DELETE FROM t WHERE a % 7 = ?", (number % 7,))
            try:
                with db:
                    db.execute("UPDATE t SET b = NULL")
                    raise KeyError
            except KeyError:
                pass
        nulls = db.execute("SELECT count(*) FROM t WHERE b IS NULL").fetchone()[0]
        print(db.execute("PRAGMA integrity_check").fetchone()[0], nulls)
        db.execute("VACUUM")
        db.close()
    """
    assert python(code, journal, cwd=mounted.path) == "ok 0\n"
    copy = Path(mounted.path).parent / "copy"
    run("cp", "db", str(copy), cwd=mounted.path)
    assert sqlite3.connect(copy).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_git_clones_commits_and_checks(mount: Mount, tmp_path: Path) -> None:
    mounted, origin = mount(), tmp_path / "origin"
    identity = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    shutil.copytree(HERE, origin / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        run("git", *words, cwd=str(origin), **identity)
    run("git", "clone", "-q", "--no-local", str(origin), "clone", cwd=mounted.path)
    clone = f"{mounted.path}/clone"
    for number in range(3):
        run("sh", "-c", f"echo {number} >> tests/posix.py; mkdir -p d/{number}; echo x > d/{number}/f", cwd=clone)
        run("git", "add", "-A", cwd=clone)
        run("git", "commit", "-qm", str(number), cwd=clone, **identity)
    run("git", "mv", "tests", "moved", cwd=clone)
    run("git", "stash", "-q", cwd=clone, **identity)
    run("git", "gc", "-q", "--prune=now", cwd=clone)
    assert run("git", "fsck", "--strict", cwd=clone) == ""
    assert run("git", "status", "--short", cwd=clone) == ""
    assert len(run("git", "log", "--oneline", cwd=clone).splitlines()) == 4


def test_trees_are_copied_packed_and_synchronised(mount: Mount, tmp_path: Path) -> None:
    mounted = mount()
    original = tmp_path / "original"
    shutil.copytree(HERE, original, ignore=shutil.ignore_patterns("__pycache__"))
    (original / "empty").mkdir()
    (original / "link").symlink_to("posix.py")
    os.link(original / "posix.py", original / "hard")
    os.utime(original / "posix.py", ns=(10**18 + 1, 10**18 + 123_456_789))
    run("cp", "-a", str(original), "copied", cwd=mounted.path)
    run("tar", "cf", "packed.tar", "-C", str(original), ".", cwd=mounted.path)
    run("mkdir", "unpacked", cwd=mounted.path)
    run("tar", "xf", "packed.tar", "-C", "unpacked", cwd=mounted.path)
    for name in ("copied", "unpacked"):
        run("diff", "-r", "--no-dereference", str(original), name, cwd=mounted.path)
        info = os.stat(original / "posix.py")
        seen = run("stat", "-c", "%h %Y %a", f"{name}/hard", cwd=mounted.path).split()
        assert seen == ["2", str(info.st_mtime_ns // 10**9), f"{info.st_mode & 0o7777:o}"]
    code = "import shutil, sys; [shutil.copy(sys.argv[1], 'twice') for _ in range(2)]"
    python(code, str(original / "posix.py"), cwd=mounted.path)
    run("cmp", str(original / "posix.py"), "twice", cwd=mounted.path)


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync_finds_nothing_to_do_the_second_time(mount: Mount, tmp_path: Path) -> None:
    mounted = mount()
    run("rsync", "-aH", f"{HERE}/", "synced/", cwd=mounted.path)
    assert run("rsync", "-aHi", "--checksum", f"{HERE}/", "synced/", cwd=mounted.path) == ""
    assert run("rsync", "-aHi", f"{HERE}/", "synced/", cwd=mounted.path) == ""


# ---- drawn at random ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120 + 2 * SEQUENCES)
@pytest.mark.parametrize("killed", [False, True], ids=["served", "killed"])
def test_a_mount_and_a_local_directory_do_not_differ(mount: Mount, tmp_path: Path, killed: bool) -> None:
    for number in range(1, SEQUENCES, 2):
        make_tree(str(tmp_path / "source" / f"example-{number}"))
    mounted, local = mount(allow_other=True), tmp_path / "local"
    local.mkdir()
    program = subprocess.Popen(
        [sys.executable, str(HERE / "twins.py"), str(local), mounted.path, "6" if killed else str(SEQUENCES), "40"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])},
    )
    try:
        while killed and program.poll() is None:
            time.sleep(0.4)
            mounted.kill_server()
            mounted.start_server()
        said, _ = program.communicate(timeout=90 + 2 * SEQUENCES)
    finally:
        program.kill()
    assert program.returncode == 0, said[-5000:]
    assert "steps" in said
