"""What is to become of paths in the source: one row for each, in order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raycache.meta import journal
from raycache.meta.catalog import Catalog


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    catalog = Catalog.open(":memory:")
    yield catalog
    catalog.close()


def rows(catalog: Catalog) -> list[tuple[object, ...]]:
    with catalog.transaction() as db:
        return db.execute("SELECT path, kind, ino, version, base_etag FROM pending ORDER BY seq").fetchall()


def test_a_later_want_replaces_the_one_before_and_keeps_what_is_known_of_the_source(catalog: Catalog) -> None:
    with catalog.transaction() as db:
        journal.want_put(db, "d", b"a", 7, 1, "listed")
        journal.want_put(db, "d", b"b", 8, 1, "")
        journal.want_put(db, "d", b"a", 7, 2, "not asked any more")
    assert rows(catalog) == [(b"b", "put", 8, 1, ""), (b"a", "put", 7, 2, "listed")]
    with catalog.transaction() as db:
        journal.want_delete(db, "d", b"a", "")
    assert rows(catalog)[-1] == (b"a", "delete", None, None, "listed")


def test_what_the_source_never_had_need_not_be_deleted_there(catalog: Catalog) -> None:
    with catalog.transaction() as db:
        journal.want_put(db, "d", b"a", 7, 1, "")
        journal.want_delete(db, "d", b"a", "")
        journal.want_delete(db, "d", b"b", "")
    assert rows(catalog) == []


def test_what_may_have_got_there_unheard_is_deleted(catalog: Catalog) -> None:
    with catalog.transaction() as db:
        journal.want_put(db, "d", b"a", 7, 1, "")
        db.execute("UPDATE pending SET tried = '[]', lease = 'x', not_before_ns = 99")
        journal.want_delete(db, "d", b"a", "")
    assert rows(catalog) == [(b"a", "delete", None, None, "")]
    with catalog.transaction() as db:  # who is at it stays so
        assert db.execute("SELECT lease, not_before_ns FROM pending").fetchall() == [("x", 99)]


def test_the_worker_with_most_of_the_bytes_is_to_put_them(catalog: Catalog) -> None:
    with catalog.transaction() as db:
        db.executemany("INSERT INTO segments VALUES (?, ?, 100)", [("s1", "one"), ("s2", "two")])
        for at, length, segment in [(0, 10, "s1"), (10, 20, "s2"), (30, 100, None)]:
            db.execute("INSERT INTO extents VALUES (7, ?, ?, ?, 0, NULL, '', 0)", (at, length, segment))
        journal.want_put(db, "d", b"a", 7, 1, "")
        journal.want_put(db, "d", b"b", 8, 1, "")
        found = db.execute("SELECT worker_id FROM pending ORDER BY seq").fetchall()
    assert found == [("two",), ("",)]


def test_directories_come_and_go_in_order(catalog: Catalog) -> None:
    with catalog.transaction() as db:
        journal.want_mkdir(db, "d", b"a")
        journal.want_rmdir(db, "d", b"b")
        journal.want_rmdir(db, "d", b"a")
    assert [row[:2] for row in rows(catalog)] == [(b"b", "rmdir"), (b"a", "rmdir")]
