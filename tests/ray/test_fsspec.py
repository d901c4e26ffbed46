"""The fsspec file system: fsspec's own suites, and what they do not ask for."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import posixpath
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

import raycache
from raycache.actors.cluster import current
from raycache.errors import ClusterUnavailable, Exists, IsADirectory, NotEmpty, NotFound, ReadOnly
from raycache.fsspec import RaycacheFileSystem

pytest.register_assert_rewrite("fsspec.tests.abstract")  # so that a failure says what was found
from fsspec.tests import abstract  # noqa: E402


@pytest.fixture
def fs(connected: Path) -> RaycacheFileSystem:
    return raycache.filesystem()


@pytest.fixture
def base(fs: RaycacheFileSystem) -> str:
    """A directory of its own."""
    path = f"data/{uuid.uuid4().hex[:8]}"
    fs.mkdir(path)
    return path


class Ours(abstract.AbstractFixtures):
    """What the suites run on."""

    @pytest.fixture
    def fs(self, connected: Path) -> RaycacheFileSystem:
        return raycache.filesystem()

    @pytest.fixture
    def fs_path(self, base: str) -> str:
        return base

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return posixpath.join


class TestCopy(abstract.AbstractCopyTests, Ours):
    """Its copies."""


class TestGet(abstract.AbstractGetTests, Ours):
    """Its downloads."""


class TestPut(abstract.AbstractPutTests, Ours):
    """Its uploads."""


class TestPipe(abstract.AbstractPipeTests, Ours):
    """Its writes of whole files."""


class TestOpen(abstract.AbstractOpenTests, Ours):
    """Its files."""


def test_files_are_written_in_every_mode(fs: RaycacheFileSystem, base: str) -> None:
    with fs.open(f"{base}/a/b/text", "w", encoding="utf-8") as file:
        file.write("ä\n")
    with fs.open(f"{base}/a/b/text", "ab") as file:
        file.write(b"more")
    with fs.open(f"{base}/a/b/text", "r+b") as file:
        file.seek(3)
        file.write(b"MORE")
    assert fs.cat(f"{base}/a/b/text") == "ä\nMORE".encode()
    with fs.open(f"{base}/packed.gz", "wb", compression="infer") as file:
        file.write(b"packed")
    assert gzip.decompress(fs.cat(f"{base}/packed.gz")) == b"packed"
    assert fsspec.open(f"raycache://{base}/packed.gz", compression="infer").open().read() == b"packed"
    with fsspec.open(f"raycache://{base}/by-url", "wb") as file:
        file.write(b"by url")
    assert fs.size(f"{base}/by-url") == 6
    assert fs.find(base) == [f"{base}/a/b/text", f"{base}/by-url", f"{base}/packed.gz"]


def test_of_a_file_that_failed_nothing_is_seen(fs: RaycacheFileSystem, base: str) -> None:
    def fail(**options: Any) -> None:
        with fs.open(f"{base}/file", **options) as file:
            file.write("x" * 100_000 if options["mode"] == "wt" else b"x" * 100_000)
            raise RuntimeError

    for mode in ("wb", "wt", "xb"):
        for compression in (None, "gzip", "xz"):
            with pytest.raises(RuntimeError):
                fail(mode=mode, compression=compression)
            assert not fs.exists(f"{base}/file")
    with fs.open(f"{base}/file", "wt", compression="gzip") as file:
        file.write("text")
    with fs.open(f"{base}/file", "rt", compression="gzip") as file:
        assert file.read() == "text"


def test_directories_and_files_come_and_go(fs: RaycacheFileSystem, base: str) -> None:
    fs.makedirs(f"{base}/a/b")
    with pytest.raises(Exists):
        fs.makedirs(f"{base}/a/b")
    fs.makedirs(f"{base}/a/b", exist_ok=True)
    with pytest.raises(Exists):
        fs.mkdir(f"{base}/a")
    with pytest.raises(NotFound):
        fs.mkdir(f"{base}/x/y", create_parents=False)
    with pytest.raises(NotEmpty):
        fs.rmdir(f"{base}/a")
    fs.touch(f"{base}/a/file")
    with pytest.raises(IsADirectory):
        fs.rm(f"{base}/a")
    fs.pipe({f"{base}/many/{number}": b"%d" % number for number in range(100)})
    assert fs.cat(f"{base}/many/*")[f"{base}/many/42"] == b"42"
    assert fs.cat([f"{base}/many/1", f"{base}/many/2"]) == {f"{base}/many/1": b"1", f"{base}/many/2": b"2"}
    assert len(fs.cat(f"{base}/many", recursive=True)) == 100
    assert isinstance(fs.cat([f"{base}/none"], on_error="return")[f"{base}/none"], NotFound)
    fs.rm([f"{base}/many/1", f"{base}/many/2?"])
    assert len(fs.ls(f"{base}/many")) == 89
    with pytest.raises(NotImplementedError):
        fs.rm(f"{base}/many", recursive=True, maxdepth=1)
    fs.rm(base, recursive=True)
    assert not fs.exists(base)
    with pytest.raises(FileNotFoundError):
        fs.rm(base, recursive=True)


def test_moves(fs: RaycacheFileSystem, base: str, tmp_path: Path) -> None:
    fs.pipe({f"{base}/tree/a/1": b"1", f"{base}/tree/2": b"2", f"{base}/file": b"3"})
    fs.mv(f"{base}/tree", f"{base}/new/place", recursive=True)
    fs.mv(f"{base}/file", f"{base}/new/place/")
    fs.mv(f"{base}/new/place/2", f"{base}/new/place/a")
    fs.mv(f"{base}/new/place/a/2", f"{base}/new/place/a/2")
    assert fs.find(base) == [f"{base}/new/place/{name}" for name in ("a/1", "a/2", "file")]
    fs.mv(f"{base}/new/place/a/*", f"{base}/")
    assert fs.find(base) == [f"{base}/{name}" for name in ("1", "2", "new/place/file")]
    raycache.dataset("other", str(tmp_path))
    fs.mv(f"{base}/new", "other/new", recursive=True)
    assert fs.cat("other/new/place/file") == b"3"
    assert not fs.exists(f"{base}/new/place")
    raycache.remove_dataset("other")


def test_touch_keeps_or_empties(fs: RaycacheFileSystem, base: str) -> None:
    fs.pipe(f"{base}/file", b"bytes")
    before = fs.modified(f"{base}/file")
    fs.touch(f"{base}/file", truncate=False)
    assert fs.cat(f"{base}/file") == b"bytes"
    assert fs.modified(f"{base}/file") > before
    fs.touch(f"{base}/file")
    assert fs.cat(f"{base}/file") == b""


def test_a_transaction_is_seen_when_it_ends(fs: RaycacheFileSystem, base: str) -> None:
    with fs.transaction:
        for number in range(3):
            with fs.open(f"{base}/{number}", "wb") as file:
                file.write(b"%d" % number)
        fs.pipe({f"{base}/{number}": b"x" for number in (3, 4)})
        left_open = fs.open(f"{base}/5", "wb")
        left_open.write(b"5")
        assert fs.ls(base) == []
    assert fs.cat(f"{base}/*") == {
        f"{base}/{number}": b"%d" % number if number not in (3, 4) else b"x" for number in range(6)
    }
    assert left_open.closed

    def fail() -> None:
        with fs.transaction:
            fs.pipe(f"{base}/none", b"x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not fs.exists(f"{base}/none")
    fs.pipe(f"{base}/none", b"x")
    assert fs.exists(f"{base}/none")

    def refused() -> None:
        with fs.transaction:
            fs.pipe(f"{base}/good", b"x")
            fs.pipe(f"{base}/dir", b"x")
            fs.mkdir(f"{base}/dir")

    with pytest.raises(IsADirectory):
        refused()
    assert fs.exists(f"{base}/good")


def test_a_file_may_be_committed_later(fs: RaycacheFileSystem, base: str) -> None:
    file = fs.open(f"{base}/file", "wb", autocommit=False)
    file.write(b"later")
    file.close()
    assert not fs.exists(f"{base}/file")
    file.commit()
    assert fs.cat(f"{base}/file") == b"later"
    file = fs.open(f"{base}/file", "wb", autocommit=False)
    file.write(b"never")
    file.discard()
    assert fs.cat(f"{base}/file") == b"later"


def test_one_that_came_from_another_cache_names_that_one_when_it_is_sent_on(connected: Path) -> None:
    """A process of Ray's tasks is connected to the cache of whichever came before."""
    another = current().portable_settings.model_copy(update={"namespace": "another"})
    came = raycache.filesystem()
    came._settings, came._seen = another, 7
    sent = pickle.loads(pickle.dumps(came))
    assert (sent._settings, sent._seen) == (another, 7)


def test_a_pickled_one_writes_as_it_was_told_to(fs: RaycacheFileSystem, base: str, connected: Path) -> None:
    through = pickle.loads(pickle.dumps(RaycacheFileSystem(write_type="through")))
    through.pipe(f"{base}/file", b"x")
    assert (connected / base.partition("/")[2] / "file").read_bytes() == b"x"
    with pytest.raises(ReadOnly):
        raycache.filesystem(snapshot=raycache.snapshot().change).pipe(f"{base}/file", b"x")


def test_pandas_writes_and_reads(base: str) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    for kind in ("parquet", "csv", "json"):
        options: dict[str, Any] = {"index": False} if kind != "json" else {}
        getattr(frame, f"to_{kind}")(f"raycache://{base}/frame.{kind}", **options)
        again = getattr(pandas, f"read_{kind}")(f"raycache://{base}/frame.{kind}")
        pandas.testing.assert_frame_equal(again, frame)


def test_uploads_show_how_far_they_are(fs: RaycacheFileSystem, base: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(100_000))
    callback = fsspec.callbacks.Callback()
    fs.put_file(str(tmp_path / "file"), f"{base}/deep/er/file", callback=callback)
    assert callback.value == callback.size == 100_000
    buffer = io.BytesIO()
    fs.get_file(f"{base}/deep/er/file", buffer)
    assert buffer.getvalue() == (tmp_path / "file").read_bytes()


@pytest.mark.parametrize("ask", ["exists", "isdir", "isfile", "find", "glob", "du"])
def test_a_cluster_that_is_away_is_not_taken_for_an_empty_directory(ask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> Any:
        raise ClusterUnavailable("the master is away")

    fs = RaycacheFileSystem()
    monkeypatch.setattr(fs, "files", away)
    with pytest.raises(ClusterUnavailable):
        getattr(fs, ask)("data/*" if ask == "glob" else "data/a")
