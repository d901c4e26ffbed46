"""A master's brain over a local directory with files in it, for tests of what is written over it."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycache.core.inode import Content, Extent, Place, Segment
from raycache.errors import RaycacheError
from raycache.meta.catalog import Catalog
from raycache.meta.metadata import Metadata
from raycache.meta.tree import Tree
from raycache.ufs.base import Limits

FILE = stat.S_IFREG | 0o644
ROOT: Place = ("data", "")


class Cache:
    """A master's brain over a local directory, and what its catalog holds."""

    def __init__(self, source: Path, catalog: str = ":memory:") -> None:
        """``source`` gets the files a, b, sub/c and sub/deep/d, unless they are there."""
        for path in ("a", "b", "sub/c", "sub/deep/d"):
            if (source / path).exists():
                continue
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(path.encode() * 10)
        ticks = itertools.count(10**19 // 5)
        self.source = source
        self.catalog = Catalog.open(catalog)
        self.metadata = Metadata(self.catalog, {}, Limits(), 1 << 20, lambda: next(ticks))
        self.metadata.attach(str(source), "data", {})
        self.tree: Tree = self.metadata.tree

    @property
    def root_id(self) -> int:
        """Directory id of the dataset's root."""
        return self.metadata.datasets()[0].root_id

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.catalog.transaction() as db:
            return db.execute(query, values).fetchall()

    def names(self, path: str = "") -> list[str]:
        return [os.fsdecode(one.name) for one in self.tree.readdir(("data", path), b"", 1000)]

    def pending(self) -> list[tuple[str, str, str | None]]:
        rows = self.rows("SELECT kind, path, base_etag FROM pending ORDER BY seq")
        return [(kind, os.fsdecode(path), base) for kind, path, base in rows]

    def touched(self) -> set[str]:
        rows = self.rows("SELECT path FROM touched JOIN directories USING (dir_id)")
        return {os.fsdecode(path) for (path,) in rows}

    def etag(self, path: str) -> str:
        above, _, name = path.rpartition("/")
        dir_id = self.catalog.find_directory("data", above)
        assert dir_id is not None
        manifest = self.metadata.manifest(dir_id)
        row = manifest.find(name.encode())
        assert row is not None
        return manifest.etag(row)


def refused(number: int, call: Callable[..., object], *args: Any) -> None:
    with pytest.raises(RaycacheError) as error:
        call(*args)
    assert error.value.errno == number


def segment_content(segment: str, size_bytes: int, offset: int = 0) -> tuple[Content, list[Segment]]:
    extents = (Extent(0, size_bytes, segment=segment, offset=offset),)
    return Content(size_bytes, extents), [Segment(segment, "worker", offset + size_bytes)]
