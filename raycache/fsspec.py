"""The fsspec file system: protocol ``raycache``; ``s3://...`` and other source URIs of known datasets work too.

Read-only. Everything is delegated to ``client.filesystem``; directory listings come from manifests held in memory, so
fsspec's own listing cache is switched off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fsspec.spec import AbstractFileSystem

from raycache.actors.cluster import Cluster, connected_settings, current
from raycache.actors.connection import current_for
from raycache.client.filesystem import FileSystem
from raycache.config import Settings
from raycache.core.paths import RAYCACHE_SCHEME, join
from raycache.core.values import Stat
from raycache.errors import ReadOnly


class RaycacheFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Files of the cache. Paths are ``dataset/path`` or full URIs.

    ``snapshot``: a change number to show everything at (``raycache.snapshot``); pickled with the rest, so that the
    processes of a job all see the same. Which cache it is of is pickled too: the process that a task runs in need not
    have the environment of the one that sent it.
    """

    protocol = RAYCACHE_SCHEME
    root_marker = ""
    cachable = False  # an instance holds nothing but the process's one connection

    def __init__(self, *args: Any, snapshot: int | None = None, **storage_options: Any) -> None:
        super().__init__(*args, use_listings_cache=False, **storage_options)
        self.snapshot = snapshot
        self._settings: Settings | None = None
        """What finds the cache, where another process said so."""
        self._view: tuple[Cluster, FileSystem] | None = None

    def __reduce__(self) -> Any:
        known = self._settings if connected_settings() is None else current().portable_settings
        return _unpickled, (type(self), self.storage_args, self.storage_options, known)

    def cluster(self) -> Cluster:
        """The connection to its cache, made if this process has none. Raises what ``current_for`` raises."""
        return current() if self._settings is None else current_for(self._settings)

    def _files(self) -> FileSystem:
        """What this process's connection shows, as of the snapshot if there is one."""
        cluster = self.cluster()
        if self.snapshot is None:
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
        stat = self._files().stat(_uri(path))
        if stat.is_dir:
            found = [
                _info(join(path, entry.path.rpartition("/")[2]), entry) for entry in self._files().scandir(_uri(path))
            ]
        else:
            found = [_info(path, stat)]
        return found if detail else [info["name"] for info in found]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Size, type, time and version. Raises NotFound."""
        path = self._strip_protocol(path)
        if not path:
            return {"name": "", "size": 0, "type": "directory"}
        return _info(path, self._files().stat(_uri(path)))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """A binary file; buffering is the reader's."""
        if mode != "rb":
            raise ReadOnly(f"{path}: cannot open with mode {mode!r}; the cache is read-only")
        return self._files().open(_uri(self._strip_protocol(path)), "rb")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Bytes of a file, or of a range with Python's rules for negative ends."""
        uri = _uri(self._strip_protocol(path))
        if start is None and end is None:
            return bytes(self._files().read_many([uri])[0])
        size = self._files().stat(uri).size_bytes
        first, last, _ = slice(start, end).indices(size)
        return bytes(self._files().read_range(uri, first, max(0, last - first)))

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
        stat = self._files().stat(_uri(self._strip_protocol(path)))
        return stat.etag or f"{stat.size_bytes}-{stat.mtime_ns}"

    def modified(self, path: str) -> Any:
        """Time of the last change in the source, UTC."""
        import datetime

        seconds = self._files().stat(_uri(self._strip_protocol(path))).mtime_ns / 1e9
        return datetime.datetime.fromtimestamp(seconds, tz=datetime.timezone.utc)

    def _refuse(self, path: str, *args: Any, **kwargs: Any) -> Any:
        raise ReadOnly(f"{path}: the cache is read-only; write to the source, then raycache.refresh() its directory")

    mkdir = makedirs = rmdir = rm_file = _rm = rm = cp_file = mv = touch = pipe_file = put_file = _refuse


def _unpickled(
    kind: type[RaycacheFileSystem], args: Sequence[Any], options: Mapping[str, Any], settings: Settings | None
) -> RaycacheFileSystem:
    made = kind(*args, **options)
    made._settings = settings
    return made


def _uri(path: str) -> str:
    return path if "://" in path else f"{RAYCACHE_SCHEME}://{path}"


def _info(path: str, stat: Stat) -> dict[str, Any]:
    return {
        "name": path,
        "size": stat.size_bytes,
        "type": "directory" if stat.is_dir else "file",
        "mtime": stat.mtime_ns / 1e9,
        "etag": stat.etag,
    }
