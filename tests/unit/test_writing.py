"""Files written by name, and verbs that change names: what is seen when, by whom, and what is left when it fails."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from raycache.client import doubts, drafts, writing
from raycache.client.changing import Changing
from raycache.client.filesystem import FileSystem
from raycache.core.inode import VERBS_AT_ONCE, Verb
from raycache.errors import (
    Changed,
    Exists,
    InvalidInput,
    IsADirectory,
    NoSpace,
    NotADirectory,
    NotEmpty,
    NotFound,
    ReadOnly,
    Refused,
    WorkerLost,
)
from raycache.testing.inprocess import InProcessCache

ROOT = "raycache://data"


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[InProcessCache]:
    source = tmp_path / "source"
    (source / "sub" / "deep").mkdir(parents=True)
    (source / "listed").write_bytes(b"0123456789" * 10)
    (source / "sub" / "deep" / "file").write_bytes(b"deep")
    with InProcessCache(segments=tmp_path / "segments", workers=2) as cache:
        cache.files.attach(str(source), "data", {})
        yield cache


@pytest.fixture
def files(cache: InProcessCache) -> FileSystem:
    return cache.files


def read(files: FileSystem, name: str) -> bytes:
    return bytes(files.read_many([f"{ROOT}/{name}"])[0])


def segments(cache: InProcessCache) -> int:
    return len([each for home in cache.segment_calls.homes() for each in Path(home.directory).iterdir()])


class Asked:
    """Counts what is asked of the tree."""

    def __init__(self, cache: InProcessCache, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.calls = 0
        apply = cache.metadata.tree.apply

        def counted(verbs: Sequence[Verb]) -> list[Any]:
            self.calls += 1
            self.names += [verb.name for verb in verbs]
            return apply(verbs)

        monkeypatch.setattr(cache.metadata.tree, "apply", counted)


def test_what_is_written_is_seen_whole_when_it_is_closed(files: FileSystem) -> None:
    before = files.listdir(ROOT)
    with files.open(f"{ROOT}/new/dir/file", "wb") as file:
        assert file.writable()
        assert not file.readable()
        file.write(b"some ")
        file.flush()
        assert files.listdir(ROOT) == before
        file.write(b"bytes")
    assert read(files, "new/dir/file") == b"some bytes"
    assert files.listdir(ROOT) == [*before[:1], "new", *before[1:]] == ["listed", "new", "sub"]
    assert files.stat(f"{ROOT}/new/dir/file").size_bytes == 10
    assert list(files.walk(f"{ROOT}/new")) == [
        (f"{ROOT}/new", ["dir"], []),
        (f"{ROOT}/new/dir", [], ["file"]),
    ]


def test_text_is_written_as_the_builtin_writes_it(files: FileSystem) -> None:
    with files.open(f"{ROOT}/text", "w", encoding="utf-16", newline="\r\n") as file:
        assert file.write("ä\n") == 2
    assert read(files, "text") == "ä\r\n".encode("utf-16")
    with files.open(f"{ROOT}/text", "a", encoding="utf-8") as file:
        print("x", file=file)
    with files.open(f"{ROOT}/text", "rb") as file:
        assert file.read().endswith(b"x\n")


def fail(file: Any, data: bytes | str) -> None:
    with file:
        file.write(data)
        raise RuntimeError


def test_nothing_is_left_of_a_file_whose_writer_failed(cache: InProcessCache, files: FileSystem) -> None:
    for mode in ("wb", "w", "xb", "w+b"):
        with pytest.raises(RuntimeError):
            fail(files.open(f"{ROOT}/new", mode), "x" * 3_000_000 if mode == "w" else b"x" * 3_000_000)
        assert not files.exists(f"{ROOT}/new")
    for mode in ("r+b", "ab", "wb"):
        with pytest.raises(RuntimeError):
            fail(files.open(f"{ROOT}/listed", mode), b"x" * 3_000_000)
        assert read(files, "listed") == b"0123456789" * 10
    assert segments(cache) == 0


def test_nothing_is_left_of_a_file_that_was_forgotten(cache: InProcessCache, files: FileSystem) -> None:
    for mode in ("wb", "w", "w+b"):
        file = files.open(f"{ROOT}/new", mode)
        file.write("x" * 3_000_000 if mode == "w" else b"x" * 3_000_000)
        with pytest.warns(ResourceWarning, match="never closed"):
            del file
    raw = files.open(f"{ROOT}/new", "wb", buffering=0)
    raw.write(b"x")
    del raw
    gc.collect()
    assert not files.exists(f"{ROOT}/new")
    assert segments(cache) == 0


def test_a_file_may_be_discarded_and_closed_twice(files: FileSystem) -> None:
    file: Any = files.open(f"{ROOT}/new", "wb")
    file.write(b"x")
    file.discard()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.write(b"y")
    assert not files.exists(f"{ROOT}/new")
    file = files.open(f"{ROOT}/new", "wb")
    file.close()
    file.close()
    assert read(files, "new") == b""


@pytest.mark.parametrize("name", ["listed", "written"])
def test_a_file_is_replaced_changed_and_extended(files: FileSystem, name: str) -> None:
    want = bytearray(b"0123456789" * 10)
    if name == "written":
        files.write_many({f"{ROOT}/written": bytes(want)})
    with files.open(f"{ROOT}/{name}", "r+b") as file:
        file.seek(5)
        file.write(b"five")
        want[5:9] = b"five"
        file.seek(0)
        assert file.read() == want
        file.truncate(50)
        file.seek(60)
        file.write(b"end")
        want[50:] = bytes(10) + b"end"
    assert read(files, name) == want
    with files.open(f"{ROOT}/{name}", "ab") as file:
        file.seek(0)
        file.write(b" more")
    assert read(files, name) == want + b" more"
    with files.open(f"{ROOT}/{name}", "a+b") as file:
        file.seek(0)
        assert file.read(3) == want[:3]
    with files.open(f"{ROOT}/{name}", "wb") as file:
        file.write(b"new")
    assert read(files, name) == b"new"


def test_modes_mean_what_they_mean_to_the_builtin(files: FileSystem) -> None:
    with pytest.raises(Exists):
        files.open(f"{ROOT}/listed", "xb")
    with pytest.raises(NotFound):
        files.open(f"{ROOT}/none", "r+b")
    for mode in ("wb", "ab", "r+b"):
        with pytest.raises(IsADirectory):
            files.open(f"{ROOT}/sub", mode).close()
        with pytest.raises(IsADirectory):
            files.open(ROOT, mode)
    with pytest.raises(NotADirectory):
        files.open(f"{ROOT}/listed/below", "wb").close()
    with pytest.raises(InvalidInput, match="no mode"):
        files.open(f"{ROOT}/new", "rw")
    with pytest.raises(InvalidInput, match="write type"):
        files.open(f"{ROOT}/new", "wb", write_type="often")
    with files.open(f"{ROOT}/new", "wb") as file, pytest.raises(io.UnsupportedOperation):
        file.read()
    with files.open(f"{ROOT}/new", "ab", buffering=0) as file:
        assert (file.seek(0, io.SEEK_END), file.tell()) == (0, 0)
        with pytest.raises(ValueError, match="seek"):
            file.seek(-1)
        with pytest.raises(ValueError, match="long"):
            file.truncate(-1)
    file = files.open(f"{ROOT}/late", "xb")
    files.touch(f"{ROOT}/late")
    with pytest.raises(Exists):
        file.close()


def test_a_snapshot_has_what_was_written_before_and_cannot_be_written(cache: InProcessCache) -> None:
    cache.files.listdir(ROOT)
    cache.files.write_many({f"{ROOT}/before": b"x"})
    cache.namespace.settle()
    view = cache.view(cache.master.newest_change())
    cache.files.write_many({f"{ROOT}/after": b"x"})
    assert view.listdir(ROOT) == ["before", "listed", "sub"]
    calls: list[Callable[[], object]] = [
        lambda: view.open(f"{ROOT}/new", "wb"),
        lambda: view.write_many({f"{ROOT}/new": b"x"}),
        lambda: view.mkdir(f"{ROOT}/new"),
        lambda: view.remove(f"{ROOT}/before"),
    ]
    for call in calls:
        with pytest.raises(ReadOnly):
            call()


def test_many_small_files_are_few_calls_and_segments(
    cache: InProcessCache, files: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(1)
    bodies = {f"{ROOT}/many/{number % 7}/{number:05d}": rng.randbytes(rng.randrange(100)) for number in range(3000)}
    asked = Asked(cache, monkeypatch)
    assert files.write_many(bodies) == 3000
    assert asked.names == ["put"] * 3000
    assert asked.calls == segments(cache) == -(-3000 // VERBS_AT_ONCE)
    assert [bytes(data) for data in files.read_many(list(bodies))] == list(bodies.values())
    assert files.write_many({}) == 0


def test_of_many_files_those_that_can_be_written_are(files: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IsADirectory):
        files.write_many({f"{ROOT}/1": b"1", f"{ROOT}/sub": b"2", f"{ROOT}/3": b"3"})
    assert files.read_many([f"{ROOT}/1", f"{ROOT}/3"]) == [b"1", b"3"]
    monkeypatch.setattr(writing, "GROUP_BYTES", 10)

    def made() -> Iterator[tuple[str, bytes]]:
        yield f"{ROOT}/4", b"x" * 10
        assert read(files, "4") == b"x" * 10
        yield f"{ROOT}/5", b"5"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        files.write_many(made())
    assert files.exists_many([f"{ROOT}/4", f"{ROOT}/5"]) == [True, False]


def test_a_file_that_there_is_no_room_for_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with InProcessCache(segments=tmp_path / "segments", write_quota=1 << 20) as cache:
        cache.files.attach(str(tmp_path / "source"), "data", {})
        with pytest.raises(NoSpace), cache.files.open(f"{ROOT}/big", "wb") as file:
            file.write(bytes(1 << 21))
        assert cache.files.listdir(ROOT) == []
        assert segments(cache) == 0


@pytest.mark.parametrize("mode", ["wb", "ab", "r+b", "w"])
@pytest.mark.parametrize("size", [10, 3 << 20])
def test_what_could_not_be_written_whole_leaves_what_was_there(
    cache: InProcessCache, files: FileSystem, monkeypatch: pytest.MonkeyPatch, mode: str, size: int
) -> None:
    """Few bytes wait in a buffer until the file is closed: it is the close that fails, and it must not make a file."""
    files.writing.write_many({f"{ROOT}/f": b"before"})

    def fails() -> Any:
        raise WorkerLost("gone")

    with monkeypatch.context() as patch:
        patch.setattr(cache.segments, "writer", fails)
        with pytest.raises(WorkerLost), files.open(f"{ROOT}/f", mode) as file:
            file.write("x" * size if mode == "w" else b"x" * size)
        kept = files.open(f"{ROOT}/f", mode)
        with contextlib.suppress(WorkerLost):
            kept.write("x" * size if mode == "w" else b"x" * size)
        with pytest.raises(WorkerLost):
            kept.close()
        waits = files.writing.open(f"{ROOT}/new", "wb", drafts.Options(wait=True))
        with pytest.raises(WorkerLost):
            waits.write(b"x")
        with pytest.raises(WorkerLost):
            waits.close()
        with pytest.raises(WorkerLost):
            files.writing.commit([waits])
    assert read(files, "f") == b"before"
    assert not files.exists(f"{ROOT}/new")


def test_scattered_writes_are_gathered_when_they_are_too_many(
    files: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "EXTENTS_MAX", 10)
    want = bytearray(b"0123456789" * 10)
    with files.open(f"{ROOT}/listed", "r+b", buffering=0) as file:
        for at in range(0, 100, 5):
            file.seek(at)
            file.write(b"x")
            want[at : at + 1] = b"x"
    assert read(files, "listed") == want


def test_directories_are_made_and_removed(files: FileSystem) -> None:
    files.mkdir(f"{ROOT}/a")
    with pytest.raises(Exists):
        files.mkdir(f"{ROOT}/a")
    files.mkdir(f"{ROOT}/a", exist_ok=True)
    with pytest.raises(Exists):
        files.mkdir(f"{ROOT}/listed", exist_ok=True)
    with pytest.raises(NotFound):
        files.mkdir(f"{ROOT}/b/c/d")
    files.mkdir(f"{ROOT}/b/c/d", parents=True)
    assert files.listdir(f"{ROOT}/b/c") == ["d"]
    assert files.listdir(f"{ROOT}/b/c/d") == []
    with pytest.raises(NotEmpty):
        files.rmdir(f"{ROOT}/b")
    with pytest.raises(NotADirectory):
        files.rmdir(f"{ROOT}/listed")
    files.rmdir(f"{ROOT}/b/c/d")
    assert files.listdir(f"{ROOT}/b/c") == []
    assert files.remove_tree(f"{ROOT}/b") == 2
    assert files.remove_tree(f"{ROOT}/sub") == 3
    assert files.listdir(ROOT) == ["a", "listed"]
    for root_verb in (files.rmdir, files.remove, files.remove_tree):
        with pytest.raises(InvalidInput, match="root"):
            root_verb(ROOT)
    files.mkdir(ROOT, exist_ok=True)
    with pytest.raises(Exists):
        files.mkdir(ROOT)


def test_files_are_removed(files: FileSystem) -> None:
    files.remove(f"{ROOT}/listed")
    assert not files.exists(f"{ROOT}/listed")
    with pytest.raises(NotFound):
        files.remove(f"{ROOT}/listed")
    with pytest.raises(IsADirectory):
        files.remove(f"{ROOT}/sub")
    files.write_many({f"{ROOT}/listed": b"again"})
    assert read(files, "listed") == b"again"


def test_files_and_trees_are_moved(files: FileSystem) -> None:
    assert read(files, "sub/deep/file") == b"deep"
    files.rename(f"{ROOT}/sub", f"{ROOT}/moved")
    assert files.listdir(ROOT) == ["listed", "moved"]
    assert read(files, "moved/deep/file") == b"deep"
    assert files.stat(f"{ROOT}/moved/deep/file").path == "moved/deep/file"
    assert files.stat_many([f"{ROOT}/moved/deep", f"{ROOT}/moved"])[0].path == "moved/deep"
    assert not files.exists(f"{ROOT}/sub/deep/file")
    files.mkdir(f"{ROOT}/sub")
    with pytest.raises(NotEmpty):
        files.rename(f"{ROOT}/sub", f"{ROOT}/moved")
    files.rename(f"{ROOT}/moved", f"{ROOT}/sub")
    assert files.read_many([f"{ROOT}/sub/deep/file"]) == [b"deep"]
    files.rename(f"{ROOT}/sub/deep/file", f"{ROOT}/listed")
    assert read(files, "listed") == b"deep"
    files.touch(f"{ROOT}/other")
    with pytest.raises(Exists):
        files.rename(f"{ROOT}/other", f"{ROOT}/listed", replace=False)
    with pytest.raises(NotFound):
        files.rename(f"{ROOT}/none", f"{ROOT}/listed")


def test_a_walk_shows_what_was_written_since_the_last_one(files: FileSystem) -> None:
    files.mkdir(f"{ROOT}/made")
    for name in ("a", "b"):
        files.touch(f"{ROOT}/made/{name}")
        assert next(iter(files.walk(f"{ROOT}/made")))[2][-1] == name


@pytest.mark.parametrize("search", ["walk", "glob"])
def test_what_is_made_in_a_directory_that_was_moved_twice_is_found(files: FileSystem, search: str) -> None:
    def look() -> None:
        list(files.walk(f"{ROOT}/top") if search == "walk" else files.glob(f"{ROOT}/top/**/*"))

    files.mkdir(f"{ROOT}/top/b", parents=True)
    for step in (("top/b", "top/c"), ("top/c", "top/a")):
        look()
        files.rename(f"{ROOT}/{step[0]}", f"{ROOT}/{step[1]}")
    look()
    files.touch(f"{ROOT}/top/a/new")
    assert list(files.walk(f"{ROOT}/top")) == [(f"{ROOT}/top", ["a"], []), (f"{ROOT}/top/a", [], ["new"])]
    assert files.glob(f"{ROOT}/top/*/*") == [f"{ROOT}/top/a/new"]


def test_what_cannot_take_the_place_of_a_directory_leaves_it(files: FileSystem) -> None:
    for source in ("none", "sub/deep", "sub"):
        with pytest.raises((NotFound, InvalidInput)):
            files.replace_tree(f"{ROOT}/{source}", f"{ROOT}/sub" if source != "sub" else f"{ROOT}/sub/deep")
    assert files.read_many([f"{ROOT}/sub/deep/file"]) == [b"deep"]
    files.replace_tree(f"{ROOT}/listed", f"{ROOT}/sub")
    assert files.listdir(ROOT) == ["sub"]


def test_a_directory_that_something_is_in_does_not_give_way_to_it(files: FileSystem) -> None:
    with pytest.raises(NotEmpty, match="is in it"):
        files.rename(f"{ROOT}/sub/deep/file", f"{ROOT}/sub")
    with pytest.raises(Exists):
        files.rename(f"{ROOT}/sub", f"{ROOT}/sub/deep", replace=False)


def test_what_another_client_moved_has_its_new_path(cache: InProcessCache, files: FileSystem) -> None:
    _, other = cache.another()
    assert files.stat(f"{ROOT}/sub/deep/file").path == "sub/deep/file"
    other.rename(f"{ROOT}/sub", f"{ROOT}/moved")
    cache.namespace.catch_up()
    assert files.stat_many([f"{ROOT}/moved/deep/file"])[0].path == "moved/deep/file"
    assert not files.exists(f"{ROOT}/sub/deep/file")


def test_nothing_moves_between_datasets_but_copies(cache: InProcessCache, files: FileSystem, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files.attach(str(tmp_path / "other"), "other", {})
    with pytest.raises(Refused) as refused:
        files.rename(f"{ROOT}/listed", "raycache://other/listed")
    assert refused.value.errno == errno.EXDEV
    files.copy(f"{ROOT}/listed", "raycache://other/copied")
    assert files.read_many(["raycache://other/copied"]) == [b"0123456789" * 10]
    with pytest.raises(Exists):
        files.copy(f"{ROOT}/listed", "raycache://other/copied", replace=False)
    assert segments(cache) == 1


def test_a_copy_has_bytes_of_its_own_and_writes_none(cache: InProcessCache, files: FileSystem) -> None:
    files.copy(f"{ROOT}/listed", f"{ROOT}/new/copied")
    files.copy(f"{ROOT}/new/copied", f"{ROOT}/new/copied")
    assert segments(cache) == 0
    with files.open(f"{ROOT}/listed", "r+b") as file:
        file.write(b"changed")
    assert read(files, "new/copied") == b"0123456789" * 10
    with pytest.raises(IsADirectory):
        files.copy(f"{ROOT}/sub", f"{ROOT}/copied")
    with pytest.raises(NotFound):
        files.copy(f"{ROOT}/none", f"{ROOT}/copied")


def test_attributes_are_set(files: FileSystem) -> None:
    files.touch(f"{ROOT}/new/empty")
    assert read(files, "new/empty") == b""
    with pytest.raises(Exists):
        files.touch(f"{ROOT}/new/empty", exist_ok=False)
    before = files.stat(f"{ROOT}/listed").mtime_ns
    files.touch(f"{ROOT}/listed")
    assert files.stat(f"{ROOT}/listed").mtime_ns != before
    files.utime(f"{ROOT}/listed", mtime_ns=10**18)
    assert files.stat(f"{ROOT}/listed").mtime_ns == 10**18
    files.truncate(f"{ROOT}/listed", 4)
    files.chmod(f"{ROOT}/listed", 0o600)
    assert read(files, "listed") == b"0123"


def test_each_change_is_seen_at_once_and_published_once_it_is_looked_at(
    cache: InProcessCache, files: FileSystem
) -> None:
    files.listdir(ROOT)
    published = cache.metadata.publisher.published
    for number in range(20):
        with files.open(f"{ROOT}/{number}", "wb") as file:
            file.write(b"%d" % number)
    assert cache.metadata.publisher.published == published
    assert [read(files, str(number)) for number in range(20)] == [b"%d" % number for number in range(20)]
    assert cache.metadata.publisher.published == published + 1


def test_others_see_what_was_written_when_they_follow(cache: InProcessCache, files: FileSystem) -> None:
    namespace, other = cache.another()
    assert other.listdir(ROOT) == ["listed", "sub"]
    files.write_many({f"{ROOT}/new": b"new", f"{ROOT}/listed": b"replaced"})
    assert other.listdir(ROOT) == ["listed", "sub"]
    namespace.catch_up()
    assert other.listdir(ROOT) == ["listed", "new", "sub"]
    assert other.read_many([f"{ROOT}/new", f"{ROOT}/listed"]) == [b"new", b"replaced"]


def test_who_is_told_of_a_change_shows_it(cache: InProcessCache, files: FileSystem) -> None:
    namespace, other = cache.another()
    namespace.begin_following()
    other.listdir(ROOT)
    files.write_many({f"{ROOT}/new": b"new"})
    change = cache.namespace.settled_change()
    assert other.listdir(ROOT) == ["listed", "sub"]
    namespace.at_least(change)
    assert other.listdir(ROOT) == ["listed", "new", "sub"]
    calls = cache.master.calls
    namespace.at_least(change)
    assert cache.master.calls == calls


def test_a_name_that_is_not_found_is_looked_for_once_more(
    cache: InProcessCache, files: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubts, "ASK_S", 0)
    _, other = cache.another()
    other.listdir(ROOT)
    other.listdir(f"{ROOT}/sub")
    looks: list[Callable[[str], object]] = [
        lambda uri: other.exists(uri) or None,
        other.stat,
        lambda uri: other.open(uri).read(),
        lambda uri: other.read_many([uri]),
        lambda uri: other.stat_many([f"{ROOT}/listed", uri]),
        lambda uri: all(other.exists_many([f"{ROOT}/listed", uri])) or None,
        lambda uri: other.read_range(uri, 0, 1),
        lambda uri: other.lookup_many(uri.rpartition("/")[0], [uri.rpartition("/")[2]]).exists.all() or None,
        lambda uri: other.lookup_many(uri.rpartition("/")[0], ["0", uri.rpartition("/")[2]]).exists.all() or None,
    ]
    for number, look in enumerate(looks):
        for directory in (ROOT, f"{ROOT}/sub"):
            files.write_many({f"{directory}/{number}": b"x"})
            assert look(f"{directory}/{number}") is not None
    files.write_many({f"{ROOT}/new/file": b"x"})
    assert other.listdir_many([f"{ROOT}/new", ROOT])[0] == ["file"]


def test_to_look_in_vain_publishes_nothing_and_asks_seldom(
    cache: InProcessCache, files: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubts, "ASK_S", 1000)
    _, other = cache.another()
    files.write_many({f"{ROOT}/new": b"x"})
    assert not files.exists(f"{ROOT}/none")
    other.listdir(ROOT)
    asked = Asked(cache, monkeypatch)
    published = cache.metadata.publisher.published
    for _ in range(3):
        assert not files.exists(f"{ROOT}/none")
        assert not other.exists(f"{ROOT}/none")
        assert other.exists_many([f"{ROOT}/none", f"{ROOT}/listed"]) == [False, True]
    assert asked.names == ["getattr"] * 4  # of them one for ``other``
    assert cache.metadata.publisher.published == published


def test_while_the_master_does_not_answer_what_is_held_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(doubts.THREADS, "monotonic", lambda: now[0])
    mine = doubts.Doubts()
    with mine.asking() as allowed:
        assert allowed
        now[0] += doubts.ASK_S
        with mine.asking() as meanwhile:
            assert meanwhile
        now[0] += doubts.WAIT_S
        with mine.asking(anyway=True) as late:
            assert not late
    with mine.asking() as again:
        assert again
    with mine.asking() as soon, mine.asking(anyway=True) as urgent:
        assert (soon, urgent) == (False, True)


def test_a_file_that_was_replaced_is_looked_for_once_more(
    cache: InProcessCache, files: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubts, "ASK_S", 0)
    _, other = cache.another()
    looks: list[Callable[[str], Any]] = [
        lambda uri: other.read_many([uri])[0],
        lambda uri: other.read_range(uri, 0, 100),
        lambda uri: other.open(uri).read(),
    ]
    for number, look in enumerate(looks):
        uri = f"{ROOT}/{number}"
        files.write_many({uri: b"old"})
        assert other.stat(uri).size_bytes == 3
        files.write_many({uri: b"newer"})
        assert bytes(look(uri)) == b"newer"
    files.write_many({f"{ROOT}/large": bytes(3 << 20)})
    with other.open(f"{ROOT}/large", buffering=0) as file:
        assert file.read(1) == b"\0"
        files.write_many({f"{ROOT}/large": b"x" * (3 << 20)})
        file.seek(0)
        with contextlib.suppress(Changed):  # the old bytes, as far as they are kept; never others
            assert file.read() == bytes(3 << 20)


def test_a_directory_that_was_removed_is_followed(
    cache: InProcessCache, files: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubts, "ASK_S", 0)
    namespace, other = cache.another()
    files.write_many({f"{ROOT}/a/b/file": b"x"})
    assert other.listdir(f"{ROOT}/a/b") == ["file"]
    namespace.catch_up()
    files.write_many({f"{ROOT}/a/b/more": b"x"})
    files.remove_tree(f"{ROOT}/a")
    assert files.listdir(ROOT) == ["listed", "sub"]
    namespace.catch_up()
    assert not other.exists(f"{ROOT}/a/b/file")
    files.write_many({f"{ROOT}/a/b": b"now a file"})
    assert other.read_many([f"{ROOT}/a/b"]) == [b"now a file"]


def test_through_waits_for_the_source(cache: InProcessCache) -> None:
    waited: list[list[tuple[str, str]]] = []
    changing = Changing(cache.namespace, cache.master.tree, cache.segments, lambda places: waited.append(list(places)))
    files = FileSystem(cache.namespace, cache.reader, changing)
    files.write_many({f"{ROOT}/1": b"x", f"{ROOT}/sub/2": b"x"}, write_type="through")
    assert sorted(waited.pop()) == [("data", "1"), ("data", "sub/2")]
    with files.open(f"{ROOT}/3", "wb", write_type="through") as file:
        file.write(b"x")
    assert waited.pop() == [("data", "3")]
    files.copy(f"{ROOT}/3", f"{ROOT}/4", write_type="through")
    files.touch(f"{ROOT}/5", write_type="through")
    assert [waited.pop(0), waited.pop(0)] == [[("data", "4")], [("data", "5")]]
    files.write_many({f"{ROOT}/6": b"x"})
    files.rename(f"{ROOT}/1", f"{ROOT}/7")
    assert not waited
    assert files.set_write_type("data", "through").write_type == "through"
    with pytest.raises(InvalidInput, match="choose"):
        files.set_write_type("data", "often")
    files.write_many({f"{ROOT}/6": b"x"}, write_type="async")
    assert not waited
    files.write_many({f"{ROOT}/6": b"x"})
    files.rename(f"{ROOT}/7", f"{ROOT}/8")
    files.remove(f"{ROOT}/8")
    files.mkdir(f"{ROOT}/a/b", parents=True)
    assert waited == [
        [("data", "6")], [("data", "7"), ("data", "8")], [("data", "8")], [("data", "a")], [("data", "a/b")],
    ]  # fmt: skip


def test_what_is_to_outlive_the_machine_is_synced_when_it_is_there(
    cache: InProcessCache, files: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[list[str]] = []
    monkeypatch.setattr(cache.metadata.tree._catalog, "sync", lambda: synced.append(files.listdir(ROOT)))
    files.write_many({f"{ROOT}/plain": b"x"})
    with files.open(f"{ROOT}/plain too", "wb") as file:
        file.write(b"x")
    assert synced == []
    files.write_many({f"{ROOT}/x": b"x"}, sync=True)
    with files.open(f"{ROOT}/y", "wb", sync=True) as file:
        file.write(b"x")
    with files.open(f"{ROOT}/z", "wb") as file:
        file.write(b"x")
        file.sync()
    for name, names in zip("xyz", synced, strict=True):
        assert name in names


def test_a_listed_file_is_read_to_be_changed_also_after_its_directory_was_moved(
    cache: InProcessCache, files: FileSystem
) -> None:
    files.set_write_type("data", "cache")  # in the source it stays where it is
    assert read(files, "sub/deep/file") == b"deep"
    files.rename(f"{ROOT}/sub/deep", f"{ROOT}/moved")
    cache.namespace.settle()
    for client in (files, cache.another()[1]):
        assert client.listdir(f"{ROOT}/moved") == ["file"]
        with client.open(f"{ROOT}/moved/file", "r+b") as file:
            assert file.read() == b"deep"
