"""Names to rows: URIs, datasets and the manifests that this process holds.

The master is asked once per directory; after that a lookup is a search in an array. The table of held manifests is
bounded; a manifest asked for again later may be a newer version, in which old row numbers still mean the same.

Threading: safe; one thread fetches a manifest, others that want the same one wait for it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from raycache.client.protocols import MasterApi
from raycache.core import paths
from raycache.core.manifest import Manifest
from raycache.core.values import Dataset
from raycache.errors import IsADirectory, NotADirectory, NotFound

MANIFESTS_HELD = 16_384
"""Directories whose manifests one process keeps mapped; about 6 KB of Python each."""


class WouldBlock(Exception):
    """Asked not to wait, and the answer is not held here."""


class Entry(NamedTuple):
    """A row of a manifest, or (row None) the directory that the manifest is of."""

    manifest: Manifest
    row: int | None


class Namespace:
    """Resolves what users write to manifests and rows."""

    def __init__(self, master: MasterApi) -> None:
        self._master = master
        self._lock = threading.Lock()
        self._flights: dict[int, Future[Manifest]] = {}
        self._held: OrderedDict[int, Manifest] = OrderedDict()
        self._datasets: tuple[Dataset, ...] = ()

    def attach(self, source: str, name: str | None, options: Mapping[str, Any]) -> Dataset:
        """See MasterApi.attach."""
        dataset = self._master.attach(source, name, options)
        self._datasets = tuple(self._master.datasets())
        return dataset

    def locate(self, uri: str) -> tuple[Dataset, str]:
        """The dataset that a URI belongs to, and the path inside it.

        ``raycache://name/path``, or a source URI, which belongs to the dataset with the longest matching source.
        Raises InvalidInput and NotFound.
        """
        location = paths.parse_uri(uri)
        found = self._match(location)
        if found is None:
            self._datasets = tuple(self._master.datasets())
            found = self._match(location)
        if found is not None:
            return found
        if location.scheme == paths.RAYCACHE_SCHEME:
            known = ", ".join(dataset.name for dataset in self._datasets) or "none yet"
            raise NotFound(f"{uri}: no dataset is named {location.authority!r}; there are: {known}")
        raise NotFound(f"{uri}: no dataset has this source; mount it, or name it with raycache.dataset(name, source)")

    def _match(self, location: paths.Location) -> tuple[Dataset, str] | None:
        if location.scheme == paths.RAYCACHE_SCHEME:
            named = (dataset for dataset in self._datasets if dataset.name == location.authority)
            return next(((dataset, location.path) for dataset in named), None)
        best: tuple[Dataset, str] | None = None
        for dataset in self._datasets:
            path = relative(location.uri, dataset.source)
            if path is not None and (best is None or len(dataset.source) > len(best[0].source)):
                best = (dataset, path)
        return best

    def entry(self, uri: str) -> Entry:
        """What a URI names. Raises InvalidInput, NotFound, NotADirectory."""
        dataset, path = self.locate(uri)
        return self.walk(dataset, path)

    def walk(self, dataset: Dataset, path: str) -> Entry:
        """What a path inside a dataset names. Raises NotFound, NotADirectory."""
        manifest, parts = self._root(dataset), path.split("/") if path else []
        for depth, part in enumerate(parts):
            row = manifest.find(part.encode("utf-8", "surrogateescape"))
            if row is None:
                raise NotFound(f"{paths.join(dataset.source, *parts[: depth + 1])}: no such file or directory")
            child = manifest.child_id(row)
            if child is not None:
                manifest = self._child(manifest, row, child)
            elif depth + 1 < len(parts):
                raise NotADirectory(f"{paths.join(dataset.source, *parts[: depth + 1])} is a file, not a directory")
            else:
                return Entry(manifest, row)
        return Entry(manifest, None)

    def _root(self, dataset: Dataset) -> Manifest:
        """The root of a dataset, also when it has got another id since the dataset was looked up."""
        try:
            return self.manifest(dataset.root_id)
        except NotFound:
            self._datasets = tuple(self._master.datasets())
            same = (
                known.root_id
                for known in self._datasets
                if (known.name, known.source) == (dataset.name, dataset.source)
            )
            root_id = next(same, dataset.root_id)
            if root_id == dataset.root_id:
                raise
            return self.manifest(root_id)

    def _child(self, parent: Manifest, row: int, child_id: int) -> Manifest:
        """A directory in another. One whose listing was damaged has got another id, which its parent's newest version
        has: an id that is not known any more is looked up there once."""
        try:
            return self.manifest(child_id)
        except NotFound:
            about = parent.directory
            newest = self._master.manifest(about.dir_id, about.version + 1)
            now = newest.find(parent.name(row))
            new_id = None if now is None else newest.child_id(now)
            if new_id is None or new_id == child_id:
                raise
            self._hold(about.dir_id, newest)
            return self.manifest(new_id)

    def manifest(self, dir_id: int, *, wait: bool = True) -> Manifest:
        """The manifest of a directory. Raises WouldBlock when it is not held and ``wait`` is False."""
        with self._lock:
            held = self._held.get(dir_id)
            if held is not None:
                self._held.move_to_end(dir_id)
                return held
            if not wait:
                raise WouldBlock
            flight = self._flights.get(dir_id)
            mine = flight is None
            if flight is None:
                flight = self._flights[dir_id] = Future()
        if mine:
            self._fetch(dir_id, flight)
        # Those who wait get the answer, or the error, of the one call; it has a deadline.
        return flight.result()

    def _fetch(self, dir_id: int, flight: Future[Manifest]) -> None:
        try:
            manifest = self._master.manifest(dir_id)
            self._hold(dir_id, manifest)
            flight.set_result(manifest)
        except BaseException as error:  # noqa: BLE001 - whatever it is, others wait for it too; `result` raises it
            flight.set_exception(error)
        finally:
            with self._lock:
                del self._flights[dir_id]

    def forget(self) -> None:
        """Hold nothing any more: each directory is asked for again."""
        with self._lock:
            self._held.clear()

    def forget_below(self, dataset: str, path: str) -> None:
        """Hold neither a directory nor any below it: each is asked for again."""
        with self._lock:
            for dir_id, manifest in list(self._held.items()):
                about = manifest.directory
                if about.dataset == dataset and (not path or f"{about.path}/".startswith(f"{path}/")):
                    del self._held[dir_id]

    def follow(self, since: int) -> tuple[int, list[tuple[Manifest | None, Manifest]]]:
        """Take over what others refreshed: of the directories held here, the old manifest and the new one.

        ``since``: what the last call returned first. One call to the master when nothing changed. The old one is None
        where the new one was held already: what was told of it before is then not known.
        """
        newest, dir_ids = self._master.changes(since)
        replaced: list[tuple[Manifest | None, Manifest]] = []
        for dir_id in dir_ids:
            with self._lock:
                held, under_way = self._held.get(dir_id), self._flights.get(dir_id)
            if held is None and under_way is None:
                continue
            new = self._master.manifest(dir_id)
            self._hold(dir_id, new)
            is_newer = held is not None and new.directory.version > held.directory.version
            replaced.append((held if is_newer else None, new))
        return newest, replaced

    def refresh(self, uri: str) -> Manifest:
        """List a directory again and hold its newest version. Raises NotADirectory for a file."""
        entry = self.entry(uri)
        if entry.row is not None:
            raise NotADirectory(f"{uri} is a file; refresh its directory")
        dir_id = entry.manifest.directory.dir_id
        version = self._master.refresh(dir_id)
        if version != entry.manifest.directory.version:
            self._hold(dir_id, self._master.manifest(dir_id, version))
        return self.manifest(dir_id)

    def _hold(self, dir_id: int, manifest: Manifest) -> None:
        with self._lock:
            there = self._held.get(dir_id)
            if there is not None and there.directory.version > manifest.directory.version:
                return  # an answer that was overtaken
            self._held[dir_id] = manifest
            self._held.move_to_end(dir_id)
            while len(self._held) > MANIFESTS_HELD:
                self._held.popitem(last=False)


def relative(uri: str, source: str) -> str | None:
    """The path of ``uri`` below ``source``, or None when it is not below it."""
    if uri == source:
        return ""
    base = source if source.endswith("/") else source + "/"
    return uri[len(base) :] if uri.startswith(base) else None


def require_file(entry: Entry, uri: str) -> tuple[Manifest, int]:
    """The row of a file. Raises IsADirectory for a directory."""
    if entry.row is None:
        raise IsADirectory(f"{uri} is a directory")
    return entry.manifest, entry.row
