"""Local directories, plainly by system calls.

obstore's local store cannot list a directory that holds a name with a control character, and hides names such as
``x#12`` (measured with 0.12), so it is not used for them. The version of a file is its device, inode, size, mtime and
ctime, checked on the open descriptor before and after a read. Symbolic links
are followed inside the source; one that leads out of it is no entry.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat as stat_flags
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

from raycache.core import paths
from raycache.core.listing import LISTING_SCHEMA
from raycache.core.values import Buffer, Stat
from raycache.errors import (
    AccessDenied,
    Changed,
    InvalidInput,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    RaycacheError,
    ReadOnly,
    SourceUnavailable,
)
from raycache.ufs.base import TEMPORARY, Stream
from raycache.ufs.treewalk import THREADS, walk_tree

_MARK = "user.raycache"
_LEADS_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG}
"""What following a symbolic link may end in without anything being wrong with its directory."""


class LocalUfs:
    """An UnderFileSystem over a directory of this machine."""

    def __init__(self, location: paths.Location) -> None:
        self.uri = location.uri
        self._root = f"/{location.path}"

    def list_directory(self, path: str) -> Any:
        """See UnderFileSystem."""
        names, dirs, sizes, mtimes, etags = [], [], [], [], []
        temporary = os.fsencode(TEMPORARY)
        with self._errors(path), os.scandir(os.fsencode(self._real(path))) as entries:
            for entry in entries:
                if entry.name.startswith(temporary):
                    continue  # a put under way, or one that a crash cut short
                if entry.is_symlink() and not self._is_inside(os.fsdecode(entry.path)):
                    continue  # it leads out of the source, or in circles
                try:
                    info = entry.stat()
                except OSError as error:
                    if error.errno == errno.ENOENT or (error.errno in _LEADS_NOWHERE and entry.is_symlink()):
                        continue  # deleted while listing, or a link to nothing: not an entry that could be read
                    raise
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

    def list_tree(self, path: str, threads: int = THREADS) -> Generator[Any, None, None]:
        """See UnderFileSystem."""
        return walk_tree(self.list_directory, path, threads, self._is_loop)

    def stat(self, path: str) -> Stat:
        """See UnderFileSystem."""
        with self._errors(path):
            info = os.stat(self._real(path))
        is_dir = stat_flags.S_ISDIR(info.st_mode)
        return Stat(path, is_dir, 0 if is_dir else info.st_size, info.st_mtime_ns, "" if is_dir else _version(info))

    def get(self, path: str, start: int, length: int, etag: str) -> Buffer:
        """See UnderFileSystem."""
        try:
            with self._errors(path), _opened(self._real(path)) as fd:
                info = os.fstat(fd)
                before = _version(info) if stat_flags.S_ISREG(info.st_mode) else "not a regular file"
                data = _pread_all(fd, length, start) if stat_flags.S_ISREG(info.st_mode) else b""
                after = _version(os.fstat(fd))
        except NotFound as error:
            raise Changed(f"{self._name(path)} was deleted since it was listed; refresh its directory") from error
        except NotADirectory as error:
            raise Changed(f"{self._name(path)} is no file any more; refresh its directory") from error
        if etag and {before, after} != {etag}:
            raise Changed(f"{self._name(path)} changed since it was listed; refresh its directory")
        if len(data) != length:
            raise Changed(f"{self._name(path)} is shorter than when it was listed; refresh its directory")
        return data

    def put(self, path: str, data: Buffer | Stream, if_match: str | None = None, mark: str = "") -> Stat:
        """See UnderFileSystem. The file appears whole, by rename, with the permissions that the umask leaves."""
        target = self._real(path)
        parent = os.path.dirname(target)
        with self._errors(path):
            os.makedirs(parent, exist_ok=True)
            temporary = os.path.join(parent, f"{TEMPORARY}{secrets.token_hex(8)}")
            with _opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
                try:
                    for buffer in data.open() if isinstance(data, Stream) else (data,):
                        _write_all(fd, buffer)
                    if mark:
                        _set_mark(fd, mark)
                    # Before the rename: a crash between the two must not leave a name with no bytes behind it.
                    os.fsync(fd)
                    self._appear(path, temporary, target, if_match)
                except BaseException:  # whatever stopped it, an interrupt included, leaves no temporary file
                    with suppress(FileNotFoundError):
                        os.unlink(temporary)
                    raise
                info = os.fstat(fd)  # only now: the rename changed the ctime
            # After the rename: who is told that a file is safe must find its name after a crash of the machine.
            with _opened(parent) as directory:
                os.fsync(directory)
        return Stat(path, False, info.st_size, info.st_mtime_ns, _version(info))

    def _appear(self, path: str, temporary: str, target: str, if_match: str | None) -> None:
        """Give a file its name. Where there must be none of the name yet, the kernel sees to it."""
        if os.path.isdir(target):
            raise IsADirectory(f"{self._name(path)} is a directory")
        if if_match == "":
            try:
                os.link(temporary, target)
            except FileExistsError as error:
                raise self._is_other(path) from error
            os.unlink(temporary)
            return
        if if_match is not None and (not os.path.exists(target) or self.stat(path).etag != if_match):
            raise self._is_other(path)
        os.replace(temporary, target)

    def _is_other(self, path: str) -> Changed:
        return Changed(f"{self._name(path)} is not what it was known to be; refresh its directory")

    def mark_of(self, path: str) -> str | None:
        """See UnderFileSystem. An extended attribute, where the file system has them."""
        with self._errors(path):
            try:
                return os.getxattr(self._real(path), _MARK).decode("ascii", "replace")
            except OSError as error:
                if error.errno == errno.ENODATA:
                    return ""
                if error.errno == errno.ENOTSUP:
                    return None
                raise

    def copy(self, path: str, etag: str, size_bytes: int, to: str, if_match: str | None = None) -> None:
        """See UnderFileSystem. Reading and writing here is no slower than what the kernel would do."""

    def delete(self, path: str, if_match: str | None = None) -> None:
        """See UnderFileSystem."""
        if if_match and self.stat(path).etag != if_match:
            raise self._is_other(path)
        with self._errors(path):
            os.unlink(self._real(path))

    def make_directory(self, path: str) -> None:
        """See UnderFileSystem."""
        with self._errors(path):
            os.makedirs(self._real(path), exist_ok=True)

    def remove_directory(self, path: str) -> None:
        """See UnderFileSystem."""
        with suppress(NotFound), self._errors(path):
            os.rmdir(self._real(path))

    def _real(self, path: str) -> str:
        """The path to use. Raises NotFound for one that a link takes out of the source."""
        joined = os.path.join(self._root, path) if path else self._root
        if not self._is_inside(joined):
            raise NotFound(
                f"{self._name(path)}: a link leads out of the source here; links are followed inside it only"
            )
        return joined

    def _is_inside(self, path: str) -> bool:
        root, real = os.path.realpath(self._root), os.path.realpath(path)
        return real == root or real.startswith(root.rstrip("/") + "/")

    def _is_loop(self, path: str) -> bool:
        """Whether a directory is, behind links, one that its own path leads through."""
        if not path:
            return False
        real = os.path.realpath(os.path.join(self._root, path))
        if real == os.path.join(os.path.realpath(self._root), path):
            return False  # no link on the way
        parts = path.split("/")
        above = (os.path.join(self._root, *parts[:depth]) for depth in range(len(parts)))
        return any(os.path.realpath(one) == real for one in above)

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
        except (NotADirectoryError, FileExistsError) as error:
            raise NotADirectory(f"{self._name(path)} is not a directory") from error
        except IsADirectoryError as error:
            raise IsADirectory(f"{self._name(path)} is a directory") from error
        except PermissionError as error:
            raise AccessDenied(f"{self._name(path)}: permission denied for this user") from error
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                raise NotEmpty(f"{self._name(path)} is not empty") from error
            if error.errno == errno.EROFS:
                raise ReadOnly(f"{self._name(path)}: the file system is mounted read-only") from error
            if error.errno == errno.ENAMETOOLONG:
                raise InvalidInput(f"{self._name(path)}: the name is longer than this file system allows") from error
            raise SourceUnavailable(f"{self._name(path)}: {error.strerror or error}") from error


@contextmanager
def _opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    # NONBLOCK: where a file was, someone may have put a pipe, and opening one waits for its other end.
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        yield fd
    finally:
        os.close(fd)


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


def _write_all(fd: int, data: Buffer) -> None:
    """``write`` until done: one call takes at most 2 GiB."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(fd, rest) :]


def _set_mark(fd: int, mark: str) -> None:
    try:
        os.setxattr(fd, _MARK, mark.encode())
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
