"""What writers may rely on, whether they can open their worker's directory or write through the worker."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache.client.segments import Segments, Writer
from raycache.core.inode import Content, Extent
from raycache.core.segment import Home, SegmentRange
from raycache.core.values import Failed
from raycache.errors import Changed, NoSpace, NotFound, Unavailable, WorkerLost
from raycache.store.fileops import FileOps
from raycache.store.segmentfile import NodeSegments, SegmentFiles, SegmentWriter
from raycache.store.segments import CALM_S, LEFT_OVER_FULL_S, LEFT_OVER_S, SegmentStore, claim_directory
from raycache.testing.inprocess import InProcessCache, InProcessSegments

QUOTA = 1 << 20
NODE = "n" * 56


class Clock:
    """A scheduler's time that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture(params=["local", "through a worker"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InProcessCache]:
    with InProcessCache(segments=tmp_path / "segments", write_quota=QUOTA, workers=2) as cache:
        if request.param != "local":
            cache.segments = Segments(Elsewhere(cache), NodeSegments(), cache.namespace, cache.reader, timeout_s=10)
        yield cache


class Elsewhere(InProcessSegments):
    """Calls to workers whose directories cannot be opened here."""

    def __init__(self, cache: InProcessCache) -> None:
        self.__dict__ |= cache.segment_calls.__dict__

    def homes(self) -> list[Home]:
        return [home._replace(inode=0) for home in super().homes()]


def whole(writer: Writer) -> Content:
    return Content(writer.size_bytes, (Extent(0, writer.size_bytes, writer.segment),))


def test_what_is_written_is_read_back(cache: InProcessCache) -> None:
    writer = cache.segments.writer()
    assert writer.append(b"first") == 0
    assert writer.append(b"second") == 5
    writer.pwrite(20, b"far")
    writer.pwrite(0, b"F")
    writer.sync()
    assert writer.size_bytes == 23
    assert bytes(writer.pread(0, 100)) == b"Firstsecond" + bytes(9) + b"far"
    writer.release()
    assert writer.about() == (writer.segment, writer.worker_id, 23)
    assert bytes(cache.segments.read("data", whole(writer), 2, 6)) == b"rstsec"
    assert bytes(cache.segments.read("data", whole(writer), 18, 100)) == b"\0\0far"


def test_a_file_of_many_extents_and_holes(cache: InProcessCache) -> None:
    one, two = cache.segments.writer(), cache.segments.writer()
    one.append(b"abcdef")
    two.append(b"ABCDEF")
    extents = (Extent(0, 2, one.segment, 1), Extent(2, 3), Extent(5, 2, two.segment, 4), Extent(7, 2, one.segment, 0))
    content = Content(9, extents)
    assert bytes(cache.segments.read("data", content, 0, 9)) == b"bc\0\0\0EFab"
    many = cache.segments.read_many([("data", content, at, 2) for at in range(9)])
    assert [bytes(each) for each in many][5] == b"EF"
    assert bytes(many[8]) == b"b"
    assert bytes(cache.segments.read("data", Content(0, ()), 0, 10)) == b""


def test_a_thousand_files_in_one_segment_are_one_call(cache: InProcessCache) -> None:
    writer = cache.segments.writer()
    wanted = []
    for number in range(1000):
        data = f"file {number}".encode()
        wanted.append(
            ("data", Content(len(data), (Extent(0, len(data), writer.segment, writer.append(data)),)), 0, 100)
        )
    calls: InProcessSegments = cache.segments._calls  # type: ignore[assignment]
    before = calls.calls
    found = cache.segments.read_many(wanted)
    assert [bytes(each) for each in found] == [f"file {number}".encode() for number in range(1000)]
    assert calls.calls - before == (1 if isinstance(calls, Elsewhere) else 0)


def test_no_more_is_written_than_there_is_room_for(cache: InProcessCache) -> None:
    writer = cache.segments.writer()
    writer.append(bytes(QUOTA // 2))
    with pytest.raises(NoSpace, match="write_quota"):
        writer.append(bytes(QUOTA))
    with pytest.raises(NoSpace):
        writer.pwrite(QUOTA * 2, b"x")


def test_one_that_was_discarded_is_gone(cache: InProcessCache) -> None:
    writer = cache.segments.writer()
    writer.append(b"never mind")
    writer.discard()
    writer.discard()
    with pytest.raises(Changed, match="replaced"):
        cache.segments.read("data", whole(writer), 0, 5)


def test_a_successor_goes_on_with_a_segment(cache: InProcessCache) -> None:
    writer = cache.segments.writer()
    writer.append(b"begun, ")
    writer.release()  # as the kernel does for a process that dies
    again = cache.segments.resume(writer.segment, writer.worker_id)
    assert again.append(b"and ended") == 7
    assert bytes(again.pread(0, 100)) == b"begun, and ended"
    again.release()
    with pytest.raises(NotFound):
        cache.segments.resume("0" * 32, writer.worker_id)


def test_a_worker_that_was_lost_is_found_again_with_its_segments(cache: InProcessCache, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    cache.master.attach(str(tmp_path / "source"), "data", {})
    writer = cache.segments.writer()
    writer.append(b"kept")
    cache.metadata.tree.put(("data", ""), b"file", 0o644, whole(writer), [writer.about()], 0)
    writer.release()
    cache.pool.kill(writer.worker_id)
    assert bytes(cache.segments.read("data", whole(writer), 0, 4)) == b"kept"


# The worker's side.


def ids() -> Iterator[str]:
    return (f"{number:032x}" for number in itertools.count(1))


def make_store(directory: Path, clock: Clock, **more: object) -> SegmentStore:
    store = SegmentStore([directory], clock=lambda: clock.now, **more)  # type: ignore[arg-type]
    store.worker_id = "w" * 32
    store.open()
    return store


def all_of(segments: list[str]) -> list[bool]:
    return [True] * len(segments)


def none_of(segments: list[str]) -> list[bool]:
    return [False] * len(segments)


def test_what_is_left_over_goes_after_a_while_and_nothing_else(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path / "segments", clock)
    writing, committed, left = (make(store) for _ in range(3))
    (tmp_path / "segments" / "not ours").write_text("x")
    committed.release()
    left.release()

    def known(segments: list[str]) -> list[bool]:
        return [segment == committed.segment for segment in segments]

    assert store.sweep(known, all_of) == 0
    clock.now += LEFT_OVER_S - 1
    assert store.sweep(known, all_of) == 0
    clock.now += 2
    assert store.sweep(known, all_of) == 4
    there = {path.name for path in (tmp_path / "segments").iterdir()}
    assert there == {writing.segment, committed.segment, "not ours"}
    assert isinstance(store.read([SegmentRange(left.segment, 0, 1)])[0], Failed)
    writing.release()  # its commit did not come
    store.sweep(known, all_of)
    clock.now += LEFT_OVER_S + 1
    assert store.sweep(known, all_of) == 4
    assert store.status()["segments"] == 1


def test_what_the_source_has_is_let_go_oldest_first_when_nobody_writes_it(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path / "segments", clock, quota_bytes=16)
    old, new, longer, writing = (make(store) for _ in range(4))
    clock.now += 2
    assert store.fullness == 1.0
    for number, writer in enumerate((old, new, longer)):
        os.utime(tmp_path / "segments" / writer.segment, ns=(number, number))
        writer.release()
    committed = {old.segment: 4, new.segment: 4, longer.segment: 3}
    asked: list[str] = []

    def ask(segments: list[str]) -> list[int]:
        asked.extend(segments)
        return [committed.get(segment, -1) for segment in segments]

    assert store.let_go(ask, 100) == 0
    assert asked == [], "somebody may go on with them"
    clock.now += CALM_S
    assert store.let_go(lambda segments: [-1] * len(segments), 100) == 0
    assert store.let_go(ask, store.surplus_bytes(0.75)) == 4
    assert asked == [old.segment, new.segment, longer.segment]
    assert store.let_go(ask, 100) == 4
    there = {path.name for path in (tmp_path / "segments").iterdir()}
    assert there == {longer.segment, writing.segment}
    assert store.status()["let_go_bytes"] == 8
    store.leaving = True
    assert store.home().directory == ""
    with pytest.raises(Unavailable, match="leave"):
        store.make()


def make(store: SegmentStore) -> SegmentWriter:
    writer = SegmentWriter.make(Path(store.home().directory), store.worker_id, lambda growth: None, fresh)
    writer.append(b"data")
    return writer


_names = ids()


def fresh() -> str:
    return next(_names)


def test_nothing_is_deleted_when_the_master_does_not_answer(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path / "segments", clock)
    make(store).release()

    def away(segments: list[str]) -> list[bool]:
        raise Unavailable("away")

    for _ in range(3):
        with pytest.raises(Unavailable):
            store.sweep(away, all_of)
        clock.now += LEFT_OVER_S
    assert len(store.held()) == 1


def test_a_commit_that_comes_late_is_in_time(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path / "segments", clock)
    writer = make(store)
    writer.release()
    store.sweep(none_of, all_of)
    clock.now += LEFT_OVER_S / 2
    store.sweep(all_of, all_of)
    clock.now += LEFT_OVER_S
    assert store.sweep(none_of, all_of) == 0, "its time begins anew"


def test_where_room_is_short_what_is_left_over_goes_sooner_unless_a_commit_was_quicker(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path / "segments", clock)
    left, committed = make(store), make(store)
    left.release()
    committed.release()

    def drop(segments: list[str]) -> list[bool]:
        return [segment == left.segment for segment in segments]

    assert store.sweep(none_of, drop, LEFT_OVER_FULL_S) == 0
    clock.now += LEFT_OVER_FULL_S
    assert store.sweep(none_of, drop, LEFT_OVER_FULL_S) == 4
    assert [one.segment for one in store.held()] == [committed.segment]


def test_writers_of_clients_that_say_nothing_are_given_up(tmp_path: Path) -> None:
    clock = Clock()
    store = make_store(tmp_path / "segments", clock)
    silent, talking = store.make(), store.make()
    store.write(silent, 0, b"x")
    for _ in range(5):
        clock.now += LEFT_OVER_S * 0.9
        store.hold([talking])
        store.sweep(none_of, all_of)
    assert [one.segment for one in store.held()] == [talking]
    with pytest.raises(NotFound):
        store.write(silent, 1, b"y")


def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path / "segments", Clock())
    writer = make(store)
    directory = Path(store.home().directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / writer.segment).stat().st_mode & 0o777 == 0o600


def test_a_worker_without_a_disk_tier_finds_its_directory_again(tmp_path: Path) -> None:
    names = ids()
    mine = claim_directory(tmp_path / "all", lambda: next(names), NODE)
    other = claim_directory(tmp_path / "all", lambda: next(names), "m" * 56)
    assert mine is not None
    assert other is not None
    assert mine.path != other.path
    os.close(mine.fd)
    os.close(other.fd)
    again = claim_directory(tmp_path / "all", lambda: next(names), "m" * 56)
    assert again is not None
    assert again.path == other.path
    after_a_restart_of_ray = claim_directory(tmp_path / "all", lambda: next(names), "k" * 56)
    assert after_a_restart_of_ray is not None
    assert after_a_restart_of_ray.path == mine.path
    for claim in (again, after_a_restart_of_ray):
        os.close(claim.fd)


def test_a_base_that_cannot_be_made_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert claim_directory(tmp_path / "file" / "all", lambda: "0" * 32, NODE) is None


class FullDisk(FileOps):
    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_says_so(tmp_path: Path) -> None:
    writer = SegmentWriter.make(tmp_path, "w", lambda growth: None, fresh, FullDisk())
    with pytest.raises(NoSpace, match="bytes are free"):
        writer.append(b"x")


def test_bytes_that_a_crash_of_the_machine_took_are_missed(tmp_path: Path) -> None:
    writer = SegmentWriter.make(tmp_path, "w", lambda growth: None, fresh)
    writer.append(b"0123456789")
    writer.release()
    os.truncate(tmp_path / writer.segment, 4)
    files = SegmentFiles([tmp_path])
    whole, cut, other = files.read(
        [SegmentRange(writer.segment, 0, 4), SegmentRange(writer.segment, 2, 8), SegmentRange("../etc/passwd", 0, 1)]
    )
    assert whole == b"0123"
    assert isinstance(cut, Failed)
    assert "not synced" in str(cut.error)
    assert isinstance(other, Failed)


def test_a_name_that_is_taken_is_not_written_to(tmp_path: Path) -> None:
    names = iter(["1" * 32, "1" * 32, "2" * 32])
    one = SegmentWriter.make(tmp_path, "w", lambda growth: None, lambda: next(names))
    two = SegmentWriter.make(tmp_path, "w", lambda growth: None, lambda: next(names))
    assert one.segment != two.segment
    assert one.segment[:8] == two.segment[:8], "it says whose it is"


def test_a_worker_that_has_just_started_is_waited_for_and_one_without_a_disk_is_not(cache: InProcessCache) -> None:
    class Starting(Elsewhere):
        asked = 0

        def homes(self) -> list[Home]:
            self.asked += 1
            if self.asked == 1:
                raise WorkerLost("no worker lives; try again")
            homes = [home._replace(directory="") for home in super().homes()]
            return [home._replace(worker_id="") for home in homes] if self.asked == 2 else self.then(homes)

        def then(self, homes: list[Home]) -> list[Home]:
            return super().homes()

    class Broken(Starting):
        def then(self, homes: list[Home]) -> list[Home]:
            return homes

    def segments(calls: Starting) -> Segments:
        return Segments(calls, NodeSegments(), cache.namespace, cache.reader, timeout_s=10)

    starting, broken = Starting(cache), Broken(cache)
    writer = segments(starting).writer()
    assert writer.append(b"taken") == 0
    writer.discard()
    with pytest.raises(Unavailable, match="no worker can keep"):
        segments(broken).writer()
    assert (starting.asked, broken.asked) == (3, 3)
