"""What was written, as readers are shown it: published, laid over what the source lists, and refreshed."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from written import FILE, ROOT, Cache, segment_content

from raycache.core.inode import parse_content_etag
from raycache.core.manifest import Manifest
from raycache.meta import publishing
from raycache.meta.publishing import Publisher
from raycache.ufs.registry import open_ufs


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def manifest(cache: Cache, path: str = "") -> Manifest:
    dir_id = cache.catalog.find_directory("data", path)
    assert dir_id is not None
    return cache.metadata.manifest(dir_id)


def shown(cache: Cache, path: str = "") -> dict[str, Any]:
    """Files with their sizes, directories with None."""
    found = manifest(cache, path)
    return {
        os.fsdecode(found.name(row)): None if found.child_id(row) is not None else found.size(row)
        for row in found.rows()
    }


def put(cache: Cache, path: str, size_bytes: int = 5, **more: Any) -> Any:
    above, _, name = path.rpartition("/")
    content, segments = segment_content("5" * 32, size_bytes)
    return cache.tree.put(("data", above), name.encode(), FILE, content, segments, 77, **more)


def settle(cache: Cache, *paths: str) -> None:
    """Have the source be given what is pending, for real, as the persister would; of some paths or all."""
    ufs = open_ufs(str(cache.source))
    with cache.catalog.transaction() as db:
        rows = db.execute("SELECT seq, kind, path, ino, version FROM pending ORDER BY seq").fetchall()
    for seq, kind, key, ino, version in rows:
        path = os.fsdecode(key)
        if paths and path not in paths:
            continue
        target = cache.source / path
        etag = ""
        if kind == "put":
            size = cache.tree.getattr(("data", path)).size_bytes
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"w" * size)
            etag = ufs.stat(path).etag
        elif kind == "delete":
            target.unlink()
        elif kind == "mkdir":
            target.mkdir(exist_ok=True)
        else:
            target.rmdir()
        with cache.catalog.transaction() as db:
            db.execute("DELETE FROM pending WHERE seq = ?", (seq,))
            if kind == "put":
                db.execute(
                    "INSERT OR REPLACE INTO persisted (dataset, path, ino, version, etag) VALUES ('data', ?, ?, ?, ?)",
                    (key, ino, version, etag),
                )
            else:
                db.execute("DELETE FROM persisted WHERE dataset = 'data' AND path = ?", (key,))


def refresh(cache: Cache, path: str = "") -> int:
    dir_id = cache.catalog.find_directory("data", path)
    assert dir_id is not None
    return cache.metadata.refresh(dir_id)


def test_what_is_written_is_shown_and_rows_stay_where_they_are(cache: Cache) -> None:
    before = manifest(cache)
    attr = put(cache, "new")
    put(cache, "a", 7)
    assert cache.tree.publish([cache.root_id]) == [2]
    after = manifest(cache)
    assert shown(cache) == {"a": 7, "b": 10, "new": 5, "sub": None}
    assert after.find(b"b") == before.find(b"b")
    row = after.find(b"new")
    assert row is not None
    assert parse_content_etag(after.etag(row)) == (attr.ino, attr.version)
    assert after.mtime_ns(row) == 77
    old = before.find(b"a")
    assert old is not None
    assert after.is_dead(old)
    assert cache.touched() == set()


def test_what_is_removed_is_not_shown_and_what_did_not_change_is_not_published(cache: Cache) -> None:
    put(cache, "new")
    cache.tree.publish([cache.root_id])
    cache.tree.unlink(ROOT, b"new")
    cache.tree.unlink(ROOT, b"b")
    assert cache.tree.publish([cache.root_id]) == [3]
    assert shown(cache) == {"a": 10, "sub": None}
    assert cache.tree.publish([cache.root_id]) == [3]


def test_a_directory_that_was_never_listed_shows_all_when_it_is(cache: Cache) -> None:
    put(cache, "sub/new")
    cache.tree.unlink(("data", "sub"), b"c")
    assert cache.tree.publish([cache.catalog.find_directory("data", "sub") or 0]) == [2], "its verbs had it listed"
    assert shown(cache, "sub") == {"new": 5, "deep": None}
    cache.tree.mkdir(("data", "sub"), b"made", 0o755, 0, 0)
    put(cache, "sub/made/x")
    made = cache.catalog.find_directory("data", "sub/made")
    assert made is not None
    assert cache.tree.publish([made]) == [0]
    assert shown(cache, "sub/made") == {"x": 5}


def test_directories_are_shown_with_their_ids_also_when_they_come_again(cache: Cache) -> None:
    cache.tree.mkdir(ROOT, b"made", 0o755, 0, 0)
    cache.tree.publish([cache.root_id])
    first = manifest(cache)
    row = first.find(b"made")
    assert row is not None
    assert first.child_id(row) == cache.catalog.find_directory("data", "made")
    cache.tree.rmdir(ROOT, b"made")
    cache.tree.mkdir(ROOT, b"made", 0o755, 0, 0)
    cache.tree.publish([cache.root_id])
    again = manifest(cache)
    row = again.find(b"made")
    assert row is not None
    assert (
        again.child_id(row) == cache.catalog.find_directory("data", "made") != first.child_id(first.find(b"made") or 0)
    )


def test_links_and_devices_are_not_shown(cache: Cache) -> None:
    cache.tree.symlink(ROOT, b"soft", b"a", 0, 0)
    cache.tree.mknod(ROOT, b"pipe", 0o010644, 0, 0, 0)
    cache.tree.link(("data", "a"), ROOT, b"hard")
    cache.tree.publish([cache.root_id])
    assert shown(cache) == {"a": 10, "b": 10, "hard": 10, "sub": None}


def test_permissions_alone_leave_the_row_and_times_do_not(cache: Cache) -> None:
    before = manifest(cache)
    cache.tree.setattr(("data", "a"), {"mode": 0o600})
    cache.tree.publish([cache.root_id])
    assert manifest(cache).find(b"a") == before.find(b"a")
    assert refresh(cache) == 1
    cache.tree.setattr(("data", "a"), {"mtime_ns": 5})
    cache.tree.publish([cache.root_id])
    row = manifest(cache).find(b"a")
    assert row != before.find(b"a")
    assert manifest(cache).mtime_ns(row or 0) == 5


def test_a_tree_that_was_moved_is_shown_in_its_new_place(cache: Cache) -> None:
    manifest(cache, "sub")
    cache.tree.mkdir(ROOT, b"made", 0o755, 0, 0)
    cache.tree.mkdir(("data", "made"), b"empty", 0o755, 0, 0)
    manifest(cache, "made/empty")
    cache.tree.rename(ROOT, b"sub", ("data", "made"), b"moved")
    cache.tree.rename(("data", "made"), b"empty", ROOT, b"nothing")
    cache.metadata.publisher.step()
    assert cache.touched() == set()
    assert shown(cache) == {"a": 10, "b": 10, "made": None, "nothing": None}
    assert shown(cache, "made") == {"moved": None}
    assert shown(cache, "made/moved") == {"c": 50, "deep": None}
    assert shown(cache, "nothing") == {}
    assert manifest(cache, "nothing").directory.path == "nothing"
    assert manifest(cache, "made/moved").directory.path == "made/moved"


def test_changes_tells_of_what_was_written(cache: Cache) -> None:
    since, _ = cache.metadata.changes(0)
    put(cache, "new")
    _, dir_ids = cache.metadata.changes(since)
    assert dir_ids == [cache.root_id]


def test_publishing_takes_a_tenth_of_the_time(cache: Cache) -> None:
    clock = Clock()
    publisher = Publisher(cache.catalog, lambda: clock.now)
    work = publisher._made

    def slow(upper: Any) -> Any:
        clock.now += 2
        return work(upper)

    publisher._made = slow  # type: ignore[method-assign]
    put(cache, "one")
    publisher.step()
    assert publisher.published == 1
    put(cache, "two")
    clock.now += 17
    publisher.step()
    assert publisher.published == 1
    assert publisher.publish([cache.root_id]) == [3], "whoever asks for it gets it at once"
    clock.now += 20
    publisher.step()
    assert publisher.published == 2


def test_what_comes_while_a_version_is_made_is_published_next(cache: Cache) -> None:
    publisher = Publisher(cache.catalog)
    work = publisher._made

    def interrupted(upper: Any) -> Any:
        made = work(upper)
        publisher._made = work  # type: ignore[method-assign]
        put(cache, "late")
        return made

    publisher._made = interrupted  # type: ignore[method-assign]
    put(cache, "early")
    publisher.publish([cache.root_id])
    assert "late" not in shown(cache)
    assert cache.touched() == {""}
    publisher.publish([cache.root_id])
    assert "late" in shown(cache)
    assert cache.touched() == set()


def test_a_refresh_that_comes_between_makes_it_try_again(cache: Cache) -> None:
    publisher = Publisher(cache.catalog)
    work = publisher._made

    def overtaken(upper: Any) -> Any:
        made = work(upper)
        publisher._made = work  # type: ignore[method-assign]
        (cache.source / "outside").write_bytes(b"123")
        refresh(cache)
        return made

    publisher._made = overtaken  # type: ignore[method-assign]
    put(cache, "new")
    publisher.publish([cache.root_id])
    assert shown(cache) == {"a": 10, "b": 10, "new": 5, "outside": 3, "sub": None}


def test_what_comes_after_a_first_listing_is_not_taken_for_shown_by_an_earlier_look(cache: Cache) -> None:
    publisher = Publisher(cache.catalog)
    work = publisher._made

    def overtaken(look: Any) -> Any:
        made = work(look)
        if look.upper.path == "made":
            publisher._made = work  # type: ignore[method-assign]
            assert shown(cache, "made") == {}, "which leaves nothing to be published"
            put(cache, "made/late")
        return made

    publisher._made = overtaken  # type: ignore[method-assign]
    cache.tree.mkdir(ROOT, b"made", 0o755, 0, 0)
    publisher.step()
    publisher.publish([manifest(cache, "made").directory.dir_id])
    assert shown(cache, "made") == {"late": 5}


def test_an_earlier_look_does_not_take_back_what_a_first_listing_shows(cache: Cache) -> None:
    publisher = Publisher(cache.catalog)
    work = publisher._made

    def overtaken(look: Any) -> Any:
        if look.upper.path == "made":
            publisher._made = work  # type: ignore[method-assign]
            put(cache, "made/late")
            assert shown(cache, "made") == {"late": 5}
        return work(look)

    publisher._made = overtaken  # type: ignore[method-assign]
    cache.tree.mkdir(ROOT, b"made", 0o755, 0, 0)
    publisher.step()
    publisher.publish([manifest(cache, "made").directory.dir_id])
    assert shown(cache, "made") == {"late": 5}


@pytest.mark.parametrize("last", ["written", "removed"])
def test_what_changes_during_a_first_listing_is_shown_also_where_it_was_taken_for_shown(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    publisher = Publisher(cache.catalog)
    cache.tree.mkdir(ROOT, b"made", 0o755, 0, 0)
    put(cache, "made/first")
    number = cache.catalog.number_directories

    def meanwhile(dataset: str, paths: Any) -> list[int]:
        monkeypatch.undo()
        if last == "written":
            put(cache, "made/late")
        else:
            cache.tree.unlink(("data", "made"), b"first")
        publisher.step()
        return number(dataset, paths)

    monkeypatch.setattr(cache.catalog, "number_directories", meanwhile)
    made = manifest(cache, "made").directory.dir_id
    publisher.publish([made])
    assert shown(cache, "made") == ({"first": 5, "late": 5} if last == "written" else {})


@pytest.mark.parametrize("last", ["removed", "moved", "removed with a tree"])
@pytest.mark.parametrize("shows", ["publisher", "refresh"])
def test_a_directory_that_goes_while_a_version_with_it_is_made_does_not_stay(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, last: str, shows: str
) -> None:
    work, number = cache.metadata.publisher._made, cache.catalog.number_directories

    def gone() -> None:
        monkeypatch.undo()
        if last == "removed":
            cache.tree.rmdir(ROOT, b"made")
        elif last == "moved":
            cache.tree.rename(ROOT, b"made", ROOT, b"elsewhere")
        else:
            cache.tree.remove_tree(("data", "made"))

    def overtaken(look: Any) -> Any:
        made = work(look)
        gone()
        return made

    def raced(dataset: str, paths: Any) -> Any:
        gone()
        return number(dataset, paths)

    cache.tree.mkdir(ROOT, b"made", 0o755, 0, 0)
    if shows == "publisher":
        monkeypatch.setattr(cache.metadata.publisher, "_made", overtaken)
        cache.tree.publish([cache.root_id])
    else:
        monkeypatch.setattr(cache.catalog, "number_directories", raced)
        refresh(cache)
    assert "made" in shown(cache)
    cache.tree.publish([cache.root_id])
    assert shown(cache) == {"a": 10, "b": 10, "sub": None} | ({"elsewhere": None} if last == "moved" else {})
    assert "made" not in cache.names()


def test_what_is_published_by_itself_makes_way_for_who_waits(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "GROUP", 1)
    publisher = Publisher(cache.catalog)
    for name in ("one", "two"):
        cache.tree.mkdir(ROOT, name.encode(), 0o755, 0, 0)
        manifest(cache, name)
        put(cache, f"{name}/new")
    publisher.publish([cache.root_id])
    work = publisher._made
    asking = threading.Thread(target=publisher.publish, args=([cache.root_id],))

    def asked(look: Any) -> Any:
        publisher._made = work  # type: ignore[method-assign]
        asking.start()
        while not publisher._askers:
            assert asking.is_alive()
        return work(look)

    publisher._made = asked  # type: ignore[method-assign]
    before = publisher.published
    publisher.step()
    asking.join()
    assert publisher.published == before + 1
    publisher.step()
    assert publisher.published == before + 2


# Refresh.


def test_a_refresh_leaves_what_the_source_has_not_got_yet(cache: Cache) -> None:
    put(cache, "new")
    put(cache, "a", 7)
    cache.tree.unlink(ROOT, b"b")
    (cache.source / "outside").write_bytes(b"123")
    refresh(cache)
    assert shown(cache) == {"a": 7, "new": 5, "outside": 3, "sub": None}
    assert cache.names() == ["a", "new", "outside", "sub"]


def test_what_the_source_was_given_stays_the_same_row(cache: Cache) -> None:
    put(cache, "new")
    put(cache, "a", 7)
    cache.tree.publish([cache.root_id])
    before = manifest(cache)
    settle(cache)
    assert refresh(cache) == before.directory.version
    (cache.source / "outside").write_bytes(b"123")
    refresh(cache)
    after = manifest(cache)
    assert [after.find(name) for name in (b"new", b"a")] == [before.find(name) for name in (b"new", b"a")]


def test_what_was_changed_outside_is_what_the_source_has(cache: Cache) -> None:
    put(cache, "changed")
    put(cache, "gone")
    put(cache, "same")
    settle(cache)
    cache.tree.publish([cache.root_id])
    (cache.source / "changed").write_bytes(b"from outside")
    (cache.source / "gone").unlink()
    refresh(cache)
    assert shown(cache) == {"a": 10, "b": 10, "changed": 12, "same": 5, "sub": None}
    assert cache.names() == ["a", "b", "changed", "same", "sub"]
    assert cache.tree.getattr(("data", "changed")).version == 0
    assert cache.rows("SELECT count(*) FROM inodes WHERE mode & 32768") == [(1,)]
    assert cache.rows("SELECT path FROM persisted") == [(b"same",)]


def test_what_is_written_again_after_it_was_given_stays(cache: Cache) -> None:
    put(cache, "new")
    settle(cache)
    put(cache, "new", 9)
    (cache.source / "new").write_bytes(b"from outside")
    refresh(cache)
    assert shown(cache)["new"] == 9


def test_what_the_cache_alone_has_stays(cache: Cache) -> None:
    put(cache, "mine", write_type="cache")
    put(cache, "a", 3, write_type="cache")
    (cache.source / "a").write_bytes(b"from outside")
    refresh(cache)
    assert shown(cache) == {"a": 3, "b": 10, "mine": 5, "sub": None}


def test_other_permissions_do_not_outlive_a_change_outside(cache: Cache) -> None:
    cache.tree.setattr(("data", "a"), {"mode": 0o600})
    cache.tree.setattr(("data", "b"), {"mode": 0o600})
    (cache.source / "a").write_bytes(b"from outside")
    refresh(cache)
    assert shown(cache)["a"] == 12
    assert cache.tree.getattr(("data", "a")).mode & 0o777 == 0o644
    assert cache.tree.getattr(("data", "b")).mode & 0o777 == 0o600


def test_what_was_removed_stays_so_until_it_is_made_anew_outside(cache: Cache) -> None:
    cache.tree.unlink(ROOT, b"a")
    refresh(cache)
    assert "a" not in shown(cache)
    settle(cache)
    refresh(cache)
    assert "a" not in shown(cache)
    assert cache.rows("SELECT name FROM entries WHERE ino IS NULL") == []
    (cache.source / "a").write_bytes(b"again")
    refresh(cache)
    assert shown(cache)["a"] == 5


def test_what_was_removed_in_the_cache_alone_stays_removed(cache: Cache) -> None:
    cache.tree.set_write_type("data", "cache")
    cache.tree.unlink(ROOT, b"a")
    cache.tree.remove_tree(("data", "sub"))
    (cache.source / "a").write_bytes(b"again")
    refresh(cache)
    assert shown(cache) == {"b": 10}


def test_a_removed_directory_comes_back_only_when_its_removal_is_done(cache: Cache) -> None:
    cache.tree.remove_tree(("data", "sub"))
    refresh(cache)
    assert "sub" not in shown(cache)
    settle(cache, "sub/c")
    refresh(cache)
    assert "sub" not in shown(cache)


def test_under_a_directory_made_here_the_source_is_shown_when_it_has_all_of_it(cache: Cache) -> None:
    cache.tree.mkdir(ROOT, b"made", 0o755, 0, 0)
    put(cache, "made/x")
    put(cache, "made/below/y")
    settle(cache, "made", "made/x")
    (cache.source / "made" / "outside").write_bytes(b"123")
    refresh(cache, "made")
    assert shown(cache, "made") == {"below": None, "x": 5}, "something below is on its way"
    settle(cache)
    refresh(cache, "made")
    assert shown(cache, "made") == {"below": None, "outside": 3, "x": 5}
    assert cache.names("made") == ["below", "outside", "x"]


def test_a_directory_that_is_gone_outside_keeps_what_the_source_has_not_got(cache: Cache) -> None:
    put(cache, "sub/new")
    put(cache, "sub/given")
    settle(cache, "sub/given")
    for each in ("sub/deep/d", "sub/c", "sub/given"):
        (cache.source / each).unlink()
    (cache.source / "sub" / "deep").rmdir()
    (cache.source / "sub").rmdir()
    refresh(cache, "sub")
    assert shown(cache, "sub") == {"new": 5}
    refresh(cache)
    assert shown(cache) == {"a": 10, "b": 10, "sub": None}


def test_what_becomes_known_to_be_given_during_a_listing_waits(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache, "new")
    cache.tree.publish([cache.root_id])
    merging = cache.metadata._merging
    work = merging._listing

    def raced(of: Any) -> Any:
        found = work(of)
        settle(cache)  # the source has it now, which the listing does not know
        return found

    monkeypatch.setattr(merging, "_listing", raced)
    refresh(cache)
    assert shown(cache)["new"] == 5
    monkeypatch.undo()
    assert refresh(cache) == 2


def test_an_entry_that_changes_at_the_last_moment_is_not_dropped(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    put(cache, "new")
    settle(cache)
    (cache.source / "new").unlink()
    number = cache.catalog.number_directories

    def raced(dataset: str, paths: Any) -> Any:
        monkeypatch.undo()
        put(cache, "new", 9)
        return number(dataset, paths)

    monkeypatch.setattr(cache.catalog, "number_directories", raced)
    refresh(cache)
    assert shown(cache)["new"] == 9
    assert cache.names() == ["a", "b", "new", "sub"]


def test_a_refresh_that_finds_nothing_new_does_not_settle_what_was_published_meanwhile(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(cache, "here")
    cache.tree.publish([cache.root_id])
    merging = cache.metadata._merging
    work = merging._listing

    def raced(of: Any) -> Any:
        monkeypatch.undo()
        found = work(of)
        put(cache, "brief")
        cache.tree.publish([cache.root_id])
        cache.tree.unlink(ROOT, b"brief")
        return found

    monkeypatch.setattr(merging, "_listing", raced)
    refresh(cache)
    cache.tree.publish([cache.root_id])
    assert "brief" not in shown(cache)


def test_a_source_that_is_away_as_a_whole_takes_nothing(cache: Cache) -> None:
    put(cache, "new")
    settle(cache)
    cache.source.rename(cache.source.with_name("elsewhere"))
    with pytest.raises(OSError):  # noqa: PT011 - whatever the adapter says
        refresh(cache)
    assert "new" in cache.names()


# Recursive refresh.


def refresh_tree(cache: Cache) -> None:
    job_id = cache.metadata.listings.start(cache.root_id)
    job = cache.metadata.listings.job(job_id, 5)
    assert job.state == "done", job


def test_a_recursive_refresh_lays_what_was_written_over_every_directory(cache: Cache) -> None:
    refresh_tree(cache)
    cache.tree.mkdir(ROOT, b"made", 0o755, 0, 0)
    put(cache, "made/x")
    put(cache, "sub/new")
    put(cache, "sub/deep/given")
    cache.tree.unlink(("data", "sub"), b"c")
    settle(cache, "sub/deep/given")
    (cache.source / "sub" / "outside").write_bytes(b"123")
    (cache.source / "sub" / "deep" / "d").write_bytes(b"4567")
    (cache.source / "sub" / "deep" / "given").unlink()
    (cache.source / "other").mkdir()
    (cache.source / "other" / "file").write_bytes(b"1")
    refresh_tree(cache)
    assert shown(cache) == {"a": 10, "b": 10, "made": None, "other": None, "sub": None}
    assert shown(cache, "made") == {"x": 5}
    assert shown(cache, "sub") == {"deep": None, "new": 5, "outside": 3}
    assert shown(cache, "sub/deep") == {"d": 4}
    assert shown(cache, "other") == {"file": 1}
    settle(cache)
    refresh_tree(cache)
    assert shown(cache, "sub") == {"deep": None, "new": 5, "outside": 3}
    assert shown(cache, "made") == {"x": 5}
    assert cache.rows("SELECT count(*) FROM directories WHERE opaque") == [(0,)]


def test_what_was_written_outlives_a_tree_that_vanished_outside(cache: Cache) -> None:
    refresh_tree(cache)
    put(cache, "sub/deep/new")
    (cache.source / "sub" / "deep" / "d").unlink()
    (cache.source / "sub" / "deep").rmdir()
    (cache.source / "sub" / "c").unlink()
    (cache.source / "sub").rmdir()
    refresh_tree(cache)
    assert shown(cache) == {"a": 10, "b": 10, "sub": None}
    assert shown(cache, "sub") == {"deep": None}
    assert shown(cache, "sub/deep") == {"new": 5}
