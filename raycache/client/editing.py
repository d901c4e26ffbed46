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

_OF_NEW_DIRECTORIES = 0o1777
"""Permissions that mkdir(2) takes."""
ENTRIES_AT_ONCE = 10_000
"""Of a directory, in one answer."""


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
        mode = stat.S_IFDIR | (mode & _OF_NEW_DIRECTORIES)
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
        source, target = self._pair(uri, to)
        self._tree.rename(source.folder, source.name, target.folder, target.name, 0 if replace else NOREPLACE)
        self._moved([source, target])

    def replace_tree(self, uri: str, to: str) -> None:
        """See FileSystem.replace_tree."""
        source, target = self._pair(uri, to)
        self._tree.replace_tree(source.folder, source.name, target.folder, target.name)
        self._moved([source, target])

    def move_below(self, uri: str, to: str) -> None:
        """See FileSystem.move_below."""
        source, target = self._named(uri), self._changing.target(to)
        self._same(source, target)
        folders, moves = self._below(source, target)
        for start in range(0, len(folders), VERBS_AT_ONCE):
            made = self._tree.apply(folders[start : start + VERBS_AT_ONCE])
            for answer in made:
                if isinstance(answer, Failed) and not isinstance(answer.error, Exists):
                    raise answer.error
        for start in range(0, len(moves), VERBS_AT_ONCE):
            self._apply(moves[start : start + VERBS_AT_ONCE])
        self._tree.remove_tree(source.place)
        for place in {verb.args[0] for verb in folders} | {verb.args[2] for verb in moves}:
            self._changing.namespace.touched(*place)
        self._moved([source])
        self._changing.settled([target])

    def _below(self, source: Target, target: Target) -> tuple[list[Verb], list[Verb]]:
        """What makes the directories that are below one below the other, and what moves the files."""
        folders: list[Verb] = []
        moves: list[Verb] = []
        todo = [""]
        while todo:
            way = todo.pop()
            here, there = [(each.dataset, paths.join(each.path, way)) for each in (source, target)]
            after = b""
            while names := self._tree.readdir(here, after, ENTRIES_AT_ONCE):
                for name, attr in names:
                    if attr.is_dir:
                        folders.append(_change("mkdir", there, name, attr.mode, attr.uid, attr.gid))
                        todo.append(paths.join(way, name.decode("utf-8", "surrogateescape")))
                    else:
                        moves.append(_change("rename", here, name, there, name))
                after = names[-1].name
        return folders, moves

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
            source, target = self._pair(uri, to)
            targets.append(target)
            questions.append(Verb("content", (source.place,)))
        puts: list[Verb] = []
        now_ns = time.time_ns()
        for target, found in zip(targets, self._apply(questions), strict=True):
            attr, content = found
            args = (target.folder, target.name, attr.mode, content, (), now_ns, write_type, True)
            puts.append(_change("put", *args))
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

    def _pair(self, uri: str, to: str) -> tuple[Target, Target]:
        source, target = self._named(uri), self._named(to)
        self._same(source, target)
        return source, target

    @staticmethod
    def _same(source: Target, target: Target) -> None:
        if source.dataset != target.dataset:
            raise Refused.because(
                errno.EXDEV,
                f"{source.uri} and {target.uri} are in two datasets; copy it there, then remove it here",
            )

    def _named(self, uri: str) -> Target:
        target = self._changing.target(uri)
        if not target.name:
            raise InvalidInput(
                f"{uri} is the root of dataset {target.dataset!r}, which can be neither removed, moved nor replaced "
                "here"
            )
        return target


def _change(name: str, *args: Any) -> Verb:
    return Verb(name, args, uuid.uuid4().hex)
