"""The protocol that every under file system adapter fulfils. ``tests/contract/test_ufs.py`` is its suite.

Paths are relative to the source the adapter was opened on, as in ``core.paths``. Adapters are thread-safe. Every call
has a deadline (retries included) and raises only ``raycache.errors``, with the full URI in the message.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

from raycache.core.values import Buffer, Stat


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an adapter may take."""

    connect_timeout_s: float = 10.0
    request_timeout_s: float = 60.0
    """One call, retries included."""
    connections: int = 32
    """Requests that may be under way at once."""


class UnderFileSystem(Protocol):
    """What raycache needs of a store."""

    @property
    def uri(self) -> str:
        """The source this adapter was opened on."""
        ...

    def list_directory(self, path: str) -> Any:
        """One level of a directory: a pyarrow RecordBatch of ``core.listing.LISTING_SCHEMA``, in any order.

        An object store cannot tell an empty directory from a missing one, and lists both as no rows.
        Raises NotFound (no such bucket or directory), NotADirectory, AccessDenied, SourceUnavailable.
        """
        ...

    def list_tree(self, path: str, threads: int = 8) -> Generator[Any, None, None]:
        """Everything below a directory: RecordBatches of ``core.listing.LISTING_SCHEMA``, in any order, in which
        ``name`` is the path relative to ``path``.

        Directories are rows where the source has real ones, so that empty ones are known; others follow from the
        names. A row may come twice. ``threads`` parts are listed at once; with 1, the memory needed is that of the
        largest directory at most. Closing the iterator ends the listing. Names are as ``list_directory`` tells them;
        a link that leads back to a directory above itself is not entered.

        Raises as ``list_directory`` does, at any batch: a listing that stops half-way never ends as if it were whole.
        """
        ...

    def stat(self, path: str) -> Stat:
        """One file or directory; the root is always a directory unless the source is missing or a file itself.

        Raises NotFound, AccessDenied, SourceUnavailable.
        """
        ...

    def get(self, path: str, start: int, length: int, etag: str) -> Buffer:
        """Exactly ``length`` bytes from ``start`` of the version ``etag`` (any version when ``""``).

        Raises Changed when that version is gone: replaced, shortened or deleted. Raises AccessDenied and
        SourceUnavailable.
        """
        ...

    def put(self, path: str, data: Buffer) -> Stat:
        """Create or replace a file. The mtime of the result is 0 where the store does not report it.

        Raises NotFound or AccessDenied (no such bucket), ReadOnly, SourceUnavailable.
        """
        ...

    def delete(self, path: str) -> None:
        """Delete a file. Raises NotFound where the store reports it, AccessDenied, SourceUnavailable."""
        ...
