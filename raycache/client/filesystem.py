"""The path API: what ``raycache.open`` and its siblings do."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from raycache.client import batch, search
from raycache.client.batch import Found
from raycache.client.changing import Changing
from raycache.client.drafts import BUFFER_BYTES, Options
from raycache.client.editing import Editing
from raycache.client.namespace import Entry, Namespace, require_directory, require_file
from raycache.client.reader import Reader
from raycache.client.writing import Writing
from raycache.core.entries import names_of, rows_by_name, stats_of
from raycache.core.manifest import Manifest
from raycache.core.values import Buffer, Dataset, Stat
from raycache.errors import Changed, InvalidInput, NotADirectory, NotFound, ReadOnly

_MODES = {"".join(sorted(way + plus + kind)) for way in "rwax" for plus in ("", "+") for kind in ("", "b", "t")}


class CachedFile(io.RawIOBase):
    """A file of the cache, open for reading. Any number of them cost nothing but their position."""

    def __init__(
        self, reader: Reader, find: Callable[[], tuple[Manifest, int]], namespace: Namespace, uri: str
    ) -> None:
        """``find``: where it is; asked again if it was written anew before the first byte of it was read."""
        self.name = uri
        self._reader = reader
        self._find = find
        self._namespace = namespace
        self._manifest, self._row = find()
        self._began = False
        self._position = 0

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._manifest.size(self._row)

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
        missing = self.size - self._position - len(data)  # it may have become another version, which is longer
        if missing > 0:
            data += bytes(self.pread(self._position + len(data), missing))
        self._position += len(data)
        return data

    def pread(self, offset: int, length: int) -> Buffer:
        """``length`` bytes from ``offset``, without a copy where one block of this node holds them."""
        self._check_open()
        try:
            data = self._reader.read(self._manifest, self._row, offset, length)
        except Changed:
            if self._began or not self._was_written():
                raise
            data = self._reader.read(self._manifest, self._row, offset, length)
        self._began = True
        return data

    def _was_written(self) -> bool:
        """Whether another version was written meanwhile; from then on it is that."""
        before = self._manifest.etag(self._row)
        if not self._namespace.doubt([self.name], anyway=True):
            return False
        self._manifest, self._row = self._find()
        return self._manifest.etag(self._row) != before

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"{self.name}: I/O operation on closed file")


class FileSystem:
    """Files of the cache by URI: ``raycache://dataset/path`` or the source's own ``s3://bucket/path``."""

    def __init__(self, namespace: Namespace, reader: Reader, changing: Changing | None = None) -> None:
        """``changing``: what changes go to; None: nothing can be changed."""
        self._namespace = namespace
        self._reader = reader
        self._changing = changing

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

    def locate(self, uri: str) -> tuple[Dataset, str]:
        """The same, with the path inside it."""
        return self._namespace.locate(uri)

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """See MasterApi.set_refresh."""
        return self._namespace.set_refresh(name, every_s)

    def set_write_type(self, name: str, write_type: str) -> Dataset:
        """See TreeApi.set_write_type; the dataset as it is now."""
        self.changing.tree.set_write_type(name, write_type)
        return self._namespace.dataset(name)

    def open(
        self,
        uri: str,
        mode: str = "rb",
        *,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        write_type: str = "",
        sync: bool = False,
    ) -> IO[Any]:
        """Open a file, as the builtin does. What is written is seen, whole, when the file is closed; an exception in
        its ``with`` leaves things as they were. ``sync()`` of the file has on disk what was written so far.

        ``write_type``: ``cache``, ``through`` or ``async``; else as the dataset says. ``sync``: have it on disk before
        it is seen, so that it survives the end of the machine.

        Raises NotFound, Exists, IsADirectory, InvalidInput for a mode that is none, ReadOnly where this is a snapshot;
        closing raises NoSpace, Unavailable, and IsADirectory where a directory has the name.
        """
        if "".join(sorted(mode)) not in _MODES:
            raise InvalidInput(f"{uri}: {mode!r} is no mode; use 'rb', 'r', 'wb', 'ab', 'xb' or 'r+b'")
        if set(mode) & set("wax+"):
            options = Options(write_type, sync)
            return self.writing.edit(
                uri, mode, options, buffering=buffering, encoding=encoding, errors=errors, newline=newline
            )
        raw = CachedFile(self._reader, lambda: require_file(self._namespace.entry(uri), uri), self._namespace, uri)
        if "b" in mode and buffering == 0:
            return raw  # type: ignore[return-value]
        buffered = io.BufferedReader(raw, buffering if buffering > 1 else BUFFER_BYTES)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)

    @property
    def changing(self) -> Changing:
        """What changes go to. Raises ReadOnly where this is a snapshot."""
        if self._changing is None:
            raise ReadOnly("a snapshot cannot be changed; use raycache.open and the like")
        return self._changing

    @property
    def writing(self) -> Writing:
        """How files are written. Raises ReadOnly where this is a snapshot."""
        return Writing(self.changing)

    @property
    def editing(self) -> Editing:
        """How names are changed. Raises ReadOnly where this is a snapshot."""
        return Editing(self.changing)

    def read_many(self, uris: Sequence[str]) -> list[memoryview]:
        """Whole files, in order, read-only; one call per owner for all that is not mapped here.

        Raises as ``open`` and ``read`` do, for the first file that fails.
        """
        found = self._namespace.look(uris, lambda: self._reader.read_many(batch.files(self._namespace, uris)))
        return [memoryview(data) for data in found]

    def read_range(self, uri: str, offset: int, length: int) -> Buffer:
        """A range of a file; shorter at its end."""

        def look() -> Buffer:
            return self._reader.read(*require_file(self._namespace.entry(uri), uri), offset, length)

        return self._namespace.look([uri], look)

    def stat(self, uri: str) -> Stat:
        """What is known of a path. Raises NotFound, NotADirectory, InvalidInput."""
        return batch.stat_of(*self._namespace.place(uri))

    def stat_many(self, uris: Sequence[str]) -> list[Stat]:
        """The same for many, in order; the master is asked at most once per level of depth. Raises as ``stat``, for the
        first that fails."""
        return self._namespace.look(uris, lambda: batch.stat_many(self._namespace, uris))

    def exists(self, uri: str) -> bool:
        """Whether there is a file or directory of this name in a known dataset."""
        try:
            self._namespace.place(uri)
        except (NotFound, NotADirectory):
            return False
        return True

    def exists_many(self, uris: Sequence[str]) -> list[bool]:
        """The same for many, in order. Raises InvalidInput, and what listing a source raises."""
        return self._namespace.look(uris, lambda: batch.exists_many(self._namespace, uris), all)

    def lookup_many(self, uri: str, names: Sequence[str]) -> Found:
        """Names of one directory, in columns: the way to millions of lookups per second.

        Raises NotFound and NotADirectory for the directory.
        """

        below = [f"{uri.rstrip('/')}/{name}" for name in names[:2]] or [uri]  # of many their directory counts

        def look() -> Found:
            dataset, manifest, row = self._namespace.place(uri)
            return batch.find(dataset, require_directory(Entry(manifest, row), uri), names)

        return self._namespace.look(below, look, lambda found: bool(found.exists.all()))

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
        manifests = self._namespace.look(uris, lambda: batch.directories(self._namespace, uris))
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

    def write_many(
        self, files: Mapping[str, Buffer] | Iterable[tuple[str, Buffer]], *, write_type: str = "", sync: bool = False
    ) -> int:
        """Write whole files, given by URI; how many. See Writing.write_many."""
        return self.writing.write_many(files, write_type, sync)

    def mkdir(self, uri: str, *, mode: int = 0o755, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory; ``parents``: with those that are missing above it.

        Raises Exists (unless ``exist_ok`` and it is a directory), NotFound, NotADirectory.
        """
        self.editing.mkdir(uri, mode=mode, parents=parents, exist_ok=exist_ok)

    def rmdir(self, uri: str) -> None:
        """Remove an empty directory. Raises NotEmpty, NotFound, NotADirectory."""
        self.editing.rmdir(uri)

    def remove(self, uri: str) -> None:
        """Remove a file. Raises NotFound, IsADirectory."""
        self.editing.remove(uri)

    def remove_tree(self, uri: str) -> int:
        """Remove a directory with all below it, or a file, in one step; how many entries went. Raises NotFound."""
        return self.editing.remove_tree(uri)

    def rename(self, uri: str, to: str, *, replace: bool = True) -> None:
        """Give a file, or a directory with all below it, another name in its dataset, in one step. A file replaces a
        file that is there, a directory an empty one, unless ``replace`` is False.

        Raises NotFound, Exists, NotEmpty, IsADirectory, NotADirectory, Refused (EXDEV: another dataset).
        """
        self.editing.rename(uri, to, replace=replace)

    def replace_tree(self, uri: str, to: str) -> None:
        """Rename a directory in the place of whatever has the other name, which is removed with all below it: in one
        step. Raises as ``rename`` does."""
        self.editing.replace_tree(uri, to)

    def move_below(self, uri: str, to: str) -> None:
        """Move all that is below a directory below another one of its dataset, over files of the same name: a thousand
        files in one step. Raises as ``rename`` does, for the first that is refused."""
        self.editing.move_below(uri, to)

    def copy(self, uri: str, to: str, *, write_type: str = "", replace: bool = True) -> None:
        """Copy a file. In its dataset no bytes are moved. Raises NotFound, IsADirectory, Exists."""
        if not self.editing.copy(uri, to, write_type, replace):
            with self.open(uri) as source, self.open(to, "wb" if replace else "xb", write_type=write_type) as target:
                shutil.copyfileobj(source, target, BUFFER_BYTES)

    def copy_many(self, pairs: Sequence[tuple[str, str]], *, write_type: str = "") -> None:
        """Copy files within their datasets, many in one step, over what is there.

        Raises as ``copy``, for the first that is refused; Refused for one of another dataset.
        """
        self.editing.copy_many(pairs, write_type)

    def touch(self, uri: str, *, exist_ok: bool = True, write_type: str = "") -> None:
        """Make an empty file, or give a file that is there the time of now. Raises Exists unless ``exist_ok``."""
        self.editing.touch(uri, exist_ok=exist_ok, write_type=write_type)

    def chmod(self, uri: str, mode: int) -> None:
        """Set permissions, as writable mounts show them. Raises NotFound."""
        self.editing.set_attributes(uri, {"mode": mode})

    def utime(self, uri: str, *, mtime_ns: int, atime_ns: int | None = None) -> None:
        """Set when a file or directory was changed, and read, in nanoseconds since 1970. Raises NotFound."""
        self.editing.set_attributes(uri, {"mtime_ns": mtime_ns, "atime_ns": mtime_ns if atime_ns is None else atime_ns})

    def truncate(self, uri: str, size_bytes: int) -> None:
        """Cut a file, or make it longer with zeros. Raises NotFound, IsADirectory."""
        self.editing.set_attributes(uri, {"size_bytes": size_bytes})
