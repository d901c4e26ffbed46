"""Object stores, through obstore: S3, Google Cloud Storage, Azure, HTTP and memory.

obstore refuses keys with control characters or an empty segment, and then a whole listing with them (measured with
0.12). S3 has such keys, so an S3 source carries a second adapter (fsspec's s3fs) that lists and reads just those.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.compute as pc
from obstore import exceptions as oe
from obstore.store import AzureStore, GCSStore, HTTPStore, MemoryStore, ObjectStore, S3Store

from raycache.core import paths
from raycache.core.listing import LISTING_SCHEMA
from raycache.core.values import Buffer, Stat
from raycache.errors import (
    AccessDenied,
    Changed,
    InvalidInput,
    NotFound,
    RaycacheError,
    SourceUnavailable,
)
from raycache.ufs.base import Limits, Stream, UnderFileSystem
from raycache.ufs.credentials import fsspec_s3_options, s3_config, s3_credential_provider
from raycache.ufs.generic import FsspecUfs
from raycache.ufs.treewalk import THREADS, AddBranch, Branch, directory_branch, empty_files, in_parallel, with_prefix

_UNNAMEABLE = re.compile(r"[\x00-\x1f\x7f]|//|^/|/$")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_PROVIDER = re.compile(r"credential provider: (?:\w+: )?(.*)")
_BEYOND = "Invalid range:"
"""How obstore's memory store says what is 416 elsewhere."""
_SYSTEM = re.compile(r'kind: \w+,\s+(?:message|error): "([^"]+)"|kind: Timeout')
"""Why a connection failed, which only the long text of an error says."""
_EXPIRED = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_PASSING = {"RequestTimeout", "SlowDown", "OperationAborted"}
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_KEY_MAX = 65_536
"""Longer than any store's keys. Arrow's binary_slice fails on an open end (measured with 26.0)."""
_LIST_ROWS = 20_000
"""Rows of one batch of a tree: 20 pages of S3."""
_FAN_OUT = 512
"""Most sub-prefixes that are listed one by one."""
_MARK = "raycache"
"""Name of the metadata of an object that holds its mark."""
_PART_BYTES, _PARTS_MAX = 8 << 20, 9_000
"""Of an upload in parts: S3 takes 10,000, of 5 MiB or more."""
_PARTS_AT_ONCE = 4
_COPY_MAX_BYTES = 5 << 30
"""Most that S3 copies in one request."""
_memory_stores: dict[str, MemoryStore] = {}


class ObjectUfs:
    """An UnderFileSystem over an obstore store."""

    def __init__(
        self, location: paths.Location, store: ObjectStore, odd_keys: Callable[[], UnderFileSystem] | None = None
    ) -> None:
        self.uri = location.uri
        self._prefix = location.path
        self._store = store
        # Opened on first need: most sources have no such keys, and s3fs takes a while to import.
        self._open_odd_keys = cache(odd_keys) if odd_keys else None

    def list_directory(self, path: str) -> Any:
        """See UnderFileSystem."""
        if odd_keys := self._odd_keys_for(path):
            return odd_keys.list_directory(path)
        key = self._key(path)
        with self._errors(path):
            try:
                result = obstore.list_with_delimiter(self._store, key or None, return_arrow=True)
            except oe.InvalidPathError:
                if self._open_odd_keys is None:
                    raise
                return self._open_odd_keys().list_directory(path)
        skip = _skip(key)
        prefixes = [prefix.rstrip("/").encode()[skip:] for prefix in result["common_prefixes"]]
        return _listing(pa.table(result["objects"]), prefixes, skip)

    def list_tree(self, path: str, threads: int = THREADS) -> Generator[Any, None, None]:
        """See UnderFileSystem. One stream of keys, or one for each sub-prefix when there may be several at once."""
        if odd_keys := self._odd_keys_for(path):
            return odd_keys.list_tree(path, threads)
        return in_parallel(self._stream(path, "") if threads == 1 else self._fan_out(path, ""), threads)

    def _fan_out(self, path: str, below: str) -> Branch:
        """The branch that lists one level, and lets a stream of its own list each sub-prefix; further down where there
        is just one."""

        def branch(add: AddBranch) -> Iterator[Any]:
            level = self.list_directory(paths.join(path, below))
            children = _children(level, below)
            if len(children) > _FAN_OUT:
                add(self._stream(path, below))  # a request for each would be more requests than pages
                return
            yield with_prefix(level, below)
            for child in children:
                add(self._fan_out(path, child) if len(children) == 1 else self._stream(path, child))

        return branch

    def _one_level(self, path: str, below: str) -> Branch:
        """The branch that lists one level, and a stream for each sub-prefix, however many there are."""

        def branch(add: AddBranch) -> Iterator[Any]:
            level = self.list_directory(paths.join(path, below))
            yield with_prefix(level, below)
            for child in _children(level, below):
                add(self._stream(path, child))

        return branch

    def _stream(self, path: str, below: str) -> Branch:
        """The branch of all keys below a prefix, a page at a time."""

        def branch(add: AddBranch) -> Iterator[Any]:
            key, skip = self._key(paths.join(path, below)), _skip(self._key(path))
            in_doubt: set[bytes] = set()
            with self._errors(paths.join(path, below)):
                if self._odd_keys_for(paths.join(path, below)):
                    add(directory_branch(self.list_directory, path, below))
                    return
                try:
                    for chunk in obstore.list(self._store, key or None, chunk_size=_LIST_ROWS, return_arrow=True):
                        batch = _listing(pa.table(chunk), [], skip)
                        # obstore tells `d/`, which makes a directory exist, and an empty file `d` as the same.
                        empty = empty_files(batch)
                        in_doubt |= {
                            name.rpartition(b"/")[0] for name in batch.column("name").filter(empty).to_pylist()
                        }
                        yield batch.filter(pc.invert(empty))
                except oe.InvalidPathError:
                    if self._open_odd_keys is None:
                        raise
                    # Some keys below have no name in obstore: down to them, where the other adapter lists.
                    add(self._one_level(path, below))
                    return
            for parent in in_doubt:
                add(self._level(path, parent.decode()))

        return branch

    def _level(self, path: str, below: str) -> Branch:
        """The branch that tells the empty files of one directory from markers of directories."""

        def branch(add: AddBranch) -> Iterator[Any]:
            batch = self.list_directory(paths.join(path, below))
            yield with_prefix(batch.filter(pc.or_(batch.column("is_dir"), empty_files(batch))), below)

        return branch

    def stat(self, path: str) -> Stat:
        """See UnderFileSystem."""
        if odd_keys := self._odd_keys_for(path):
            return odd_keys.stat(path)
        key = self._key(path)
        try:
            if not key:
                raise NotFound(f"{self.uri} is no key")
            with self._errors(path):
                meta = obstore.head(self._store, key)
        except NotFound:
            if self._has_children(path) or not path:
                return Stat(path, True, 0, 0)
            raise
        return Stat(path, False, meta["size"], _time_ns(meta["last_modified"]), meta["e_tag"] or "")

    def _has_children(self, path: str) -> bool:
        """Whether a key starts with this directory, its own marker object included."""
        with self._errors(path):
            try:
                # One request: the first page, of which the first row is enough.
                return any(obstore.list(self._store, self._key(path) or None, chunk_size=1))
            except oe.InvalidPathError:
                return True  # there is one, and it has no name in obstore

    def get(self, path: str, start: int, length: int, etag: str) -> Buffer:
        """See UnderFileSystem."""
        if odd_keys := self._odd_keys_for(path):
            return odd_keys.get(path, start, length, etag)
        if length == 0:
            return b""
        options: obstore.GetOptions = {"range": (start, start + length)}
        if etag:
            options["if_match"] = etag
        try:
            with self._errors(path):
                data = memoryview(obstore.get(self._store, self._key(path), options=options).bytes())
        except NotFound as error:
            raise Changed(f"{self._name(path)} was deleted since it was listed; refresh its directory") from error
        if len(data) != length:
            raise Changed(f"{self._name(path)} is shorter than when it was listed; refresh its directory")
        return data

    def put(self, path: str, data: Buffer | Stream, if_match: str | None = None, mark: str = "") -> Stat:
        """See UnderFileSystem. A buffer goes in one request, a stream in parts."""
        if odd_keys := self._odd_keys_for(path):
            return odd_keys.put(path, data, if_match, mark)
        attributes = {_MARK: mark} if mark else None
        with self._errors(path):
            if isinstance(data, Stream):
                return self._put_stream(path, data, if_match, mark, attributes)
            result = self._put_whole(path, data, if_match, attributes)
        return Stat(path, False, memoryview(data).nbytes, 0, result["e_tag"] or "")

    def _put_stream(
        self, path: str, data: Stream, if_match: str | None, mark: str, attributes: dict[str, str] | None
    ) -> Stat:
        part_bytes = max(_PART_BYTES, data.size_bytes // _PARTS_MAX + 1)
        # Not an iterator for ``put``: its buffers could not come from a source, obstore does not enter itself. An
        # exception gives the upload up.
        with obstore.open_writer(
            self._store, self._key(path), attributes=attributes, buffer_size=part_bytes, max_concurrency=_PARTS_AT_ONCE
        ) as writer:
            for buffer in data.open():
                writer.write(buffer)
            self._expect(path, if_match)
        found = obstore.get(self._store, self._key(path), options={"head": True})
        if mark and found.attributes.get(_MARK) != mark:
            raise self._is_other(path)  # replaced again already
        return Stat(path, False, data.size_bytes, 0, found.meta["e_tag"] or "")

    def _put_whole(self, path: str, data: Buffer, if_match: str | None, attributes: dict[str, str] | None) -> Any:
        mode: Any = "overwrite" if if_match is None else {"e_tag": if_match} if if_match else "create"
        if if_match and isinstance(self._store, GCSStore):
            # Its condition is a generation, which no listing tells.
            meta = obstore.head(self._store, self._key(path))
            mode = {"e_tag": if_match, "version": meta["version"] if meta["e_tag"] == if_match else "0"}
        try:
            # Conditional puts of obstore are never multipart, so the rest is not either: they behave alike.
            return obstore.put(
                self._store, self._key(path), data, attributes=attributes, mode=mode, use_multipart=False
            )
        except oe.BaseError as error:
            if if_match is None or "status code: 501" not in str(error):
                raise
        self._expect(path, if_match)  # a store that knows no conditional writes
        return obstore.put(self._store, self._key(path), data, attributes=attributes, use_multipart=False)

    def _expect(self, path: str, etag: str | None) -> None:
        """Raise Changed unless a file has this version, or there is none for an empty one. None: whatever."""
        if etag is None:
            return
        try:
            with self._errors(path):
                found = obstore.head(self._store, self._key(path))["e_tag"] or ""
        except NotFound:
            found = ""
        if found != etag:
            raise self._is_other(path)

    def _is_other(self, path: str) -> Changed:
        return Changed(f"{self._name(path)} is not what it was known to be; refresh its directory")

    def mark_of(self, path: str) -> str | None:
        """See UnderFileSystem."""
        if odd_keys := self._odd_keys_for(path):
            return odd_keys.mark_of(path)
        with self._errors(path):
            attributes: Any = obstore.get(self._store, self._key(path), options={"head": True}).attributes
        return str(attributes.get(_MARK, ""))

    def copy(self, path: str, etag: str, size_bytes: int, to: str, if_match: str | None = None) -> Stat | None:
        """See UnderFileSystem. Both versions are looked up before, and the one that is copied afterwards too."""
        if self._odd_keys_for(path) or self._odd_keys_for(to):
            return None
        try:
            before = self.stat(path)
        except NotFound as error:
            raise Changed(f"{self._name(path)} was deleted since it was listed; refresh its directory") from error
        if before.etag != etag:
            raise self._is_other(path)
        if before.size_bytes != size_bytes or size_bytes > _COPY_MAX_BYTES:
            return None
        self._expect(to, if_match)
        with self._errors(to):
            obstore.copy(self._store, self._key(path), self._key(to))
        self._expect(path, etag)
        return self.stat(to)

    def delete(self, path: str, if_match: str | None = None) -> None:
        """See UnderFileSystem. S3 reports no error for a key that is not there."""
        if odd_keys := self._odd_keys_for(path):
            return odd_keys.delete(path, if_match)
        if if_match and self.stat(path).etag != if_match:
            raise self._is_other(path)
        with self._errors(path):
            obstore.delete(self._store, self._key(path))
        return None

    def make_directory(self, path: str) -> None:
        """See UnderFileSystem. There are none."""

    def remove_directory(self, path: str) -> None:
        """See UnderFileSystem. There are none."""

    def _odd_keys_for(self, path: str) -> UnderFileSystem | None:
        if self._open_odd_keys is None or not _UNNAMEABLE.search(self._key(path)):
            return None
        return self._open_odd_keys()

    def _key(self, path: str) -> str:
        return paths.join(self._prefix, path)

    def _name(self, path: str) -> str:
        return paths.join(self.uri, path)

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Map obstore's exceptions, and the HTTP status in its texts where the class says nothing."""
        try:
            yield
        except RaycacheError:
            raise
        except (oe.BaseError, OSError, ValueError) as error:
            raise _translate(self._name(path), error) from error


def _translate(name: str, error: Exception) -> RaycacheError:
    text = str(error)
    status = int(found.group(1)) if (found := _STATUS.search(text)) else 0
    code = found.group(1) if (found := _CODE.search(text)) else ""
    if isinstance(error, oe.PreconditionError | oe.AlreadyExistsError) or status in (412, 416) or _BEYOND in text:
        return Changed(f"{name} changed since it was listed; refresh its directory")
    if isinstance(error, FileNotFoundError | oe.NotFoundError) or status == 404:
        return NotFound(f"{name}: {'there is no such bucket' if code == 'NoSuchBucket' else 'no such key or bucket'}")
    denied = isinstance(error, PermissionError | oe.PermissionDeniedError | oe.UnauthenticatedError)
    if denied or status in (401, 403) or code in _EXPIRED:
        found = _PROVIDER.search(text)
        reason = found.group(1) if found else f"{code or status or 'no valid credentials'}; check the credentials"
        return AccessDenied(f"{name}: access denied: {reason}")
    if status in (301, 307, 400, 405, 501) and code not in _PASSING:
        return InvalidInput(f"{name}: the store refused the request ({code or status}); check region and endpoint")
    if isinstance(error, ValueError | oe.InvalidPathError):  # from obstore's reading of the path, before any request
        return InvalidInput(f"{name}: such a store cannot name this key, or one in this directory: {_first_line(text)}")
    reason = f" ({found.group(1) or 'timed out'})" if (found := _SYSTEM.search(text)) else ""
    return SourceUnavailable(f"{name}: {_first_line(text)}{reason}")


def _time_ns(when: datetime.datetime) -> int:
    """Exactly, as in a listing: a float of seconds holds no nanoseconds."""
    return (when - _EPOCH) // datetime.timedelta(microseconds=1) * 1000


def _first_line(text: str) -> str:
    return text.partition("\n")[0][:300]


def _skip(key: str) -> int:
    """Bytes of a key that lead to the directory ``key``."""
    return len(f"{key}/".encode()) if key else 0


def _children(level: Any, below: str) -> list[str]:
    """Paths of the directories in a listing of the directory ``below``."""
    names = level.column("name").filter(level.column("is_dir")).to_pylist()
    return [paths.join(below, name.decode()) for name in names if paths.is_shown(name)]


def _listing(objects: Any, prefixes: list[bytes], skip: int) -> Any:
    keys = objects.column("path").combine_chunks().cast(pa.binary())
    shown = pc.greater(pc.binary_length(keys), skip)  # the marker object of the directory itself is no entry
    objects, keys = objects.filter(shown), keys.filter(shown)
    count, dirs = objects.num_rows, len(prefixes)
    mtimes = objects.column("last_modified").cast(pa.timestamp("ns", "UTC"), safe=False).cast(pa.int64())
    etags = objects.column("e_tag").fill_null("").cast(pa.binary())
    columns = [
        _chained(pc.binary_slice(keys, skip, _KEY_MAX), pa.array(prefixes, pa.binary())),
        pa.array(np.arange(count + dirs) >= count),
        _chained(objects.column("size").cast(pa.uint64()), pa.array(np.zeros(dirs, np.uint64))),
        _chained(mtimes, pa.array(np.zeros(dirs, np.int64))),
        _chained(etags, pa.array([b""] * dirs, pa.binary())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=LISTING_SCHEMA)


def _chained(first: Any, second: Any) -> Any:
    chunks = first.chunks if isinstance(first, pa.ChunkedArray) else [first]
    return pa.concat_arrays([*chunks, second])


def open_object_ufs(location: paths.Location, family: str, options: dict[str, Any], limits: Limits) -> ObjectUfs:
    """Open the adapter of a family of stores. Raises InvalidInput for options that the store does not know."""
    given: Any = options  # obstore types each store's options by name; they are the user's, and checked when opened
    common: dict[str, Any] = {
        "client_options": {
            "connect_timeout": f"{limits.connect_timeout_s}s",
            # An attempt that starts as late as retry_timeout allows must still end before the deadline.
            "timeout": f"{limits.request_timeout_s / 2}s",
            "allow_http": True,
            "pool_max_idle_per_host": str(limits.connections),
        },
        # Backoff with jitter is obstore's own.
        "retry_config": {
            "max_retries": 8,
            "retry_timeout": datetime.timedelta(seconds=limits.request_timeout_s / 2),
        },
    }
    try:
        if family == "s3":
            config: Any = s3_config(options)
            provider = s3_credential_provider(options)
            store: ObjectStore = S3Store(location.authority, config=config, credential_provider=provider, **common)
            words = fsspec_s3_options(options, limits.connect_timeout_s, limits.request_timeout_s)
            return ObjectUfs(location, store, partial(FsspecUfs, location, words, limits))
        if family == "gs":
            return ObjectUfs(location, GCSStore(location.authority, config=given, **common))
        if family == "az":
            # abfss://container@account.dfs.core.windows.net is how Azure writes it.
            container, _, host = location.authority.partition("@")
            account = {"account_name": host.partition(".")[0]} if host else {}
            return ObjectUfs(location, AzureStore(container, config=given | account, **common))
        if family == "http":
            store = HTTPStore.from_url(f"{location.scheme}://{location.authority}", **common)
            return ObjectUfs(location, store)
        store = _memory_stores.setdefault(location.authority, MemoryStore())
        return ObjectUfs(location, store)
    except (oe.BaseError, TypeError, ValueError) as error:
        raise InvalidInput(f"{location.uri}: {_first_line(str(error))}") from error
