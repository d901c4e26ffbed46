"""Moving and removing files and trees in the tree that writers see, across listed, changed and made directories."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from written import ROOT, Cache, refused, segment_content

from raycache.core.inode import EXCHANGE, NOREPLACE, Extent, Place
from raycache.errors import Exists, InvalidInput, IsADirectory, NotADirectory, NotEmpty, NotFound, Refused
from raycache.meta import subtrees

SUB: Place = ("data", "sub")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(tmp_path)
    yield made
    made.catalog.close()


def test_a_listed_file_is_moved_and_keeps_number_and_bytes(cache: Cache) -> None:
    tree = cache.tree
    a, etag = tree.lookup(ROOT, b"a"), cache.etag("a")
    moved = tree.rename(ROOT, b"a", SUB, b"moved")
    assert (moved.ino, moved.size_bytes, moved.version) == (a.ino, a.size_bytes, 0)
    assert moved.ctime_ns > a.ctime_ns
    assert tree.lookup(SUB, b"moved") == moved == tree.getattr(a.ino)
    assert tree.content(a.ino)[1].extents == (Extent(0, 10, path="a", etag=etag, row=a.ino),)
    assert (cache.names(), cache.names("sub")) == (["b", "sub"], ["c", "deep", "moved"])
    assert cache.pending() == [("put", "sub/moved", ""), ("delete", "a", etag)]
    assert cache.touched() == {"", "sub"}
    back = tree.rename(SUB, b"moved", ROOT, b"a")
    assert back.ino == a.ino
    # The source has it still: what was to be is not to be.
    assert cache.pending() == [("put", "a", etag)]
    assert cache.names() == ["a", "b", "sub"]


def test_a_file_is_moved_over_another(cache: Cache) -> None:
    tree = cache.tree
    b, etag_a, etag_b = tree.lookup(ROOT, b"b"), cache.etag("a"), cache.etag("b")
    made = tree.put(SUB, b"made", 0o600, *segment_content("s", 4), 9)
    tree.rename(SUB, b"made", ROOT, b"b")
    assert tree.lookup(ROOT, b"b").ino == made.ino
    assert cache.pending() == [("put", "b", etag_b)]
    with pytest.raises(NotFound):
        tree.getattr(b.ino)
    tree.rename(ROOT, b"a", ROOT, b"b", 0, "mount")
    assert tree.getattr(made.ino).nlink == 0
    assert cache.names() == ["b", "sub"]
    assert cache.pending() == [("put", "b", etag_b), ("delete", "a", etag_a)]
    tree.release("mount")
    assert cache.rows("SELECT * FROM segments") == []


def test_two_names_of_one_file_are_not_moved(cache: Cache) -> None:
    tree = cache.tree
    linked = tree.link(("data", "a"), ROOT, b"a2")
    assert tree.rename(ROOT, b"a", ROOT, b"a2") == linked
    assert tree.rename(ROOT, b"a", ROOT, b"a") == linked
    assert cache.names() == ["a", "a2", "b", "sub"]


def test_what_rename_refuses(cache: Cache, tmp_path: Path) -> None:
    tree = cache.tree
    tree.mkdir(ROOT, b"empty", 0o755, 0, 0)
    before = cache.pending(), cache.names(), cache.names("sub")
    for error, name, place, to in (
        (NotFound, b"x", ROOT, b"y"),
        (NotADirectory, b"sub", ROOT, b"a"),
        (IsADirectory, b"a", ROOT, b"empty"),
        (IsADirectory, b"a", ROOT, b"sub"),
        (NotEmpty, b"empty", ROOT, b"sub"),
        (InvalidInput, b"sub", SUB, b"x"),
        (InvalidInput, b"sub", ("data", "sub/deep"), b"x"),
        (NotFound, b"a", ("data", "none"), b"x"),
        (NotADirectory, b"a", ("data", "b"), b"x"),
        (InvalidInput, b"a", ROOT, b".."),
    ):
        with pytest.raises(error):
            tree.rename(ROOT, name, place, to)
    with pytest.raises(Exists):
        tree.rename(ROOT, b"a", ROOT, b"b", NOREPLACE)
    with pytest.raises(NotFound):
        tree.rename(ROOT, b"a", ROOT, b"x", EXCHANGE)
    for flags in (NOREPLACE | EXCHANGE, 4):
        with pytest.raises(InvalidInput):
            tree.rename(ROOT, b"a", ROOT, b"x", flags)
    refused(errno.ENAMETOOLONG, tree.rename, ROOT, b"a", ROOT, b"n" * 256)
    other = tmp_path / "elsewhere"
    other.mkdir()
    cache.metadata.attach(str(other), "other", {})
    refused(errno.EXDEV, tree.rename, ROOT, b"a", ("other", ""), b"a")
    refused(errno.EXDEV, tree.link, ("data", "a"), ("other", ""), b"a")
    assert (cache.pending(), cache.names(), cache.names("sub")) == before


def test_a_listed_tree_is_moved(cache: Cache) -> None:
    tree = cache.tree
    sub, deep = tree.getattr(SUB), tree.getattr(("data", "sub/deep"))
    c, d = tree.getattr(("data", "sub/c")), tree.getattr(("data", "sub/deep/d"))
    etag_c, etag_d = cache.etag("sub/c"), cache.etag("sub/deep/d")
    tree.mkdir(ROOT, b"to", 0o755, 0, 0)
    tree.put(("data", "sub/deep"), b"made", 0o600, *segment_content("s", 4), 9)
    tree.mkdir(("data", "sub/deep"), b"inner", 0o755, 0, 0)
    moved = tree.rename(ROOT, b"sub", ("data", "to"), b"new")
    assert (moved.ino, moved.nlink) == (sub.ino, 3)
    assert tree.getattr(("data", "to/new/deep")).ino == deep.ino
    assert tree.getattr(deep.ino).nlink == 3
    assert tree.getattr(("data", "to/new/c"))[:2] == c[:2]
    assert tree.content(("data", "to/new/deep/d"))[1].extents[0] == Extent(
        0, 100, path="sub/deep/d", etag=etag_d, row=d.ino
    )
    assert (cache.names(), cache.names("to")) == (["a", "b", "to"], ["new"])
    assert (cache.names("to/new"), cache.names("to/new/deep")) == (["c", "deep"], ["d", "inner", "made"])
    assert (tree.getattr(ROOT).nlink, tree.getattr(("data", "to")).nlink) == (3, 3)
    with pytest.raises(NotFound):
        tree.getattr(SUB)
    assert cache.pending() == [
        ("mkdir", "to", ""),
        ("put", "to/new/c", ""),
        ("put", "to/new/deep/d", ""),
        ("put", "to/new/deep/made", ""),
        ("delete", "sub/c", etag_c),
        ("delete", "sub/deep/d", etag_d),
        ("mkdir", "to/new", ""),
        ("mkdir", "to/new/deep", ""),
        ("mkdir", "to/new/deep/inner", ""),
        ("rmdir", "sub/deep/inner", ""),
        ("rmdir", "sub/deep", ""),
        ("rmdir", "sub", ""),
    ]
    assert cache.touched() == {"", "to", "to/new", "to/new/deep", "to/new/deep/inner"}
    # What the source lists under the old path is not shown, and the name is free.
    made = tree.mkdir(ROOT, b"sub", 0o755, 0, 0)
    assert cache.names("sub") == []
    assert tree.rename(("data", "to"), b"new", ROOT, b"sub").ino == sub.ino
    assert cache.names("sub") == ["c", "deep"]
    with pytest.raises(NotFound):
        tree.getattr(made.ino)


def test_a_tree_is_moved_over_an_empty_directory_only(cache: Cache) -> None:
    tree = cache.tree
    empty = tree.mkdir(ROOT, b"empty", 0o755, 0, 0)
    tree.rename(SUB, b"deep", ROOT, b"empty")
    assert cache.names("empty") == ["d"]
    assert tree.getattr(ROOT).nlink == 4
    with pytest.raises(NotFound):
        tree.getattr(empty.ino)
    with pytest.raises(NotEmpty):
        tree.rename(ROOT, b"sub", ROOT, b"empty")


def test_files_and_trees_change_places(cache: Cache) -> None:
    tree = cache.tree
    a, b, sub, deep = (tree.getattr(("data", path)).ino for path in ("a", "b", "sub", "sub/deep"))
    etags = {path: cache.etag(path) for path in ("a", "b", "sub/c", "sub/deep/d")}
    assert tree.rename(ROOT, b"a", ROOT, b"b", EXCHANGE).ino == a
    assert (tree.lookup(ROOT, b"b").ino, tree.lookup(ROOT, b"a").ino) == (a, b)
    assert sorted(cache.pending()) == [("put", "a", etags["a"]), ("put", "b", etags["b"])]
    with pytest.raises(InvalidInput):
        tree.rename(ROOT, b"sub", SUB, b"deep", EXCHANGE)
    with pytest.raises(InvalidInput):
        tree.rename(SUB, b"deep", ROOT, b"sub", EXCHANGE)
    other = tree.mkdir(ROOT, b"other", 0o755, 0, 0).ino
    tree.put(("data", "other"), b"c", 0o600, *segment_content("s", 4), 9)
    tree.rename(ROOT, b"sub", ROOT, b"other", EXCHANGE)
    assert (tree.lookup(ROOT, b"other").ino, tree.lookup(ROOT, b"sub").ino) == (sub, other)
    assert (cache.names("other"), cache.names("sub"), cache.names("other/deep")) == (["c", "deep"], ["c"], ["d"])
    assert tree.getattr(("data", "other/deep")).ino == deep
    tree.rename(ROOT, b"a", ROOT, b"other", EXCHANGE)  # a file and a directory
    assert stat.S_ISREG(tree.lookup(ROOT, b"other").mode)
    assert cache.names("a") == ["c", "deep"]
    assert tree.getattr(ROOT).nlink == 4
    tree.rename(ROOT, b"a", SUB, b"c", EXCHANGE)
    assert (tree.getattr(ROOT).nlink, tree.getattr(SUB).nlink) == (3, 3)
    assert cache.names("sub/c/deep") == ["d"]


def test_a_tree_that_lists_too_much_is_not_moved(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subtrees, "TREE_MAX", 2)
    refused(errno.EXDEV, cache.tree.rename, ROOT, b"sub", ROOT, b"x")
    refused(errno.E2BIG, cache.tree.remove_tree, SUB)
    assert cache.tree.rename(SUB, b"deep", ROOT, b"x").is_dir


def test_a_tree_is_removed_at_once(cache: Cache) -> None:
    tree = cache.tree
    etag_c, etag_d = cache.etag("sub/c"), cache.etag("sub/deep/d")
    sub = tree.getattr(SUB)
    tree.put(("data", "sub/deep"), b"made", 0o600, *segment_content("s", 4), 9)
    tree.link(("data", "sub/deep/made"), ROOT, b"kept")
    tree.put(("data", "sub/more"), b"gone", 0o600, *segment_content("t", 4), 9)
    assert tree.remove_tree(SUB) == 7
    assert cache.names() == ["a", "b", "kept"]
    assert (tree.getattr(ROOT).nlink, tree.lookup(ROOT, b"kept").nlink) == (2, 1)
    assert cache.pending() == [
        ("put", "kept", ""),
        ("delete", "sub/c", etag_c),
        ("delete", "sub/deep/d", etag_d),
        ("rmdir", "sub/more", ""),
        ("rmdir", "sub/deep", ""),
        ("rmdir", "sub", ""),
    ]
    assert cache.rows("SELECT segment FROM segments") == [("s",)]
    assert cache.rows("SELECT path FROM directories") == [(b"",)]
    with pytest.raises(NotFound):
        tree.getattr(sub.ino)
    assert tree.remove_tree(("data", "kept")) == 1
    assert tree.remove_tree(("data", "a")) == 1
    assert cache.names() == ["b"]
    with pytest.raises(Refused):
        tree.remove_tree(ROOT)
    for table in ("inodes", "extents", "segments", "entries"):
        rows = cache.rows(f"SELECT * FROM {table}")
        assert len(rows) == {"inodes": 1, "entries": 2}.get(table, 0), table  # the root; sub and a, which are gone
