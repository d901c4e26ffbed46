"""Files written into segments, and read back through everything that reads."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.client.segments import Segments
from raycache.core.inode import Content, Extent, Verb
from raycache.core.values import Failed
from raycache.store.segmentfile import NodeSegments


def test_segments_are_written_here_or_through_the_worker(cache: Any, tmp_path: Path) -> None:
    assert os.listdir(cache.segments._homes.get()[0].directory)
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


@pytest.fixture
def dataset(cache: Any, tmp_path: Path) -> str:
    source = tmp_path / "source"
    source.mkdir()
    (source / "listed").write_bytes(b"listed")
    cache.master.attach(str(source), "data", {})
    return "raycache://data"


def write(cache: Any, files: dict[str, bytes]) -> None:
    """In one segment and one call."""
    writer = cache.segments.writer()
    verbs = []
    for name, data in files.items():
        content = Content(len(data), (Extent(0, len(data), writer.segment, writer.append(data)),))
        args = (("data", ""), name.encode(), 0o100644, content, [writer.about()], 1)
        verbs.append(Verb("put", args, uuid.uuid4().hex))
    writer.sync()
    verbs.append(Verb("publish", ([cache.master.datasets()[0].root_id],)))
    assert not [each for each in cache.master.tree.apply(verbs) if isinstance(each, Failed)]
    writer.release()


def body(number: int) -> bytes:
    return random.Random(number).randbytes(1 + number % 500)


def test_files_that_were_written_are_read_in_batches_and_through_a_mount(
    cache: Any, dataset: str, mountpoint: Path
) -> None:
    files = {f"{number:04d}": body(number) for number in range(1000)}
    write(cache, files)
    before = cache.pool.calls
    found = raycache.read_many([f"{dataset}/{name}" for name in files])
    assert [bytes(each) for each in found] == list(files.values())
    assert cache.pool.calls - before <= 10
    totals = cache.status()["totals"]
    assert totals["written_bytes"] == sum(map(len, files.values()))
    assert totals["ufs_requests"] == 0
    with raycache.mount(dataset, mountpoint):
        seen = subprocess.run(["cat", *(mountpoint / name for name in files)], capture_output=True, check=True)
        assert seen.stdout == b"".join(files.values())
        write(cache, {"later": b"shown in a mount that was there before"})
        deadline = time.monotonic() + 30
        while subprocess.run(["test", "-e", mountpoint / "later"], check=False).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        seen = subprocess.run(["cat", mountpoint / "later"], capture_output=True, check=True)
        assert seen.stdout == b"shown in a mount that was there before"


def test_what_was_written_is_found_again_when_worker_and_master_were_killed(cache: Any, dataset: str) -> None:
    files = {f"{number:04d}": body(number) for number in range(50)}
    write(cache, files)
    for pid in (cache.status()["workers"][0]["pid"], cache.master.status()["pid"]):
        os.kill(pid, signal.SIGKILL)
    found = raycache.read_many([f"{dataset}/{name}" for name in files])
    assert [bytes(each) for each in found] == list(files.values())
    (worker,) = cache.status()["workers"]
    assert worker["segments"]["segments"] == 1
    _, content = cache.master.tree.content(("data", "0007"))
    assert bytes(cache.segments.read("data", content, 0, 1000)) == body(7)
