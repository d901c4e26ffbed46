"""Every file system that fsspec knows and obstore does not: HDFS, OSS, FTP, SFTP and so on.

fsspec has no conditional reads, so the version is looked up before and after a read and must be the listed one both
times. Most of its calls report a failure as an OSError of some kind, some as whatever their client library raises;
what may pass is retried with backoff.

fsspec has no deadlines either: some implementations hang for minutes when a server is away (hdfs-native: three, with
0.14). So each call runs in a thread of its own, which is left behind when it does not come back in time. Threads left
behind count as requests under way, so that they cannot pile up. They are daemons: a process that ends meanwhile does
not wait for them, and Python before 3.14 may abort at its very end when one comes back from native code too late.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

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
    SourceUnavailable,
)
from raycache.ufs.base import TEMPORARY, Limits, Stream
from raycache.ufs.treewalk import THREADS, walk_tree

_Result = TypeVar("_Result")
_FINAL = (
    RaycacheError, FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError,
    ValueError, TypeError, LookupError, AttributeError, NotImplementedError, ImportError,
)  # fmt: skip
"""What another attempt would only raise again."""
_REFUSALS = {"NoCredentialsError", "PartialCredentialsError", "ClientAuthenticationError", "AuthenticationException"}
"""Names of the classes by which client libraries (botocore, azure, paramiko) say that credentials are wrong."""
_VERSION_KEYS = ("ETag", "etag", "checksum", "md5", "generation", "content_md5")
_TIME_KEYS = (
    "mtime", "LastModified", "last_modified", "modified", "modify", "created", "modification_time", "modificationTime",
)  # fmt: skip
_MILLISECONDS_FROM = 10**11
"""A number of seconds this large is in the year 5138: HDFS counts in milliseconds."""
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)

_PACKAGES = {"oss": "ossfs", "hdfs": "raycache[hdfs]", "sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol"}
"""What to install for a scheme whose fsspec implementation is missing or needs more. For hdfs the package also
replaces fsspec's own implementation, which needs a JVM."""
_NO_PARENTS = {"s3", "s3a", "oss"}
"""Schemes without directories, where to make a parent could mean to make a bucket."""
_HDFS = {"hdfs", "viewfs"}
_HDFS_DEFAULTS = {"dfs.client.failover.max.attempts": "3", "dfs.client.failover.sleep.base.millis": "200"}
"""By itself hdfs-native tries for three minutes before it says why. Three attempts reach a standby's active peer."""
_SLOWEST_BYTES_PER_S = 1 << 20
"""A put that goes more slowly is given up."""
_ONE_AT_A_TIME = {"ftp"}
"""Schemes whose implementation has one connection and no lock."""


class FsspecUfs:
    """An UnderFileSystem over any fsspec file system."""

    def __init__(self, location: paths.Location, options: dict[str, Any], limits: Limits) -> None:
        """Some implementations connect here. Raises InvalidInput, AccessDenied, SourceUnavailable."""
        self.uri = location.uri
        self._scheme = location.scheme
        self._limits = limits
        self._under_way = threading.BoundedSemaphore(1 if location.scheme in _ONE_AT_A_TIME else limits.connections)
        try:
            self._fs, self._root = self._within(limits.request_timeout_s, lambda: _open(location, options))
            # Of those that cannot, object stores show a file when it is whole; for others nothing better is known.
            self._renames = type(self._fs).mv is not fsspec.AbstractFileSystem.mv
        except ImportError as error:
            raise InvalidInput(
                f"{location.uri}: fsspec needs another package for {location.scheme}://: "
                f"{error}{_hint(location.scheme)}"
            ) from error
        except PermissionError as error:
            raise AccessDenied(f"{location.uri}: access denied: {error}; check the credentials") from error
        except OSError as error:
            reason = str(error).partition("\n")[0]
            raise SourceUnavailable(f"{location.uri}: cannot connect: {reason}{_hint(location.scheme)}") from error
        except Exception as error:  # client libraries raise classes of their own here too
            if type(error).__name__ in _REFUSALS:
                raise AccessDenied(f"{location.uri}: access denied: {error}; check the credentials") from error
            raise InvalidInput(f"{location.uri}: {error or type(error).__name__}") from error

    def list_directory(self, path: str) -> Any:
        """See UnderFileSystem."""
        return self._try(path, lambda: self._list(path))

    def _list(self, path: str) -> Any:
        real = self._real(path)
        # Caches of fsspec would hide what changed since.
        infos = self._fs.ls(real, detail=True, refresh=True)
        own = real.rstrip("/")
        rows = [info for info in infos if info["name"].rstrip("/") != own and f"/{TEMPORARY}" not in info["name"]]
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

    def list_tree(self, path: str, threads: int = THREADS) -> Generator[Any, None, None]:
        """See UnderFileSystem."""
        return walk_tree(self.list_directory, path, threads)

    def stat(self, path: str) -> Stat:
        """See UnderFileSystem."""
        return self._try(path, lambda: self._stat(path))

    def _stat(self, path: str) -> Stat:
        info = self._info(path)
        is_dir = info["type"] == "directory"
        size, etag = (0, "") if is_dir else (int(info.get("size") or 0), _version(info))
        return Stat(path, is_dir, size, _mtime_ns(info), etag)

    def get(self, path: str, start: int, length: int, etag: str) -> Buffer:
        """See UnderFileSystem."""
        try:
            return self._try(path, lambda: self._get(path, start, length, etag))
        except NotFound as error:
            raise Changed(f"{self._name(path)} was deleted since it was listed; refresh its directory") from error
        except (IsADirectory, NotADirectory) as error:
            raise Changed(f"{self._name(path)} is no file any more; refresh its directory") from error

    def _get(self, path: str, start: int, length: int, etag: str) -> Buffer:
        before = self._stat(path)
        if before.is_dir:
            raise IsADirectory(f"{self._name(path)} is a directory")
        if etag and before.etag != etag:
            raise Changed(f"{self._name(path)} changed since it was listed; refresh its directory")
        # Asked here, because implementations differ in what they make of a range beyond the end.
        data = b""
        if length and start + length <= before.size_bytes:
            data = self._fs.cat_file(self._real(path), start=start, end=start + length)
        if etag and self._stat(path).etag != etag:
            raise Changed(f"{self._name(path)} changed since it was listed; refresh its directory")
        if len(data) != length:
            raise Changed(f"{self._name(path)} is shorter than when it was listed; refresh its directory")
        return data

    def put(self, path: str, data: Buffer | Stream, if_match: str | None = None, mark: str = "") -> Stat:
        """See UnderFileSystem. There are no marks."""
        return self._try(path, lambda: self._put(path, data, if_match), _size(data))

    def _put(self, path: str, data: Buffer | Stream, if_match: str | None) -> Stat:
        real = self._real(path)
        parent = real.rpartition("/")[0]
        if self._scheme not in _NO_PARENTS and parent:
            self._make_parent(path, parent)
        if not self._renames:
            self._expect(path, if_match)
            self._write(real, data)
            return self._stat(path)
        temporary = f"{parent}/{TEMPORARY}{secrets.token_hex(8)}"
        try:
            self._write(temporary, data)
            self._expect(path, if_match)
            if self._fs.isdir(real):
                raise IsADirectory(f"{self._name(path)} is a directory")
            self._rename(temporary, real)
        except BaseException:  # whatever stopped it leaves no temporary file, if it can be helped
            with suppress(Exception):
                self._fs.rm_file(temporary)
            raise
        return self._stat(path)

    def _make_parent(self, path: str, parent: str) -> None:
        try:
            self._fs.makedirs(parent, exist_ok=True)
        except Exception:  # what implementations say of a file that is in the way differs
            above = paths.split(path)[0]
            while above:
                if self._fs.isfile(self._real(above)):
                    raise NotADirectory(f"{self._name(above)} is a file, not a directory") from None
                above = paths.split(above)[0]
            raise

    def _rename(self, real: str, to: str) -> None:
        if self._scheme in _HDFS:
            self._fs.mv(real, to, overwrite=True)
            return
        if self._fs.exists(to):
            self._fs.rm_file(to)  # SFTP and FTP servers do not rename over what is there
        self._fs.mv(real, to)

    def _write(self, real: str, data: Buffer | Stream) -> None:
        if not isinstance(data, Stream):
            self._fs.pipe_file(real, bytes(data))
            return
        # A file object of fsspec that is left by an exception shows what it has got so far. A local file is all there.
        with tempfile.NamedTemporaryFile(prefix="raycache-put-") as file:
            for buffer in data.open():
                file.write(buffer)
            file.flush()
            self._fs.put_file(file.name, real)

    def _expect(self, path: str, etag: str | None) -> None:
        if etag is None:
            return
        try:
            found = self._stat(path).etag
        except FileNotFoundError:
            found = ""
        if found != etag:
            raise Changed(f"{self._name(path)} is not what it was known to be; refresh its directory")

    def mark_of(self, path: str) -> str | None:
        """See UnderFileSystem. There are none."""
        return None

    def copy(self, path: str, etag: str, size_bytes: int, to: str, if_match: str | None = None) -> Stat | None:
        """See UnderFileSystem. What fsspec calls a copy is reading and writing in most implementations."""
        return None

    def delete(self, path: str, if_match: str | None = None) -> None:
        """See UnderFileSystem."""
        self._try(path, lambda: self._delete(path, if_match))

    def _delete(self, path: str, if_match: str | None) -> None:
        if if_match and self._stat(path).etag != if_match:
            raise Changed(f"{self._name(path)} is not what it was known to be; refresh its directory")
        self._fs.rm_file(self._real(path))

    def make_directory(self, path: str) -> None:
        """See UnderFileSystem."""
        if self._scheme not in _NO_PARENTS:
            self._try(path, lambda: self._mkdir(path))

    def _mkdir(self, path: str) -> None:
        real = self._real(path)
        if self._fs.isfile(real):  # asked here, as not all implementations mind
            raise NotADirectory(f"{self._name(path)} is a file, not a directory")
        self._fs.makedirs(real, exist_ok=True)

    def remove_directory(self, path: str) -> None:
        """See UnderFileSystem."""
        if self._scheme not in _NO_PARENTS:
            with suppress(NotFound):
                self._try(path, lambda: self._rmdir(path))

    def _rmdir(self, path: str) -> None:
        if self._fs.isfile(self._real(path)):
            raise NotADirectory(f"{self._name(path)} is a file, not a directory")
        # Looked up here: what implementations say of one that is not empty differs, and some just remove it.
        below = self._fs.ls(self._real(path), detail=True, refresh=True)
        if any(info["name"].rstrip("/") != self._real(path) for info in below):
            raise NotEmpty(f"{self._name(path)} is not empty")
        self._fs.rmdir(self._real(path))

    def _info(self, path: str) -> Mapping[str, Any]:
        self._fs.invalidate_cache()
        info: Mapping[str, Any] = self._fs.info(self._real(path))
        return info

    def _real(self, path: str) -> str:
        real = f"{self._root.rstrip('/')}/{path}" if path else self._root
        # Some read '#', '?' or ';' as part of a URL and would quietly use the file whose name ends there.
        if path and self._fs._strip_protocol(real) != real:
            raise InvalidInput(f"{self._name(path)}: fsspec's {self._scheme} file system cannot name this path")
        return real

    def _name(self, path: str) -> str:
        return paths.join(self.uri, path)

    def _try(self, path: str, call: Callable[[], _Result], size_bytes: int = 0) -> _Result:
        """Call until it succeeds, fails for good, or half of the time is over; no later than the deadline in all,
        which is later for a call that sends many bytes."""
        deadline = time.monotonic() + self._limits.request_timeout_s + size_bytes / _SLOWEST_BYTES_PER_S
        retrying = Retrying(
            retry=retry_if_exception(lambda error: not isinstance(error, _FINAL) and not _is_refusal(error)),
            stop=stop_after_delay(self._limits.request_timeout_s / 2),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            reraise=True,
        )
        try:
            return retrying(lambda: self._within(deadline - time.monotonic(), call))
        except RaycacheError:
            raise
        except FileNotFoundError as error:
            raise NotFound(f"{self._name(path)}: no such file or directory") from error
        except (NotADirectoryError, FileExistsError) as error:
            raise NotADirectory(f"{self._name(path)} is not a directory, or not in one") from error
        except IsADirectoryError as error:
            raise IsADirectory(f"{self._name(path)} is a directory") from error
        except Exception as error:  # the border: implementations raise whatever their client library does
            if isinstance(error, PermissionError) or _is_refusal(error):
                raise AccessDenied(f"{self._name(path)}: access denied: {error}; check the credentials") from error
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise SourceUnavailable(f"{self._name(path)}: {reason}") from error

    def _within(self, seconds: float, call: Callable[[], _Result]) -> _Result:
        """The call's result, or TimeoutError when it does not come in time."""
        deadline = time.monotonic() + seconds
        if not self._under_way.acquire(timeout=max(seconds, 0)):
            raise TimeoutError(f"{self._limits.connections} requests are under way, none answered in time")
        result: concurrent.futures.Future[_Result] = concurrent.futures.Future()

        def work() -> None:
            try:
                result.set_result(call())
            except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller's thread
                result.set_exception(error)
            finally:
                self._under_way.release()

        threading.Thread(target=work, name="raycache-fsspec", daemon=True).start()
        try:
            return result.result(timeout=max(deadline - time.monotonic(), 0))
        except concurrent.futures.TimeoutError as error:
            raise TimeoutError(f"no answer within {self._limits.request_timeout_s:g} s") from error


def _open(location: paths.Location, options: dict[str, Any]) -> tuple[Any, str]:
    """The file system and the root in its words. Not ``url_to_fs``, which reads '::' in a path as a chain of URLs."""
    kind: Any = fsspec.get_filesystem_class(location.scheme)
    # Two datasets may reach one host with different credentials: never share fsspec's cached instances.
    is_hdfs = location.scheme in _HDFS
    given = {**(_HDFS_DEFAULTS if is_hdfs else {}), **kind._get_kwargs_from_urls(location.uri), **options}
    found = kind(**given, skip_instance_cache=True)
    if is_hdfs:
        # hdfs-native cuts a path at '#', '?' and ';' (measured with 0.14). Ours are paths already.
        found._strip_protocol = lambda path: path
        return found, f"/{location.path}"
    return found, found._strip_protocol(location.uri)


def _size(data: Buffer | Stream) -> int:
    return data.size_bytes if isinstance(data, Stream) else memoryview(data).nbytes


def _hint(scheme: str) -> str:
    package = _PACKAGES.get(scheme)
    return f" (try: pip install '{package}')" if package else ""


def _is_refusal(error: BaseException) -> bool:
    return type(error).__name__ in _REFUSALS


def _utf8(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _mtime_ns(info: Mapping[str, Any]) -> int:
    for key in _TIME_KEYS:
        value = info.get(key)
        if isinstance(value, datetime.datetime):
            # A time without a zone is taken as UTC: machines of different zones must agree on a version.
            aware = value if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc)
            return (aware - _EPOCH) // datetime.timedelta(microseconds=1) * 1000
        if isinstance(value, int | float):
            # To whole microseconds, which a float of seconds still holds: some tell a float in a listing and a
            # datetime for a file, and both must make the same version.
            return round(value * (10**3 if value > _MILLISECONDS_FROM else 10**6)) * 1000
    return 0


def _version(info: Mapping[str, Any]) -> str:
    for key in _VERSION_KEYS:
        if info.get(key):
            return str(info[key])
    return f"{int(info.get('size') or 0):x}-{_mtime_ns(info):x}"
