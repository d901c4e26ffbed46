"""Reading with Ray Data: our own source for whole files, and Ray Data's readers over our file system for the rest."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray.data
from ray.data import Dataset
from ray.util.annotations import RayDeprecationWarning
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycache.actors.cluster import Cluster, current
from raycache.core import paths, values
from raycache.data.packs import PackRead, PackSource
from raycache.data.routes import Files, locate
from raycache.errors import NotADirectory
from raycache.fsspec import RaycacheFileSystem

READS_MAX = 64
"""Workers that get a read of their own. Beyond, files are read wherever there is a free CPU."""


def read_whole_files(
    uri: str,
    *,
    pattern: str,
    include_paths: bool,
    options: Mapping[str, Any] | None,
    change: int | None,
    arguments: Mapping[str, Any],
) -> Dataset:
    """See ``raycache.data.read_files``."""
    files = Files.select(uri, pattern, options, change)
    return read_packs(files, PackRead(files.wanted, (), include_paths), arguments)


def read_packs(files: Files, read: PackRead, arguments: Mapping[str, Any]) -> Dataset:
    """Files, in tasks that are like ``read``, on the nodes that keep them."""
    known = current().pool.workers(refresh=True)
    workers = [replace(worker, local=False) for worker in known if not worker.draining]
    placed = {"ray_remote_args", "label_selector"} & set(arguments)
    if len(workers) <= 1 or len(workers) > READS_MAX or placed:
        whole: Dataset = ray.data.read_datasource(PackSource(files, read), **arguments)
        return whole
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        reads = [
            ray.data.read_datasource(
                PackSource(files, replace(read, owner=worker.worker_id, workers=tuple(workers))),
                ray_remote_args={"scheduling_strategy": _rather_on(worker.node_id)},
                **arguments,
            )
            for worker in workers
        ]
    united: Dataset = reads[0].union(*reads[1:])
    return united


def read_with(
    reader: str,
    uris: str | Sequence[str],
    *,
    options: Mapping[str, Any] | None,
    change: int | None,
    arguments: Mapping[str, Any],
) -> Dataset:
    """``ray.data.<reader>`` over the cache."""
    cluster = current()
    given = [uris] if isinstance(uris, str) else list(uris)
    named = []
    for uri in given:
        dataset, path = _locate(cluster, uri, options)
        named.append(f"{paths.RAYCACHE_SCHEME}://{paths.join(dataset.name, path)}")
    places = named[0] if isinstance(uris, str) else named
    read: Dataset = getattr(ray.data, reader)(places, filesystem=RaycacheFileSystem(snapshot=change), **arguments)
    return read


def _rather_on(node_id: str) -> NodeAffinitySchedulingStrategy:
    """On a node for as long as it lives, waiting for a CPU of it, and then on another.

    Ray 2.60 calls this way to say so deprecated. What is to follow it, a label selector, waits for ever for a node that
    died; with a fallback it goes elsewhere whenever the node is busy: a third of the bytes were read where they are.
    """
    return NodeAffinitySchedulingStrategy(node_id, soft=True)


def _locate(cluster: Cluster, uri: str, options: Mapping[str, Any] | None) -> tuple[values.Dataset, str]:
    """As ``locate``, and of a file that is in no dataset its directory becomes one."""
    try:
        return locate(cluster, uri, options)
    except NotADirectory:
        locate(cluster, uri.rpartition("/")[0], options)
        return cluster.namespace.locate(uri)
