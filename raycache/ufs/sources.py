"""Open under file systems by dataset name, for the processes that talk to them: the master and the workers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from raycache.core.segment import SourceRange
from raycache.core.values import Buffer, Failed
from raycache.errors import AccessDenied, RaycacheError
from raycache.ufs.base import Limits, UnderFileSystem
from raycache.ufs.registry import open_ufs

SourceAccess = tuple[str, Mapping[str, Any]]
"""A source URI and the options to open it with. Holds secrets: never log it."""
_Result = TypeVar("_Result")


class Sources:
    """Adapters, opened on first use. Thread-safe."""

    def __init__(self, access: Callable[[str], SourceAccess], limits: Limits) -> None:
        """``access``: looks a dataset up by name; raises NotFound."""
        self._access = access
        self._limits = limits
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}
        self._open: dict[str, UnderFileSystem] = {}

    def call(self, dataset: str, use: Callable[[UnderFileSystem], _Result]) -> _Result:
        """Use a dataset's adapter. Refused credentials are looked up anew once: they may have been replaced."""
        adapter = self._adapter(dataset)
        try:
            return use(adapter)
        except AccessDenied:
            with self._lock:
                # Of many that were refused at once, the first opens anew and the others use what it opened.
                if self._open.get(dataset) is adapter:
                    del self._open[dataset]
            return use(self._adapter(dataset))

    def read(self, ranges: Sequence[SourceRange]) -> list[Buffer | Failed]:
        """Bytes of objects, in order, each of its version; a Failed with what went wrong where they cannot be had."""
        found: list[Buffer | Failed] = []
        for each in ranges:
            try:
                found.append(self.call(each.dataset, partial(_get, each)))
            except RaycacheError as error:
                found.append(Failed(error))
        return found

    def forget(self, dataset: str) -> None:
        """Open the dataset anew at its next use."""
        with self._lock:
            self._open.pop(dataset, None)

    def keep(self, datasets: Container[str]) -> None:
        """Forget all others: they were removed, and what opened them must not be used any more."""
        with self._lock:
            self._open = {dataset: adapter for dataset, adapter in self._open.items() if dataset in datasets}

    def _adapter(self, dataset: str) -> UnderFileSystem:
        with self._lock:
            adapter = self._open.get(dataset)
            opening = self._opening.setdefault(dataset, threading.Lock())
        if adapter is None:
            # One opens, the others wait: to open means to look for credentials, and 32 fetchers come at once. A lock
            # for each dataset, because some stores connect here, and one that is away must not hold up the rest.
            with opening:
                adapter = self._open.get(dataset)
                if adapter is None:
                    source, options = self._access(dataset)
                    adapter = open_ufs(source, options, self._limits)
                    with self._lock:
                        self._open[dataset] = adapter
        return adapter


def _get(wanted: SourceRange, ufs: UnderFileSystem) -> Buffer:
    return ufs.get(wanted.path, wanted.offset, wanted.length, wanted.etag)
