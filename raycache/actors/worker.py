"""The worker actor: a shell around ``store.BlockStore``. One per node, detached, owner of its node's blocks."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any

import ray

import raycache.ufs.object  # noqa: F401 - imported now, not in the first read
from raycache.actors.names import MASTER, METHOD_TIMEOUT_S
from raycache.actors.plasma import Plasma
from raycache.actors.transport import get
from raycache.client.patience import ask_until_there
from raycache.config import Settings
from raycache.core.values import Failed, Fetch, Filed
from raycache.store.blocks import Answer, BlockStore
from raycache.store.directory import open_directories
from raycache.store.tiers import Kept, Tiers
from raycache.ufs.base import Limits
from raycache.ufs.sources import SourceAccess, Sources

WireAnswer = tuple[Any, tuple[tuple[int, int], ...]] | pickle.PickleBuffer | Filed | Failed
"""A Kept block crosses as ``([ref], holes)``: in a list, so that Ray passes the ref and not the block. Ranges cross as
PickleBuffers, which spares a copy at either end."""


class WorkerActor:
    """See BlockStore."""

    def __init__(self, settings: Settings, quota_bytes: int) -> None:
        self._settings = settings
        limits = Limits(settings.connect_timeout_s, settings.request_timeout_s, settings.fetch_concurrency)
        sources = Sources(self._access, limits)
        tiers = Tiers(
            Plasma(),
            quota_bytes,
            open_directories(settings.tiers, settings.namespace, settings.eviction),
            settings.eviction,
        )
        self._store = BlockStore(tiers, sources, settings.fetch_concurrency)
        self._store.start()

    def fetch(self, requests: Sequence[Fetch], timeout_s: float) -> list[WireAnswer]:
        """See BlockStore.fetch."""
        return [_to_wire(answer) for answer in self._store.fetch(requests, timeout_s)]

    def hint(self, packed_plans: Sequence[bytes]) -> None:
        """See BlockStore.hint."""
        self._store.hint(packed_plans)

    def status(self) -> dict[str, Any]:
        """See BlockStore.status."""
        return {"pid": os.getpid(), **self._store.status()}

    def _access(self, dataset: str) -> SourceAccess:
        def ask() -> SourceAccess:
            master: Any = ray.get_actor(MASTER, namespace=self._settings.namespace)
            access: SourceAccess = get(master.access.remote(dataset), METHOD_TIMEOUT_S, "the raycache master")
            return access

        return ask_until_there(ask, "the raycache master", METHOD_TIMEOUT_S)


def _to_wire(answer: Answer) -> WireAnswer:
    if isinstance(answer, Kept):
        return [answer.handle], answer.holes
    return answer if isinstance(answer, Filed | Failed) else pickle.PickleBuffer(answer)
