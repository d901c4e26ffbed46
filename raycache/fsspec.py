"""The fsspec file system: protocol ``raycache``; ``s3://...`` and other source URIs of known datasets work too.

Everything is delegated to ``client.filesystem``; directory listings come from manifests held in memory, so fsspec's own
listing cache is switched off. Within a dataset, copies share their bytes and moves are one step, of whole trees too.

What is written in a transaction (``with fs.transaction:``) is seen when that ends, as a whole: in one step of the
master's for each thousand files.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from fsspec.compression import compr
from fsspec.core import get_compression, has_magic
from fsspec.spec import AbstractFileSystem
from fsspec.transaction import Transaction

from raycache.actors.cluster import Cluster, connected_settings, current
from raycache.actors.connection import current_for
from raycache.client.drafts import CompressedFile, Options, WrittenText
from raycache.client.filesystem import FileSystem
from raycache.config import Settings
from raycache.core.paths import RAYCACHE_SCHEME, join
from raycache.core.values import Stat
from raycache.errors import NotADirectory, NotFound


class RaycacheTransaction(Transaction):  # type: ignore[misc]
    """Files that were written, to be seen together."""

    def complete(self, commit: bool = True) -> None:
        """Have all of them seen, or none. When one is refused the others are seen; raises for that one."""
        files = list(self.files)
        try:
            if commit and files:
                for file in files:
                    file.close()
                self.fs.files().writing.commit([file.draft for file in files])
        finally:
            super().complete(commit=False)  # which discards what was not committed


class RaycacheFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Files of the cache. Paths are ``dataset/path`` or full URIs.

    ``snapshot``: a change number to show everything at (``raycache.snapshot``); pickled with the rest, so that the
    processes of a job all see the same. ``write_type``: of what is written, see ``raycache.open``. Which cache it is of
    is pickled too: the process that a task runs in need not have the environment of the one that sent it. What that one
    saw the task sees, in listings too.
    """

    protocol = RAYCACHE_SCHEME
    root_marker = ""
    transaction_type = RaycacheTransaction
    cachable = False  # an instance holds nothing but the process's one connection

    def __init__(self, *args: Any, snapshot: int | None = None, write_type: str = "", **storage_options: Any) -> None:
        super().__init__(*args, use_listings_cache=False, **storage_options)
        self.snapshot = snapshot
        self.write_type = write_type
        self._settings: Settings | None = None
        """What finds the cache, where another process said so."""
        self._seen = 0
        """Number of a change that this process has to show, as the one that sent this did."""
        self._view: tuple[Cluster, FileSystem] | None = None

    def __reduce__(self) -> Any:
        known, seen = self._settings, self._seen
        connected = connected_settings()
        # A process of Ray's tasks may be connected to the cache of an earlier one: what came with this one counts.
        if connected is not None and (known is None or known.namespace == connected.namespace):
            known = current().portable_settings
            seen = 0 if self.snapshot is not None else current().namespace.settled_change()
        return _unpickled, (type(self), self.storage_args, self.storage_options, known, seen)

    def cluster(self) -> Cluster:
        """The connection to its cache, made if this process has none. Raises what ``current_for`` raises."""
        return current() if self._settings is None else current_for(self._settings)

    def files(self) -> FileSystem:
        """What this process's connection shows, as of the snapshot if there is one."""
        cluster = self.cluster()
        if self.snapshot is None:
            if self._seen:
                cluster.namespace.at_least(self._seen)
                self._seen = 0
            return cluster.files
        if self._view is None or self._view[0] is not cluster:
            self._view = (cluster, cluster.view(self.snapshot))
        return self._view[1]

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """``raycache://a/b`` becomes ``a/b``; a source's URI stays as it is."""
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        text = str(path)
        prefix = f"{RAYCACHE_SCHEME}://"
        text = text.removeprefix(prefix)
        return text if text.endswith("://") else text.rstrip("/")

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """Entries of a directory, or the file itself. Raises NotFound."""
        path = self._strip_protocol(path)
        if not path:
            names = [(dataset.name, True) for dataset in self.cluster().master.datasets()]
            infos = [{"name": name, "size": 0, "type": "directory"} for name, _ in names]
            return infos if detail else [info["name"] for info in infos]
        stat = self.files().stat(self.uri(path))
        if stat.is_dir:
            found = [
                _info(join(path, entry.path.rpartition("/")[2]), entry)
                for entry in self.files().scandir(self.uri(path))
            ]
        else:
            found = [_info(path, stat)]
        return found if detail else [info["name"] for info in found]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Size, type, time and version. Raises NotFound."""
        path = self._strip_protocol(path)
        if not path:
            return {"name": "", "size": 0, "type": "directory"}
        return _info(path, self.files().stat(self.uri(path)))

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is a file or directory. Unlike fsspec's own, and ``isdir`` and ``isfile`` too, it does not say
        False because the cluster is away: raises what ``info`` raises, but NotFound and NotADirectory."""
        return self._kind(path) is not None

    def isdir(self, path: str) -> bool:
        """Whether there is a directory; see ``exists``."""
        return self._kind(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Whether there is a file; see ``exists``."""
        return self._kind(path) == "file"

    def _kind(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except (NotFound, NotADirectory):
            return None

    def walk(
        self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "omit", **kwargs: Any
    ) -> Any:
        """As fsspec's, which ``find``, ``glob`` and ``du`` are made of; but by default only directories that are not
        there are left out: any other error is raised, so that a part of a dataset is never taken for all of it."""
        on_error = _raise_unless_missing if on_error == "omit" else on_error
        return super().walk(path, maxdepth=maxdepth, topdown=topdown, on_error=on_error, **kwargs)

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: Any = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """As fsspec's, but nothing is seen of a file whose ``with`` was left by an exception, also where it is text or
        compressed."""
        if "b" not in mode:
            text = {name: kwargs.pop(name) for name in ("encoding", "errors", "newline") if name in kwargs}
            binary = mode.replace("t", "") + "b"
            inner = self.open(path, binary, block_size, cache_options, compression, **kwargs)
            return io.TextIOWrapper(inner, **text) if mode in ("r", "rt") else WrittenText(inner, **text)
        file = super().open(path, mode, block_size, cache_options, **kwargs)
        if compression is None:
            return file
        compress = compr[get_compression(path, compression)]
        if compress is None:
            return file
        compressed = compress(file, mode=mode[0])
        return compressed if mode == "rb" else CompressedFile(compressed, file)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        write_type: str = "",
        **kwargs: Any,
    ) -> Any:
        """A binary file; buffering is ours. ``autocommit``: False leaves it to ``commit()`` to have it seen."""
        if mode == "rb":
            return self.files().open(self.uri(path), mode)
        options = Options(write_type or self.write_type, wait=not autocommit)
        return self.files().writing.edit(self.uri(path), mode, options)

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **kwargs: Any) -> Any:
        """Contents of files, by path where there are several: one call to each worker that has some."""
        paths = self.expand_path(path, recursive=recursive)
        if kwargs or on_error != "raise" or (isinstance(path, str) and paths == [self._strip_protocol(path)]):
            return super().cat(path, recursive=recursive, on_error=on_error, **kwargs)
        paths = [each for each in paths if not self.isdir(each)]
        found = self.files().read_many([self.uri(each) for each in paths])
        return dict(zip(paths, map(bytes, found), strict=True))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Bytes of a file, or of a range with Python's rules for negative ends."""
        uri = self.uri(path)
        if start is None and end is None:
            return bytes(self.files().read_many([uri])[0])
        size = self.files().stat(uri).size_bytes
        first, last, _ = slice(start, end).indices(size)
        return bytes(self.files().read_range(uri, first, max(0, last - first)))

    def cat_ranges(
        self, paths: list[str], starts: Any, ends: Any, max_gap: Any = None, on_error: str = "return", **kwargs: Any
    ) -> list[Any]:
        """Ranges of files, each as ``cat_file`` gives it."""
        if not isinstance(starts, list):
            starts = [starts] * len(paths)
        if not isinstance(ends, list):
            ends = [ends] * len(paths)
        found: list[Any] = []
        for path, start, end in zip(paths, starts, ends, strict=True):
            try:
                found.append(self.cat_file(path, start, end))
            except OSError as error:
                if on_error != "return":
                    raise
                found.append(error)
        return found

    def ukey(self, path: str) -> str:
        """Changes when the file does."""
        stat = self.files().stat(self.uri(path))
        return stat.etag or f"{stat.size_bytes}-{stat.mtime_ns}"

    def modified(self, path: str) -> Any:
        """Time of the last change in the source, UTC."""
        import datetime

        seconds = self.files().stat(self.uri(path)).mtime_ns / 1e9
        return datetime.datetime.fromtimestamp(seconds, tz=datetime.timezone.utc)

    # What changes something.

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Make a directory. Raises Exists, and NotFound without ``create_parents``."""
        self.files().mkdir(self.uri(path), parents=create_parents)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory with those that are missing above it. Raises Exists."""
        self.files().mkdir(self.uri(path), parents=True, exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory. Raises NotEmpty, NotFound."""
        self.files().rmdir(self.uri(path))

    def rm_file(self, path: str) -> None:
        """Remove a file. Raises NotFound, IsADirectory."""
        self.files().remove(self.uri(path))

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files; ``recursive``: directories too, each with all below it in one step. Raises NotFound."""
        if maxdepth is not None:
            raise NotImplementedError("rm with maxdepth: remove what `find(path, maxdepth)` shows")
        for each in self.expand_path(path):
            if recursive:
                self.files().remove_tree(self.uri(each))
            else:
                self.rm_file(each)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy a file; of a directory, make one."""
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
        else:
            self.files().copy(self.uri(path1), self.uri(path2), write_type=self.write_type)

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Move a file, or a directory with all below it: in one step within a dataset. Into what is a directory."""
        given = [path1, path2]
        if maxdepth is not None or not all(isinstance(each, str) and not has_magic(each) for each in given):
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)
            return
        source, target = map(self._strip_protocol, given)
        if source == target:
            return
        if path2.endswith("/") or self.isdir(target):
            target = join(target, source.rpartition("/")[2])
        files = self.files()
        names = [files.dataset_of(self.uri(each)).name for each in (source, target)]
        if names[0] == names[1]:
            self.makedirs(self._parent(target), exist_ok=True)
            files.rename(self.uri(source), self.uri(target))
        else:
            super().mv(source, target, recursive=recursive, **kwargs)

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        """Make an empty file; without ``truncate``, one that is there keeps its bytes and gets the time of now."""
        if truncate:
            self.pipe_file(path, b"")
        else:
            self.files().touch(self.uri(path), write_type=self.write_type)

    def pipe(self, path: Any, value: Any = None, **kwargs: Any) -> None:
        """Write whole files; of many, a thousand in one step."""
        if isinstance(path, dict) and not self._intrans and not kwargs:
            files = ((self.uri(each), data) for each, data in path.items())
            self.files().write_many(files, write_type=self.write_type)
        else:
            super().pipe(path, value, **kwargs)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a whole file; ``mode``: ``create`` raises Exists where there is one."""
        with self.open(path, "xb" if mode == "create" else "wb", **kwargs) as file:
            file.write(value)

    def uri(self, path: str) -> str:
        """The full URI of a path."""
        path = self._strip_protocol(path)
        return path if "://" in path else f"{RAYCACHE_SCHEME}://{path}"


def _unpickled(
    kind: type[RaycacheFileSystem],
    args: Sequence[Any],
    options: Mapping[str, Any],
    settings: Settings | None,
    seen: int,
) -> RaycacheFileSystem:
    made = kind(*args, **options)
    made._settings, made._seen = settings, seen
    return made


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, NotFound):
        raise error


def _info(path: str, stat: Stat) -> dict[str, Any]:
    return {
        "name": path,
        "size": stat.size_bytes,
        "type": "directory" if stat.is_dir else "file",
        "mtime": stat.mtime_ns / 1e9,
        "etag": stat.etag,
    }
