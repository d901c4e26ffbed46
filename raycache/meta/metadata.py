"""What the master does: attach sources, list directories once, keep and hand out their manifests.

Not responsible for: bytes of files, workers, or how manifests travel. Options (with secrets) live in the ``vault``
that is given in, never in the catalog.

Threading: safe. A directory is listed by one thread while others that want it wait; sources are asked outside locks.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from raycache.core import paths
from raycache.core.arguments import check_refresh_every
from raycache.core.entries import sizes_of
from raycache.core.listing import build, new_directories, prepare_listing
from raycache.core.manifest import Directory, Manifest
from raycache.core.persisting import Behind
from raycache.core.values import MANIFESTS_AT_ONCE, Dataset, Failed
from raycache.errors import InvalidInput, NotADirectory, NotFound, RaycacheError, SourceUnavailable
from raycache.meta.catalog import Catalog, Listed
from raycache.meta.handout import Handout
from raycache.meta.letgo import held_bytes
from raycache.meta.lowers import Lowers
from raycache.meta.merging import Merging
from raycache.meta.publishing import Publisher
from raycache.meta.recovery import keep_aside, relist_under_new_id
from raycache.meta.refreshing import Refresher
from raycache.meta.retentions import Retentions
from raycache.meta.tree import Tree
from raycache.meta.treelisting import TreeListings
from raycache.ufs.base import Limits
from raycache.ufs.registry import check_scheme, open_ufs
from raycache.ufs.sources import SourceAccess, Sources

_log = logging.getLogger("raycache.master")
LISTERS = 16
"""Directories of calls for several that are listed side by side, for all callers together."""
SIZED_DIRECTORIES, SIZES_KEPT = 256, 16_384
"""Directories of a dataset whose bytes are added up for a status: reading a listing takes milliseconds, once."""
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
        lost_found: Path | None = None,
    ) -> None:
        """``vault``: keeps each dataset's options as JSON, for as long as the cluster lives. ``lost_found``: where
        manifests go that turn out to be damaged; None keeps none of them."""
        self._catalog = catalog
        self._vault = vault
        self._limits = limits
        self._block_bytes = block_bytes
        self._now_ns = now_ns
        self._sources = Sources(self.access, limits)
        self._merging = Merging(catalog, self._sources, block_bytes, now_ns)
        self.listings = TreeListings(catalog, self._sources, block_bytes, now_ns, relist=self.refresh)
        """Recursive listings."""
        self._lost_found = lost_found
        self.rebuilt = 0
        """Directories whose stored listing was damaged and is made anew."""
        self._attaching = threading.Lock()
        self._sizes: dict[int, tuple[int, int]] = {}
        """Version and bytes of directories, for ``status``."""
        self._listing: dict[int, tuple[threading.Lock, int]] = {}
        self._listing_lock = threading.Lock()
        self._listers = ThreadPoolExecutor(LISTERS, thread_name_prefix="list")
        self.refresher = Refresher(catalog, self.refresh)
        self.retentions = Retentions(catalog, self.manifest, now_ns)
        """What datasets may keep."""
        self.publisher = Publisher(catalog)
        """What was written, shown to readers."""
        lowers = Lowers(lambda dir_ids: self.manifests(dir_ids, self.manifest))
        self.tree = Tree(catalog, lowers, now_ns, self.publisher.publish)
        """What writers see and change: a client.treeapi.TreeApi."""
        self.handout = Handout(catalog, now_ns)
        """What the sources have not got yet."""

    def datasets(self) -> list[Dataset]:
        """All datasets, by name."""
        return self._catalog.datasets()

    def access(self, dataset: str) -> SourceAccess:
        """Source and options of a dataset, for a worker. Raises NotFound."""
        return self._catalog.dataset(dataset).source, json.loads(self._vault.get(dataset, "{}"))

    def attach(
        self, source: str, name: str | None, options: Mapping[str, Any], request_id: str | None = None
    ) -> Dataset:
        """See client.protocols.MasterApi.attach."""
        location = paths.parse_uri(source)
        check_scheme(location)
        if name is not None:
            paths.check_dataset_name(name)
        with self._attaching:
            if (told := self._catalog.reply(request_id)) is not None:
                return Dataset(**told)
            known = self._covering(location.uri, name)
            if known is not None:
                self._renew(known, options)
                return known
            return self._add(name or self._free_name(location), location, options, request_id)

    def remove(self, name: str, request_id: str | None = None) -> None:
        """See client.protocols.MasterApi.remove."""
        if self._catalog.reply(request_id) is None:
            self._catalog.dataset(name)
        self.listings.cancel_all(name)
        with self._attaching:
            if self._catalog.reply(request_id) is None:
                self._catalog.remove_dataset(name, request_id)
            # After the commit, and also when asked again: the first time may have ended in between.
            if all(dataset.name != name for dataset in self._catalog.datasets()):
                self._vault.pop(name, None)
            self._sources.forget(name)

    def manifest(self, dir_id: int, at_least: int = 0) -> Manifest:
        """See client.protocols.MasterApi.manifest."""
        stored = self._stored(dir_id)
        if stored is not None and stored.directory.version >= at_least:
            return stored
        with self._only_one(dir_id):
            stored = self._stored(dir_id)
            return stored if stored is not None else self._merging.list(dir_id, self._stored)

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
        """See client.protocols.MasterApi.changes. What was written and is due is among them."""
        self.publisher.step()
        return self._catalog.changes(since)

    def newest_change(self) -> int:
        """See client.protocols.MasterApi.newest_change."""
        return self._catalog.newest_change()

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """See client.protocols.MasterApi.set_refresh."""
        return self._catalog.set_refresh(name, check_refresh_every(every_s))

    def refresh(self, dir_id: int, request_id: str | None = None) -> int:
        """See client.protocols.MasterApi.refresh.

        The reply of a refresh that found no change is not kept: to ask again does nothing twice.
        """
        with self._only_one(dir_id):
            told = self._catalog.reply(request_id)
            if told is not None:
                return int(told)
            return self._merging.list(dir_id, self._stored, request_id).directory.version

    def status(self) -> list[dict[str, Any]]:
        """Per dataset: how much of it is known, and what it may keep. Holds no options."""
        found = []
        pinned = self.retentions.pinned_bytes()
        behind = self.handout.status()
        for dataset in self._catalog.datasets():
            known, listed = self._catalog.counts(dataset.name)
            found.append(
                {
                    "name": dataset.name,
                    "source": dataset.source,
                    "directories": known,
                    "directories_listed": listed,
                    "size_bytes": self._size_bytes(dataset.name, known, listed),
                    "listings": [asdict(job) for job in self.listings.jobs(dataset.name)],
                    "refresh_every_s": dataset.refresh_every_s,
                    "retention": dataset.retention.as_json(),
                    "pinned_bytes": pinned.get(dataset.name, 0) * dataset.retention.replicas,
                    "write_type": dataset.write_type,
                    "behind": behind.get(dataset.name, Behind()).as_json(),
                    **self.refresher.about(dataset.name),
                }
            )
        return found

    def written_bytes(self, worker_id: str) -> int:
        """Bytes in segments of a worker that files need."""
        with self._catalog.transaction() as db:
            return held_bytes(db, worker_id)

    def _size_bytes(self, dataset: str, known: int, listed: int) -> int | None:
        """Bytes of all files of a dataset; None where some directory is not listed, or there are many."""
        if known != listed or known > SIZED_DIRECTORIES:
            return None
        total, dir_id = 0, self._catalog.next_listed(dataset, 0)
        while dir_id is not None:
            version, size_bytes = self._sizes.get(dir_id, (0, 0))
            if version != self._catalog.version(dir_id):
                try:
                    manifest = self._catalog.manifest(dir_id)
                except InvalidInput:  # damaged: whoever asks for it has it listed anew
                    return None
                if manifest is None:
                    return None
                gone_bytes = int(sizes_of(manifest, manifest.columns.dead_rows).sum())
                version, size_bytes = manifest.directory.version, manifest.size_bytes - gone_bytes
                if len(self._sizes) >= SIZES_KEPT:
                    self._sizes.clear()
                self._sizes[dir_id] = version, size_bytes
            total += size_bytes
            dir_id = self._catalog.next_listed(dataset, dir_id)
        return total

    def _add(self, name: str, location: paths.Location, options: Mapping[str, Any], request_id: str | None) -> Dataset:
        """Make a dataset, with the listing of its root, in one transaction: there is all of it, or nothing."""
        listing, hidden = prepare_listing(self._probe(location, options))
        children = [child.decode("utf-8", "surrogateescape") for child in new_directories(None, listing)]
        ids = self._catalog.reserve_ids(1 + len(children))
        now_ns = self._now_ns()
        about = Directory(ids[0], name, location.uri, "", 1, now_ns, self._block_bytes, hidden)
        root = Listed.of(build(about, listing, np.asarray(ids[1:], dtype=np.uint64)))
        # Before the commit: a client that asks again after it is told that all is done.
        self._keep_options(name, options)
        try:
            return self._catalog.add_dataset(name, location.uri, now_ns, root, children, request_id)
        except RaycacheError:
            self._vault.pop(name, None)
            raise

    def _stored(self, dir_id: int) -> Manifest | None:
        """The stored manifest; None when there is none. Raises NotFound when it is damaged, and then there is none:
        the directory has another id from now on (see ``recovery``), which the one above it names."""
        try:
            return self._catalog.manifest(dir_id)
        except InvalidInput as error:
            dataset, path = self._catalog.directory(dir_id)
            uri = paths.join(dataset.source, path)
            self._rebuild(dataset, path, dir_id, str(error))
            raise NotFound(f"{uri}: its listing was damaged ({error}) and is made anew; look it up again") from error

    def _rebuild(self, dataset: Dataset, path: str, dir_id: int, problem: str) -> None:
        parent_id = self._catalog.find_directory(dataset.name, paths.split(path)[0])
        # Locks are taken from a directory towards the root only, so that no two threads wait for each other.
        with self._only_one(parent_id if path and parent_id is not None else 0):
            body = self._catalog.body(dir_id)
            if not body:
                return  # another thread was here first
            if self._lost_found is not None:
                keep_aside(self._lost_found, f"{dataset.name}-{dir_id}.manifest", body)
            new_id = relist_under_new_id(self._catalog, dataset, path, dir_id, self._now_ns())
            self.rebuilt += 1
            _log.error(
                "the listing of %s was damaged (%s) and is made anew: directory %d is %d now, what was stored is in %s",
                paths.join(dataset.source, path), problem, dir_id, new_id, self._lost_found,
            )  # fmt: skip

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

    def _probe(self, location: paths.Location, options: Mapping[str, Any]) -> pa.RecordBatch:
        """List the root of a source. Raises unless it can be listed and holds something."""
        ufs = open_ufs(location.uri, options, self._limits)
        listing: pa.RecordBatch = ufs.list_directory("")
        if listing.num_rows or not location.path or location.scheme == "file":
            return listing
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
