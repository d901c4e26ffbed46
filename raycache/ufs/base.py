"""The protocol that every under file system adapter fulfils. ``tests/contract/test_ufs.py`` is its suite.

Paths are relative to the source the adapter was opened on, as in ``core.paths``. Adapters are thread-safe. Every call
has a deadline (retries included) and raises only ``raycache.errors``, with the full URI in the message.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from raycache.core.values import Buffer, Stat
from raycache.errors import ReadOnly


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an adapter may take."""

    connect_timeout_s: float = 10.0
    request_timeout_s: float = 60.0
    """One call, retries included."""
    connections: int = 32
    """Requests that may be under way at once."""


TEMPORARY = ".raycache-put-"
"""How a file is called while it is being put, where stores have no better way; never listed."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What a file is to hold, in buffers that are asked for as they are sent."""

    size_bytes: int
    """Of all of them together."""
    open: Callable[[], Iterable[Buffer]]
    """From the beginning; called again when a request is tried again."""


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

    def put(self, path: str, data: Buffer | Stream, if_match: str | None = None, mark: str = "") -> Stat:
        """Create or replace a file, whole. The mtime of the result is 0 where the store does not report it.

        ``if_match``: only where the file has this version, or there is none if it is ``""``. Most stores see to it
        themselves; where one cannot (streams to object stores, what goes through fsspec) the version is looked up just
        before the file would appear. ``mark``: kept with the file where the store can, see ``mark_of``.

        Raises Changed when ``if_match`` does not hold, IsADirectory, NotFound or AccessDenied (no such bucket),
        ReadOnly, SourceUnavailable: what the store has then is not known.
        """
        ...

    def mark_of(self, path: str) -> str | None:
        """The mark that a file was put with, ``""`` where it has none; None where this store keeps no marks.

        Raises NotFound, AccessDenied, SourceUnavailable.
        """
        ...

    def copy(self, path: str, etag: str, size_bytes: int, to: str, if_match: str | None = None) -> Stat | None:
        """Copy a version of a file inside the source, with its mark; None where the store has no way of its own, or the
        file is not of this size.

        Raises Changed when ``path`` is not that version, or ``to`` not what ``if_match`` says, as in ``put``.
        """
        ...

    def delete(self, path: str, if_match: str | None = None) -> None:
        """Delete a file, or just the version that ``if_match`` names, which is looked up before.

        Raises NotFound where the store reports it, Changed, IsADirectory, AccessDenied, SourceUnavailable.
        """
        ...

    def make_directory(self, path: str) -> None:
        """Make a directory and those above it, where they are missing and the source has real ones.

        Raises NotADirectory (a file is in the way), AccessDenied, SourceUnavailable.
        """
        ...

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory, where it is there and the source has real ones.

        Raises NotEmpty, NotADirectory, AccessDenied, SourceUnavailable.
        """
        ...


class Unwritable:
    """The part of an UnderFileSystem that writes, for one that only reads."""

    uri: str

    def _refuse(self, path: str) -> NoReturn:
        raise ReadOnly(f"{self.uri}/{path}: nothing can be written or deleted here")

    def put(self, path: str, data: Buffer | Stream, if_match: str | None = None, mark: str = "") -> NoReturn:
        """See UnderFileSystem."""
        self._refuse(path)

    def mark_of(self, path: str) -> None:
        """See UnderFileSystem."""

    def copy(self, path: str, etag: str, size_bytes: int, to: str, if_match: str | None = None) -> NoReturn:
        """See UnderFileSystem."""
        self._refuse(to)

    def delete(self, path: str, if_match: str | None = None) -> NoReturn:
        """See UnderFileSystem."""
        self._refuse(path)

    def make_directory(self, path: str) -> NoReturn:
        """See UnderFileSystem."""
        self._refuse(path)

    def remove_directory(self, path: str) -> NoReturn:
        """See UnderFileSystem."""
        self._refuse(path)
