"""Verbs that change names by path: directories, removing, moving, copying, attributes.

Each is one call to the master, which does it in one transaction; afterwards this process sees what became of it. No
bytes move.

Threading: safe.
"""

from __future__ import annotations

import errno
import stat
import time
import uuid
from collections.abc import Sequence
from typing import Any

from raycache.client.changing import Changing, Target
from raycache.client.treeapi import NOREPLACE, VERBS_AT_ONCE
from raycache.core import paths
from raycache.core.inode import LISTED_FILE, MOUNT_OWNER, Content, Verb
from raycache.core.values import Failed
from raycache.errors import Exists, InvalidInput, NotFound, Refused

_PERMISSIONS = 0o7777


class Editing:
    """Changes names of datasets. See FileSystem for what each does."""

    def __init__(self, changing: Changing) -> None:
        self._changing = changing
        self._tree = changing.tree

    def mkdir(self, uri: str, *, mode: int = 0o755, parents: bool = False, exist_ok: bool = False) -> None:
        """See FileSystem.mkdir."""
        target = self._changing.target(uri)
        if not target.name:
            if not exist_ok:
                raise Exists(f"{uri} is the root of a dataset and there already")
            return
        try:
            self._make(target, mode)
        except NotFound:
            if not parents or not target.parent:
                raise
            above = f"{paths.RAYCACHE_SCHEME}://{paths.join(*target.folder)}"
            self.mkdir(above, parents=True, exist_ok=True)
            self.mkdir(uri, mode=mode, exist_ok=exist_ok)
        except Exists:
            if not exist_ok or not self._tree.getattr(target.place).is_dir:
                raise

    def _make(self, target: Target, mode: int) -> None:
        mode = stat.S_IFDIR | (mode & _PERMISSIONS)
        self._tree.mkdir(target.folder, target.name, mode, MOUNT_OWNER, MOUNT_OWNER)
        self._done([target])

    def rmdir(self, uri: str) -> None:
        """See FileSystem.rmdir."""
        target = self._named(uri)
        self._tree.rmdir(target.folder, target.name)
        self._moved([target])

    def remove(self, uri: str) -> None:
        """See FileSystem.remove."""
        target = self._named(uri)
        self._tree.unlink(target.folder, target.name)
        self._done([target])

    def remove_tree(self, uri: str) -> int:
        """See FileSystem.remove_tree."""
        target = self._named(uri)
        count = self._tree.remove_tree(target.place)
        self._moved([target])
        return count

    def rename(self, uri: str, to: str, *, replace: bool = True) -> None:
        """See FileSystem.rename."""
        source, target = self._named(uri), self._named(to)
        if source.dataset != target.dataset:
            raise _two_datasets(uri, to)
        self._tree.rename(source.folder, source.name, target.folder, target.name, 0 if replace else NOREPLACE)
        self._moved([source, target])

    def copy(self, uri: str, to: str, write_type: str, replace: bool) -> bool:
        """Give a file's bytes to another name, without moving them. False where that cannot be: of two datasets."""
        source, target = self._changing.target(uri), self._named(to)
        if source.dataset != target.dataset:
            return False
        attr, content = self._tree.content(source.place)
        if source.path != target.path:
            mode, now_ns = attr.mode, time.time_ns()
            self._tree.put(target.folder, target.name, mode, content, (), now_ns, write_type, replace)
            self._done([target], write_type)
        return True

    def copy_many(self, pairs: Sequence[tuple[str, str]], write_type: str) -> None:
        """See FileSystem.copy_many."""
        for start in range(0, len(pairs), VERBS_AT_ONCE):
            self._copy_some(pairs[start : start + VERBS_AT_ONCE], write_type)

    def _copy_some(self, pairs: Sequence[tuple[str, str]], write_type: str) -> None:
        targets: list[Target] = []
        questions: list[Verb] = []
        for uri, to in pairs:
            source, target = self._named(uri), self._named(to)
            if source.dataset != target.dataset:
                raise _two_datasets(uri, to)
            targets.append(target)
            questions.append(Verb("content", (source.place,)))
        puts: list[Verb] = []
        now_ns = time.time_ns()
        for target, found in zip(targets, self._apply(questions), strict=True):
            attr, content = found
            args = (target.folder, target.name, attr.mode, content, (), now_ns, write_type, True)
            puts.append(Verb("put", args, uuid.uuid4().hex))
        try:
            self._apply(puts)
        finally:
            self._changing.noted(targets)
        self._changing.settled(targets, write_type)

    def _apply(self, verbs: Sequence[Verb]) -> list[Any]:
        answers = self._tree.apply(verbs)
        for answer in answers:
            if isinstance(answer, Failed):
                raise answer.error
        return answers

    def touch(self, uri: str, *, exist_ok: bool, write_type: str) -> None:
        """See FileSystem.touch."""
        target, now_ns = self._named(uri), time.time_ns()
        try:
            self._tree.put(target.folder, target.name, LISTED_FILE, Content(0, ()), (), now_ns, write_type, False)
        except Exists:
            if not exist_ok:
                raise
            self._tree.setattr(target.place, {"atime_ns": now_ns, "mtime_ns": now_ns})
        self._done([target], write_type)

    def set_attributes(self, uri: str, changes: dict[str, int]) -> None:
        """See TreeApi.setattr."""
        target = self._changing.target(uri)
        self._tree.setattr(target.place, changes)
        self._done([target])

    def _done(self, targets: list[Target], write_type: str = "") -> None:
        self._changing.noted(targets)
        self._changing.settled(targets, write_type)

    def _moved(self, targets: list[Target]) -> None:
        """What a path led to before may be somewhere else, or nowhere, with all below it."""
        for target in targets:
            self._changing.namespace.forget_below(*target.place)
        self._done(targets)

    def _named(self, uri: str) -> Target:
        target = self._changing.target(uri)
        if not target.name:
            raise InvalidInput(
                f"{uri} is the root of dataset {target.dataset!r}, which can be neither removed, moved nor replaced "
                "here"
            )
        return target


def _two_datasets(uri: str, to: str) -> Refused:
    return Refused.because(errno.EXDEV, f"{uri} and {to} are in two datasets; copy it there, then remove it here")
