"""A file system server for tests: a local directory, shown by a session, without Ray.

    python serve_tree.py '{"source": ..., "socket_fd": ..., "agreed": ..., "delay_s": ...}'

It gets the ``/dev/fuse`` descriptor through the socket (SCM_RIGHTS), from a process that keeps a copy: when this one is
killed, another can go on. It writes one JSON line when it begins to serve, and one when it ended. Lines on its input
are commands: ``stop``, ``refresh``, ``stats``.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raycache.client.blockfiles import Begun, Piece
from raycache.client.namespace import Namespace, WouldBlock
from raycache.client.protocols import Call, Ended
from raycache.client.reader import Reader
from raycache.core import paths
from raycache.core.listing import append, build, new_directories, prepare_listing
from raycache.core.manifest import Directory, Manifest
from raycache.core.membership import View
from raycache.core.values import BlockPlan, Dataset, Fetch, Fetched, Sealed, Served, Worker
from raycache.errors import NotFound, SourceUnavailable
from raycache.fuse import wire
from raycache.fuse.kernel import KernelSession
from raycache.fuse.misses import Limits
from raycache.fuse.vfs import Vfs
from raycache.ufs.local import LocalUfs


@dataclass(frozen=True)
class Options:
    """What a test asks for."""

    source: str
    socket_fd: int
    agreed: dict[str, int] | None = None
    delay_s: float = 0.0
    """Before a block is there."""
    delay_listing_s: float = 0.0
    """Before a directory is listed."""
    delay_blocks: int | None = None
    """How many blocks are delayed; None is all."""
    hang_s: float | None = None
    """Reads are begun beside the server, as those of block files are, and give nothing for so long."""
    fail: bool = False
    """Blocks cannot be fetched."""
    block_bytes: int = 32 * 2**20
    view_bytes: int = 64 * 2**30
    deadline_s: float = 60.0
    threads: int = 32
    owner: tuple[int, int] = (0, 0)
    preload: bool = False
    """Have all listings and blocks in memory before serving."""


class TreeMaster:
    """A MasterApi over one local directory."""

    def __init__(self, ufs: LocalUfs, options: Options) -> None:
        self._ufs = ufs
        self._options = options
        self._lock = threading.Lock()
        self._paths: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._manifests: dict[int, Manifest] = {}
        # All at once and in order, so that a server that takes over gives them the same numbers, as a catalog would.
        root = paths.parse_uri(options.source).path
        for directory, below, _ in os.walk(f"/{root}", followlinks=True):
            below.sort()
            self._number(os.path.relpath(directory, f"/{root}") if directory != f"/{root}" else "")

    def attach(self, source: str, name: str | None, options: Mapping[str, Any]) -> Dataset:
        return self.datasets()[0]

    def datasets(self) -> list[Dataset]:
        return [Dataset("tree", self._ufs.uri, 1, 10**18)]

    def manifest(self, dir_id: int, at_least: int = 0) -> Manifest:
        time.sleep(self._options.delay_listing_s)
        with self._lock:
            held = self._manifests.get(dir_id)
        return held or self._list(dir_id)

    def refresh(self, dir_id: int) -> int:
        return self._list(dir_id).directory.version

    def view(self) -> View:
        return View()

    def known(self) -> list[Manifest]:
        with self._lock:
            return list(self._manifests.values())

    def _list(self, dir_id: int) -> Manifest:
        with self._lock:
            path = self._paths.get(dir_id)
            old = self._manifests.get(dir_id)
        if path is None:
            raise NotFound(f"no directory {dir_id}")
        listing, hidden = prepare_listing(self._ufs.list_directory(path))
        with self._lock:
            names = [name.decode("utf-8", "surrogateescape") for name in new_directories(old, listing)]
            ids = np.array([self._number(paths.join(path, name)) for name in names], np.uint64)
            if old is None:
                about = Directory(dir_id, "tree", self._ufs.uri, path, 1, 1, self._options.block_bytes, hidden)
                made = build(about, listing, ids)
            else:
                made = append(old, listing, ids, old.directory.listed_ns + 1, hidden)
            self._manifests[dir_id] = made
        return made

    def _number(self, path: str) -> int:
        number = self._numbers.get(path)
        if number is None:
            number = self._numbers[path] = len(self._numbers) + 1
            self._paths[number] = path
        return number


class TreePool:
    """A WorkerPool that makes whole blocks from a local directory."""

    def __init__(self, ufs: LocalUfs, options: Options) -> None:
        self._ufs = ufs
        self._options = options
        self._lock = threading.Lock()
        self._blocks: dict[bytes, memoryview] = {}
        self.delayed = 0

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        return [Worker("here", 2**40, local=True)]

    def replicas(self, dataset: str) -> int:
        return 1

    def hint(self, calls: Mapping[str, Sequence[bytes]]) -> None:
        """Nothing is made ahead, so that a test knows what a read has to wait for."""

    def begin(self, worker_id: str, requests: Sequence[Fetch], timeout_s: float) -> Ended:
        return Ended(Served([self._fetch(each) for each in requests]))

    def wait(self, calls: Sequence[Call], timeout_s: float) -> Sequence[Call]:
        return calls

    def _fetch(self, fetch: Fetch) -> Fetched:
        if self._options.fail:
            raise SourceUnavailable(f"{self._ufs.uri} is away, as the test wants it")
        with self._lock:
            view = self._blocks.get(fetch.block_id)
            slow = self._options.delay_s and (
                self._options.delay_blocks is None or self.delayed < self._options.delay_blocks
            )
            self.delayed += bool(slow)
        if slow:
            time.sleep(self._options.delay_s)
        return Sealed(view if view is not None else self.make(BlockPlan.unpack(fetch.packed_plan)))

    def make(self, plan: BlockPlan) -> memoryview:
        block = bytearray(plan.size_bytes)
        for part in plan.parts:
            data = self._ufs.get(part.path, part.file_offset, part.length, part.etag)
            block[part.block_offset : part.block_offset + part.length] = data
        view = memoryview(block).toreadonly()
        with self._lock:
            return self._blocks.setdefault(plan.block_id, view)


class HangingDisk(Vfs):
    """Every read that begins anew is one of a disk that does not answer, and is to be tried another way in the end."""

    hang_s = 0.0

    def begin_beside(self) -> int | None:
        self._under_way: dict[Begun, float] = {}
        return os.eventfd(0, os.EFD_CLOEXEC)  # never to be read

    def begin_read(self, ino: int, offset: int, size: int) -> Any:
        with suppress(WouldBlock):
            return super().begin_read(ino, offset, size)
        nothing: Any = None
        begun = Begun(Piece(b"", offset, size), 0.0, nothing, nothing, 0, nothing, 0, 0)
        self._under_way[begun] = time.monotonic() + self.hang_s
        return begun

    def ended(self) -> list[tuple[Begun, Any]]:
        late = [begun for begun, until in self._under_way.items() if until < time.monotonic()]
        for begun in late:
            del self._under_way[begun]
        return [(begun, None) for begun in late]


class Server:
    """Everything between the socket and the session."""

    def __init__(self, options: Options) -> None:
        ufs = LocalUfs(paths.parse_uri(options.source))
        self._options = options
        self._master = TreeMaster(ufs, options)
        self._pool = TreePool(ufs, options)
        self._namespace = Namespace(self._master)
        self._reader = Reader(self._pool, options.view_bytes, options.deadline_s)
        self.vfs = (Vfs if options.hang_s is None else HangingDisk)(self._namespace, self._reader, 1, 10**18)
        if isinstance(self.vfs, HangingDisk):
            self.vfs.hang_s = options.hang_s or 0.0

    def preload(self) -> None:
        """Hold every listing and every block."""
        waiting = [1]
        while waiting:
            manifest = self._namespace.manifest(waiting.pop())
            waiting.extend(child for row in manifest.rows() if (child := manifest.child_id(row)) is not None)
            for row in manifest.rows():
                for at in range(0, manifest.size(row), self._options.block_bytes):
                    self._reader.read(manifest, row, at, 1)

    def refresh(self, session: KernelSession) -> None:
        """List all known directories again, and tell the kernel what is no longer so."""
        for old in self._master.known():
            dir_id = old.directory.dir_id
            path = old.directory.path
            new = self._namespace.refresh(f"{old.directory.source}/{path}" if path else old.directory.source)
            parent = 1 if dir_id == 1 else dir_id << 32
            gone = [row for row in old.rows() if new.is_dead(row)]
            names = {old.name(row) for row in gone} | {new.name(row) for row in range(old.row_count, new.row_count)}
            if names:
                session.invalidate([(parent, name) for name in sorted(names)], [parent])


def receive_fd(socket_fd: int) -> int:
    with socket.socket(fileno=socket_fd) as channel:
        _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    return fds[0]


def obey(server: Server, session: KernelSession) -> None:
    for line in sys.stdin:
        command = line.strip()
        if command == "stop":
            session.stop()
        elif command == "refresh":
            server.refresh(session)
            say("refreshed")
        elif command == "stats":
            say("stats", counters=vars(server.vfs.counters))
    os._exit(0)  # the test is gone, so nobody would ever unmount


def say(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    options = Options(**json.loads(sys.argv[1]))
    fd = receive_fd(options.socket_fd)
    server = Server(options)
    if options.preload:
        server.preload()
    agreed = wire.Agreed.from_json(options.agreed) if options.agreed else None
    limits = replace(Limits(), deadline_s=options.deadline_s, threads=options.threads)
    session = KernelSession(server.vfs, fd, options.owner, agreed, limits)
    if agreed is None:
        agreed = session.begin()
    else:
        session.resend()
    threading.Thread(target=obey, args=(server, session), daemon=True).start()
    say("serving", agreed=agreed.to_json(), pid=os.getpid())
    ended = session.serve()
    say("ended", how=ended.value)
    os._exit(0)  # not waiting for threads that a delay holds up


if __name__ == "__main__":
    main()
