"""A source whose every byte is known: what a file holds follows from its path and version alone.

It answers late, fails, or sends fewer bytes than it says; files are replaced and deleted while they are read. As an
UnderFileSystem it answers for the version that was asked for or raises Changed, as adapters do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any, NoReturn, TypeVar

import pyarrow as pa

from raycache.core.listing import LISTING_SCHEMA
from raycache.core.values import Buffer
from raycache.errors import Changed, ReadOnly, SourceUnavailable
from raycache.testing.simulation.machinery import Process
from raycache.ufs.base import Unwritable

REQUEST_TIMEOUT_S = 5.0
"""What an adapter gives one request."""
_Result = TypeVar("_Result")


@lru_cache(4096)
def content(path: str, version: int, size_bytes: int) -> bytes:
    """The bytes of one version of a file."""
    return Random(f"{path}:{version}").randbytes(size_bytes)


@dataclass
class Origin:
    """What the source holds, and how it behaves now."""

    sizes: dict[str, int]
    versions: dict[str, int]
    """By path; a file that was deleted has none."""
    down: bool = False
    error_rate: float = 0.0
    short_rate: float = 0.0
    """Answers with bytes missing at their end."""
    hang_rate: float = 0.0
    """Answers that come at the deadline, as errors."""
    delay_s: float = 0.005
    requests: int = 0
    under_way: dict[tuple[Process, str, str, int], int] = field(default_factory=dict)
    _newest: int = 1
    on_request: Callable[[Process, str, str, int], None] = lambda process, path, etag, start: None

    def change(self, path: str) -> None:
        """Replace a file, or bring it back; no version comes twice."""
        self._newest += 1
        self.versions[path] = self._newest

    def listing(self) -> pa.RecordBatch:
        """All files."""
        rows = [
            {
                "name": path.encode(), "is_dir": False, "size_bytes": self.sizes[path], "mtime_ns": version,
                "etag": b"%d" % version,
            }
            for path, version in sorted(self.versions.items())
        ]  # fmt: skip
        return pa.RecordBatch.from_pylist(rows, schema=LISTING_SCHEMA)


class SimulatedSource(Unwritable):
    """The UnderFileSystem, and the ``Sources``, of one process."""

    uri = "sim://origin"

    def __init__(self, process: Process, origin: Origin) -> None:
        self._process = process
        self._origin = origin

    def call(self, dataset: str, use: Callable[[Any], _Result]) -> _Result:
        """See Sources."""
        return use(self)

    def get(self, path: str, start: int, length: int, etag: str) -> Buffer:
        """See UnderFileSystem."""
        origin, key = self._origin, (self._process, path, etag, start)
        origin.on_request(*key)
        origin.requests += 1
        self._process.simulation.require(
            key not in origin.under_way, f"{self._process.name} asks for {path} from {start} twice at once"
        )
        origin.under_way[key] = length
        try:
            return self._get(path, start, length, etag)
        finally:
            del origin.under_way[key]

    def _get(self, path: str, start: int, length: int, etag: str) -> Buffer:
        origin, random = self._origin, self._process.simulation.random
        if random.random() < origin.hang_rate:
            self._process.sleep(REQUEST_TIMEOUT_S)
            raise SourceUnavailable(f"{path}: no answer")
        self._check(path, etag)
        self._process.sleep(origin.delay_s * (0.5 + random.random()))
        if origin.down or random.random() < origin.error_rate:
            raise SourceUnavailable(f"{path}: the source is down")
        version = self._check(path, etag)
        data = content(path, version, origin.sizes[path])[start : start + length]
        if random.random() < origin.short_rate:
            data = data[: int(random.random() * len(data))]
        return data

    def _check(self, path: str, etag: str) -> int:
        version = self._origin.versions.get(path)
        if version is None or etag not in ("", str(version)):
            raise Changed(f"{path} is not what it was; refresh its directory")
        return version

    def list_directory(self, path: str) -> pa.RecordBatch:
        """See UnderFileSystem."""
        if self._origin.down:
            raise SourceUnavailable("the source is down")
        return self._origin.listing()

    def list_tree(self, path: str, threads: int = 1) -> Generator[pa.RecordBatch, None, None]:
        """See UnderFileSystem."""
        yield self.list_directory(path)

    def stat(self, path: str) -> NoReturn:
        """Nobody asks."""
        raise ReadOnly("a simulated source is only listed and read")
