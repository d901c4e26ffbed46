"""Files written into segments, and read back through everything that reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from raycache.client.segments import Segments
from raycache.core.inode import Content, Extent
from raycache.store.segmentfile import NodeSegments


def test_segments_are_written_here_or_through_the_worker(cache: Any, tmp_path: Path) -> None:
    assert os.listdir(cache.segments._renewed()[0].directory)
    through = Segments(Elsewhere(cache.segments._calls), NodeSegments(), cache.namespace, cache.reader, 20)
    for segments in (cache.segments, through):
        writer = segments.writer()
        data = os.urandom(1 << 20)
        writer.append(data)
        writer.pwrite(len(data) + 10, b"end")
        writer.sync()
        content = Content(writer.size_bytes, (Extent(0, writer.size_bytes, writer.segment),))
        for other in (cache.segments, through):
            assert bytes(other.read("data", content, 5, len(data))) == data[5:] + bytes(5)
        writer.discard()


class Elsewhere:
    """Calls of a client that cannot open the directory of its worker."""

    def __init__(self, calls: Any) -> None:
        self._calls = calls

    def homes(self) -> Any:
        return [home._replace(inode=0) for home in self._calls.homes()]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._calls, name)
