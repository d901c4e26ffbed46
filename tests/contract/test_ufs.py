"""The contract of ``raycache.ufs.base``, run over every family of adapters."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest

from raycache.core.listing import LISTING_SCHEMA, prepare_listing
from raycache.core.paths import parse_uri
from raycache.core.tree import cut
from raycache.errors import (
    AccessDenied,
    Changed,
    InvalidInput,
    IsADirectory,
    NotADirectory,
    NotFound,
)
from raycache.testing import ObjectStoreServer
from raycache.ufs import UnderFileSystem, open_ufs
from raycache.ufs.base import Limits
from raycache.ufs.generic import FsspecUfs

BUCKET = "ufs-contract"


@dataclass
class Place:
    """An empty directory in one implementation."""

    kind: str
    open: Callable[[str], UnderFileSystem]
    """Opens a path below it."""
    uri: str

    @property
    def has_directories(self) -> bool:
        """Whether an empty directory differs from a missing one."""
        return self.kind in ("local", "fsspec")


@pytest.fixture(scope="session")
def bucket(object_store: ObjectStoreServer) -> str:
    object_store.create_bucket(BUCKET)
    return BUCKET


@pytest.fixture(params=["s3", "local", "memory", "fsspec"])
def place(request: pytest.FixtureRequest) -> Place:
    name, kind = f"t{secrets.token_hex(6)}", request.param
    if kind == "s3":
        options = request.getfixturevalue("object_store").storage_options
        base = f"s3://{request.getfixturevalue('bucket')}/{name}"
        return Place(kind, lambda path: open_ufs(f"{base}/{path}", options), base)
    if kind == "local":
        base = f"file://{request.getfixturevalue('tmp_path')}"
        return Place(kind, lambda path: open_ufs(f"{base}/{path}"), base)
    base = f"memory://{name}/prefix"
    if kind == "memory":
        return Place(kind, lambda path: open_ufs(f"{base}/{path}"), base)
    return Place(kind, lambda path: FsspecUfs(parse_uri(f"{base}/{path}"), {}, Limits()), base)


@pytest.fixture
def ufs(place: Place) -> UnderFileSystem:
    opened = place.open("")
    opened.put(".keep", b"")  # so that the root exists where directories do
    return opened


def entries(ufs: UnderFileSystem, path: str = "") -> dict[bytes, dict[str, Any]]:
    """A listing by name, without the file that keeps the root."""
    batch = ufs.list_directory(path)
    assert batch.schema.equals(LISTING_SCHEMA)
    batch.validate(full=True)
    prepared, hidden = prepare_listing(batch)
    assert hidden == 0
    return {row["name"]: row for row in prepared.to_pylist() if row["name"] != b".keep"}


def walked(ufs: UnderFileSystem, path: str) -> dict[str, dict[bytes, Any]]:
    """Every directory below a path, one by one."""
    found = {"": entries(ufs, path)}
    for name in [name for name, row in found[""].items() if row["is_dir"]]:
        for below, rows in walked(ufs, f"{path}/{name.decode()}".lstrip("/")).items():
            found[f"{name.decode()}/{below}".rstrip("/")] = rows
    return without_times(found)


def listed_at_once(ufs: UnderFileSystem, path: str, threads: int) -> dict[str, dict[bytes, Any]]:
    """The same from one listing of the tree."""
    found: dict[str, dict[bytes, Any]] = {}
    for below, batch in cut(list(ufs.list_tree(path, threads))):
        prepared, hidden = prepare_listing(batch)
        assert hidden == 0
        found[below] = {row["name"]: row for row in prepared.to_pylist() if row["name"] != b".keep"}
    return without_times(found)


def without_times(found: dict[str, dict[bytes, Any]]) -> dict[str, dict[bytes, Any]]:
    """Directories have none where they only follow from the names of files."""
    for rows in found.values():
        for row in rows.values():
            if row["is_dir"]:
                row.pop("mtime_ns", None)
    return found


class TestUnderFileSystem:
    def test_put_then_stat_list_get_delete(self, place: Place, ufs: UnderFileSystem):
        put = ufs.put("a/b.jpg", b"hello")
        assert (put.path, put.is_dir, put.size_bytes) == ("a/b.jpg", False, 5)
        found = ufs.stat("a/b.jpg")
        assert (found.path, found.is_dir, found.size_bytes) == ("a/b.jpg", False, 5)
        assert found.etag
        assert found.etag == put.etag
        assert abs(found.mtime_ns / 1e9 - time.time()) < 60
        assert put.mtime_ns in (0, found.mtime_ns)
        row = entries(ufs, "a")[b"b.jpg"]
        assert row == {
            "name": b"b.jpg",
            "is_dir": False,
            "size_bytes": 5,
            "mtime_ns": pytest.approx(found.mtime_ns, abs=10**9),  # S3 tells whole seconds in a HEAD
            "etag": found.etag.encode(),
        }
        assert bytes(ufs.get("a/b.jpg", 0, 5, found.etag)) == b"hello"
        assert bytes(ufs.get("a/b.jpg", 0, 5, "")) == b"hello"
        ufs.delete("a/b.jpg")
        with pytest.raises(NotFound, match=r"a/b\.jpg"):
            ufs.stat("a/b.jpg")

    def test_says_where_it_was_opened(self, place: Place, ufs: UnderFileSystem):
        assert ufs.uri == place.uri
        assert place.open("a/b/").uri == f"{place.uri}/a/b"

    def test_source_may_be_a_directory_of_another(self, place: Place, ufs: UnderFileSystem):
        ufs.put("a/b/c", b"abc")
        below = place.open("a/b")
        assert set(entries(below)) == {b"c"}
        assert bytes(below.get("c", 1, 1, below.stat("c").etag)) == b"b"

    def test_listing_is_one_level(self, ufs: UnderFileSystem):
        for path in ("top", "d/one", "d/two", "d/deep/er/three", "e/four", "dd"):
            ufs.put(path, path.encode())
        assert {name: row["is_dir"] for name, row in entries(ufs).items()} == {
            b"top": False,
            b"d": True,
            b"dd": False,
            b"e": True,
        }
        assert {name: (row["is_dir"], row["size_bytes"]) for name, row in entries(ufs, "d").items()} == {
            b"one": (False, 5),
            b"two": (False, 5),
            b"deep": (True, 0),
        }
        assert set(entries(ufs, "d/deep")) == {b"er"}
        assert {row["etag"] for row in entries(ufs).values() if row["is_dir"]} == {b""}

    @pytest.mark.parametrize("threads", [1, 8])
    @pytest.mark.parametrize("path", ["", "d", "d/deep", "chain"])
    def test_tree_is_what_walking_it_gives(self, place: Place, ufs: UnderFileSystem, path: str, threads: int):
        if place.kind == "memory":
            names = ["top", "d/one", "d/empty", "d/deep/er/three", "d.x", "chain/a/b/c/file", "e/\N{SNOWMAN}"]
        else:
            names = ["top", "d/one", "d/empty", "d/deep/er/three", "d.x", "chain/a/b/c/file", "e/new\nline", "e/plain"]
        for name in names:
            ufs.put(name, b"" if name.endswith("empty") else name.encode())
        assert walked(ufs, path) == listed_at_once(ufs, path, threads)

    def test_tree_of_one_directory_with_many_files(self, ufs: UnderFileSystem):
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: ufs.put(f"d/{number % 3}/{number:05}", b"x" * (number % 4)), range(600)))
        assert walked(ufs, "") == listed_at_once(ufs, "", 4)
        listing = ufs.list_tree("d", 4)
        next(listing)
        listing.close()

    def test_tree_of_a_missing_directory(self, place: Place, ufs: UnderFileSystem):
        if place.has_directories:
            with pytest.raises(NotFound, match=f"{ufs.uri}/none"):
                list(ufs.list_tree("none"))
        else:
            assert [row for batch in ufs.list_tree("none") for row in batch.to_pylist()] == []

    def test_directory_has_a_stat(self, ufs: UnderFileSystem):
        ufs.put("d/e/f", b"x")
        for path in ("", "d", "d/e"):
            found = ufs.stat(path)
            assert (found.path, found.is_dir, found.size_bytes, found.etag) == (path, True, 0, "")

    def test_missing_file(self, ufs: UnderFileSystem):
        ufs.put("d/file", b"x")
        for path in ("none", "d/none", "none/none", "d/fil", "d/file2"):
            with pytest.raises(NotFound, match=f"{ufs.uri}/{path}: no such"):
                ufs.stat(path)

    def test_missing_directory(self, place: Place, ufs: UnderFileSystem):
        if place.has_directories:
            with pytest.raises(NotFound, match=f"{ufs.uri}/none: no such"):
                ufs.list_directory("none")
        else:
            assert entries(ufs, "none") == {}

    def test_listing_a_file(self, place: Place, ufs: UnderFileSystem):
        ufs.put("file", b"x")
        if place.has_directories:
            with pytest.raises(NotADirectory, match=f"{ufs.uri}/file is"):
                ufs.list_directory("file")
        else:
            assert entries(ufs, "file") == {}

    @pytest.mark.parametrize("size", [0, 1, 2**20, 6 * 2**20])
    def test_sizes(self, ufs: UnderFileSystem, size: int):
        data = bytes(secrets.token_bytes(size))
        etag = ufs.put("f", memoryview(data)).etag
        assert ufs.stat("f").size_bytes == size
        assert entries(ufs)[b"f"]["size_bytes"] == size
        assert bytes(ufs.get("f", 0, size, etag)) == data
        assert len(ufs.get("f", size, 0, etag)) == 0

    @pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 10), (9, 1), (4, 6), (3, 4), (0, 0), (10, 0)])
    def test_range_inside(self, ufs: UnderFileSystem, start: int, length: int):
        etag = ufs.put("f", b"0123456789").etag
        for version in (etag, ""):
            assert bytes(ufs.get("f", start, length, version)) == b"0123456789"[start : start + length]

    @pytest.mark.parametrize(("start", "length"), [(0, 11), (9, 2), (10, 1), (500, 1), (5, 10**9)])
    def test_range_beyond_the_end(self, ufs: UnderFileSystem, start: int, length: int):
        etag = ufs.put("f", b"0123456789").etag
        for version in (etag, ""):
            with pytest.raises(Changed, match=f"{ufs.uri}/f .*refresh"):
                ufs.get("f", start, length, version)

    def test_deleted_file(self, ufs: UnderFileSystem):
        etag = ufs.put("d/f", b"abc").etag
        ufs.delete("d/f")
        for version in (etag, ""):
            with pytest.raises(Changed, match=f"{ufs.uri}/d/f was deleted"):
                ufs.get("d/f", 0, 3, version)

    def test_replaced_file(self, ufs: UnderFileSystem):
        old = ufs.put("f", b"abc").etag
        new = ufs.put("f", b"xyz").etag
        assert old != new
        with pytest.raises(Changed, match=f"{ufs.uri}/f changed"):
            ufs.get("f", 0, 3, old)
        assert bytes(ufs.get("f", 0, 3, new)) == b"xyz"

    def test_file_that_became_a_directory(self, place: Place, ufs: UnderFileSystem):
        etag = ufs.put("f", b"abc").etag
        ufs.delete("f")
        ufs.put("f/g", b"abc")
        with pytest.raises(Changed, match=f"{ufs.uri}/f "):
            ufs.get("f", 0, 3, etag)

    def test_directory_that_became_a_file(self, ufs: UnderFileSystem):
        etag = ufs.put("d/f", b"abc").etag
        ufs.delete("d/f")
        if ufs.stat("").is_dir and b"d" in entries(ufs):
            pytest.skip("keeps an empty directory in the way")
        ufs.put("d", b"abc")
        with pytest.raises(Changed, match=f"{ufs.uri}/d/f "):
            ufs.get("d/f", 0, 3, etag)

    def test_reads_never_mix_versions(self, ufs: UnderFileSystem):
        size, versions = 2**18, {}
        stop = threading.Event()
        versions[ufs.put("f", b"\0" * size).etag] = 0

        def replace() -> None:
            number = 0
            while not stop.wait(0.002):
                number = (number + 1) % 256
                versions[ufs.put("f", bytes([number]) * size).etag] = number

        writer = threading.Thread(target=replace)
        writer.start()
        read, seen = 0, set()
        try:
            deadline = time.monotonic() + 60
            while (read < 240 or len(seen) < 2) and time.monotonic() < deadline:
                etag = ufs.stat("f").etag
                with contextlib.suppress(Changed):
                    for start in range(0, size, size // 4):
                        data = bytes(ufs.get("f", start, size // 4, etag))
                        assert len(set(data)) == 1
                        # The writer notes a version only after it has put it.
                        assert versions.get(etag, data[0]) == data[0]
                        read += 1
                        seen.add(data[0])
        finally:
            stop.set()
            writer.join()
        assert read
        assert len(seen) > 1

    def test_many_files_in_a_directory(self, place: Place, ufs: UnderFileSystem):
        count = 3000
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: ufs.put(f"d/{number:05}", b"x" * (number % 7)), range(count)))
        found = entries(ufs, "d")
        assert sorted(found) == [b"%05d" % number for number in range(count)]
        assert all(found[b"%05d" % number]["size_bytes"] == number % 7 for number in range(count))

    def test_sixteen_threads(self, ufs: UnderFileSystem):
        def work(number: int) -> None:
            data = b"%d" % number * 1000
            for turn in range(10):
                path = f"d{number % 4}/{number}-{turn}"
                etag = ufs.put(path, data).etag
                assert bytes(ufs.get(path, 10, 50, etag)) == data[10:60]
                assert ufs.stat(path).size_bytes == len(data)
                assert f"{number}-{turn}".encode() in entries(ufs, f"d{number % 4}")
                ufs.delete(path)
                with pytest.raises(Changed):
                    ufs.get(path, 0, 1, etag)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))

    @pytest.mark.parametrize(
        "name",
        [
            "sp ace", " lead", "trail ", "\N{SNOWMAN}é", "e\u0301", "per%20cent", "%", "%2F", "hash#x", "que?ry",
            "star*[x]", "{a,b}", ".dot", "..two", "...", "semi;x", "plus+x", "am&p", "quo'te\"", "ti~lde", "eq=",
            "col:on", "a::b", "at@x", "dollar$", "ex!", "pi|pe", "<lt>", "x" * 253,
        ],
    )  # fmt: skip
    def test_odd_names(self, ufs: UnderFileSystem, name: str):
        for path in (name, f"d/{name}", f"{name}.d/in"):
            etag = ufs.put(path, path.encode()).etag
            assert ufs.stat(path).etag == etag
            assert bytes(ufs.get(path, 0, len(path.encode()), etag)) == path.encode()
        assert {text: row["is_dir"] for text, row in entries(ufs).items()} == {
            name.encode(): False,
            f"{name}.d".encode(): True,
            b"d": True,
        }
        assert set(entries(ufs, "d")) == {name.encode()}
        assert set(entries(ufs, f"{name}.d")) == {b"in"}
        ufs.delete(f"d/{name}")
        with pytest.raises(NotFound):
            ufs.stat(f"d/{name}")

    @pytest.mark.parametrize("name", ["new\nline", "tab\tx", "bell\a", "del\x7f", "\r", "e\x1b[0m"])
    def test_names_with_control_characters(self, place: Place, ufs: UnderFileSystem, name: str):
        if place.kind == "memory":
            with pytest.raises(InvalidInput, match="cannot name this key"):
                ufs.put(name, b"x")
            return
        if place.kind == "s3" and name in ("bell\a", "e\x1b[0m"):
            pytest.skip("SeaweedFS lists characters that XML has not as U+FFFD")
        for path in (f"d/{name}", f"{name}.d/in", "d/plain"):
            etag = ufs.put(path, path.encode()).etag
            assert ufs.stat(path).etag == etag
            assert bytes(ufs.get(path, 0, len(path.encode()), etag)) == path.encode()
            with pytest.raises(Changed):
                ufs.get(path, 3, len(path.encode()), etag)
            with pytest.raises(Changed):
                ufs.get(path, 300, 10, etag)
            with pytest.raises(Changed):
                ufs.get(path, 0, 1, '"other"')
        listed = entries(ufs, "d")
        assert set(listed) == {name.encode(), b"plain"}
        # A file's version is the same whichever of an adapter's two ways told it.
        assert listed[b"plain"]["etag"].decode() == ufs.stat("d/plain").etag
        assert {text: row["is_dir"] for text, row in entries(ufs).items()} == {f"{name}.d".encode(): True, b"d": True}
        assert set(entries(ufs, f"{name}.d")) == {b"in"}
        assert ufs.stat(f"{name}.d").is_dir
        assert ufs.stat("d").is_dir
        ufs.delete(f"d/{name}")
        with pytest.raises(NotFound):
            ufs.stat(f"d/{name}")
        assert set(entries(ufs, "d")) == {b"plain"}


def put_keys(store: ObjectStoreServer, prefix: str, keys: list[str]) -> None:
    for key in keys:
        store.client().put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=key.encode())


class TestS3:
    @pytest.fixture
    def prefix(self) -> str:
        return f"t{secrets.token_hex(6)}"

    @pytest.fixture
    def ufs(self, object_store: ObjectStoreServer, bucket: str, prefix: str) -> UnderFileSystem:
        return open_ufs(f"s3://{bucket}/{prefix}", object_store.storage_options)

    def test_marker_object_is_an_empty_directory(self, object_store, ufs, prefix):
        put_keys(object_store, prefix, ["d/marked/"])
        assert {name: row["is_dir"] for name, row in entries(ufs, "d").items()} == {b"marked": True}
        assert entries(ufs, "d/marked") == {}
        assert ufs.stat("d/marked").is_dir
        put_keys(object_store, prefix, ["d/marked/file"])
        assert set(entries(ufs, "d/marked")) == {b"file"}

    def test_directory_shadows_an_object_of_its_name(self, object_store, ufs, prefix):
        put_keys(object_store, prefix, ["both", "both/in"])
        batch = ufs.list_directory("")
        assert sorted(zip(batch["name"].to_pylist(), batch["is_dir"].to_pylist(), strict=True)) == [
            (b"both", False),
            (b"both", True),
        ]
        shown, hidden = prepare_listing(batch)
        assert (shown["is_dir"].to_pylist(), hidden) == ([True], 1)
        assert set(entries(ufs, "both")) == {b"in"}

    @pytest.mark.parametrize("threads", [1, 8])
    def test_tree_with_markers_empty_files_and_shadows(self, object_store, ufs, prefix, threads):
        for key in ("d/marked/", "d/empty", "marked2/", "marked2/x", "both", "both/in", "d/full", "none/"):
            body = b"" if key.endswith(("/", "empty")) else b"x"
            object_store.client().put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=body)
        found = {path: prepare_listing(batch) for path, batch in cut(list(ufs.list_tree("", threads)))}
        assert {
            path: {row["name"].decode(): row["is_dir"] for row in rows.to_pylist()} for path, (rows, _) in found.items()
        } == {
            "": {"d": True, "marked2": True, "both": True, "none": True},
            "d": {"marked": True, "empty": False, "full": False},
            "d/marked": {},
            "marked2": {"x": False},
            "both": {"in": False},
            "none": {},
        }
        assert {path: hidden for path, (_, hidden) in found.items() if hidden} == {"": 1}

    def test_tree_of_a_missing_bucket(self, object_store):
        ufs = open_ufs("s3://no-such-bucket/x", object_store.storage_options)
        for threads in (1, 8):
            with pytest.raises(NotFound, match="no such bucket"):
                list(ufs.list_tree("", threads))

    def test_empty_segment(self, object_store, ufs, prefix):
        # SeaweedFS keeps a//b as a/b. What matters is that the directory can be listed and its files read.
        put_keys(object_store, prefix, ["a//b", "a/c"])
        listed = entries(ufs, "a")
        assert b"c" in listed
        assert bytes(ufs.get("a/c", 0, 3, listed[b"c"]["etag"].decode())) == b"a/c"

    def test_key_with_everything(self, object_store, ufs, prefix):
        key = "d/ %41#?*[x]\n\t\N{SNOWMAN}::'\"&+=;"
        put_keys(object_store, prefix, [key])
        ((name, row),) = entries(ufs, "d").items()
        assert name == key.partition("/")[2].encode()
        assert bytes(ufs.get(key, 0, row["size_bytes"], row["etag"].decode())) == key.encode()

    def test_source_whose_prefix_has_control_characters(self, object_store, bucket, prefix):
        put_keys(object_store, prefix, ["new\nline/in/file"])
        below = open_ufs(f"s3://{bucket}/{prefix}/new\nline", object_store.storage_options)
        assert set(entries(below)) == {b"in"}
        assert set(entries(below, "in")) == {b"file"}
        assert bytes(below.get("in/file", 0, 3, below.stat("in/file").etag)) == b"new"

    def test_name_that_is_no_utf8_is_no_key(self, ufs):
        with pytest.raises(InvalidInput, match="cannot name"):
            ufs.stat("a\udcff")

    def test_missing_bucket(self, object_store):
        ufs = open_ufs("s3://no-such-bucket/x", object_store.storage_options)
        for call in (lambda: ufs.list_directory("d"), lambda: ufs.list_directory(""), lambda: ufs.stat("")):
            with pytest.raises(NotFound, match=r"s3://no-such-bucket/x.*no such bucket"):
                call()
        with pytest.raises(NotFound, match="s3://no-such-bucket/x/f"):
            ufs.stat("f")
        with pytest.raises(Changed, match="s3://no-such-bucket/x/f"):
            ufs.get("f", 0, 1, "")

    def test_empty_bucket_and_empty_prefix_are_directories(self, ufs):
        assert entries(ufs) == {}
        assert ufs.stat("").is_dir

    @pytest.mark.parametrize("wrong", [{"secret": "wrong"}, {"key": "nobody"}])
    @pytest.mark.parametrize("path", ["f", "f\n"])
    def test_wrong_credentials(self, object_store, bucket, prefix, wrong, path):
        ufs = open_ufs(f"s3://{bucket}/{prefix}", object_store.storage_options | wrong)
        for call in (
            lambda: ufs.stat(path),
            lambda: ufs.get(path, 0, 1, '"x"'),
            lambda: ufs.put(path, b"x"),
            lambda: ufs.delete(path),
        ):
            with pytest.raises(AccessDenied, match=rf"s3://{bucket}/{prefix}/f\s*: access denied") as caught:
                call()
            assert object_store.storage_options["secret"] not in str(caught.value)
        with pytest.raises(AccessDenied):
            ufs.list_directory("")

    def test_anonymous_access_that_is_refused(self, object_store, bucket, prefix):
        ufs = open_ufs(f"s3://{bucket}/{prefix}", {"anon": True, "endpoint_url": object_store.endpoint})
        with pytest.raises(AccessDenied):
            ufs.list_directory("")


def test_batch_of_a_listing_is_one_batch(ufs):
    """Not a table of chunks: what follows reads the buffers of a column."""
    assert isinstance(ufs.list_directory(""), pa.RecordBatch)


def test_directory_where_a_file_is_asked_for(place, ufs):
    ufs.put("d/f", b"x")
    with pytest.raises(Changed if place.kind != "local" else (Changed, IsADirectory)):
        ufs.get("d", 0, 1, "")
