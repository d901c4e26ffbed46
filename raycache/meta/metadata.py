"""What the master does: attach sources, list directories once, keep and hand out their manifests.

Not responsible for: bytes of files, workers, or how manifests travel. Options (with secrets) live in the ``vault``
that is given in, never in the catalog.

Threading: safe. A directory is listed by one thread while others that want it wait; sources are asked outside locks.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from raycache.core import paths
from raycache.core.arguments import check_refresh_every
from raycache.core.listing import append, build, new_directories, prepare_listing
from raycache.core.manifest import Directory, Manifest
from raycache.core.values import MANIFESTS_AT_ONCE, Dataset, Failed
from raycache.errors import InvalidInput, NotADirectory, NotFound, RaycacheError, SourceUnavailable
from raycache.meta.catalog import Catalog
from raycache.meta.refreshing import Refresher
from raycache.ufs.base import Limits
from raycache.ufs.registry import check_scheme, open_ufs
from raycache.ufs.sources import SourceAccess, Sources

LISTERS = 16
"""Directories of calls for several that are listed side by side, for all callers together."""
T = TypeVar("T")


class Metadata:
    """The namespace, over a catalog and the sources."""

    def __init__(
        self,
        catalog: Catalog,
        vault: MutableMapping[str, str],
        limits: Limits,
        block_bytes: int,
        now_ns: Callable[[], int],
    ) -> None:
        """``vault``: keeps each dataset's options as JSON, for as long as the cluster lives."""
        self._catalog = catalog
        self._vault = vault
        self._limits = limits
        self._block_bytes = block_bytes
        self._now_ns = now_ns
        self._sources = Sources(self.access, limits)
        self._attaching = threading.Lock()
        self._listing: dict[int, tuple[threading.Lock, int]] = {}
        self._listing_lock = threading.Lock()
        self._listers = ThreadPoolExecutor(LISTERS, thread_name_prefix="list")
        self.refresher = Refresher(catalog, self.refresh)

    def datasets(self) -> list[Dataset]:
        """All datasets, by name."""
        return self._catalog.datasets()

    def access(self, dataset: str) -> SourceAccess:
        """Source and options of a dataset, for a worker. Raises NotFound."""
        return self._catalog.dataset(dataset).source, json.loads(self._vault.get(dataset, "{}"))

    def attach(self, source: str, name: str | None, options: Mapping[str, Any]) -> Dataset:
        """See client.protocols.MasterApi.attach."""
        location = paths.parse_uri(source)
        check_scheme(location)
        if name is not None:
            paths.check_dataset_name(name)
        with self._attaching:
            known = self._covering(location.uri, name)
            if known is not None:
                self._renew(known, options)
                return known
            self._probe(location, options)
            dataset = self._catalog.add_dataset(name or self._free_name(location), location.uri, self._now_ns())
            try:
                self._keep_options(dataset.name, options)
                self.manifest(dataset.root_id)
            except BaseException:  # nothing half-made: a dataset whose root cannot be listed does not exist
                self.remove(dataset.name)
                raise
        return dataset

    def remove(self, name: str) -> None:
        """Forget a dataset. The source is not touched."""
        self._catalog.remove_dataset(name)
        self._vault.pop(name, None)
        self._sources.forget(name)

    def manifest(self, dir_id: int, at_least: int = 0) -> Manifest:
        """See client.protocols.MasterApi.manifest."""
        stored = self._catalog.manifest(dir_id)
        if stored is not None and stored.directory.version >= at_least:
            return stored
        with self._only_one(dir_id):
            stored = self._catalog.manifest(dir_id)
            return stored if stored is not None else self._list(dir_id, None)

    def manifests(self, dir_ids: Sequence[int], hand_out: Callable[[int], T]) -> list[T | Failed]:
        """Of each directory what ``hand_out`` makes of its id, or the error; those never listed are listed first.

        They are listed side by side, and for as long as one request to a source may take: a directory that is not
        done by then fails, goes on being listed, and can be asked for again. Raises InvalidInput for too many.
        """
        if len(dir_ids) > MANIFESTS_AT_ONCE:
            raise InvalidInput(f"{len(dir_ids)} directories in one call; ask for at most {MANIFESTS_AT_ONCE}")
        new = {dir_id for dir_id in dir_ids if not self._catalog.version(dir_id)}
        flights = {dir_id: self._listers.submit(self.manifest, dir_id) for dir_id in new}
        wait(flights.values(), self._limits.request_timeout_s)
        found: list[T | Failed] = []
        for dir_id in dir_ids:
            flight = flights.get(dir_id)
            try:
                if flight is not None and not flight.done():
                    raise SourceUnavailable(f"directory {dir_id} is still being listed; ask again")
                if flight is not None:
                    flight.result()
                found.append(hand_out(dir_id))
            except RaycacheError as error:
                found.append(Failed(error))
        return found

    def version(self, dir_id: int) -> int:
        """Version of the manifest that ``manifest`` would hand out, 0 before the first listing."""
        return self._catalog.version(dir_id)

    def changes(self, since: int) -> tuple[int, list[int]]:
        """See client.protocols.MasterApi.changes."""
        return self._catalog.changes(since)

    def newest_change(self) -> int:
        """See client.protocols.MasterApi.newest_change."""
        return self._catalog.newest_change()

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """See client.protocols.MasterApi.set_refresh."""
        return self._catalog.set_refresh(name, check_refresh_every(every_s))

    def refresh(self, dir_id: int) -> int:
        """See client.protocols.MasterApi.refresh."""
        with self._only_one(dir_id):
            return self._list(dir_id, self._catalog.manifest(dir_id)).directory.version

    def status(self) -> list[dict[str, Any]]:
        """Per dataset: how much of it is known. Holds no options."""
        found = []
        for dataset in self._catalog.datasets():
            known, listed = self._catalog.counts(dataset.name)
            found.append(
                {
                    "name": dataset.name,
                    "source": dataset.source,
                    "directories": known,
                    "directories_listed": listed,
                    "refresh_every_s": dataset.refresh_every_s,
                    **self.refresher.about(dataset.name),
                }
            )
        return found

    def _list(self, dir_id: int, old: Manifest | None) -> Manifest:
        dataset, path = self._catalog.directory(dir_id)
        listing, hidden = prepare_listing(self._sources.call(dataset.name, lambda ufs: ufs.list_directory(path)))
        names = new_directories(old, listing)
        children = [paths.join(path, name.decode("utf-8", "surrogateescape")) for name in names]
        dir_ids = np.asarray(self._catalog.number_directories(dataset.name, children), dtype=np.uint64)
        if old is None:
            about = Directory(dir_id, dataset.name, dataset.source, path, 1, self._now_ns(), self._block_bytes, hidden)
            manifest = build(about, listing, dir_ids)
        else:
            manifest = append(old, listing, dir_ids, self._now_ns(), hidden)
            if (manifest.row_count, manifest.live_count) == (old.row_count, old.live_count):
                return old
        self._catalog.save_manifest(manifest.directory, memoryview(manifest.to_buffer("zstd")))
        return manifest

    def _covering(self, uri: str, name: str | None) -> Dataset | None:
        """The dataset that a source URI lies in: the longest match, or just an equal one when a name is asked for."""
        best: Dataset | None = None
        for dataset in self._catalog.datasets():
            inside = uri == dataset.source or (name is None and uri.startswith(dataset.source.rstrip("/") + "/"))
            if inside and (best is None or len(dataset.source) > len(best.source)):
                best = dataset
            if dataset.name == name and uri != dataset.source:
                raise InvalidInput(f"dataset {name!r} is {dataset.source} already; choose another name")
        if best is not None and name not in (None, best.name):
            raise InvalidInput(f"{uri} is dataset {best.name!r} already; use that name")
        return best

    def _probe(self, location: paths.Location, options: Mapping[str, Any]) -> None:
        """Raise unless a source can be listed and holds something."""
        ufs = open_ufs(location.uri, options, self._limits)
        if ufs.list_directory("").num_rows or not location.path or location.scheme == "file":
            return
        try:
            is_file = not ufs.stat("").is_dir
        except NotFound:
            is_file = False
        if is_file:
            raise NotADirectory(f"{location.uri} is a file; give the directory that it is in")
        raise NotFound(f"{location.uri}: nothing is stored under this path; check its spelling")

    def _renew(self, dataset: Dataset, options: Mapping[str, Any]) -> None:
        """Take new options for a known dataset, if they work."""
        if not options or dict(options) == self.access(dataset.name)[1]:
            return
        open_ufs(dataset.source, options, self._limits).list_directory("")
        self._keep_options(dataset.name, options)
        self._sources.forget(dataset.name)

    def _keep_options(self, dataset: str, options: Mapping[str, Any]) -> None:
        try:
            self._vault[dataset] = json.dumps(dict(options))
        except TypeError as error:
            raise InvalidInput(f"options of {dataset}: {error}; use plain strings, numbers and booleans") from error

    def _free_name(self, location: paths.Location) -> str:
        wanted, taken = paths.suggest_dataset_name(location), {dataset.name for dataset in self.datasets()}
        return next(
            name for n in range(1, len(taken) + 3) if (name := wanted if n == 1 else f"{wanted}-{n}") not in taken
        )

    @contextmanager
    def _only_one(self, dir_id: int) -> Iterator[None]:
        """One thread at a time per directory; the table holds only directories somebody is listing."""
        with self._listing_lock:
            lock, users = self._listing.get(dir_id, (threading.Lock(), 0))
            self._listing[dir_id] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._listing_lock:
                lock, users = self._listing[dir_id]
                if users == 1:
                    del self._listing[dir_id]
                else:
                    self._listing[dir_id] = (lock, users - 1)
