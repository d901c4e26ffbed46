"""The Arrow file system: what pyarrow's datasets and tables read from the cache without a copy, and write to it.

What is read is a slice of a block that this process has mapped, where it has one, and stays mapped as long as Arrow
uses it. A small file is one buffer; of a larger one each read is. pyarrow also takes ``raycache.filesystem()``, by
copies.

Threading: safe.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType, PyFileSystem

from raycache.client.filesystem import CachedFile, FileSystem
from raycache.core.paths import RAYCACHE_SCHEME, join
from raycache.core.values import Stat
from raycache.errors import InvalidInput, NotFound
from raycache.fsspec import RaycacheFileSystem

WHOLE_BYTES = 256 * 2**10
"""A file up to this size is read in one piece when it is opened: Arrow then reads it without Python."""


def arrow_filesystem(snapshot: int | None = None, write_type: str = "") -> PyFileSystem:
    """See raycache.data.arrow_filesystem."""
    return PyFileSystem(ArrowHandler(RaycacheFileSystem(snapshot=snapshot, write_type=write_type)))


class ArrowHandler(FileSystemHandler):  # type: ignore[misc]
    """Paths are ``dataset/path`` or URIs; pickled, it finds the cache that it is of."""

    def __init__(self, fs: RaycacheFileSystem) -> None:
        self.fs = fs

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ArrowHandler):
            return NotImplemented
        mine, theirs = ((each.fs.snapshot, each.fs.write_type) for each in (self, other))
        return mine == theirs

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((self.fs.snapshot, self.fs.write_type))

    def get_type_name(self) -> str:
        """See FileSystemHandler."""
        return RAYCACHE_SCHEME

    def normalize_path(self, path: str) -> str:
        """Without ``raycache://``."""
        stripped: str = self.fs._strip_protocol(path)
        return stripped

    def get_file_info(self, paths: Sequence[str]) -> list[FileInfo]:
        """What each path is, if anything."""
        return [self._info_of(path) for path in paths]

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        """What is in a directory, or below it. Raises NotFound unless it is allowed, NotADirectory."""
        base = self.normalize_path(selector.base_dir)
        if not base:
            raise InvalidInput("give a dataset: files are dataset/path")
        try:
            if not selector.recursive:
                return self._entries(base)
            found: list[FileInfo] = []
            for uri, _, _ in self._files.walk(self.fs.uri(base)):
                found += self._entries(self.normalize_path(uri))
        except NotFound:
            if selector.allow_not_found:
                return []
            raise
        return found

    def create_dir(self, path: str, recursive: bool) -> None:
        """Make a directory that may be there. Raises NotFound without ``recursive``."""
        self._files.mkdir(self.fs.uri(path), parents=recursive, exist_ok=True)

    def delete_dir(self, path: str) -> None:
        """Remove a directory with all below it."""
        self._entries(self.normalize_path(path))  # a file is refused
        self._files.remove_tree(self.fs.uri(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool) -> None:
        """Remove all that is below a directory."""
        try:
            below = self._entries(self.normalize_path(path))
        except NotFound:
            if missing_dir_ok:
                return
            raise
        for each in below:
            self._files.remove_tree(self.fs.uri(each.path))

    def delete_root_dir_contents(self) -> None:
        """Datasets are not deleted this way."""
        raise InvalidInput("give a dataset: the cache itself cannot be emptied; see raycache.remove_dataset")

    def delete_file(self, path: str) -> None:
        """Remove a file."""
        self._files.remove(self.fs.uri(path))

    def move(self, src: str, dest: str) -> None:
        """Rename a file or a directory."""
        self._files.rename(self.fs.uri(src), self.fs.uri(dest))

    def copy_file(self, src: str, dest: str) -> None:
        """Copy a file."""
        self._files.copy(self.fs.uri(src), self.fs.uri(dest), write_type=self.fs.write_type)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        """Read a file."""
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        """Read a file at any place."""
        raw: Any = self._files.open(self.fs.uri(path), "rb", buffering=0)
        if raw.size <= WHOLE_BYTES:
            return pa.BufferReader(pa.py_buffer(raw.pread(0, raw.size)))
        return pa.PythonFile(_Input(raw), mode="r")

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        """Write a file: seen when it is closed."""
        return self._output(path, "wb")

    def open_append_stream(self, path: str, metadata: object) -> pa.NativeFile:
        """Write at the end of a file."""
        return self._output(path, "ab")

    def _output(self, path: str, mode: str) -> pa.NativeFile:
        return pa.PythonFile(self._files.open(self.fs.uri(path), mode, write_type=self.fs.write_type), mode="w")

    @property
    def _files(self) -> FileSystem:
        return self.fs.files()

    def _info_of(self, path: str) -> FileInfo:
        if not self.normalize_path(path):
            return FileInfo(path, FileType.Directory)
        try:
            return _info(path, self._files.stat(self.fs.uri(path)))
        except FileNotFoundError:
            return FileInfo(path, FileType.NotFound)
        except NotADirectoryError:
            return FileInfo(path, FileType.NotFound)

    def _entries(self, base: str) -> list[FileInfo]:
        entries = self._files.scandir(self.fs.uri(base))
        return [_info(join(base, each.path.rpartition("/")[2]), each) for each in entries]


class _Input(io.RawIOBase):
    """What a PythonFile needs of a file, with reads that copy nothing."""

    def __init__(self, raw: CachedFile) -> None:
        self._raw = raw

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See CachedFile.seek."""
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """Position in bytes."""
        return self._raw.tell()

    def read(self, size: int | None = -1) -> bytes:
        """Bytes from the position on."""
        return self.read_buffer(size).to_pybytes()  # type: ignore[no-any-return]

    def read_buffer(self, size: int | None = -1) -> pa.Buffer:
        """The same as a buffer over a block."""
        position = self._raw.tell()
        left = max(0, self._raw.size - position)
        data = self._raw.pread(position, left if size is None or size < 0 else min(size, left))
        self._raw.seek(position + len(data))
        return pa.py_buffer(data)


def _info(path: str, stat: Stat) -> FileInfo:
    if stat.is_dir:
        return FileInfo(path, FileType.Directory, mtime_ns=stat.mtime_ns)
    return FileInfo(path, FileType.File, size=stat.size_bytes, mtime_ns=stat.mtime_ns)
