"""Verbs upon the tree, each as a call of ``apply``: all of ``client.treeapi.TreeApi`` for whoever has that one method.

The master's own tree and those that ask for it, over Ray or in process, differ in how ``apply`` gets there, and in
nothing else.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from raycache.core.inode import Attr, Content, Extent, Name, Place, Segment, Verb
from raycache.core.values import Failed


class TreeVerbs:
    """See the module, and TreeApi for what each method does."""

    def apply(self, verbs: Sequence[Verb]) -> list[Any | Failed]:
        """See TreeApi. Everything else goes through this."""
        raise NotImplementedError

    def _ask(self, name: str, *args: Any) -> Any:
        return self._only(Verb(name, args))

    def _change(self, name: str, *args: Any) -> Any:
        return self._only(Verb(name, args, uuid.uuid4().hex))

    def _only(self, verb: Verb) -> Any:
        (answer,) = self.apply([verb])
        if isinstance(answer, Failed):
            raise answer.error
        return answer

    def lookup(self, parent: Place, name: bytes) -> Attr:
        """See TreeApi."""
        return self._ask("lookup", parent, name)  # type: ignore[no-any-return]

    def getattr(self, place: Place) -> Attr:
        """See TreeApi."""
        return self._ask("getattr", place)  # type: ignore[no-any-return]

    def readdir(self, place: Place, after: bytes, count: int) -> list[Name]:
        """See TreeApi."""
        return self._ask("readdir", place, after, count)  # type: ignore[no-any-return]

    def readlink(self, place: Place) -> bytes:
        """See TreeApi."""
        return self._ask("readlink", place)  # type: ignore[no-any-return]

    def content(self, place: Place) -> tuple[Attr, Content]:
        """See TreeApi."""
        return self._ask("content", place)  # type: ignore[no-any-return]

    def contents(self, wanted: Sequence[tuple[int, int]]) -> list[Content | Failed]:
        """See TreeApi."""
        return self._ask("contents", list(wanted))  # type: ignore[no-any-return]

    def mknod(self, parent: Place, name: bytes, mode: int, uid: int, gid: int, rdev: int) -> Attr:
        """See TreeApi."""
        return self._change("mknod", parent, name, mode, uid, gid, rdev)  # type: ignore[no-any-return]

    def mkdir(self, parent: Place, name: bytes, mode: int, uid: int, gid: int) -> Attr:
        """See TreeApi."""
        return self._change("mkdir", parent, name, mode, uid, gid)  # type: ignore[no-any-return]

    def symlink(self, parent: Place, name: bytes, target: bytes, uid: int, gid: int) -> Attr:
        """See TreeApi."""
        return self._change("symlink", parent, name, target, uid, gid)  # type: ignore[no-any-return]

    def link(self, place: Place, parent: Place, name: bytes) -> Attr:
        """See TreeApi."""
        return self._change("link", place, parent, name)  # type: ignore[no-any-return]

    def unlink(self, parent: Place, name: bytes, holder: str = "") -> Attr:
        """See TreeApi."""
        return self._change("unlink", parent, name, holder)  # type: ignore[no-any-return]

    def rmdir(self, parent: Place, name: bytes) -> Attr:
        """See TreeApi."""
        return self._change("rmdir", parent, name)  # type: ignore[no-any-return]

    def remove_tree(self, place: Place) -> int:
        """See TreeApi."""
        return self._change("remove_tree", place)  # type: ignore[no-any-return]

    def replace_tree(self, parent: Place, name: bytes, to_parent: Place, to_name: bytes) -> Attr:
        """See TreeApi."""
        return self._change("replace_tree", parent, name, to_parent, to_name)  # type: ignore[no-any-return]

    def rename(
        self, parent: Place, name: bytes, to_parent: Place, to_name: bytes, flags: int = 0, holder: str = ""
    ) -> Attr:
        """See TreeApi."""
        return self._change("rename", parent, name, to_parent, to_name, flags, holder)  # type: ignore[no-any-return]

    def setattr(self, place: Place, changes: dict[str, int]) -> Attr:
        """See TreeApi."""
        return self._change("setattr", place, changes)  # type: ignore[no-any-return]

    def getxattr(self, place: Place, name: bytes) -> bytes:
        """See TreeApi."""
        return self._ask("getxattr", place, name)  # type: ignore[no-any-return]

    def listxattr(self, place: Place) -> list[bytes]:
        """See TreeApi."""
        return self._ask("listxattr", place)  # type: ignore[no-any-return]

    def setxattr(self, place: Place, name: bytes, value: bytes, flags: int) -> None:
        """See TreeApi."""
        self._change("setxattr", place, name, value, flags)

    def removexattr(self, place: Place, name: bytes) -> None:
        """See TreeApi."""
        self._change("removexattr", place, name)

    def commit(
        self, place: Place, content: Content, segments: Sequence[Segment], mtime_ns: int, write_type: str = ""
    ) -> Attr:
        """See TreeApi."""
        return self._change("commit", place, content, list(segments), mtime_ns, write_type)  # type: ignore[no-any-return]

    def put(
        self,
        parent: Place,
        name: bytes,
        mode: int,
        content: Content,
        segments: Sequence[Segment],
        mtime_ns: int,
        write_type: str = "",
        replace: bool = True,
    ) -> Attr:
        """See TreeApi."""
        args = (parent, name, mode, content, list(segments), mtime_ns, write_type, replace)
        return self._change("put", *args)  # type: ignore[no-any-return]

    def release(self, holder: str, inos: Sequence[int] | None = None) -> None:
        """See TreeApi."""
        self._change("release", holder, inos)

    def publish(self, dir_ids: Sequence[int]) -> list[int]:
        """See TreeApi."""
        return self._ask("publish", list(dir_ids))  # type: ignore[no-any-return]

    def sync(self) -> None:
        """See TreeApi."""
        self._ask("sync")

    def extend_segment(self, segment: Segment) -> None:
        """See TreeApi."""
        self._change("extend_segment", segment)

    def known_segments(self, worker_id: str, segments: Sequence[str]) -> list[bool]:
        """See TreeApi."""
        return self._ask("known_segments", worker_id, list(segments))  # type: ignore[no-any-return]

    def segment_places(self, segments: Sequence[str]) -> list[list[str]]:
        """See TreeApi."""
        return self._ask("segment_places", list(segments))  # type: ignore[no-any-return]

    def segments_of(self, worker_id: str, after: str, count: int) -> list[str]:
        """See TreeApi."""
        return self._ask("segments_of", worker_id, after, count)  # type: ignore[no-any-return]

    def let_go_segments(self, worker_id: str, segments: Sequence[str]) -> list[int]:
        """See TreeApi."""
        return self._change("let_go_segments", worker_id, list(segments))  # type: ignore[no-any-return]

    def drop_segments(self, worker_id: str, segments: Sequence[str]) -> list[bool]:
        """See TreeApi."""
        return self._change("drop_segments", worker_id, list(segments))  # type: ignore[no-any-return]

    def moved_segments(self, dataset: str, extents: Sequence[Extent]) -> list[list[Extent]]:
        """See TreeApi."""
        return self._ask("moved_segments", dataset, list(extents))  # type: ignore[no-any-return]

    def discard_conflicts(self, place: Place) -> list[int]:
        """See TreeApi. To do it twice does no harm."""
        return self._ask("discard_conflicts", place)  # type: ignore[no-any-return]

    def set_write_type(self, dataset: str, write_type: str) -> None:
        """See TreeApi."""
        self._change("set_write_type", dataset, write_type)
