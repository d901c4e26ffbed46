"""The part of ``raycache.ufs.base`` that writes, over every family of adapters."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raycache.core.paths import parse_uri
from raycache.errors import Changed, IsADirectory, NotADirectory, NotEmpty, NotFound, SourceUnavailable
from raycache.testing import ObjectStoreServer
from raycache.testing.synthetic import SyntheticUfs
from raycache.ufs import UnderFileSystem, open_ufs
from raycache.ufs.base import TEMPORARY, Limits, Stream
from raycache.ufs.generic import FsspecUfs

BUCKET = "ufs-writing"
KINDS = ["s3", "memory", "local", "fsspec", "renaming"]
REAL_DIRECTORIES = ["local", "fsspec", "renaming"]
MARKING = ["s3", "memory", "local"]


@pytest.fixture(scope="session")
def writing_bucket(object_store: ObjectStoreServer) -> str:
    object_store.create_bucket(BUCKET)
    return BUCKET


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ufs(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> UnderFileSystem:
    name = f"t{secrets.token_hex(6)}"
    if kind == "s3":
        options = request.getfixturevalue("object_store").storage_options
        return open_ufs(f"s3://{request.getfixturevalue('writing_bucket')}/{name}", options)
    if kind == "memory":
        return open_ufs(f"memory://{name}/prefix")
    if kind == "local":
        return open_ufs(f"file://{tmp_path}")
    # One implementation of fsspec that cannot rename, and one that can.
    uri = f"memory://{name}/prefix" if kind == "fsspec" else f"file://{tmp_path}"
    return FsspecUfs(parse_uri(uri), {}, Limits())


def read(ufs: UnderFileSystem, path: str) -> bytes:
    found = ufs.stat(path)
    return bytes(ufs.get(path, 0, found.size_bytes, found.etag))


def listed(ufs: UnderFileSystem, path: str = "") -> list[bytes]:
    return sorted(ufs.list_directory(path)["name"].to_pylist())


def test_put_of_a_new_file_only(ufs):
    etag = ufs.put("d/f", b"first", if_match="").etag
    assert etag == ufs.stat("d/f").etag
    with pytest.raises(Changed, match=f"{ufs.uri}/d/f"):
        ufs.put("d/f", b"second", if_match="")
    assert read(ufs, "d/f") == b"first"
    assert listed(ufs, "d") == [b"f"]


def test_put_over_a_known_version_only(ufs):
    first = ufs.put("f", b"first").etag
    second = ufs.put("f", b"the second", if_match=first).etag
    assert second not in ("", first)
    with pytest.raises(Changed, match=f"{ufs.uri}/f"):
        ufs.put("f", b"third", if_match=first)
    assert (read(ufs, "f"), ufs.stat("f").etag) == (b"the second", second)
    with pytest.raises(Changed, match=f"{ufs.uri}/none"):
        ufs.put("none", b"x", if_match=first)
    assert listed(ufs) == [b"f"]


@pytest.mark.parametrize("size", [0, 1, 9 << 20, 20 << 20])
def test_streams(ufs, size):
    data = secrets.token_bytes(size)

    def chunks() -> Iterator[memoryview]:
        for at in range(0, size, 3 << 20):
            yield memoryview(data)[at : at + (3 << 20)]

    stream = Stream(size, chunks)
    put = ufs.put("d/f", stream, if_match="", mark="abc")
    assert (put.size_bytes, put.etag) == (size, ufs.stat("d/f").etag)
    assert read(ufs, "d/f") == data
    with pytest.raises(Changed, match=f"{ufs.uri}/d/f"):
        ufs.put("d/f", stream, if_match="")
    assert ufs.stat("d/f").etag == put.etag
    if size:
        again = ufs.put("d/f", stream, if_match=put.etag)
        assert (again.etag, read(ufs, "d/f")) == (ufs.stat("d/f").etag, data)
    assert listed(ufs, "d") == [b"f"]


def test_stream_that_breaks_off_leaves_what_was_there(ufs):
    ufs.put("d/f", b"before")

    def chunks() -> Iterator[bytes]:
        yield bytes(12 << 20)
        raise SourceUnavailable("the rest is away")

    with pytest.raises(SourceUnavailable, match="the rest is away"):
        ufs.put("d/f", Stream(20 << 20, chunks))
    assert read(ufs, "d/f") == b"before"
    assert listed(ufs, "d") == [b"f"]


def test_marks(kind, ufs):
    for path, data in [("f", b"x"), ("g", Stream(12 << 20, lambda: [bytes(6 << 20)] * 2))]:
        ufs.put(path, data, mark="0123abc")
        assert ufs.mark_of(path) == ("0123abc" if kind in MARKING else None)
        ufs.put(path, b"y")
        assert ufs.mark_of(path) == ("" if kind in MARKING else None)
    if kind in MARKING:
        with pytest.raises(NotFound):
            ufs.mark_of("none")


def test_copies_inside_the_source(kind, ufs):
    etag = ufs.put("a/f", b"bytes", mark="m").etag
    copied = ufs.copy("a/f", etag, 5, "b/g", if_match="")
    if copied is None:
        assert kind not in ("s3", "memory")
        return
    assert (copied.etag, copied.size_bytes) == (ufs.stat("b/g").etag, 5)
    assert (read(ufs, "b/g"), ufs.mark_of("b/g")) == (b"bytes", "m")
    for path, version, to, if_match in [
        ("a/f", '"other"', "b/h", None), ("a/none", etag, "b/h", None), ("a/f", etag, "b/g", ""),
        ("a/f", etag, "b/g", '"other"'), ("a/f", etag, "b/h", '"other"'),
    ]:  # fmt: skip
        with pytest.raises(Changed):
            ufs.copy(path, version, 5, to, if_match)
    assert ufs.copy("a/f", etag, 4, "b/h") is None
    assert listed(ufs, "b") == [b"g"]


def test_deletion_of_a_known_version_only(kind, ufs):
    old = ufs.put("d/f", b"old").etag
    new = ufs.put("d/f", b"newer").etag
    with pytest.raises(Changed, match=f"{ufs.uri}/d/f"):
        ufs.delete("d/f", if_match=old)
    assert read(ufs, "d/f") == b"newer"
    ufs.delete("d/f", if_match=new)
    with pytest.raises(NotFound):
        ufs.stat("d/f")
    with pytest.raises(NotFound):
        ufs.delete("d/f", if_match=new)


def test_directories_that_are_real(kind, ufs):
    if kind not in REAL_DIRECTORIES:
        ufs.make_directory("a/b")
        ufs.remove_directory("a/b")
        with pytest.raises(NotFound):
            ufs.stat("a")
        return
    for _ in range(2):
        ufs.make_directory("a/b/c")
        assert ufs.stat("a/b/c").is_dir
    with pytest.raises(NotEmpty, match=f"{ufs.uri}/a"):
        ufs.remove_directory("a")
    for path in ("a/b/c", "a/b", "a", "a"):
        ufs.remove_directory(path)
    ufs.put("a", b"file")
    with pytest.raises(NotADirectory, match=f"{ufs.uri}/a"):
        ufs.make_directory("a")
    with pytest.raises(NotADirectory, match=f"{ufs.uri}/a"):
        ufs.remove_directory("a")


def test_put_where_a_directory_is(kind, ufs):
    if kind not in REAL_DIRECTORIES:
        pytest.skip("no real directories")
    ufs.make_directory("d")
    for if_match in (None, ""):
        with pytest.raises(IsADirectory, match=f"{ufs.uri}/d"):
            ufs.put("d", b"x", if_match=if_match)
    assert listed(ufs) == [b"d"]


def test_put_below_a_file(kind, ufs):
    if kind not in REAL_DIRECTORIES:
        pytest.skip("no real directories")
    ufs.put("f", b"x")
    for path in ("f/g", "f/g/h"):
        with pytest.raises(NotADirectory, match=f"{ufs.uri}/f"):
            ufs.put(path, b"x", if_match="")
    assert read(ufs, "f") == b"x"


def test_files_under_way_are_not_listed(kind, ufs):
    if kind not in ("local", "renaming"):
        pytest.skip("has no temporary files")
    ufs.put("f", b"x")
    ufs.put(f"{TEMPORARY}left", b"half")
    assert listed(ufs) == [b"f"]


@pytest.mark.parametrize("kind", ["s3"], indirect=True)
def test_keys_that_obstore_cannot_name(ufs):
    first = ufs.put("new\nline", b"first", if_match="").etag
    with pytest.raises(Changed):
        ufs.put("new\nline", b"x", if_match="")
    assert ufs.put("new\nline", b"second", if_match=first).etag == ufs.stat("new\nline").etag
    assert ufs.mark_of("new\nline") is None
    assert ufs.copy("new\nline", first, 5, "copy") is None
    with pytest.raises(Changed):
        ufs.delete("new\nline", first)


@pytest.mark.parametrize("kind", ["s3"], indirect=True)
def test_an_upload_that_is_given_up_leaves_no_parts(ufs, object_store: ObjectStoreServer):
    ufs.put("f", b"x")
    with pytest.raises(Changed):
        ufs.put("f", Stream(20 << 20, lambda: [bytes(10 << 20)] * 2), if_match="")
    assert not object_store.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_a_source_that_only_reads_says_so() -> None:
    ufs: Any = SyntheticUfs("synthetic://one", 1)
    with pytest.raises(PermissionError, match="nothing can be written"):
        ufs.put("f", b"x")
