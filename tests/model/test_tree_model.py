"""The tree that writers see against one in plain Python, with the master dying within and between any two verbs.

Beneath lies a source with files and directories, so that all is tried on what is listed, changed, moved and made. After
each step all names, kinds, numbers, link counts and bytes are as in the reference; what is pending, brought about in
the source, makes it the same files; and the catalog holds together (``fsck``).
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path as Directory
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from plain_tree import Fails, Node, Path, PlainTree

from raycache.core.inode import EXCHANGE, NOREPLACE, Attr, Content, Extent, Place, Segment, Verb
from raycache.core.values import Failed
from raycache.errors import RaycacheError
from raycache.meta.catalog import Catalog
from raycache.meta.check import check
from raycache.meta.metadata import Metadata
from raycache.ufs.base import Limits

FILES = {"a": b"first" * 3, "b/a": b"second" * 5, "b/c/a": b"third", "b/c/b": b"fourth", "c": b""}
NAMES = ("a", "b", "c", "d")
GATES = ("before commit", "after commit")
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "pipe"}
HOLDER = "a mount"


class Killed(BaseException):
    """The master is gone, in the middle of whatever it did."""


class Kill(NamedTuple):
    """At which gate, and how many times it is passed before."""

    gate: str
    passes: int


KILLS = st.lists(st.builds(Kill, st.sampled_from(GATES), st.integers(0, 1)), max_size=1)
NAME = st.sampled_from(NAMES)
PATH = st.lists(NAME, min_size=1, max_size=3).map(tuple)
ANYWHERE = st.lists(NAME, max_size=3).map(tuple)
BY_NUMBER = st.booleans()


class TreeMachine(RuleBasedStateMachine):
    """``source`` is what the source would hold if all that was taken from ``pending`` has been done."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Directory(tempfile.mkdtemp(prefix="raycache-tree-"))
        self.catalog: Catalog | None = None
        self.clock, self.requests, self.stamps = itertools.count(10**18), itertools.count(), itertools.count(1)
        self.segments: dict[str, bytes] = {}
        self.kills: list[Kill] = []
        self.held: dict[int, bytes] = {}
        self.source: dict[bytes, tuple[str, bytes]] = {}

    @initialize()
    def start(self) -> None:
        top = Node("dir", 0o755)
        self.plain = PlainTree(top)
        for path, data in FILES.items():
            (self.root / "source" / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / "source" / path).write_bytes(data)
            self.plain.put(tuple(path.split("/")), data, True)
        self.restart()
        self.metadata.attach(str(self.root / "source"), "data", {})
        for path, data in FILES.items():
            above, _, name = path.rpartition("/")
            manifest = self.metadata.manifest(self.metadata.tree.getattr(("data", above)).ino >> 32)
            row = manifest.find(name.encode())
            assert row is not None
            self.source[path.encode()] = (manifest.etag(row), data)
        for path, node in self.plain.walk():
            node.ino = self.metadata.tree.getattr(place(path)).ino

    @rule()
    def restart(self) -> None:
        """The old connection is dropped as a killed process drops it; the file is all that is left."""
        if self.catalog is not None:
            self.catalog.close()
        self.catalog = Catalog.open(self.root / "catalog.db", self.gate)
        self.metadata = Metadata(self.catalog, {}, Limits(), 1000, lambda: next(self.clock))

    def gate(self, name: str) -> None:
        if self.kills and self.kills[0].gate == name:
            kill = self.kills.pop(0)
            if kill.passes == 0:
                raise Killed
            self.kills.insert(0, kill._replace(passes=kill.passes - 1))

    def ask(self, kills: list[Kill], expected: Callable[[], Any], name: str, *args: Any) -> tuple[Any, Any]:
        """What the reference and the tree answer, when both do or both refuse in the same way."""
        verb = Verb(name, args, f"request-{next(self.requests)}")
        try:
            wanted, refused = expected(), 0
        except Fails as fails:
            wanted, refused = None, fails.number
        self.kills = list(kills)
        while True:
            try:
                (answer,) = self.metadata.tree.apply([verb])
                break
            except Killed:
                self.restart()
        self.kills = []
        if isinstance(answer, Failed):
            assert isinstance(answer.error, RaycacheError)
            assert answer.error.errno == refused, f"{answer.error!r}, {errno.errorcode.get(refused)}"
            return None, None
        assert not refused, f"{verb} is done, though {errno.errorcode[refused]}"
        return wanted, answer

    def at(self, path: Path, by_number: bool) -> Place:
        """A place, said by its number where it has one."""
        try:
            node = self.plain.get(path)
        except Fails:
            return place(path)
        return node.ino if by_number and node.ino else place(path)

    def written(self, data: bytes) -> tuple[Content, list[Segment]]:
        segment = f"segment-{next(self.stamps)}"
        self.segments[segment] = b"pad" + data
        extents = (Extent(0, len(data), segment=segment, offset=3),) if data else ()
        return Content(len(data), extents), [Segment(segment, "worker", len(data) + 3)]

    @rule(kills=KILLS, path=PATH, by_number=BY_NUMBER, kind=st.sampled_from(["file", "pipe", "dir", "link"]))
    def make(self, kills: list[Kill], path: Path, by_number: bool, kind: str) -> None:
        parent, name = self.at(path[:-1], by_number), path[-1].encode()
        node = Node(kind, {"dir": 0o755, "link": 0o777}.get(kind, 0o644), b"to" if kind == "link" else b"")
        if kind == "dir":
            args: tuple[Any, ...] = ("mkdir", parent, name, node.mode, 0, 0)
        elif kind == "link":
            args = ("symlink", parent, name, node.data, 0, 0)
        else:
            bits = stat.S_IFREG if kind == "file" else stat.S_IFIFO
            args = ("mknod", parent, name, bits | node.mode, 0, 0, 0)
        _, attr = self.ask(kills, lambda: self.plain.make(path, node), *args)
        if attr is not None:
            node.ino = attr.ino

    @rule(kills=KILLS, path=PATH, data=st.binary(max_size=20), replace=st.booleans())
    def put(self, kills: list[Kill], path: Path, data: bytes, replace: bool) -> None:
        content, segments = self.written(data)
        # Where it fails, it leaves no directory behind.
        before = [each for each, _ in self.plain.walk()]
        args = (place(path[:-1]), path[-1].encode(), 0o644, content, segments, 5, "", replace)
        _, attr = self.ask(kills, lambda: self.plain.put(path, data, replace), "put", *args)
        if attr is None:
            for each in [each for each, _ in self.plain.walk() if each not in before][::-1]:
                self.plain.rmdir(each)
            return
        for each, node in self.plain.walk():
            if not node.ino:
                node.ino = attr.ino if each == path else self.metadata.tree.getattr(place(each)).ino

    @rule(kills=KILLS, path=ANYWHERE, by_number=BY_NUMBER, data=st.binary(max_size=20), keep=st.integers(0, 10))
    def commit(self, kills: list[Kill], path: Path, by_number: bool, data: bytes, keep: int) -> None:
        """New bytes, after some of the old ones and perhaps a hole."""
        where = self.at(path, by_number)
        try:
            old = self.metadata.tree.content(where)[1]
        except RaycacheError:
            old = Content(0, ())
        kept = tuple(
            extent._replace(length=min(extent.length, keep - extent.at)) for extent in old.extents if extent.at < keep
        )
        end = max((extent.at + extent.length for extent in kept), default=0) + len(data) % 3
        content, segments = self.written(data)
        extents = (*kept, *(extent._replace(at=end) for extent in content.extents))
        whole = Content(end + len(data), extents)

        def change() -> None:
            node = self.plain.file(path)
            node.data = node.data[:keep].ljust(end, b"\0") + data

        self.ask(kills, change, "commit", where, whole, segments, 7)

    @rule(kills=KILLS, path=ANYWHERE, by_number=BY_NUMBER, size=st.integers(0, 30))
    def cut(self, kills: list[Kill], path: Path, by_number: bool, size: int) -> None:
        def change() -> None:
            node = self.plain.file(path)
            node.data = node.data[:size].ljust(size, b"\0")

        self.ask(kills, change, "setattr", self.at(path, by_number), {"size_bytes": size})

    @rule(kills=KILLS, path=ANYWHERE, by_number=BY_NUMBER, mode=st.integers(0, 0o7777))
    def chmod(self, kills: list[Kill], path: Path, by_number: bool, mode: int) -> None:
        def change() -> None:
            self.plain.get(path).mode = mode

        self.ask(kills, change, "setattr", self.at(path, by_number), {"mode": mode})

    @rule(kills=KILLS, path=ANYWHERE, name=NAME, value=st.binary(max_size=3))
    def setxattr(self, kills: list[Kill], path: Path, name: str, value: bytes) -> None:
        def change() -> None:
            self.plain.get(path).xattrs[name] = value

        self.ask(kills, change, "setxattr", place(path), name.encode(), value, 0)

    @rule(kills=KILLS, source=ANYWHERE, path=PATH, by_number=BY_NUMBER)
    def link(self, kills: list[Kill], source: Path, path: Path, by_number: bool) -> None:
        self.ask(
            kills, lambda: self.plain.link(source, path), "link",
            self.at(source, by_number), self.at(path[:-1], by_number), path[-1].encode(),
        )  # fmt: skip

    @rule(kills=KILLS, path=PATH, by_number=BY_NUMBER, hold=st.booleans())
    def unlink(self, kills: list[Kill], path: Path, by_number: bool, hold: bool) -> None:
        parent, holder = self.at(path[:-1], by_number), HOLDER if hold else ""
        node, attr = self.ask(kills, lambda: self.plain.unlink(path), "unlink", parent, path[-1].encode(), holder)
        if attr is not None:
            assert attr.nlink == self.plain.links(node)
            if hold and attr.nlink == 0 and node.kind == "file":
                self.held[node.ino] = node.data

    @rule(kills=KILLS, path=PATH, by_number=BY_NUMBER)
    def rmdir(self, kills: list[Kill], path: Path, by_number: bool) -> None:
        self.ask(kills, lambda: self.plain.rmdir(path), "rmdir", self.at(path[:-1], by_number), path[-1].encode())

    @rule(kills=KILLS, path=ANYWHERE, by_number=BY_NUMBER)
    def remove_tree(self, kills: list[Kill], path: Path, by_number: bool) -> None:
        # By a number, any name of a file could go.
        is_dir = path == () or self.kind(path) == "dir"
        wanted, count = self.ask(
            kills, lambda: self.plain.remove_tree(path), "remove_tree", self.at(path, by_number and is_dir)
        )
        assert wanted == count

    @rule(
        kills=KILLS,
        old=PATH,
        new=PATH,
        by_number=BY_NUMBER,
        flags=st.sampled_from([0, 0, 0, NOREPLACE, EXCHANGE]),
        hold=st.booleans(),
    )
    def rename(self, kills: list[Kill], old: Path, new: Path, by_number: bool, flags: int, hold: bool) -> None:
        target = self.plain.get(new) if self.kind(new) == "file" else None
        args = (self.at(old[:-1], by_number), old[-1].encode(), self.at(new[:-1], by_number), new[-1].encode())
        node, attr = self.ask(
            kills, lambda: self.plain.rename(old, new, flags), "rename", *args, flags, HOLDER if hold else ""
        )
        if attr is not None:
            assert attr.ino == node.ino
            if hold and target is not None and not self.plain.links(target):
                self.held[target.ino] = target.data

    def kind(self, path: Path) -> str:
        try:
            return self.plain.get(path).kind
        except Fails:
            return ""

    @rule(kills=KILLS, all_=st.booleans())
    def release(self, kills: list[Kill], all_: bool) -> None:
        inos = None if all_ else list(self.held)[:1]
        for ino in list(self.held) if inos is None else inos:
            del self.held[ino]
        self.ask(kills, lambda: None, "release", HOLDER, inos)

    @rule(count=st.integers(1, 5))
    def persist(self, count: int) -> None:
        """Bring about the first of what is pending."""
        assert self.catalog is not None
        with self.catalog.transaction() as db:
            rows = db.execute(
                "SELECT seq, kind, path, ino, version FROM pending ORDER BY seq LIMIT ?", (count,)
            ).fetchall()
        for seq, kind, path, ino, version in rows:
            persisted = None
            if kind == "put":
                etag = f"put-{next(self.stamps)}"
                (content,) = self.metadata.tree.contents([(ino, version)])
                assert isinstance(content, Content)
                persisted = (etag, self.bytes_of(content))
            with self.catalog.transaction() as db:
                db.execute("DELETE FROM pending WHERE seq = ?", (seq,))
                if persisted is not None:
                    self.source[path] = persisted
                    values = ("data", path, ino, version, persisted[0])
                    db.execute("INSERT OR REPLACE INTO persisted VALUES (?, ?, ?, ?, ?)", values)
                elif kind in ("delete", "mkdir"):
                    self.source.pop(path, None)
                    db.execute("DELETE FROM persisted WHERE path = ?", (path,))

    def bytes_of(self, content: Content) -> bytes:
        data, end = b"", 0
        for extent in content.extents:
            assert extent.at == end
            whole = bytes(extent.offset + extent.length)
            if extent.segment:
                whole = self.segments[extent.segment]
            elif extent.path:
                whole = FILES[extent.path]
            part = whole[extent.offset : extent.offset + extent.length]
            assert len(part) == extent.length
            data += part
            end = extent.at + extent.length
        assert end == content.size_bytes
        return data

    @invariant()
    def the_tree_is_the_same(self) -> None:
        tree = self.metadata.tree
        for path, node in self.plain.walk():
            attr = tree.getattr(place(path))
            self.same(path, node, attr)
            if node.kind == "dir":
                shown, after = [], b""
                while page := tree.readdir(attr.ino, after, 2):
                    shown += page
                    after = page[-1].name
                assert [one.name.decode() for one in shown] == sorted(node.entries)
                for one in shown:
                    self.same((*path, one.name.decode()), node.entries[one.name.decode()], one.attr)
            elif node.kind == "file":
                assert self.bytes_of(tree.content(attr.ino)[1]) == node.data
            else:
                assert node.kind == "pipe" or tree.readlink(attr.ino) == node.data
            assert {name: tree.getxattr(attr.ino, name.encode()) for name in node.xattrs} == node.xattrs
        for ino, data in self.held.items():
            assert tree.getattr(ino).nlink == 0
            assert self.bytes_of(tree.content(ino)[1]) == data

    def same(self, path: Path, node: Node, attr: Attr) -> None:
        assert KINDS[stat.S_IFMT(attr.mode)] == node.kind, path
        assert attr.ino == node.ino, path
        assert stat.S_IMODE(attr.mode) == node.mode, path
        is_changed = self.rows("SELECT 1 FROM inodes WHERE ino = ?", attr.ino)
        if is_changed or node.kind != "dir":  # of what was only listed it is not known what is in it
            assert attr.nlink == self.plain.links(node), path

    @invariant()
    def what_is_pending_makes_the_source_the_same(self) -> None:
        source = dict(self.source)
        for kind, path, ino, version, base_etag in self.rows(
            "SELECT kind, path, ino, version, base_etag FROM pending ORDER BY seq"
        ):
            if kind in ("put", "delete"):
                assert base_etag in (None, source.get(path, ("", b""))[0]), (kind, path)
            if kind == "put":
                (content,) = self.metadata.tree.contents([(ino, version)])
                assert isinstance(content, Content), path
                source[path] = ("", self.bytes_of(content))
            elif kind in ("delete", "mkdir"):  # a directory takes the place of a file
                source.pop(path, None)
        wanted = {"/".join(path).encode(): node.data for path, node in self.plain.walk() if node.kind == "file"}
        assert {path: data for path, (_, data) in source.items()} == wanted

    @invariant()
    def the_catalog_holds_together(self) -> None:
        assert not check(self.root / "catalog.db").problems
        known = {segment for (segment,) in self.rows("SELECT segment FROM segments")}
        assert known == {segment for (segment,) in self.rows("SELECT segment FROM extents WHERE segment NOT NULL")}

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        assert self.catalog is not None
        with self.catalog.transaction() as db:
            return db.execute(query, values).fetchall()

    def teardown(self) -> None:
        if self.catalog is not None:
            self.catalog.close()
        shutil.rmtree(self.root)


def place(path: Path) -> Place:
    return "data", "/".join(path)


TestTree = TreeMachine.TestCase
TestTree.settings = settings(
    max_examples=int(os.environ.get("RAYCACHE_MODEL_EXAMPLES", "40")),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
