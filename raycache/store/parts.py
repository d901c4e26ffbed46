"""The parts of a block, from wherever they can be had: a worker that owns the block, written files, or the source.

Not responsible for: which part is fetched when (``fetchqueue``), nor for what becomes of it (``blocks``). What goes
wrong is part of the answer. Threading: safe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial

from raycache.core.values import BlockPlan, Buffer, Failed, Fetch, Part, Worker
from raycache.errors import RaycacheError, SourceUnavailable
from raycache.store.contents import WrittenFiles
from raycache.store.peers import Peers
from raycache.ufs.base import UnderFileSystem
from raycache.ufs.sources import Sources


class Where(Enum):
    """Who was asked."""

    SOURCE = auto()
    PEER = auto()
    """Another worker, to whom the block belongs."""
    WRITTEN = auto()
    """Whoever has what was written."""


@dataclass(frozen=True, slots=True)
class Came:
    """A part, or why it did not come."""

    where: Where
    data: Buffer = b""
    error: Exception | None = None


class PartReader:
    """See the module."""

    def __init__(self, sources: Sources, peers: Peers, written: WrittenFiles | None) -> None:
        """``written``: None where nothing is."""
        self._sources = sources
        self._peers = peers
        self._written = written

    def owner(self, plan: BlockPlan) -> Worker | None:
        """Another worker through whom to read a block, if there is one."""
        return self._peers.reads_through(plan.block_id)

    def through(self, owner: Worker, plan: BlockPlan, number: int) -> Came | None:
        """A part through the worker to whom the block belongs; None when that one is gone."""
        part = plan.parts[number]
        request = Fetch(plan.block_id, plan.pack(), part.block_offset, part.length, False)
        try:
            data = self._peers.read(owner, request)
        except Exception as error:  # noqa: BLE001 - a fetcher that died would leave its readers waiting
            return Came(Where.PEER, error=_shown(error, plan, part))
        return None if data is None else _checked(Where.PEER, data, plan, part)

    def read(self, plan: BlockPlan, numbers: Sequence[int]) -> list[Came]:
        """Parts of a block, in order: one of the source, or any of written files."""
        parts = [plan.parts[number] for number in numbers]
        if self._written is not None and parts[0].is_written:
            return self._guarded(Where.WRITTEN, self._written.read, plan, parts)
        return self._guarded(Where.SOURCE, self._read_source, plan, parts)

    def _read_source(self, dataset: str, parts: Sequence[Part]) -> Sequence[Buffer | Failed]:
        return [self._sources.call(dataset, partial(_get, part)) for part in parts]

    def _guarded(
        self,
        where: Where,
        read: Callable[[str, Sequence[Part]], Sequence[Buffer | Failed]],
        plan: BlockPlan,
        parts: Sequence[Part],
    ) -> list[Came]:
        try:
            answers = read(plan.dataset, parts)
        except BaseException as error:  # noqa: BLE001 - a fetcher that died would leave its readers waiting
            return [Came(where, error=_shown(error, plan, part)) for part in parts]
        return [
            Came(where, error=answer.error) if isinstance(answer, Failed) else _checked(where, answer, plan, part)
            for answer, part in zip(answers, parts, strict=True)
        ]


def _get(part: Part, ufs: UnderFileSystem) -> Buffer:
    return ufs.get(part.path, part.file_offset, part.length, part.etag)


def _checked(where: Where, data: Buffer, plan: BlockPlan, part: Part) -> Came:
    if len(data) == part.length:
        return Came(where, data)
    # A store or a proxy between that says it sent all.
    text = f"{plan.dataset}: {part.path}: {len(data)} bytes came of {part.length}; read it again"
    return Came(where, error=SourceUnavailable(text))


def _shown(error: BaseException, plan: BlockPlan, part: Part) -> Exception:
    if isinstance(error, RaycacheError):
        return error
    return SourceUnavailable(f"{plan.dataset}: {part.path}: {type(error).__name__}: {error}")
