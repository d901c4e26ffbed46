"""Programs that nobody here wrote, on a mount of an S3 dataset that is written: on a real cluster, and into the bucket.

One mount for all: each test has a directory of its own in it.
"""

from __future__ import annotations

import filecmp
import mmap
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.actors.cluster import current
from raycache.config import load_settings
from raycache.fuse import device
from raycache.testing import ObjectStoreServer

HERE = Path(__file__).parent
IDENTITY = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
PERSIST_S = 60


class Place:
    """The mount, the cache behind it, and the bucket that all of it ends up in."""

    def __init__(self, root: Path, cache: Any, store: ObjectStoreServer, bucket: str) -> None:
        self.root, self.cache, self.store, self.bucket = root, cache, store, bucket

    def stored(self, below: str) -> dict[str, bytes]:
        """What the bucket holds below a directory, once everything that was written has been brought there."""
        self.cache.persisting.persist(f"s3://{self.bucket}", PERSIST_S)
        client = self.store.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{below}/")
        keys = [about["Key"] for page in pages for about in page.get("Contents", ())]
        return {key: client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}


@pytest.fixture(scope="module")
def place(
    ray_address: str, object_store: ObjectStoreServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    bucket, root = f"b{uuid.uuid4().hex[:10]}", tmp_path_factory.mktemp("mounted") / "mnt"
    root.mkdir()
    object_store.create_bucket(bucket)
    for number in range(20):
        object_store.client().put_object(Bucket=bucket, Key=f"listed/{number}", Body=b"%d " % number * 10_000)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_store.environ.items():
            patch.setenv(name, value)
        patch.setenv("RAYCACHE_NAMESPACE", f"test-{uuid.uuid4().hex[:8]}")
        patch.setenv("RAYCACHE_ADDRESS", ray_address)
        raycache.disconnect()
        try:
            with raycache.mount(f"s3://{bucket}", root, mode="w"):
                yield Place(root, current(load_settings()), object_store, bucket)
        finally:
            while device.find_mount(str(root)) is not None:
                device.unmount(str(root), lazy=True)
            raycache.shutdown()


@pytest.fixture
def here(place: Place, request: pytest.FixtureRequest) -> Path:
    """A directory of the mount for one test."""
    directory = place.root / request.node.name
    directory.mkdir()
    return directory


def run(*command: str, cwd: Path, timeout_s: float = 60, **environ: str) -> str:
    """Output of a program, which must succeed. It is killed when it hangs."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, **environ}
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small C project with a makefile, in a repository."""
    root = tmp_path_factory.mktemp("project")
    names = [f"part{number}" for number in range(8)]
    for number, name in enumerate(names):
        (root / f"{name}.c").write_text(f'#include "all.h"\nint {name}(int a) {{ return a + {number}; }}\n')
    (root / "all.h").write_text("#include <stdio.h>\n" + "".join(f"int {name}(int);\n" for name in names))
    calls = " + ".join(f"{name}(1)" for name in names)
    (root / "main.c").write_text(f'#include "all.h"\nint main(void) {{ printf("%d\\n", {calls}); return 0; }}\n')
    objects = " ".join(f"{name}.o" for name in [*names, "main"])
    (root / "Makefile").write_text(
        f"main: libparts.a main.o\n\tcc -o $@ main.o -L. -lparts\n"
        f"libparts.a: {objects.replace(' main.o', '')}\n\tar rcs $@ $^\n%.o: %.c all.h\n\tcc -g -c -o $@ $<\n"
    )
    for words in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "first"]):
        run("git", *words, cwd=root, **IDENTITY)
    return root


def test_what_is_copied_in_and_out_is_the_same_and_in_the_bucket(place: Place, here: Path, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(24 << 20))
    run("cp", str(big), "big", cwd=here)
    run("cp", "-r", "../listed", "copied", cwd=here)
    run("cp", "big", str(tmp_path / "back"), cwd=here)
    assert filecmp.cmp(big, tmp_path / "back", shallow=False)
    expected = {f"copied/{number}": b"%d " % number * 10_000 for number in range(20)} | {"big": big.read_bytes()}
    assert place.stored(here.name) == {f"{here.name}/{name}": data for name, data in expected.items()}


def test_a_project_is_cloned_checked_built_and_built_again(here: Path, project: Path) -> None:
    run("git", "clone", "-q", str(project), "clone", cwd=here)
    clone = here / "clone"
    assert run("git", "fsck", "--strict", cwd=clone) == ""
    assert run("git", "status", "--short", cwd=clone) == ""
    run("make", "-j4", cwd=clone)
    assert run("./main", cwd=clone) == "36\n"
    assert "up to date" in run("make", cwd=clone)
    os.utime(clone / "part3.c")
    assert run("make", cwd=clone).count("cc -g") == 1
    run("git", "mv", "part3.c", "moved.c", cwd=clone)
    run("git", "commit", "-qam", "moved", cwd=clone, **IDENTITY)
    run("git", "gc", "-q", cwd=clone)
    assert run("git", "fsck", "--strict", cwd=clone) == ""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_two_processes_write_one_sqlite_database(here: Path, tmp_path: Path, journal: str) -> None:
    code = """if True:
        import sqlite3, sys
        db = sqlite3.connect("db", timeout=30)
        for number in range(30):
            with db:
                db.execute("BEGIN IMMEDIATE")
                (last,) = db.execute("SELECT max(a) FROM t").fetchone()
                db.execute("INSERT INTO t VALUES (?, randomblob(3000))", (last + 1,))
    """
    with closing(sqlite3.connect(here / "db")) as db:
        assert db.execute(f"PRAGMA journal_mode={journal}").fetchone() == (journal,)
        db.executescript("CREATE TABLE t (a, b); INSERT INTO t VALUES (0, 0)")
    writers = [subprocess.Popen([sys.executable, "-c", code], cwd=here) for _ in range(2)]
    try:
        assert [writer.wait(60) for writer in writers] == [0, 0]
    finally:
        for writer in writers:
            writer.kill()
    with closing(sqlite3.connect(here / "db")) as db, closing(sqlite3.connect(here / "copy")) as copy:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*), max(a) FROM t").fetchone() == (61, 60)
        db.backup(copy)
    shutil.copy(here / "copy", tmp_path / "copy")
    with closing(sqlite3.connect(tmp_path / "copy")) as copy:
        assert copy.execute("SELECT sum(a) FROM t").fetchone() == (1830,)


def test_trees_are_packed_and_copied_twice(here: Path, project: Path) -> None:
    run("tar", "cf", "packed.tar", "-C", str(project), ".", cwd=here)
    (here / "unpacked").mkdir()
    run("tar", "xf", "packed.tar", "-C", "unpacked", cwd=here)
    run("diff", "-r", str(project), "unpacked", cwd=here)
    with tarfile.open(here / "packed.tar", "a") as tar:
        tar.add(project / "all.h", "again.h")
    assert "again.h" in run("tar", "tf", "packed.tar", cwd=here)
    for _ in range(2):
        shutil.copytree(project, here / "copied", dirs_exist_ok=True)
    assert files_below(here / "copied") == files_below(project)


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync_copies_what_differs_and_nothing_else(here: Path, project: Path) -> None:
    run("rsync", "-aH", f"{project}/", "synced/", cwd=here)
    assert run("rsync", "-aHi", f"{project}/", "synced/", cwd=here) == ""
    (here / "synced/main.c").write_text("other")
    assert run("rsync", "-ai", f"{project}/", "synced/", cwd=here).split()[1:] == ["main.c"]
    assert files_below(here / "synced") == files_below(project)


def test_files_are_written_through_memory_and_while_they_have_no_name(place: Place, here: Path) -> None:
    data = bytearray(os.urandom(3 << 20))
    (here / "mapped").write_bytes(data)
    with open(here / "mapped", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        for at in range(0, len(data), 300_000):
            data[at : at + 5] = view[at : at + 5] = b"-%03d-" % (at // 300_000)
        view.flush()
    assert (here / "mapped").read_bytes() == data
    with open(here / "nameless", "w+b") as file:
        file.write(b"before ")
        file.flush()
        os.unlink(here / "nameless")
        with open(here / "nameless", "wb") as other:
            other.write(b"another")
        file.write(b"after")
        file.seek(0)
        assert (file.read(), os.fstat(file.fileno()).st_nlink) == (b"before after", 0)
    assert place.stored(here.name) == {f"{here.name}/mapped": data, f"{here.name}/nameless": b"another"}


def test_trees_are_moved_and_removed(place: Place, here: Path, project: Path) -> None:
    run("cp", "-r", "../listed", "a", cwd=here)
    place.stored(here.name)  # so that there is something to be moved there
    shutil.copytree(project, here / "a/b/c", ignore=shutil.ignore_patterns(".git"))
    run("mv", "a", "moved", cwd=here)
    (here / "moved/b/c/new").write_bytes(b"new")
    run("mv", "moved/b/c", ".", cwd=here)
    run("rm", "-r", "moved/b", "moved/1", cwd=here)
    run("mv", "-T", "moved", "c/again", cwd=here)
    expected = {path.name: path.read_bytes() for path in project.iterdir() if path.is_file()}
    expected |= {f"again/{number}": b"%d " % number * 10_000 for number in range(20) if number != 1}
    expected["new"] = b"new"
    assert files_below(here / "c") == expected
    assert place.stored(here.name) == {f"{here.name}/c/{name}": data for name, data in expected.items()}
    run("rm", "-r", "c", cwd=here)
    assert os.listdir(here) == []
    assert place.stored(here.name) == {}
