"""What only a local directory has: bytes for names, links, pipes, permissions."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import raycache
from raycache.core.listing import prepare_listing
from raycache.errors import Changed, InvalidInput, IsADirectory, NotADirectory, NotFound
from raycache.ufs import UnderFileSystem, open_ufs


@pytest.fixture
def ufs(tmp_path: Path) -> UnderFileSystem:
    return open_ufs(str(tmp_path))


def names(ufs: UnderFileSystem, path: str = "") -> list[bytes]:
    prepared, hidden = prepare_listing(ufs.list_directory(path))
    assert hidden == 0
    return prepared["name"].to_pylist()


@pytest.mark.parametrize("name", [b"\xff\xfe", b"caf\xe9", b"a\nb\t\x01", b"\xed\xa0\x80", b"-rf", b"x" * 255])
def test_names_are_bytes(ufs, tmp_path, name):
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/d"))).mkdir()
    with open(os.fsencode(tmp_path) + b"/d/" + name, "wb") as file:
        file.write(name)
    assert names(ufs, "d") == [name]
    path = f"d/{name.decode('utf-8', 'surrogateescape')}"
    assert bytes(ufs.get(path, 0, len(name), ufs.stat(path).etag)) == name
    ufs.put(path, b"new")
    assert names(ufs, "d") == [name]
    ufs.delete(path)
    assert names(ufs, "d") == []


def test_links_are_followed_and_those_that_lead_nowhere_are_left_out(ufs, tmp_path):
    (tmp_path / "real").write_bytes(b"data")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "linked").symlink_to("dir")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "through").symlink_to("real/file")
    (tmp_path / "long").symlink_to("x" * 300)
    assert names(ufs) == [b"dir", b"link", b"linked", b"real"]
    assert ufs.stat("linked").is_dir
    assert bytes(ufs.get("link", 0, 4, ufs.stat("link").etag)) == b"data"


def test_what_is_neither_file_nor_directory_is_left_out_and_never_waited_for(ufs, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        assert names(ufs) == []
        # Opening a pipe for reading waits for a writer, if one lets it.
        for etag in ("", "etag"):
            with pytest.raises(Changed):
                ufs.get("pipe", 0, 1, etag)


def test_file_that_was_changed_in_place(ufs, tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    old = ufs.stat("f")
    with open(tmp_path / "f", "r+b") as file:
        file.write(b"x")
    os.utime(tmp_path / "f", ns=(old.mtime_ns, old.mtime_ns + 1))
    with pytest.raises(Changed):
        ufs.get("f", 0, 3, old.etag)


def test_file_of_the_same_size_and_time_in_its_place_is_another(ufs, tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    old = ufs.stat("f")
    (tmp_path / "g").write_bytes(b"xyz")
    os.utime(tmp_path / "g", ns=(old.mtime_ns, old.mtime_ns))
    os.replace(tmp_path / "g", tmp_path / "f")
    with pytest.raises(Changed):
        ufs.get("f", 0, 3, old.etag)


def test_put_obeys_the_umask_and_leaves_nothing_else(ufs, tmp_path):
    before = os.umask(0o027)
    try:
        ufs.put("new/f", b"abc")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new/f").stat().st_mode) == 0o640
    assert os.listdir(tmp_path / "new") == ["f"]


def test_put_that_fails_leaves_nothing(ufs, tmp_path):
    (tmp_path / "d/f").mkdir(parents=True)
    with pytest.raises(IsADirectory):
        ufs.put("d/f", b"abc")
    assert os.listdir(tmp_path / "d") == ["f"]


def test_put_under_way_is_no_entry(ufs, tmp_path):
    (tmp_path / ".raycache-put-0123456789abcdef").write_bytes(b"half")
    assert names(ufs) == []


def test_put_below_a_file(ufs, tmp_path):
    (tmp_path / "f").write_bytes(b"")
    for path in ("f/g", "f/g/h"):
        with pytest.raises(NotADirectory, match=f"file://{tmp_path}/{path} is not"):
            ufs.put(path, b"")


def test_delete(ufs, tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(NotFound):
        ufs.delete("none")
    with pytest.raises(IsADirectory):
        ufs.delete("d")


def test_name_that_is_too_long(ufs):
    for call in (ufs.stat, ufs.list_directory, lambda path: ufs.put(path, b"")):
        with pytest.raises(InvalidInput, match="longer than this file system allows"):
            call("x" * 256)


def test_missing_root(tmp_path):
    ufs = open_ufs(f"file://{tmp_path}/none")
    for call in (ufs.stat, ufs.list_directory):
        with pytest.raises(NotFound, match=f"file://{tmp_path}/none: no such"):
            call("")


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    ufs = open_ufs(f"file://{tmp_path}/f")
    assert not ufs.stat("").is_dir
    with pytest.raises(NotADirectory):
        ufs.list_directory("")


_AS_NOBODY = """
import os, sys
from raycache.errors import AccessDenied
from raycache.ufs import open_ufs
ufs = open_ufs("file://" + sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)  # after the imports: Python itself may lie in root's home
for call in (lambda: ufs.list_directory("private"), lambda: ufs.stat("private/f"), lambda: ufs.get("secret", 0, 1, ""),
             lambda: ufs.put("f", b""), lambda: ufs.delete("secret")):
    try:
        call()
    except AccessDenied as error:
        print(error)
names = ufs.list_directory("")["name"].to_pylist()
print(sorted(names))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user(tmp_path):
    for directory in [tmp_path, *list(tmp_path.parents)[:-2]]:
        directory.chmod(directory.stat().st_mode | 0o055)
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "private/f").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "out").symlink_to("private/f")
    home = str(Path(raycache.__file__).parent.parent)
    run = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": home},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.splitlines() == [
        f"file://{tmp_path}/{path}: permission denied for this user"
        for path in ("private", "private/f", "secret", "f", "secret")
    ] + ["[b'private', b'secret']"], run.stderr


def test_no_link_leads_out_of_the_source(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"outside")
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"inside")
    (source / "up").symlink_to("../secret")
    (source / "absolute").symlink_to(tmp_path / "secret")
    (source / "directory").symlink_to("../outside")
    (source / "around").symlink_to("../source/file")
    (tmp_path / "entrance").symlink_to("source")
    for root in (source, tmp_path / "entrance"):
        ufs = open_ufs(str(root))
        assert names(ufs) == [b"around", b"file"]
        assert bytes(ufs.get("around", 0, 6, "")) == b"inside"
        for path in ("up", "absolute", "directory/file"):
            with pytest.raises(Changed):
                ufs.get(path, 0, 3, "")
            with pytest.raises(NotFound, match="leads out"):
                ufs.stat(path)
        with pytest.raises(NotFound, match="leads out"):
            ufs.list_directory("directory")


def test_tree_does_not_follow_links_in_circles(tmp_path: Path):
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "f").write_bytes(b"x")
    (root / "empty").mkdir()
    (root / "a" / "up").symlink_to(root / "a")
    (root / "other").symlink_to(root / "a" / "b")
    (root / "a" / "b" / "round").symlink_to(root)
    ufs = open_ufs(str(root))
    names = {name.decode() for batch in ufs.list_tree("") for name in batch["name"].to_pylist()}
    assert names == {"a", "a/b", "a/b/f", "a/up", "a/b/round", "empty", "other", "other/f", "other/round"}
