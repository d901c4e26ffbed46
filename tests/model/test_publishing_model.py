"""What readers are shown is what writers see, whatever is changed while a version is being made.

Random changes of a small tree, published and refreshed; in the middle of each publication and each refresh, at the
moments when neither holds a transaction, more changes. When all is published the manifests name what the tree names.
"""

from __future__ import annotations

import itertools
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from raycache.core.inode import Content, Extent, Place, Segment, split_ino
from raycache.errors import RaycacheError
from raycache.meta.catalog import Catalog
from raycache.meta.metadata import Metadata
from raycache.ufs.base import Limits

FILES = ("b/a", "b/c/a")
MOMENTS = ("listed", "made", "numbered")
"""A source has answered; a version is made of what was read; the same, of what was listed."""


class Change(NamedTuple):
    """Something that a writer does."""

    verb: str
    path: str
    to: str


PATHS = st.sampled_from(["a", "b", "b/a", "b/c"])
FOLDERS = st.sampled_from(["", "b"])
VERBS = st.sampled_from(["mkdir", "mkdir", "rmdir", "remove_tree", "put", "unlink", "rename", "rename", "publish"])
CHANGES = st.lists(st.builds(Change, VERBS, PATHS, PATHS), max_size=4)
BETWEEN = st.dictionaries(st.sampled_from(MOMENTS), CHANGES, min_size=1)


class PublishingMachine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.base = tempfile.TemporaryDirectory(prefix="raycache-publishing-")
        self.segments = itertools.count()
        self.between: dict[str, list[Change]] = {}

    @initialize(write_type=st.sampled_from(["cache", "async"]))
    def start(self, write_type: str) -> None:
        self.source = Path(self.base.name)
        for path in FILES:
            (self.source / path).parent.mkdir(parents=True, exist_ok=True)
            (self.source / path).write_bytes(b"listed")
        self.catalog = Catalog.open(":memory:")
        ticks = itertools.count(10**18)
        self.metadata = Metadata(self.catalog, {}, Limits(), 1 << 20, lambda: next(ticks))
        self.metadata.attach(str(self.source), "data", {})
        self.metadata.tree.set_write_type("data", write_type)
        self.interrupt(self.metadata.publisher, "_made", "made", before=False)
        self.interrupt(self.metadata._merging, "_listing", "listed", before=False)
        self.interrupt(self.catalog, "number_directories", "numbered", before=True)

    def interrupt(self, of: Any, method: str, moment: str, *, before: bool) -> None:
        work: Callable[..., Any] = getattr(of, method)

        def interrupted(*args: Any) -> Any:
            if before:
                self.interfere(moment)
            done = work(*args)
            if not before:
                self.interfere(moment)
            return done

        setattr(of, method, interrupted)

    def interfere(self, moment: str) -> None:
        """Not with what a change itself lists: it would wait for itself."""
        left, self.between = self.between, {}
        self.change(left.pop(moment, []))
        self.between = left

    @rule(changes=CHANGES)
    def change(self, changes: list[Change]) -> None:
        for each in changes:
            with suppress(RaycacheError):  # what cannot be done changes nothing
                self.do(each)

    def do(self, change: Change) -> None:
        tree, (above, name) = self.metadata.tree, split(change.path)
        if change.verb == "publish":
            self.metadata.publisher._rests.clear()
            self.metadata.publisher.step()  # nothing, where this very publisher is interrupted
        elif change.verb == "mkdir":
            tree.mkdir(above, name, stat.S_IFDIR | 0o755, 0, 0)
        elif change.verb == "rmdir":
            tree.rmdir(above, name)
        elif change.verb == "remove_tree":
            tree.remove_tree(("data", change.path))
        elif change.verb == "unlink":
            tree.unlink(above, name)
        elif change.verb == "rename":
            tree.rename(above, name, *split(change.to))
        else:
            number = next(self.segments)
            content = Content(number, (Extent(0, number, segment=f"{number:032x}"),) if number else ())
            tree.put(above, name, stat.S_IFREG | 0o644, content, (Segment(f"{number:032x}", "worker", number),), number)

    @rule(first=CHANGES, path=FOLDERS, between=BETWEEN)
    def publish(self, first: list[Change], path: str, between: dict[str, list[Change]]) -> None:
        self.interrupted(first, path, between, lambda dir_id: self.metadata.tree.publish([dir_id]))

    @rule(first=CHANGES, path=FOLDERS, between=BETWEEN)
    def refresh(self, first: list[Change], path: str, between: dict[str, list[Change]]) -> None:
        self.interrupted(first, path, between, self.metadata.refresh)

    def interrupted(
        self, first: list[Change], path: str, between: dict[str, list[Change]], what: Callable[[int], object]
    ) -> None:
        self.change(first)
        with suppress(RaycacheError):  # it is not there, or no directory; or went meanwhile
            dir_id = self.number(path)
            self.metadata.manifest(dir_id)
            self.between = dict(between)
            what(dir_id)
        self.between = {}

    @rule()
    def readers_are_shown_what_writers_see(self) -> None:
        todo = [""]
        while todo:
            path = todo.pop()
            dir_id = self.number(path)
            self.metadata.manifest(dir_id)
            self.metadata.tree.publish([dir_id])
            shown = self.shown(dir_id)
            names = self.metadata.tree.readdir(("data", path), b"", 1000)
            there = {name: -1 if attr.is_dir else attr.size_bytes for name, attr in names}
            assert shown == there, f"in {path!r}: {shown} are shown, {there} are there"
            todo += [f"{path}/{name.decode()}".lstrip("/") for name, size in there.items() if size < 0]

    def shown(self, dir_id: int) -> dict[bytes, int]:
        found = self.metadata.manifest(dir_id)
        rows = found.rows()
        return {found.name(row): found.size(row) if found.child_id(row) is None else -1 for row in rows}

    def number(self, path: str) -> int:
        return split_ino(self.metadata.tree.getattr(("data", path)).ino)[0]

    def teardown(self) -> None:
        if hasattr(self, "metadata"):
            self.readers_are_shown_what_writers_see()
            self.catalog.close()
        self.base.cleanup()


def split(path: str) -> tuple[Place, bytes]:
    above, _, name = path.rpartition("/")
    return ("data", above), name.encode()


TestPublishing = PublishingMachine.TestCase
TestPublishing.settings = settings(
    max_examples=int(os.environ.get("RAYCACHE_MODEL_EXAMPLES", "100")),
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
