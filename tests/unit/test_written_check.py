"""What fsck knows of what was written, and what becomes of it with its dataset or with a damaged listing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from written import FILE, ROOT, Cache, segment_content

from raycache.core.inode import Extent
from raycache.errors import NotFound
from raycache.meta.check import check, repair
from raycache.meta.staging import Part, Staged, Staging

TABLES = ("inodes", "entries", "extents", "segments", "xattrs", "orphans", "touched", "pending", "persisted")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.db"


@pytest.fixture
def cache(tmp_path: Path, path: Path) -> Iterator[Cache]:
    (tmp_path / "source").mkdir()
    made = Cache(tmp_path / "source", str(path))
    tree = made.tree
    tree.put(("data", "made/dir"), b"file", 0o600, *segment_content("s", 10), 5)
    tree.link(("data", "made/dir/file"), ROOT, b"link")
    tree.setxattr(ROOT, b"user.x", b"", 0)
    tree.rename(ROOT, b"sub", ("data", "made"), b"moved")
    tree.unlink(ROOT, b"a", "mount")
    yield made
    made.catalog.close()


def damage(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        for statement in statements:
            assert db.execute(statement).rowcount, f"does nothing: {statement}"


def test_a_tree_that_is_as_it_should_be(cache: Cache, path: Path) -> None:
    assert check(path).problems == []


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("DELETE FROM inodes WHERE ino = 2", "entry"),
        ("UPDATE entries SET parent = 999 << 32 WHERE name = CAST('file' AS BLOB)", "entry"),
        ("UPDATE directories SET path = CAST('else' AS BLOB) WHERE path = CAST('made/moved/deep' AS BLOB)", "entry"),
        ("UPDATE inodes SET nlink = 7 WHERE ino = 2", "links"),
        ("UPDATE inodes SET nlink = 9 WHERE ino = (SELECT ino FROM entries WHERE name = CAST('dir' AS BLOB))", "links"),
        ("DELETE FROM entries WHERE ino = 2", "nameless"),
        ("DELETE FROM entries WHERE name = CAST('dir' AS BLOB)", "nameless"),
        ("DELETE FROM orphans", "nameless"),
        ("UPDATE extents SET length = 99 WHERE ino = 2", "extents"),
        ("INSERT INTO extents VALUES (2, 5, 5, 's', 0, NULL, '', 0)", "extents"),
        ("DELETE FROM segments", "segment"),
    ],
)
def test_damage_is_found_and_mended_where_it_can_be(cache: Cache, path: Path, statement: str, kind: str) -> None:
    cache.catalog.close()
    damage(path, statement)
    problems = check(path).problems
    assert kind in {problem.kind for problem in problems}
    for _ in range(3):  # one thing that is mended may show another
        report = repair(path)
    if kind in ("extents", "segment"):
        assert [problem.kind for problem in report.problems] == [kind]
        assert "data/" in report.problems[0].where
    else:
        assert report.problems == []


def test_a_file_without_a_name_gets_one(cache: Cache, path: Path) -> None:
    cache.catalog.close()
    damage(path, "DELETE FROM entries WHERE ino = 2", "DELETE FROM orphans")
    assert len(repair(path).repaired) >= 2
    again = Cache(cache.source, str(path))
    assert "lost+found.2" in again.names()
    assert again.tree.content(("data", "lost+found.2"))[1].extents == (Extent(0, 10, segment="s"),)
    again.catalog.close()


def test_nothing_is_left_of_a_dataset(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    cache.metadata.attach(str(tmp_path / "other"), "other", {})
    kept = cache.tree.put(("other", "dir"), b"file", 0o600, *segment_content("t", 10), 5)
    cache.tree.put(ROOT, b"more", 0o600, *segment_content("t", 10), 5)
    cache.metadata.remove("data")
    assert cache.tree.getattr(("other", "dir/file")) == kept
    cache.metadata.remove("other")
    for table in TABLES:
        assert cache.rows(f"SELECT * FROM {table}") == [], table
    with pytest.raises(NotFound):
        cache.tree.getattr(ROOT)


def test_what_was_written_outlives_a_damaged_listing(cache: Cache, path: Path) -> None:
    tree = cache.tree
    tree.setattr(("data", "b"), {"mode": 0o600})
    with cache.catalog.transaction() as db:
        db.execute("UPDATE bodies SET body = x'00' WHERE body_id = (SELECT body_id FROM manifests LIMIT 1)")
    root_id = cache.root_id
    with pytest.raises(NotFound):
        cache.metadata.manifest(root_id)
    assert cache.root_id != root_id
    assert cache.names() == ["b", "link", "made"]
    assert tree.getattr(("data", "b")).mode & 0o777 == 0o600
    made = tree.mknod(("data", "made/dir"), b"new", FILE, 0, 0, 0)
    assert tree.lookup(("data", "made/dir"), b"new") == made
    assert check(path).problems == []


def test_a_listing_under_way_does_not_bring_back_what_was_moved(cache: Cache) -> None:
    ((moved,),) = cache.rows("SELECT dir_id FROM directories WHERE path = CAST('made/moved' AS BLOB)")
    staging, version = Staging(cache.catalog), cache.catalog.version(moved)
    job = staging.begin("data", cache.root_id, "", 1)
    staging.stage(job.job_id, [(Part("sub", True, 1, 1), [Staged(moved, version, b"listed"), Staged(999, 0, b"x")])], 2)
    assert staging.publish(job.job_id, 3) == 0
    assert cache.catalog.version(moved) == version
