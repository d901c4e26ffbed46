"""The path API: what ``raycache.open`` and its siblings do."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from raycache.client.namespace import Entry, Namespace, require_file
from raycache.client.reader import Reader
from raycache.core import paths
from raycache.core.globbing import glob_names, has_magic
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

    def attach(self, source: str, name: str | None, options: Mapping[str, Any]) -> Dataset:
        """See MasterApi.attach."""
        return self._namespace.attach(source, name, options)

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
        parents: dict[str, Entry] = {}
        rows: list[tuple[Manifest, int]] = []
        for uri in uris:
            parent, _, name = uri.rpartition("/")
            directory = parents.get(parent)
            if directory is None:
                rows.append(require_file(entry := self._namespace.entry(uri), uri))
                parents[parent] = Entry(entry.manifest, None)
                continue
            row = directory.manifest.find(name.encode("utf-8", "surrogateescape"))
            if row is None or directory.manifest.child_id(row) is not None:
                rows.append(require_file(self._namespace.entry(uri), uri))  # for its error, or an odd spelling
            else:
                rows.append((directory.manifest, row))
        return [memoryview(data) for data in self._reader.read_many(rows)]

    def read_range(self, uri: str, offset: int, length: int) -> Buffer:
        """A range of a file; shorter at its end."""
        return self._reader.read(*require_file(self._namespace.entry(uri), uri), offset, length)

    def stat(self, uri: str) -> Stat:
        """What is known of a path. Raises NotFound, NotADirectory, InvalidInput."""
        dataset, path = self._namespace.locate(uri)
        return self._stat(dataset, self._namespace.walk(dataset, path))

    def exists(self, uri: str) -> bool:
        """Whether there is a file or directory of this name in a known dataset."""
        try:
            self._namespace.entry(uri)
        except (NotFound, NotADirectory):
            return False
        return True

    def scandir(self, uri: str) -> list[Stat]:
        """Entries of a directory, by name. Raises NotADirectory for a file."""
        dataset, path = self._namespace.locate(uri)
        entry = self._namespace.walk(dataset, path)
        if entry.row is not None:
            raise NotADirectory(f"{uri} is a file, not a directory")
        manifest = entry.manifest
        rows = manifest.rows()
        if manifest.directory.version > 1:  # appended rows are out of order
            rows = iter(sorted(rows, key=manifest.name))
        return [self._stat_row(dataset, manifest, row) for row in rows]

    def listdir(self, uri: str) -> list[str]:
        """Names in a directory, sorted. Raises NotFound, NotADirectory."""
        return [paths.split(entry.path)[1] for entry in self.scandir(uri)]

    def walk(self, uri: str) -> Iterator[tuple[str, list[str], list[str]]]:
        """As ``os.walk``, top down: URI of a directory, names of its directories, names of its files."""
        entries = self.scandir(uri)
        dirs = [paths.split(entry.path)[1] for entry in entries if entry.is_dir]
        yield uri, dirs, [paths.split(entry.path)[1] for entry in entries if not entry.is_dir]
        for name in dirs:
            yield from self.walk(f"{uri.rstrip('/')}/{name}")

    def glob(self, pattern: str) -> list[str]:
        """URIs that match: ``*``, ``?``, ``[...]`` within a name, ``**`` for any number of directories. Sorted."""
        scheme, _, rest = pattern.partition("://")
        parts = rest.split("/")
        fixed = next((at for at, part in enumerate(parts) if has_magic(part)), len(parts))
        if fixed < 1:
            raise InvalidInput(f"{pattern!r}: the bucket or dataset itself cannot be a pattern")
        base = f"{scheme}://{'/'.join(parts[:fixed])}"
        if fixed == len(parts):
            return [pattern] if self.exists(pattern) else []
        return sorted(self._glob(base, parts[fixed:])) if self.exists(base) else []

    def refresh(self, uri: str) -> int:
        """List a directory anew from its source; returns its version. Raises NotADirectory."""
        return self._namespace.refresh(uri).directory.version

    def _glob(self, base: str, parts: list[str]) -> Iterator[str]:
        head, rest = parts[0], parts[1:]
        entries = {paths.split(entry.path)[1]: entry.is_dir for entry in self.scandir(base)}
        if head == "**":
            yield from self._glob(base, rest) if rest else (f"{base}/{name}" for name in entries)
            for name, is_dir in entries.items():
                if is_dir:
                    yield from self._glob(f"{base}/{name}", parts)
            return
        for name in glob_names(entries, head):
            if not rest:
                yield f"{base}/{name}"
            elif entries[name]:
                yield from self._glob(f"{base}/{name}", rest)

    def _stat(self, dataset: Dataset, entry: Entry) -> Stat:
        if entry.row is not None:
            return self._stat_row(dataset, entry.manifest, entry.row)
        about = entry.manifest.directory
        extra = {"entries": entry.manifest.live_count, "hidden": about.hidden, "version": about.version}
        return Stat(about.path, True, 0, dataset.attached_ns, "", extra)

    @staticmethod
    def _stat_row(dataset: Dataset, manifest: Manifest, row: int) -> Stat:
        if manifest.child_id(row) is not None:
            return Stat(manifest.path(row), True, 0, dataset.attached_ns)
        mtime_ns = manifest.mtime_ns(row) or dataset.attached_ns
        return Stat(manifest.path(row), False, manifest.size(row), mtime_ns, manifest.etag(row))
