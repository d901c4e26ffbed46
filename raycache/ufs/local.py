"""Local directories, plainly by system calls.

obstore's local store cannot list a directory that holds a name with a control character, and hides names such as
``x#12`` (measured with 0.12), so it is not used for them. The version of a file is its device, inode, size, mtime and
ctime, checked on the open descriptor before and after a read. Symbolic links are followed.
"""

from __future__ import annotations

import os
import stat as stat_flags
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import NamedTemporaryFile
from typing import Any

import pyarrow as pa

from raycache.core import paths
from raycache.core.listing import LISTING_SCHEMA
from raycache.core.values import Buffer, Stat
from raycache.errors import (
    AccessDenied,
    Changed,
    IsADirectory,
    NotADirectory,
    NotFound,
    RaycacheError,
    SourceUnavailable,
)


class LocalUfs:
    """An UnderFileSystem over a directory of this machine."""

    def __init__(self, location: paths.Location) -> None:
        self.uri = location.uri
        self._root = f"/{location.path}"

    def list_directory(self, path: str) -> Any:
        """See UnderFileSystem."""
        names, dirs, sizes, mtimes, etags = [], [], [], [], []
        with self._errors(path), os.scandir(os.fsencode(self._real(path))) as entries:
            for entry in entries:
                try:
                    info = entry.stat()
                except FileNotFoundError:
                    continue  # deleted while listing, or a link to nothing: not an entry that could be read
                is_dir = stat_flags.S_ISDIR(info.st_mode)
                if not is_dir and not stat_flags.S_ISREG(info.st_mode):
                    continue  # sockets, pipes and devices hold no data to cache
                names.append(entry.name)
                dirs.append(is_dir)
                sizes.append(0 if is_dir else info.st_size)
                mtimes.append(info.st_mtime_ns)
                etags.append(b"" if is_dir else _version(info).encode())
        columns = (names, dirs, sizes, mtimes, etags)
        return pa.RecordBatch.from_arrays(
            [pa.array(column, kind.type) for column, kind in zip(columns, LISTING_SCHEMA, strict=True)],
            schema=LISTING_SCHEMA,
        )

    def stat(self, path: str) -> Stat:
        """See UnderFileSystem."""
        with self._errors(path):
            info = os.stat(self._real(path))
        is_dir = stat_flags.S_ISDIR(info.st_mode)
        return Stat(path, is_dir, 0 if is_dir else info.st_size, info.st_mtime_ns, "" if is_dir else _version(info))

    def get(self, path: str, start: int, length: int, etag: str) -> Buffer:
        """See UnderFileSystem."""
        try:
            with self._errors(path), open(self._real(path), "rb", buffering=0) as file:
                before = _version(os.fstat(file.fileno()))
                data = _pread_all(file.fileno(), length, start)
                after = _version(os.fstat(file.fileno()))
        except NotFound as error:
            raise Changed(f"{self._name(path)} was deleted since it was listed; refresh its directory") from error
        if etag and {before, after} != {etag}:
            raise Changed(f"{self._name(path)} changed since it was listed; refresh its directory")
        if len(data) != length:
            raise Changed(f"{self._name(path)} is shorter than when it was listed; refresh its directory")
        return data

    def put(self, path: str, data: Buffer) -> Stat:
        """See UnderFileSystem. The file appears whole, by rename."""
        target = self._real(path)
        with self._errors(path):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with NamedTemporaryFile(dir=os.path.dirname(target), prefix=".raycache-", delete=False) as file:
                try:
                    file.write(data)
                    file.flush()
                    # Before the rename: a crash between the two must not leave a name with no bytes behind it.
                    os.fsync(file.fileno())
                    os.replace(file.name, target)
                except BaseException:  # whatever stopped it, an interrupt included, leaves no temporary file
                    with suppress(FileNotFoundError):
                        os.unlink(file.name)
                    raise
        return self.stat(path)

    def delete(self, path: str) -> None:
        """See UnderFileSystem."""
        with self._errors(path):
            os.unlink(self._real(path))

    def _real(self, path: str) -> str:
        return os.path.join(self._root, path) if path else self._root

    def _name(self, path: str) -> str:
        return paths.join(self.uri, path)

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except RaycacheError:
            raise
        except FileNotFoundError as error:
            raise NotFound(f"{self._name(path)}: no such file or directory") from error
        except NotADirectoryError as error:
            raise NotADirectory(f"{self._name(path)} is not a directory") from error
        except IsADirectoryError as error:
            raise IsADirectory(f"{self._name(path)} is a directory") from error
        except PermissionError as error:
            raise AccessDenied(f"{self._name(path)}: permission denied for this user") from error
        except OSError as error:
            raise SourceUnavailable(f"{self._name(path)}: {error.strerror or error}") from error


def _version(info: os.stat_result) -> str:
    return f"{info.st_dev:x}-{info.st_ino:x}-{info.st_size:x}-{info.st_mtime_ns:x}-{info.st_ctime_ns:x}"


def _pread_all(fd: int, length: int, start: int) -> bytes:
    """``pread`` until done: one call returns at most 2 GiB, and less where a signal comes in."""
    chunks: list[bytes] = []
    while length:
        chunk = os.pread(fd, length, start)
        if not chunk:
            break
        chunks.append(chunk)
        start, length = start + len(chunk), length - len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
