"""Drafts become files, and many small files are written at once.

Responsible for: beginning a draft, committing drafts, grouping small files. Not responsible for: the file objects
(``drafts``), verbs on names (``editing``), or how a commit becomes visible (``meta``).

Threading: safe.
"""

from __future__ import annotations

import stat
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from raycache.client.changing import Changing, Target
from raycache.client.drafts import Base, Draft, Options, buffered
from raycache.client.segments import Writer
from raycache.client.treeapi import VERBS_AT_ONCE
from raycache.core.inode import LISTED_FILE, Attr, Content, Extent, Place, Verb
from raycache.core.values import Buffer, Failed
from raycache.errors import Exists, IsADirectory, NotFound

GROUP_BYTES = 64 * 2**20
"""Bytes of small files that are written before their commit."""


class Writing:
    """Writes files of datasets."""

    def __init__(self, changing: Changing) -> None:
        self._changing = changing
        self._tree = changing.tree
        self.segments = changing.segments
        """Where bytes go to and come from."""

    def content(self, place: Place) -> tuple[Attr, Content]:
        """See TreeApi.content."""
        return self._tree.content(place)

    def target(self, uri: str) -> Target:
        """Where a file is to be. Raises InvalidInput, NotFound for its dataset, IsADirectory for the root of one."""
        target = self._changing.target(uri)
        if not target.name or uri.endswith("/"):
            raise IsADirectory(f"{uri} is a directory; give the name of a file in it")
        return target

    def open(self, uri: str, mode: str, options: Options) -> Draft:
        """Begin to write. Raises NotFound, Exists, IsADirectory, InvalidInput, Unavailable."""
        target = self.target(uri)
        base = None
        if "r" in mode or "a" in mode:
            base = self._base(target, must_exist="r" in mode)
        elif "x" in mode and self._is_there(target):
            raise Exists(f"{uri} is there already; open it with mode 'w' to replace it")
        return Draft(self, target, mode, options, base)

    def edit(
        self,
        uri: str,
        mode: str,
        options: Options,
        *,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """``open`` with the buffers that the builtin's has. Raises as ``open`` does."""
        return buffered(self.open(uri, mode, options), buffering, encoding, errors, newline)

    def commit(self, drafts: Sequence[Draft]) -> None:
        """Have drafts become files: VERBS_AT_ONCE of them in one step, in which all that are not refused do.

        Raises what TreeApi.put and commit raise, for the first that is refused.
        """
        asked: list[tuple[Draft, Verb]] = []
        try:
            asked = [(draft, verb) for draft in drafts if (verb := draft.verb()) is not None]
            self._apply([(draft.target, verb) for draft, verb in asked])
        finally:
            # What may be in the catalog is kept: what is not is deleted in time by the worker, who asks the master.
            for draft in drafts:
                draft.settle(committed=bool(asked))
        if any(draft.is_synced for draft in drafts):
            self._tree.sync()
        for write_type in {draft.options.write_type for draft in drafts}:
            mine = [draft.target for draft, _ in asked if draft.options.write_type == write_type]
            self._changing.settled(mine, write_type)

    def write_many(
        self, files: Mapping[str, Buffer] | Iterable[tuple[str, Buffer]], write_type: str = "", sync: bool = False
    ) -> int:
        """Write whole files, many in one step and next to each other in one segment; how many.

        VERBS_AT_ONCE of them, or GROUP_BYTES, are on their way at a time: files may be made as they are asked for.
        Raises as ``open`` and ``commit`` do, for the first that is refused; of its group the others are written, of
        the groups after it none.
        """
        options = Options(write_type, sync)
        pairs = iter(files.items() if isinstance(files, Mapping) else files)
        return sum(self._write_group(group, options) for group in _groups(pairs))

    def _write_group(self, group: Sequence[tuple[str, Buffer]], options: Options) -> int:
        writer = self.segments.writer() if any(len(data) for _, data in group) else None
        try:
            placed = [(self.target(uri), _append(writer, memoryview(data).cast("B"))) for uri, data in group]
            if writer is not None and options.sync:
                writer.sync()
            segments = () if writer is None else (writer.about(),)
            now_ns = time.time_ns()

            def verb(target: Target, content: Content) -> Verb:
                mine = segments if content.extents else ()
                args = (target.folder, target.name, LISTED_FILE, content, mine, now_ns, options.write_type, True)
                return Verb("put", args, uuid.uuid4().hex)

            self._apply([(target, verb(target, content)) for target, content in placed])
        finally:
            if writer is not None:
                writer.release()
        if options.sync:
            self._tree.sync()
        self._changing.settled((target for target, _ in placed), options.write_type)
        return len(group)

    def _apply(self, asked: Sequence[tuple[Target, Verb]]) -> None:
        failed: list[Failed] = []
        try:
            for start in range(0, len(asked), VERBS_AT_ONCE):
                answers = self._tree.apply([verb for _, verb in asked[start : start + VERBS_AT_ONCE]])
                failed += [answer for answer in answers if isinstance(answer, Failed)]
        finally:  # also what may be there although nobody heard of it
            self._changing.noted(target for target, _ in asked)
        if failed:
            raise failed[0].error

    def _is_there(self, target: Target) -> bool:
        try:
            self._tree.getattr(target.place)
        except NotFound:
            return False
        return True

    def _base(self, target: Target, *, must_exist: bool) -> Base | None:
        """The version of a file to start from."""
        try:
            attr, content = self._tree.content(target.place)
        except NotFound:
            if must_exist:
                raise
            return None
        if not stat.S_ISREG(attr.mode):
            raise IsADirectory(f"{target.uri} is no file")
        return Base(attr, content)


def _append(writer: Writer | None, data: memoryview) -> Content:
    if writer is None or not len(data):
        return Content(0, ())
    return Content(len(data), (Extent(0, len(data), writer.segment, writer.append(data)),))


def _groups(pairs: Iterator[tuple[str, Buffer]]) -> Iterator[list[tuple[str, Buffer]]]:
    group: list[tuple[str, Buffer]] = []
    size_bytes = 0
    for pair in pairs:
        group.append(pair)
        size_bytes += memoryview(pair[1]).nbytes
        if len(group) == VERBS_AT_ONCE or size_bytes >= GROUP_BYTES:
            yield group
            group, size_bytes = [], 0
    if group:
        yield group
