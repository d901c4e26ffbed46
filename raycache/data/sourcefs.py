"""Files of a source under the source's own names, read through the cache as far as it knows them.

What ``enabling`` puts in the place of another fsspec file system. Reads of what belongs to a known dataset are the
cache's, and show what it shows. All else - other paths, and everything that writes - is done by the file system that
would have been there. Which of them a path is for is asked at each call: a dataset may be named at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from raycache.errors import InvalidInput, NotFound
from raycache.fsspec import RaycacheFileSystem


class SourceFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """See the module. Made by ``source_filesystem``: there is a class for each scheme, with the ``protocol`` it has."""

    cachable = False

    def __init__(self, options: Mapping[str, Any], cache: RaycacheFileSystem | None = None) -> None:
        """``options``: of the file system that is not ours."""
        super().__init__()
        self.options = dict(options)
        self._cache = cache or RaycacheFileSystem()
        self._other: Any = None

    def __reduce__(self) -> Any:
        return source_filesystem, (self.protocol, self.options, self._cache)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return fsspec.get_filesystem_class(cls.protocol)._strip_protocol(path)

    def knows(self, path: str) -> bool:
        """Whether a dataset of the cache has it. Raises what connecting to the cache raises."""
        namespace = self._cache.cluster().namespace
        try:
            namespace.locate(self._uri(path))
        except (NotFound, InvalidInput):
            return False
        return True

    @property
    def other(self) -> Any:
        """The file system for all that is not read from the cache."""
        if self._other is None:
            self._other = fsspec.filesystem(self.protocol, **self.options)
        return self._other

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """Entries of a directory, or the file itself."""
        if not self.knows(path):
            found: list[Any] = self.other.ls(path, detail=detail, **kwargs)
            return found
        infos = [self._named(info) for info in self._cache.ls(self._uri(path))]
        return infos if detail else [info["name"] for info in infos]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """Size, type, time and version."""
        if not self.knows(path):
            found: dict[str, Any] = self.other.info(path, **kwargs)
            return found
        return self._named(self._cache.info(self._uri(path)))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode != "rb" or not self.knows(path):
            return self.other._open(path, mode=mode, **kwargs)
        return self._cache.open(self._uri(path), "rb")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Bytes of a file or a range of it."""
        chosen, place = (self._cache, self._uri(path)) if self.knows(path) else (self.other, path)
        data: bytes = chosen.cat_file(place, start=start, end=end, **kwargs)
        return data

    def ukey(self, path: str) -> str:
        """Changes when the file does."""
        return self._cache.ukey(self._uri(path)) if self.knows(path) else self.other.ukey(path)

    def modified(self, path: str) -> Any:
        """Time of the last change, UTC."""
        return self._cache.modified(self._uri(path)) if self.knows(path) else self.other.modified(path)

    def _uri(self, path: str) -> str:
        return f"{self.protocol}://{self._strip_protocol(path)}"

    def _named(self, info: dict[str, Any]) -> dict[str, Any]:
        """As this file system names files: without the scheme."""
        return {**info, "name": self._strip_protocol(info["name"])}


def _write_elsewhere(name: str) -> Any:
    def write(self: SourceFileSystem, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.other, name)(*args, **kwargs)

    write.__name__ = name
    return write


for _name in ("mkdir", "makedirs", "rmdir", "rm_file", "rm", "cp_file", "mv", "touch", "pipe_file", "put_file"):
    setattr(SourceFileSystem, _name, _write_elsewhere(_name))


@lru_cache(maxsize=32)
def _kind(scheme: str) -> type[SourceFileSystem]:
    kind: Any = type(SourceFileSystem)
    made: type[SourceFileSystem] = kind(f"{scheme}-through-the-cache", (SourceFileSystem,), {"protocol": scheme})
    return made


def source_filesystem(
    scheme: str, options: Mapping[str, Any] | None = None, cache: RaycacheFileSystem | None = None
) -> SourceFileSystem:
    """Such a file system. ``options``: storage options of the one that it stands for."""
    return _kind(scheme)(options or {}, cache)
