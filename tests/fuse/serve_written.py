"""A file system server for tests of writing: a local directory as the source, a real tree over it, without Ray.

    python serve_written.py '{"source": ..., "state": ..., "socket_fd": ..., "agreed": ...}'

As ``serve_tree``: it gets the ``/dev/fuse`` descriptor through the socket, writes one JSON line when it begins to serve
and one when it ended, and takes commands as lines. What was written lies in ``state``, so that a successor finds it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from serve_tree import Options as TreeOptions
from serve_tree import TreePool, receive_fd, say

from raycache.actors.verblink import VerbLink, VerbServer
from raycache.actors.verbstream import VerbStream
from raycache.client.namespace import Namespace
from raycache.client.reader import Reader
from raycache.client.segments import Segments
from raycache.core import paths
from raycache.core.inode import Verb, directory_ino
from raycache.core.segment import Home, SegmentRange, SourceRange
from raycache.core.values import Buffer, Failed, Worker
from raycache.errors import RaycacheError
from raycache.fuse import wire
from raycache.fuse.draftlog import DraftLog
from raycache.fuse.files import Files
from raycache.fuse.grouped import Grouped
from raycache.fuse.misses import Limits
from raycache.fuse.writable import WritableVfs
from raycache.fuse.writesession import WriteSession
from raycache.meta.catalog import Catalog
from raycache.meta.metadata import Metadata
from raycache.store.segmentfile import NodeSegments
from raycache.testing.inprocess import InProcessMaster, View
from raycache.ufs.base import Limits as UfsLimits
from raycache.ufs.base import UnderFileSystem
from raycache.ufs.local import LocalUfs
from raycache.ufs.sources import Sources


@dataclass(frozen=True)
class Options:
    """What a test asks for."""

    source: str
    state: str
    """Directory for catalog and segments."""
    socket_fd: int
    agreed: dict[str, int] | None = None
    deadline_s: float = 60.0
    threads: int = 32
    owner: tuple[int, int] = (0, 0)
    room_bytes: int = 1 << 40
    mount_id: str = "mount"
    delay_s: float = 0.0
    """Of each call to the master."""


class HereCalls:
    """SegmentCalls of a node that is all there is."""

    def __init__(self, directory: Path, sources: Sources, room_bytes: int) -> None:
        directory.mkdir(exist_ok=True)
        about = directory.stat()
        self._home = Home("here", "node", str(directory), about.st_dev, about.st_ino, room_bytes)
        self._sources = sources

    def homes(self) -> Sequence[Home]:
        return [self._home]

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        return [Worker("here", 2**40, local=True)]

    def places(self, segments: Sequence[str]) -> Sequence[Sequence[str]]:
        return [["here"] for _ in segments]

    def read(self, worker_id: str, ranges: Sequence[SegmentRange], timeout_s: float) -> Sequence[Buffer | Failed]:
        return NodeSegments().read(self._home, ranges)

    def read_source(self, worker_id: str, ranges: Sequence[SourceRange], timeout_s: float) -> Sequence[Buffer | Failed]:
        found: list[Buffer | Failed] = []
        for each in ranges:
            try:
                found.append(self._sources.call(each.dataset, partial(_get, each)))
            except RaycacheError as error:
                found.append(Failed(error))
        return found


def _get(wanted: SourceRange, ufs: UnderFileSystem) -> Buffer:
    return ufs.get(wanted.path, wanted.offset, wanted.length, wanted.etag)


class SlowTree:
    """A tree that is far away."""

    def __init__(self, tree: Any, delay_s: float) -> None:
        self._tree = tree
        self._delay_s = delay_s

    def apply(self, verbs: Sequence[Verb]) -> list[Any]:
        time.sleep(self._delay_s)
        return self._tree.apply(verbs)  # type: ignore[no-any-return]


def build(options: Options) -> tuple[WritableVfs, VerbStream]:
    """All that lies behind the session."""
    state = Path(options.state)
    metadata = Metadata(Catalog.open(state / "catalog"), {}, UfsLimits(), 1 << 20, time.time_ns)
    dataset = metadata.attach(f"file://{options.source}", "data", {})
    metadata.tree.set_write_type("data", "cache")
    sources = Sources(metadata.access, UfsLimits())
    master = InProcessMaster(metadata, View)
    pool = TreePool(LocalUfs(paths.parse_uri(dataset.source)), TreeOptions(dataset.source, -1))
    namespace = Namespace(master)
    calls: Any = HereCalls(state / "segments", sources, options.room_bytes)
    segments = Segments(calls, NodeSegments(), namespace, Reader(pool, 1 << 30, 10), options.deadline_s)
    tree: Any = SlowTree(metadata.tree, options.delay_s) if options.delay_s else metadata.tree
    grouped = Grouped(tree)
    log = DraftLog(state / "drafts")
    log.open()
    files = Files(grouped, segments, dataset.name, log, lambda ino: None)
    vfs = WritableVfs(grouped, files, log, directory_ino(dataset.root_id), options.mount_id)
    return vfs, stream_to(tree)


def stream_to(tree: Any) -> VerbStream:
    """As to a master: over a socket, which is open already."""
    server = VerbServer("127.0.0.1", tree.apply)
    server.start()
    link = VerbLink(lambda: server.address)
    link.apply([], 10)
    return VerbStream(link)


def tidy(vfs: WritableVfs) -> None:
    while True:
        time.sleep(0.5)
        try:
            vfs.tidy()
        except RaycacheError:
            logging.exception("cannot tidy")


def obey(session: WriteSession) -> None:
    for line in sys.stdin:
        command = line.strip()
        if command == "stop":
            session.stop()
        elif command == "stats":
            say("stats", counters=vars(session.counters))
    os._exit(0)  # the test is gone, so nobody would ever unmount


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    options = Options(**json.loads(sys.argv[1]))
    fd = receive_fd(options.socket_fd)
    vfs, stream = build(options)
    agreed = wire.Agreed.from_json(options.agreed) if options.agreed else None
    limits = replace(Limits(), deadline_s=options.deadline_s, threads=options.threads)
    session = WriteSession(vfs, fd, options.owner, agreed, limits, stream)
    if agreed is None:
        agreed = session.begin()
    else:
        vfs.recover()
        session.resend()
    for target, arguments in ((obey, (session,)), (tidy, (vfs,))):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    say("serving", agreed=agreed.to_json(), pid=os.getpid())
    ended = session.serve()
    vfs.end()
    say("ended", how=ended.value)
    os._exit(0)  # not waiting for threads that a delay holds up


if __name__ == "__main__":
    main()
