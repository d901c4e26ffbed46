"""The tree that writers see: each verb over a directory with listed content beneath, and what it refuses."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from written import FILE, ROOT, Cache, refused, segment_content

from raycache.core.inode import (
    LISTED_DIRECTORY,
    LISTED_FILE,
    MOUNT_OWNER,
    NLINK_MAX,
    VERBS_AT_ONCE,
    Attr,
    Content,
    Extent,
    Segment,
    Verb,
)
from raycache.core.manifest import Manifest
from raycache.core.values import Failed
from raycache.errors import (
    Changed,
    Exists,
    InvalidInput,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    SourceUnavailable,
)
from raycache.meta import lowers as lowers_module
from raycache.meta.lowers import Lowers
from raycache.meta.tree import Tree


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    made = Cache(tmp_path)
    yield made
    made.catalog.close()


def test_what_is_listed_is_found_and_shown_as_it_is(cache: Cache) -> None:
    tree = cache.tree
    root = tree.getattr(ROOT)
    assert (root.ino, root.mode, root.nlink) == (cache.root_id << 32, LISTED_DIRECTORY, 2)
    a = tree.lookup(ROOT, b"a")
    assert (a.mode, a.uid, a.gid, a.size_bytes, a.version) == (LISTED_FILE, MOUNT_OWNER, MOUNT_OWNER, 10, 0)
    assert a == tree.getattr(a.ino) == tree.getattr(("data", "a"))
    assert a.mtime_ns == (cache.source / "a").stat().st_mtime_ns
    deep = tree.getattr(("data", "sub/deep/d"))
    assert deep == tree.lookup(tree.lookup(("data", "sub"), b"deep").ino, b"d")
    assert tree.content(deep.ino) == (
        deep,
        Content(100, (Extent(0, 100, path="sub/deep/d", etag=cache.etag("sub/deep/d"), row=deep.ino),)),
    )
    assert cache.names() == ["a", "b", "sub"]
    assert [(one.name, one.attr) for one in tree.readdir(ROOT, b"a", 1)] == [(b"b", tree.lookup(ROOT, b"b"))]
    assert cache.rows("SELECT count(*) FROM inodes") == [(0,)]  # to look at things copies nothing


def test_what_is_not_there_is_not_found(cache: Cache) -> None:
    tree = cache.tree
    for place in (("data", "x"), ("data", "x/y"), ("none", ""), 7, 999 << 32, (cache.root_id << 32) + 99):
        with pytest.raises(NotFound):
            tree.getattr(place)
    with pytest.raises(NotADirectory):
        tree.getattr(("data", "a/x"))
    for call in (tree.lookup, tree.unlink):
        with pytest.raises(NotADirectory):
            call(("data", "a"), b"x")
    refused(errno.ENAMETOOLONG, tree.lookup, ROOT, b"n" * 256)


def test_a_file_is_made(cache: Cache) -> None:
    tree = cache.tree
    before = tree.getattr(ROOT)
    made = tree.mknod(ROOT, b"new", FILE & ~0o044, 7, 8, 0)
    assert (made.mode, made.nlink, made.uid, made.gid, made.size_bytes) == (stat.S_IFREG | 0o600, 1, 7, 8, 0)
    assert made == tree.lookup(ROOT, b"new") == tree.getattr(made.ino)
    assert made.ino < 1 << 32
    assert tree.content(made.ino)[1] == Content(0, ())
    after = tree.getattr(ROOT)
    assert after.mtime_ns == after.ctime_ns > before.mtime_ns
    assert after.nlink == 3  # by now it is known that there is one directory in it
    assert cache.names() == ["a", "b", "new", "sub"]
    assert (cache.touched(), cache.pending()) == ({""}, [("put", "new", "")])
    assert tree.mknod(("data", "sub/deep"), b"pipe", stat.S_IFIFO | 0o600, 0, 0, 0).mode == stat.S_IFIFO | 0o600
    assert tree.mknod(ROOT, b"null", stat.S_IFCHR | 0o600, 0, 0, 259).rdev == 259
    assert len(cache.pending()) == 1  # what is no file is kept here only
    for name in (b"a", b"new", b"sub", b"pipe"):
        with pytest.raises(Exists):
            tree.mknod(ROOT if name != b"pipe" else ("data", "sub/deep"), name, FILE, 0, 0, 0)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b"])
def test_a_name_that_cannot_be_is_refused(cache: Cache, name: bytes) -> None:
    for call, *rest in (
        (cache.tree.mknod, FILE, 0, 0, 0), (cache.tree.mkdir, 0o755, 0, 0), (cache.tree.symlink, b"a", 0, 0),
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            call(ROOT, name, *rest)
    refused(errno.ENAMETOOLONG, cache.tree.mknod, ROOT, b"n" * 256, FILE, 0, 0, 0)
    assert cache.tree.mknod(ROOT, b"n" * 255, FILE, 0, 0, 0).nlink == 1


def test_a_directory_is_made_and_removed(cache: Cache) -> None:
    tree = cache.tree
    made = tree.mkdir(ROOT, b"dir", 0o700, 1, 2)
    assert (made.mode, made.nlink, made.uid) == (stat.S_IFDIR | 0o700, 2, 1)
    assert tree.getattr(ROOT).nlink == 4
    inner = tree.mkdir(made.ino, b"inner", 0o755, 0, 0)
    assert inner == tree.getattr(("data", "dir/inner"))
    assert tree.getattr(made.ino).nlink == 3
    with pytest.raises(Exists):
        tree.mkdir(ROOT, b"dir", 0o700, 1, 2)
    with pytest.raises(NotEmpty):
        tree.rmdir(ROOT, b"dir")
    assert cache.pending() == [("mkdir", "dir", ""), ("mkdir", "dir/inner", "")]
    gone = tree.rmdir(made.ino, b"inner")
    assert (gone.ino, gone.nlink) == (inner.ino, 0)
    with pytest.raises(NotFound):  # nothing is made in what was removed
        tree.mknod(inner.ino, b"x", FILE, 0, 0, 0)
    tree.rmdir(ROOT, b"dir")
    assert tree.getattr(ROOT).nlink == 3
    assert cache.names() == ["a", "b", "sub"]
    assert cache.catalog.find_directory("data", "dir") is None


def test_a_listed_directory_is_removed_when_it_is_empty(cache: Cache) -> None:
    tree = cache.tree
    for call in (lambda: tree.rmdir(ROOT, b"sub"), lambda: tree.rmdir(("data", "sub"), b"deep")):
        with pytest.raises(NotEmpty):
            call()
    etag = cache.etag("sub/deep/d")
    with pytest.raises(NotADirectory):
        tree.rmdir(ROOT, b"a")
    with pytest.raises(IsADirectory):
        tree.unlink(ROOT, b"sub")
    deep = tree.lookup(("data", "sub"), b"deep")
    tree.unlink(deep.ino, b"d")
    tree.rmdir(("data", "sub"), b"deep")
    assert cache.pending() == [("delete", "sub/deep/d", etag), ("rmdir", "sub/deep", "")]
    with pytest.raises(NotFound):
        tree.getattr(deep.ino)
    again = tree.mkdir(("data", "sub"), b"deep", 0o755, 0, 0)
    assert again.ino > deep.ino
    assert cache.names("sub/deep") == []


def test_a_listed_file_is_removed_and_made_again(cache: Cache) -> None:
    tree = cache.tree
    old, etag = tree.lookup(ROOT, b"a"), cache.etag("a")
    gone = tree.unlink(ROOT, b"a")
    assert (gone.ino, gone.nlink) == (old.ino, 0)
    for call in (lambda: tree.lookup(ROOT, b"a"), lambda: tree.getattr(old.ino), lambda: tree.unlink(ROOT, b"a")):
        with pytest.raises(NotFound):
            call()
    assert cache.names() == ["b", "sub"]
    assert cache.pending() == [("delete", "a", etag)]
    new = tree.mknod(ROOT, b"a", FILE, 0, 0, 0)
    assert new.ino != old.ino
    assert cache.pending() == [("put", "a", etag)]  # the source still has the old one
    tree.unlink(ROOT, b"a")
    assert cache.names() == ["b", "sub"]


def test_contents_are_committed_whole(cache: Cache) -> None:
    tree = cache.tree
    made = tree.mknod(ROOT, b"new", FILE, 0, 0, 0)
    content, segments = segment_content("s1", 100)
    done = tree.commit(made.ino, content, segments, 77)
    assert (done.size_bytes, done.mtime_ns, done.version) == (100, 77, made.version + 1)
    assert tree.content(made.ino) == (done, content)
    assert tree.contents([(made.ino, done.version)]) == [content]
    (old,) = tree.contents([(made.ino, made.version)])
    assert isinstance(old, Failed)
    assert isinstance(old.error, Changed)
    assert cache.rows("SELECT ino, version FROM pending") == [(made.ino, done.version)]
    assert cache.rows("SELECT * FROM segments") == [("s1", "worker", 100)]
    sparse = Content(1000, (Extent(100, 50, segment="s2"), Extent(500, 10, segment="s1", offset=5)))
    tree.commit(made.ino, sparse, [Segment("s2", "worker", 50)], 78)
    assert tree.content(made.ino)[1].extents == (
        Extent(0, 100), Extent(100, 50, segment="s2"), Extent(150, 350), Extent(500, 10, segment="s1", offset=5),
        Extent(510, 490),
    )  # fmt: skip
    tree.commit(made.ino, Content(0, ()), [], 79)
    assert cache.rows("SELECT * FROM segments") == []  # nothing lies in them any more
    with pytest.raises(Changed):
        tree.commit(made.ino, content, [], 80)


def test_a_listed_file_keeps_its_number_when_it_is_written(cache: Cache) -> None:
    tree = cache.tree
    a, etag = tree.lookup(ROOT, b"a"), cache.etag("a")
    part = Extent(0, 4, path="a", etag=etag, row=a.ino)
    content = Content(8, (part, Extent(4, 4, segment="s")))
    done = tree.commit(a.ino, content, [Segment("s", "worker", 4)], 5)
    assert (done.ino, done.version, done.size_bytes) == (a.ino, 1, 8)
    assert tree.lookup(ROOT, b"a") == done
    assert tree.content(("data", "a")) == (done, content)
    assert cache.pending() == [("put", "a", etag)]
    assert cache.names() == ["a", "b", "sub"]


@pytest.mark.parametrize(
    "extents",
    [
        (Extent(0, 5, segment="s"), Extent(4, 5, segment="s")),
        (Extent(5, 5, segment="s"), Extent(0, 5, segment="s")),
        (Extent(0, 11, segment="s"),),
        (Extent(0, 0, segment="s"),),
        (Extent(0, 5, segment="s", path="a"),),
        tuple(Extent(at, 1, segment="s") for at in range(4097)),
    ],
)
def test_contents_that_cannot_be_are_refused(cache: Cache, extents: tuple[Extent, ...]) -> None:
    made = cache.tree.mknod(ROOT, b"new", FILE, 0, 0, 0)
    size_bytes = 10 if len(extents) < 4097 else 5000
    with pytest.raises(InvalidInput):
        cache.tree.commit(made.ino, Content(size_bytes, extents), [Segment("s", "w", 99)], 1)
    assert cache.tree.getattr(made.ino) == made
    assert cache.rows("SELECT * FROM segments") == []
    for wrong, error in ((ROOT, IsADirectory), (("data", "x"), NotFound)):
        with pytest.raises(error):
            cache.tree.commit(wrong, Content(0, ()), [], 1)
    with pytest.raises(InvalidInput):
        cache.tree.commit(made.ino, Content(0, ()), [], 1, "sometimes")


def test_put_makes_a_file_with_its_directories_or_replaces_it(cache: Cache) -> None:
    tree = cache.tree
    content, segments = segment_content("s", 10)
    made = tree.put(("data", "x/y"), b"new", 0o640, content, segments, 5)
    assert (made.mode, made.size_bytes, made.mtime_ns) == (stat.S_IFREG | 0o640, 10, 5)
    assert tree.content(("data", "x/y/new")) == (made, content)
    assert tree.getattr(("data", "x")).nlink == 3
    assert cache.touched() == {"", "x", "x/y"}
    assert [kind for kind, *_ in cache.pending()] == ["mkdir", "mkdir", "put"]
    again = tree.put(("data", "x/y"), b"new", 0o600, Content(0, ()), [], 6)
    assert (again.ino, again.mode, again.size_bytes) == (made.ino, made.mode, 0)
    with pytest.raises(Exists):
        tree.put(("data", "x/y"), b"new", 0o600, Content(0, ()), [], 6, "", False)
    with pytest.raises(IsADirectory):
        tree.put(("data", "x"), b"y", 0o600, Content(0, ()), [], 6)
    with pytest.raises(NotADirectory):
        tree.put(("data", "a/y"), b"x", 0o600, Content(0, ()), [], 6)
    listed = tree.lookup(ROOT, b"a")
    assert tree.put(ROOT, b"a", 0o600, *segment_content("t", 3), 6).ino == listed.ino


def test_an_open_file_outlives_its_last_name(cache: Cache) -> None:
    tree = cache.tree
    content, segments = segment_content("s", 10)
    made = tree.put(ROOT, b"new", 0o600, content, segments, 5)
    assert tree.unlink(ROOT, b"new", "mount 1").nlink == 0
    assert tree.content(made.ino)[1] == content
    tree.commit(made.ino, Content(3, ()), [], 6)
    tree.release("mount 2", [made.ino])
    assert tree.getattr(made.ino).size_bytes == 3
    tree.release("mount 1", [made.ino])
    with pytest.raises(NotFound):
        tree.getattr(made.ino)
    listed = tree.lookup(ROOT, b"a")
    tree.unlink(ROOT, b"a", "mount 1")
    assert tree.content(listed.ino)[1].extents[0].path == "a"
    tree.release("mount 1")
    with pytest.raises(NotFound):
        tree.content(listed.ino)
    for table in ("orphans", "segments", "extents"):
        assert cache.rows(f"SELECT * FROM {table}") == []


def test_links_share_their_contents(cache: Cache) -> None:
    tree = cache.tree
    a = tree.lookup(ROOT, b"a")
    linked = tree.link(a.ino, ("data", "sub"), b"a2")
    assert (linked.ino, linked.nlink) == (a.ino, 2)
    assert tree.lookup(ROOT, b"a") == tree.lookup(("data", "sub"), b"a2") == linked
    content, segments = segment_content("s", 10)
    tree.commit(("data", "sub/a2"), content, segments, 5)
    assert tree.content(("data", "a"))[1] == content
    assert sorted(path for kind, path, _ in cache.pending() if kind == "put") == ["a", "sub/a2"]
    tree.unlink(ROOT, b"a")
    assert tree.content(a.ino)[1] == content
    assert tree.getattr(a.ino).nlink == 1
    with pytest.raises(Exists):
        tree.link(a.ino, ("data", "sub"), b"c")
    refused(errno.EPERM, tree.link, ("data", "sub"), ROOT, b"sub2")
    with cache.catalog.transaction() as db:
        db.execute("UPDATE inodes SET nlink = ?", (NLINK_MAX,))
    refused(errno.EMLINK, tree.link, a.ino, ROOT, b"more")


def test_a_symbolic_link_is_kept_as_it_is(cache: Cache) -> None:
    tree = cache.tree
    made = tree.symlink(ROOT, b"link", b"../else\xff", 3, 4)
    assert (made.mode, made.size_bytes, made.uid) == (stat.S_IFLNK | 0o777, 8, 3)
    assert tree.readlink(made.ino) == b"../else\xff"
    with pytest.raises(InvalidInput):
        tree.readlink(("data", "a"))
    with pytest.raises(NotFound):
        tree.symlink(ROOT, b"empty", b"", 0, 0)
    refused(errno.ENAMETOOLONG, tree.symlink, ROOT, b"long", b"x" * 4096, 0, 0)
    with pytest.raises(NotADirectory):
        tree.getattr(("data", "link/x"))
    assert cache.pending() == []


def test_attributes_are_set(cache: Cache) -> None:
    tree = cache.tree
    a = tree.lookup(ROOT, b"a")
    changed = tree.setattr(a.ino, {"mode": stat.S_IFDIR | 0o4711, "uid": 5, "gid": 6, "atime_ns": 1})
    assert changed == a._replace(mode=stat.S_IFREG | 0o4711, uid=5, gid=6, atime_ns=1, ctime_ns=changed.ctime_ns)
    assert changed.ctime_ns > a.ctime_ns
    assert tree.lookup(ROOT, b"a") == changed
    assert (cache.pending(), cache.touched()) == ([], set())  # the source keeps none of these
    assert tree.setattr(a.ino, {"mtime_ns": 9, "ctime_ns": 8})[7:9] == (9, 8)
    assert cache.touched() == {""}
    sub = tree.setattr(("data", "sub"), {"mode": 0o500})
    assert (sub.mode, sub.nlink) == (stat.S_IFDIR | 0o500, 3)
    assert cache.names("sub") == ["c", "deep"]
    with pytest.raises(InvalidInput):
        tree.setattr(a.ino, {"nlink": 5})
    with pytest.raises(NotFound):
        tree.setattr(("data", "x"), {"mode": 0})


def test_a_directory_may_give_its_group_to_what_is_made_in_it(cache: Cache) -> None:
    tree = cache.tree
    tree.setattr(("data", "sub"), {"mode": 0o2755, "gid": 50})
    made = tree.mkdir(("data", "sub"), b"dir", 0o700, 1, 2)
    assert (made.gid, stat.S_IMODE(made.mode)) == (50, 0o2700)
    assert tree.mknod(("data", "sub/dir"), b"file", FILE, 1, 2, 0)[1:5] == (FILE, 1, 1, 50)
    assert tree.symlink(("data", "sub"), b"link", b"to", 1, 2).gid == 50


def test_a_file_is_cut_and_made_longer(cache: Cache) -> None:
    tree = cache.tree
    etag = cache.etag("b")
    cut = tree.setattr(("data", "b"), {"size_bytes": 4})
    assert (cut.size_bytes, cut.version) == (4, 1)
    assert cut.mtime_ns == cut.ctime_ns
    assert tree.content(cut.ino)[1].extents == (Extent(0, 4, path="b", etag=etag, row=cut.ino),)
    longer = tree.setattr(("data", "b"), {"size_bytes": 9})
    assert tree.content(cut.ino)[1].extents[1] == Extent(4, 5)
    assert longer.version == 2
    assert tree.setattr(cut.ino, {"size_bytes": 9}).version == 2
    assert cache.pending() == [("put", "b", etag)]
    for place, error in ((("data", "sub"), IsADirectory), (ROOT, IsADirectory)):
        with pytest.raises(error):
            tree.setattr(place, {"size_bytes": 0})
    with pytest.raises(InvalidInput):
        tree.setattr(cut.ino, {"size_bytes": -1})


def test_extended_attributes(cache: Cache) -> None:
    tree, place = cache.tree, ("data", "a")
    refused(errno.ENODATA, tree.getxattr, place, b"user.x")
    refused(errno.ENODATA, tree.setxattr, place, b"user.x", b"1", 2)
    tree.setxattr(place, b"user.x", b"1\0", 1)
    with pytest.raises(Exists):
        tree.setxattr(place, b"user.x", b"2", 1)
    tree.setxattr(place, b"user.x", b"2", 2)
    tree.setxattr(place, b"user.a", b"", 0)
    assert (tree.getxattr(place, b"user.x"), tree.listxattr(place)) == (b"2", [b"user.a", b"user.x"])
    tree.removexattr(place, b"user.x")
    refused(errno.ENODATA, tree.removexattr, place, b"user.x")
    refused(errno.E2BIG, tree.setxattr, place, b"user.x", bytes(65537), 0)
    refused(errno.ERANGE, tree.setxattr, place, b"n" * 256, b"", 0)
    for number in range(15):
        tree.setxattr(place, b"user.%d" % number, bytes(65536), 0)
    refused(errno.ENOSPC, tree.setxattr, place, b"user.99", bytes(65536), 0)
    tree.setxattr(ROOT, b"user.root", b"1", 0)
    tree.unlink(ROOT, b"a")
    assert cache.rows("SELECT name FROM xattrs") == [(b"user.root",)]


def test_what_is_refused_undoes_one_verb_of_many(cache: Cache) -> None:
    content, _ = segment_content("s", 10)
    answers = cache.tree.apply(
        [
            Verb("mknod", (ROOT, b"one", FILE, 0, 0, 0), "r1"),
            Verb("mknod", (ROOT, b"a", FILE, 0, 0, 0), "r2"),
            Verb("mkdir", (("data", "sub/deep"), b"two", 0o755, 0, 0), "r3"),
            Verb("put", (("data", "sub/deep/two"), b"three", 0o600, content, [], 1), "r4"),
            Verb("lookup", (("data", "sub/deep"), b"two")),
            Verb("paint", ()),
        ]
    )
    assert [type(answer.error) if isinstance(answer, Failed) else type(answer) for answer in answers] == [
        Attr, Exists, Attr, Changed, Attr, InvalidInput,
    ]  # fmt: skip
    assert cache.names("sub/deep/two") == []
    with pytest.raises(InvalidInput):
        cache.tree.apply([Verb("getattr", (ROOT,))] * (VERBS_AT_ONCE + 1))


def test_a_request_is_answered_again_and_not_done_again(cache: Cache) -> None:
    for verb in (
        Verb("mkdir", (ROOT, b"d", 0o755, 0, 0), "r1"),
        Verb("mknod", (ROOT, b"f", FILE, 0, 0, 0), "r2"),
        Verb("setxattr", (ROOT, b"user.x", b"", 1), "r3"),
        Verb("commit", (("data", "f"), *segment_content("s", 4), 9), "r4"),
        Verb("unlink", (ROOT, b"f"), "r5"),
        Verb("rmdir", (ROOT, b"d"), "r6"),
    ):
        first = cache.tree.apply([verb])
        assert not isinstance(first[0], Failed)
        assert cache.tree.apply([verb]) == first


def test_a_dataset_without_a_source_to_write_to_leaves_nothing_pending(cache: Cache) -> None:
    tree = cache.tree
    tree.set_write_type("data", "cache")
    tree.mknod(ROOT, b"new", FILE, 0, 0, 0)
    tree.unlink(ROOT, b"a")
    tree.mkdir(ROOT, b"d", 0o755, 0, 0)
    assert cache.pending() == []
    tree.put(ROOT, b"kept", 0o600, *segment_content("s", 4), 9, "through")
    assert cache.pending() == [("put", "kept", "")]
    with pytest.raises(InvalidInput):
        tree.set_write_type("data", "never")
    with pytest.raises(NotFound):
        tree.set_write_type("none", "async")


def test_segments_are_known_while_files_need_them(cache: Cache) -> None:
    tree = cache.tree
    tree.put(ROOT, b"new", 0o600, *segment_content("s", 4), 9)
    tree.extend_segment(Segment("s", "other", 4))
    tree.extend_segment(Segment("unknown", "other", 4))
    assert tree.known_segments("worker", ["s", "unknown"]) == [True, False]
    tree.extend_segment(Segment("s", "worker", -1))
    assert cache.rows("SELECT * FROM segments") == [("s", "other", 4)]
    tree.unlink(ROOT, b"new")
    assert tree.known_segments("other", ["s"]) == [False]
    assert cache.rows("SELECT * FROM segments") == []


def test_a_listing_that_cannot_be_had_fails_those_that_need_it(cache: Cache) -> None:
    manifest = cache.metadata.manifest

    def load(dir_ids: Sequence[int]) -> list[Manifest | Failed]:
        return [manifest(one) if one == cache.root_id else Failed(SourceUnavailable("away")) for one in dir_ids]

    tree = Tree(cache.catalog, Lowers(load), lambda: 1)
    needs_it, does_not, needs_it_too = tree.apply(
        [
            Verb("mknod", (("data", "sub"), b"x", FILE, 0, 0, 0)),
            Verb("mknod", (ROOT, b"x", FILE, 0, 0, 0)),
            Verb("rename", (ROOT, b"sub", ROOT, b"y")),
        ]
    )
    for answer in (needs_it, needs_it_too):
        assert isinstance(answer, Failed)
        assert isinstance(answer.error, SourceUnavailable)
    assert tree.lookup(ROOT, b"x") == does_not


def test_listings_are_kept_within_bounds(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowers_module, "COUNT_MAX", 2)
    lowers = Lowers(lambda dir_ids: [cache.metadata.manifest(dir_id) for dir_id in dir_ids])
    ids = [cache.root_id, *(cache.tree.getattr(("data", path)).ino >> 32 for path in ("sub", "sub/deep"))]
    held = lowers.load(dict.fromkeys(ids, True), {})
    assert sorted(held) == sorted(ids)
    assert [lowers.find(dir_id) is not None for dir_id in sorted(ids)] == [False, True, True]
    monkeypatch.setattr(lowers_module, "BYTES_MAX", 0)
    lowers.load({ids[0]: False}, {})
    assert [lowers.find(dir_id) is not None for dir_id in sorted(ids)] == [True, False, False]
    monkeypatch.setattr(lowers_module, "CALL_BYTES_MAX", 0)
    refused(errno.E2BIG, lowers.load, {ids[0]: False}, {})


def test_verbs_wait_for_the_disk_only_where_something_depends_on_it(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    transaction = cache.catalog.transaction

    def noted(*, durable: bool = True) -> Any:
        done.append(durable)
        return transaction(durable=durable)

    monkeypatch.setattr(cache.catalog, "transaction", noted)
    monkeypatch.setattr(cache.catalog, "sync", lambda: done.append("sync"))
    cache.tree.mkdir(ROOT, b"first", 0o755, 0, 0)  # has the directory listed, which is another matter
    done.clear()
    cache.tree.mkdir(ROOT, b"new", 0o755, 0, 0)
    assert done == [False]
    done.clear()
    cache.tree.set_write_type("data", "cache")
    assert done == [True]
    done.clear()
    made, synced = cache.tree.apply([Verb("sync", ()), Verb("mkdir", (ROOT, b"newer", 0o755, 0, 0), "id")])
    assert (made, synced.nlink) == (None, 2)
    assert done == [False, "sync"], "after what came with it, whatever the order"
