"""Every file system that fsspec knows and obstore does not: HDFS, OSS, FTP, SFTP and so on.

fsspec has no conditional reads, so the version is looked up before and after a read and must be the listed one both
times. Its calls report any failure as an OSError of some kind; those that may pass are retried with backoff.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from raycache.core import paths
from raycache.core.listing import LISTING_SCHEMA
from raycache.core.values import Buffer, Stat
from raycache.errors import AccessDenied, Changed, InvalidInput, NotADirectory, NotFound, SourceUnavailable
from raycache.ufs.base import Limits

_Result = TypeVar("_Result")
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_VERSION_KEYS = ("ETag", "etag", "checksum", "md5", "generation", "content_md5")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "modified", "modify", "created", "modification_time")

_PACKAGES = {"oss": "ossfs", "hdfs": "raycache[hdfs]", "sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol"}
"""What to install for a scheme whose fsspec implementation is missing or needs more. For hdfs the package also
replaces fsspec's own implementation, which needs a JVM."""


class FsspecUfs:
    """An UnderFileSystem over any fsspec file system."""

    def __init__(self, location: paths.Location, options: dict[str, Any], limits: Limits) -> None:
        self.uri = location.uri
        self._limits = limits
        try:
            # Two datasets may reach one host with different credentials: never share fsspec's cached instances.
            self._fs, self._root = fsspec.core.url_to_fs(location.uri, skip_instance_cache=True, **options)
        except ImportError as error:
            raise InvalidInput(
                f"{location.uri}: fsspec needs another package for {location.scheme}://: "
                f"{error}{_hint(location.scheme)}"
            ) from error
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{location.uri}: {error}") from error
        except OSError as error:
            reason = str(error).partition("\n")[0]
            raise SourceUnavailable(f"{location.uri}: cannot connect: {reason}{_hint(location.scheme)}") from error

    def list_directory(self, path: str) -> Any:
        """See UnderFileSystem."""
        real = self._real(path)
        # Caches of fsspec would hide what changed since.
        infos = self._try(path, lambda: self._fs.ls(real, detail=True, refresh=True))
        own = real.rstrip("/")
        rows = [info for info in infos if info["name"].rstrip("/") != own]
        if len(infos) == 1 and not rows and infos[0]["type"] != "directory" and not infos[0]["name"].endswith("/"):
            raise NotADirectory(f"{self._name(path)} is a file, not a directory")
        names = [_utf8(info["name"].rstrip("/").rpartition("/")[2]) for info in rows]
        dirs = [info["type"] == "directory" for info in rows]
        sizes = [0 if is_dir else int(info.get("size") or 0) for info, is_dir in zip(rows, dirs, strict=True)]
        etags = [b"" if is_dir else _version(info).encode() for info, is_dir in zip(rows, dirs, strict=True)]
        columns = (names, dirs, sizes, [_mtime_ns(info) for info in rows], etags)
        return pa.RecordBatch.from_arrays(
            [pa.array(column, kind.type) for column, kind in zip(columns, LISTING_SCHEMA, strict=True)],
            schema=LISTING_SCHEMA,
        )

    def stat(self, path: str) -> Stat:
        """See UnderFileSystem."""
        info = self._info(path)
        is_dir = info["type"] == "directory"
        size, etag = (0, "") if is_dir else (int(info.get("size") or 0), _version(info))
        return Stat(path, is_dir, size, _mtime_ns(info), etag)

    def get(self, path: str, start: int, length: int, etag: str) -> Buffer:
        """See UnderFileSystem."""
        try:
            before = _version(self._info(path)) if etag else ""
            data: bytes = self._try(path, lambda: self._fs.cat_file(self._real(path), start=start, end=start + length))
            after = _version(self._info(path)) if etag else ""
        except NotFound as error:
            raise Changed(f"{self._name(path)} was deleted since it was listed; refresh its directory") from error
        if etag and {before, after} != {etag}:
            raise Changed(f"{self._name(path)} changed since it was listed; refresh its directory")
        if len(data) != length:
            raise Changed(f"{self._name(path)} is shorter than when it was listed; refresh its directory")
        return data

    def put(self, path: str, data: Buffer) -> Stat:
        """See UnderFileSystem."""
        parent = self._real(path).rpartition("/")[0]
        self._try(path, lambda: self._fs.makedirs(parent, exist_ok=True) if parent else None)
        self._try(path, lambda: self._fs.pipe_file(self._real(path), bytes(data)))
        return self.stat(path)

    def delete(self, path: str) -> None:
        """See UnderFileSystem."""
        self._try(path, lambda: self._fs.rm_file(self._real(path)))

    def _info(self, path: str) -> Mapping[str, Any]:
        def look() -> Mapping[str, Any]:
            self._fs.invalidate_cache()
            info: Mapping[str, Any] = self._fs.info(self._real(path))
            return info

        return self._try(path, look)

    def _real(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}" if path else self._root

    def _name(self, path: str) -> str:
        return paths.join(self.uri, path)

    def _try(self, path: str, call: Callable[[], _Result]) -> _Result:
        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_delay(self._limits.request_timeout_s / 2),
            wait=wait_exponential_jitter(initial=0.1, max=5),
            reraise=True,
        )
        try:
            return retrying(call)
        except FileNotFoundError as error:
            raise NotFound(f"{self._name(path)}: no such file or directory") from error
        except PermissionError as error:
            raise AccessDenied(f"{self._name(path)}: access denied: {error}; check the credentials") from error
        except NotADirectoryError as error:
            raise NotADirectory(f"{self._name(path)} is not a directory") from error
        except OSError as error:
            raise SourceUnavailable(f"{self._name(path)}: {error}") from error


def _hint(scheme: str) -> str:
    package = _PACKAGES.get(scheme)
    return f" (try: pip install '{package}')" if package else ""


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, _FINAL)


def _utf8(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _mtime_ns(info: Mapping[str, Any]) -> int:
    for key in _TIME_KEYS:
        value = info.get(key)
        if isinstance(value, datetime.datetime):
            return int(value.timestamp() * 1e9)
        if isinstance(value, int | float):
            return int(value * 1e9)
    return 0


def _version(info: Mapping[str, Any]) -> str:
    for key in _VERSION_KEYS:
        if info.get(key):
            return str(info[key])
    return f"{int(info.get('size') or 0):x}-{_mtime_ns(info):x}"
