"""Reading without a cluster: saved manifests, and the under file system itself.

For a mount whose Ray is gone. What was listed before can be read, straight from the source, with the same promise about
versions; what was not listed cannot. Every read here is a degraded one and is counted.

Threading: safe.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from raycache.client.protocols import Call, Ended, MasterApi
from raycache.core import archive
from raycache.core.manifest import Manifest
from raycache.core.membership import View
from raycache.core.values import BlockPlan, Buffer, Dataset, Failed, Fetch, Fetched, Served, Worker
from raycache.errors import ClusterUnavailable, InvalidInput, RaycacheError
from raycache.ufs.base import UnderFileSystem

_log = logging.getLogger(__name__)
_SOURCE = Worker("source", 1)


class Shelf:
    """Manifests kept as files of this node, one per directory, mapped when they are needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, manifest: Manifest) -> None:
        """Keep a manifest, written aside and renamed, so that a reader never sees half of one."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(manifest.directory.dir_id)
        aside = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.new")
        aside.write_bytes(memoryview(archive.to_mapped(manifest)))
        os.replace(aside, path)

    def load(self, dir_id: int) -> Manifest | None:
        """A saved manifest, or None when there is none or it is damaged."""
        try:
            return archive.from_bytes(pa.memory_map(str(self._path(dir_id))).read_buffer())
        except (OSError, InvalidInput):
            return None

    def directories(self) -> list[int]:
        """Ids of the directories that are saved."""
        return sorted(int(path.stem) for path in self._directory.glob("*.arrow"))

    def clear(self) -> None:
        """Drop all of it."""
        for path in self._directory.glob("*"):
            path.unlink(missing_ok=True)
        if self._directory.is_dir():
            self._directory.rmdir()

    def _path(self, dir_id: int) -> Path:
        return self._directory / f"{dir_id}.arrow"


class RememberingMaster:
    """A MasterApi that saves every manifest it hands on."""

    def __init__(self, master: MasterApi, shelf: Shelf) -> None:
        self._master = master
        self._shelf = shelf

    def attach(self, source: str, name: str | None, options: Mapping[str, Any]) -> Dataset:
        """See MasterApi."""
        return self._master.attach(source, name, options)

    def datasets(self) -> list[Dataset]:
        """See MasterApi."""
        return self._master.datasets()

    def manifest(self, dir_id: int, at_least: int = 0) -> Manifest:
        """See MasterApi."""
        manifest = self._master.manifest(dir_id, at_least)
        self._keep(manifest)
        return manifest

    def manifests(self, dir_ids: Sequence[int]) -> list[Manifest | Failed]:
        """See MasterApi."""
        found = self._master.manifests(dir_ids)
        for manifest in found:
            if isinstance(manifest, Manifest):
                self._keep(manifest)
        return found

    def changes(self, since: int) -> tuple[int, list[int]]:
        """See MasterApi."""
        return self._master.changes(since)

    def newest_change(self) -> int:
        """See MasterApi."""
        return self._master.newest_change()

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """See MasterApi."""
        return self._master.set_refresh(name, every_s)

    def refresh(self, dir_id: int) -> int:
        """See MasterApi."""
        return self._master.refresh(dir_id)

    def view(self) -> View:
        """See MasterApi."""
        return self._master.view()

    def _keep(self, manifest: Manifest) -> None:
        try:
            self._shelf.save(manifest)
        except OSError as error:  # a full disk must not fail a read; without the cluster this directory is then missing
            _log.warning("cannot keep the listing of directory %d: %s", manifest.directory.dir_id, error)


class ShelfMaster:
    """A MasterApi without a master: what is on the shelf and nothing else."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def attach(self, source: str, name: str | None, options: Mapping[str, Any]) -> Dataset:
        """Not without a master."""
        raise ClusterUnavailable(f"{source}: the Ray cluster is away; nothing can be attached until it is back")

    def datasets(self) -> list[Dataset]:
        """None are known."""
        return []

    def manifest(self, dir_id: int, at_least: int = 0) -> Manifest:
        """A saved manifest. Raises ClusterUnavailable for a directory that was not listed through this mount before."""
        manifest = self._shelf.load(dir_id)
        if manifest is None or manifest.directory.version < at_least:
            raise ClusterUnavailable(
                f"directory {dir_id} was not listed before the Ray cluster went away; it can be read when that is back"
            )
        return manifest

    def manifests(self, dir_ids: Sequence[int]) -> list[Manifest | Failed]:
        """Saved manifests; see ``manifest``."""
        found: list[Manifest | Failed] = []
        for dir_id in dir_ids:
            try:
                found.append(self.manifest(dir_id))
            except ClusterUnavailable as error:
                found.append(Failed(error))
        return found

    def changes(self, since: int) -> tuple[int, list[int]]:
        """None that anybody could tell of."""
        return since, []

    def newest_change(self) -> int:
        """Not without a master."""
        raise ClusterUnavailable("the Ray cluster is away; a snapshot can be made when it is back")

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """Not without a master."""
        raise ClusterUnavailable(f"{name}: the Ray cluster is away; its refresh interval can be set when it is back")

    def refresh(self, dir_id: int) -> int:
        """Not without a master."""
        raise ClusterUnavailable("the Ray cluster is away; nothing can be refreshed until it is back")

    def view(self) -> View:
        """The source stands in for the workers."""
        return View(workers=(_SOURCE,))


class SourcePool:
    """A WorkerPool that is the under file system: each read is a request, nothing is kept."""

    def __init__(self, ufs: UnderFileSystem) -> None:
        self.reads = 0
        self._ufs = ufs

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        """See WorkerPool."""
        return (_SOURCE,)

    def replicas(self, dataset: str) -> int:
        """See WorkerPool."""
        return 1

    def hint(self, calls: Mapping[str, Sequence[bytes]]) -> None:
        """Nothing is fetched ahead where nothing is kept."""

    def begin(self, worker_id: str, requests: Sequence[Fetch], timeout_s: float) -> Call:
        """See WorkerPool. The adapter's own deadline is the limit."""
        began = time.monotonic()
        answers = [self._read(request) for request in requests]
        return Ended(Served(answers, time.monotonic() - began))

    def wait(self, calls: Sequence[Call], timeout_s: float) -> Sequence[Call]:
        """See WorkerPool."""
        return calls

    def _read(self, request: Fetch) -> Fetched:
        self.reads += 1
        plan, stop = BlockPlan.unpack(request.packed_plan), request.offset + request.length
        pieces: list[Buffer] = []
        try:
            for part in plan.parts:
                start = max(request.offset, part.block_offset)
                end = min(stop, part.block_offset + part.length)
                if start < end:
                    offset = part.file_offset + start - part.block_offset
                    pieces.append(self._ufs.get(part.path, offset, end - start, part.etag))
        except RaycacheError as error:
            return Failed(error)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
