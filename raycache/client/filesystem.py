"""The path API: what ``raycache.open`` and its siblings do."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from raycache.client import batch, search
from raycache.client.batch import Found
from raycache.client.namespace import Entry, Namespace, require_directory, require_file
from raycache.client.reader import Reader
from raycache.core.entries import names_of, rows_by_name, stats_of
from raycache.core.manifest import Manifest
from raycache.core.values import Buffer, Dataset, Stat
from raycache.errors import InvalidInput, NotADirectory, NotFound, ReadOnly

BUFFER_BYTES = 2**20
_MODES = {"".join(sorted(way + plus + kind)) for way in "rwax" for plus in ("", "+") for kind in ("", "b", "t")}


class CachedFile(io.RawIOBase):
    """A file of the cache, open for reading. Any number of them cost nothing but their position."""

    def __init__(self, reader: Reader, manifest: Manifest, row: int, uri: str) -> None:
        self.name = uri
        self.size = manifest.size(row)
        self._reader = reader
        self._manifest = manifest
        self._row = row
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See io.RawIOBase.seek. Raises ValueError for a position before the start."""
        self._check_open()
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if position < 0:
            raise ValueError(f"{self.name}: cannot seek to {position}")
        self._position = position
        return position

    def tell(self) -> int:
        """Position in bytes."""
        self._check_open()
        return self._position

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase.readinto. Raises what Reader.read raises."""
        target = memoryview(buffer).cast("B")
        data = self.pread(self._position, len(target))
        target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """The rest of the file."""
        data = bytes(self.pread(self._position, max(0, self.size - self._position)))
        self._position += len(data)
        return data

    def pread(self, offset: int, length: int) -> Buffer:
        """``length`` bytes from ``offset``, without a copy where one block of this node holds them."""
        self._check_open()
        return self._reader.read(self._manifest, self._row, offset, length)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"{self.name}: I/O operation on closed file")


class FileSystem:
    """Files of the cache by URI: ``raycache://dataset/path`` or the source's own ``s3://bucket/path``."""

    def __init__(self, namespace: Namespace, reader: Reader) -> None:
        self._namespace = namespace
        self._reader = reader

    @property
    def change(self) -> int | None:
        """The change number that a snapshot shows everything at, to see the same elsewhere; None: it moves on."""
        return self._namespace.as_of

    def attach(self, source: str, name: str | None, options: Mapping[str, Any]) -> Dataset:
        """See MasterApi.attach."""
        return self._namespace.attach(source, name, options)

    def dataset_of(self, uri: str) -> Dataset:
        """The dataset that a URI belongs to. Raises InvalidInput, NotFound."""
        return self._namespace.locate(uri)[0]

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """See MasterApi.set_refresh."""
        return self._namespace.set_refresh(name, every_s)

    def open(
        self,
        uri: str,
        mode: str = "rb",
        *,
        buffering: int = -1,
        encoding: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open a file for reading, as the builtin does.

        Raises NotFound, IsADirectory, InvalidInput for a mode that is none, ReadOnly for one that writes.
        """
        if "".join(sorted(mode)) not in _MODES:
            raise InvalidInput(f"{uri}: {mode!r} is no mode; use 'rb' or 'r'")
        if set(mode) & set("wax+"):
            raise ReadOnly(f"{uri}: cannot open with mode {mode!r}; the cache is read-only")
        raw = CachedFile(self._reader, *require_file(self._namespace.entry(uri), uri), uri)
        if "b" in mode and buffering == 0:
            return raw  # type: ignore[return-value]
        buffered = io.BufferedReader(raw, buffering if buffering > 1 else BUFFER_BYTES)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", newline=newline)

    def read_many(self, uris: Sequence[str]) -> list[memoryview]:
        """Whole files, in order, read-only; one call per owner for all that is not mapped here.

        Raises as ``open`` and ``read`` do, for the first file that fails.
        """
        rows = batch.files(self._namespace, uris)
        return [memoryview(data) for data in self._reader.read_many(rows)]

    def read_range(self, uri: str, offset: int, length: int) -> Buffer:
        """A range of a file; shorter at its end."""
        return self._reader.read(*require_file(self._namespace.entry(uri), uri), offset, length)

    def stat(self, uri: str) -> Stat:
        """What is known of a path. Raises NotFound, NotADirectory, InvalidInput."""
        return batch.stat_of(*self._namespace.place(uri))

    def stat_many(self, uris: Sequence[str]) -> list[Stat]:
        """The same for many, in order; the master is asked at most once per level of depth. Raises as ``stat``, for the
        first that fails."""
        return batch.stat_many(self._namespace, uris)

    def exists(self, uri: str) -> bool:
        """Whether there is a file or directory of this name in a known dataset."""
        try:
            self._namespace.place(uri)
        except (NotFound, NotADirectory):
            return False
        return True

    def exists_many(self, uris: Sequence[str]) -> list[bool]:
        """The same for many, in order. Raises InvalidInput, and what listing a source raises."""
        return batch.exists_many(self._namespace, uris)

    def lookup_many(self, uri: str, names: Sequence[str]) -> Found:
        """Names of one directory, in columns: the way to millions of lookups per second.

        Raises NotFound and NotADirectory for the directory.
        """
        dataset, manifest, row = self._namespace.place(uri)
        return batch.find(dataset, require_directory(Entry(manifest, row), uri), names)

    def scandir(self, uri: str) -> list[Stat]:
        """Entries of a directory, by name. Raises NotADirectory for a file."""
        dataset, manifest, row = self._namespace.place(uri)
        require_directory(Entry(manifest, row), uri)
        return stats_of(manifest, rows_by_name(manifest), dataset.attached_ns)

    def listdir(self, uri: str) -> list[str]:
        """Names in a directory, sorted. Raises NotFound, NotADirectory."""
        manifest = require_directory(self._namespace.entry(uri), uri)
        return names_of(manifest, rows_by_name(manifest))

    def listdir_many(self, uris: Sequence[str]) -> list[list[str]]:
        """The same for many, in order; the master is asked at most once per level of depth. Raises as ``listdir``, for
        the first that fails."""
        manifests = batch.directories(self._namespace, uris)
        return [names_of(manifest, rows_by_name(manifest)) for manifest in manifests]

    def walk(self, uri: str) -> Iterator[tuple[str, list[str], list[str]]]:
        """As ``os.walk``, top down: URI of a directory, names of its directories, names of its files, sorted.

        Directories taken out of the list, in place, are not entered. Raises as ``listdir``.
        """
        return search.walk(self._namespace, uri)

    def glob(self, pattern: str) -> list[str]:
        """URIs that match: ``*``, ``?``, ``[...]`` within a name, ``**`` for any number of directories. Sorted."""
        return search.glob(self._namespace, pattern)

    def refresh(self, uri: str) -> int:
        """List a directory anew from its source; returns its version.

        Raises NotADirectory, and InvalidInput where this is a snapshot, which stays as it is.
        """
        return self._namespace.refresh(uri).directory.version
