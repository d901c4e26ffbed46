"""The master actor: a shell around ``meta.Metadata``, and around the ``Fleet`` of workers."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import ray

from raycache.actors.fleet import Fleet, store_bytes
from raycache.actors.names import METHOD_TIMEOUT_S
from raycache.actors.plasma import BACKUP, PublishedManifests, Vault
from raycache.actors.verblink import VerbServer
from raycache.config import Settings
from raycache.core.inode import Place, Verb
from raycache.core.membership import View
from raycache.core.persisting import Behind, Task
from raycache.core.values import Dataset, Failed, ListingJob
from raycache.meta.backup import Backup, RegularBackup, back_up
from raycache.meta.catalog import Catalog
from raycache.meta.lock import CatalogLock
from raycache.meta.metadata import Metadata
from raycache.meta.recovery import LOST_AND_FOUND
from raycache.meta.refreshing import Refresher
from raycache.ufs.base import Limits
from raycache.ufs.registry import open_ufs
from raycache.ufs.sources import SourceAccess

REFRESH_POLL_S = 0.25
"""How often the master looks whether a dataset is due to be refreshed."""
_log = logging.getLogger("raycache.master")


class MasterActor:
    """See Metadata; manifests go out as one plasma object each."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The one before us may be dying still; its lock goes with it.
        self._lock = CatalogLock.take(settings.catalog_file, METHOD_TIMEOUT_S)
        catalog = Catalog.open(settings.catalog_file)
        limits = Limits(settings.connect_timeout_s, settings.request_timeout_s, settings.fetch_concurrency)
        vault = Vault(settings.namespace)
        lost_found = settings.state_dir / LOST_AND_FOUND
        self._metadata = Metadata(catalog, vault, limits, settings.block_bytes, time.time_ns, lost_found)
        self._backups = RegularBackup(lambda: _back_up(settings, vault, limits), settings.backup_every_s)
        if settings.backup_to is not None:
            threading.Thread(target=self._backups.run, args=(threading.Event(),), name="backup", daemon=True).start()
        threading.Thread(
            target=self._metadata.publisher.run, args=(threading.Event(),), name="publish", daemon=True
        ).start()
        self._published = PublishedManifests(_own_store_bytes())
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._verbs = VerbServer(host, self._metadata.tree.apply)
        self._verbs.start()
        self._fleet = Fleet(settings, self._metadata.retentions.all, self._metadata.written_bytes)
        threading.Thread(target=self._fleet.run, name="reconcile", daemon=True).start()
        threading.Thread(
            target=_refresh_by_itself, args=(self._metadata.refresher,), name="refresh", daemon=True
        ).start()

    def attach(
        self, source: str, name: str | None, options: Mapping[str, Any], request_id: str | None = None
    ) -> Dataset:
        """See Metadata.attach."""
        return self._told(self._metadata.attach(source, name, options, request_id))

    def _told(self, dataset: Dataset) -> Dataset:
        """The same, now that the workers that answer know what it may keep."""
        self._fleet.reconcile()
        return dataset

    def datasets(self) -> list[Dataset]:
        """See Metadata.datasets."""
        return self._metadata.datasets()

    def access(self, dataset: str) -> SourceAccess:
        """See Metadata.access."""
        return self._metadata.access(dataset)

    def manifest(self, dir_id: int, at_least: int) -> list[Any]:
        """See Metadata.manifest; the answer is ``[ref]``."""
        version = self._metadata.version(dir_id)
        ref = self._published.find(dir_id, version) if version >= max(1, at_least) else None
        return [ref or self._published.publish(self._metadata.manifest(dir_id, at_least))]

    def manifests(self, dir_ids: Sequence[int]) -> list[list[Any] | Failed]:
        """See Metadata.manifests; an answer that is no error is ``[ref]``."""
        return self._metadata.manifests(dir_ids, lambda dir_id: self.manifest(dir_id, 0))

    def changes(self, since: int) -> tuple[int, list[int]]:
        """See Metadata.changes."""
        return self._metadata.changes(since)

    def newest_change(self) -> int:
        """See Metadata.newest_change."""
        return self._metadata.newest_change()

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """See Metadata.set_refresh."""
        return self._metadata.set_refresh(name, every_s)

    def set_retention(self, name: str, changes: Mapping[str, Any]) -> Dataset:
        """See Retentions.set."""
        return self._told(self._metadata.retentions.set(name, changes))

    def pin(self, name: str, path: str, size_bytes: int) -> Dataset:
        """See Retentions.pin."""
        return self._told(self._metadata.retentions.pin(name, path, size_bytes, self._fleet.capacity_bytes()))

    def unpin(self, name: str, path: str) -> Dataset:
        """See Retentions.unpin."""
        return self._told(self._metadata.retentions.unpin(name, path))

    def remove(self, name: str, request_id: str | None = None) -> None:
        """See Metadata.remove."""
        self._metadata.remove(name, request_id)
        self._fleet.reconcile()

    def refresh(self, dir_id: int, request_id: str | None = None) -> int:
        """See Metadata.refresh."""
        return self._metadata.refresh(dir_id, request_id)

    def start_listing(self, dir_id: int) -> int:
        """See TreeListings.start."""
        return self._metadata.listings.start(dir_id)

    def listing(self, job_id: int, wait_s: float) -> ListingJob:
        """See TreeListings.job."""
        return self._metadata.listings.job(job_id, wait_s)

    def cancel_listing(self, job_id: int) -> None:
        """See TreeListings.cancel."""
        self._metadata.listings.cancel(job_id)

    def verbs_at(self) -> tuple[str, int]:
        """Where verbs are answered without Ray."""
        return self._verbs.address

    def tree(self, verbs: Sequence[Verb]) -> list[Any | Failed]:
        """See client.treeapi.TreeApi.apply."""
        return self._metadata.tree.apply(verbs)

    def persist(self, *call: Any) -> list[Task]:
        """See Handout.exchange."""
        return self._metadata.handout.exchange(*call)

    def wait_persisted(self, places: Sequence[Place], wait_s: float) -> Behind:
        """See Handout.wait."""
        return self._metadata.handout.wait(places, wait_s)

    def overwrite_conflicts(self, dataset: str, path: str) -> int:
        """See Handout.overwrite."""
        return self._metadata.handout.overwrite(dataset, path)

    def view(self) -> View:
        """See Fleet.view."""
        return self._fleet.view()

    def drain(self, node: str, undo: bool) -> str:
        """See Fleet.drain."""
        return self._fleet.drain(node, undo)

    def settings(self) -> Settings:
        """What this cache was made with."""
        return self._settings

    def status(self) -> dict[str, Any]:
        """Figures for ``raycache status``; a worker that does not answer is listed with its error."""
        return {
            "pid": os.getpid(),
            "state_dir": str(self._settings.state_dir),
            "datasets": self._metadata.status(),
            "rebuilt": self._metadata.rebuilt,
            "backup": {"to": self._settings.backup_to, **self._backups.status()},
            **self._fleet.status(),
        }


def _own_store_bytes() -> int:
    """Size of the object store of the node that this process is on."""
    mine = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return next(store_bytes(node) for node in nodes if node["NodeID"] == mine)


def _back_up(settings: Settings, vault: Vault, limits: Limits) -> Backup:
    assert settings.backup_to is not None
    destination = open_ufs(settings.backup_to, json.loads(vault.get(BACKUP, "{}")), limits)
    return back_up(settings.catalog_file, settings.namespace, destination, datetime.now(timezone.utc))


def _refresh_by_itself(refresher: Refresher) -> None:
    """Refresh what is due, for ever, one listing at a time."""
    while True:
        try:
            busy = refresher.step(time.monotonic())
        except Exception:  # noqa: BLE001 - the catalog could not be read; the loop must outlive that too
            _log.exception("cannot see what is to be refreshed")
            busy = False
        if not busy:
            time.sleep(REFRESH_POLL_S)
