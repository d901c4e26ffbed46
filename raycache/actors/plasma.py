"""Ray's object store as the place where blocks and manifests lie. Whoever puts owns: when it dies they are gone."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from typing import Any

import ray
from ray import exceptions as rx
from ray._private.internal_api import node_stats
from ray.experimental import internal_kv

from raycache.core import archive
from raycache.core.manifest import Manifest
from raycache.errors import Unavailable
from raycache.store.pressure import StoreFigures

PUBLISHED_BYTES = 2 * 2**30
"""Manifests that the master keeps in plasma, those of some 30 million files; what falls out is put again when asked
for. Kept, so that all processes of a node map the same copy."""
PUBLISHED_SHARE = 0.25
"""Of the node's object store, where that is less."""


class Plasma:
    """A ``store.tiers.BlockMemory``."""

    def put(self, block: bytearray) -> tuple[Any, memoryview]:
        """Put a block; dropping the handle frees it. Raises Unavailable when the object store has no room."""
        ref = put(block)
        try:
            return ref, memoryview(ray.get(ref, timeout=30)).cast("B")
        except rx.RayError as error:
            raise Unavailable(f"Ray's object store did not keep a block: {error}") from error


class OwnStore:
    """The object store of this process's node, as its raylet tells of it: a few milliseconds a question."""

    def __init__(self) -> None:
        mine = ray.get_runtime_context().get_node_id()
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        node = next(node for node in nodes if node["NodeID"] == mine)
        self._address = node["NodeManagerAddress"], node["NodeManagerPort"]

    def figures(self) -> StoreFigures:
        """See StoreFigures. Raises what gRPC raises when the raylet does not answer."""
        stats: Any = node_stats(*self._address, include_memory_info=False)  # type: ignore[no-untyped-call]
        found = stats.store_stats
        return StoreFigures(found.object_store_bytes_avail, found.object_store_bytes_used, found.spilled_bytes_total)


def put(buffer: Any) -> Any:
    """Put a buffer so that a ``get`` maps it: PickleBuffers travel out of band, bytes would be copied."""
    try:
        return ray.put(pickle.PickleBuffer(buffer))
    except (rx.ObjectStoreFullError, rx.OutOfDiskError) as error:
        raise Unavailable(f"Ray's object store has no room for {len(memoryview(buffer))} bytes") from error


class PublishedManifests:
    """The newest manifest of each directory as one plasma object, least recently asked for out first."""

    def __init__(self, store_bytes: int) -> None:
        """``store_bytes``: size of the object store of this node."""
        self._limit_bytes = min(PUBLISHED_BYTES, int(PUBLISHED_SHARE * store_bytes))
        self._lock = threading.Lock()
        self._refs: OrderedDict[int, tuple[int, int, Any]] = OrderedDict()
        self._size_bytes = 0

    def find(self, dir_id: int, version: int) -> Any | None:
        """The object of exactly this version, or None."""
        with self._lock:
            found = self._refs.get(dir_id)
            if found is None or found[0] != version:
                return None
            self._refs.move_to_end(dir_id)
            return found[2]

    def publish(self, manifest: Manifest) -> Any:
        """Put a manifest and remember it."""
        buffer = archive.to_mapped(manifest)
        ref = put(buffer)
        about = manifest.directory
        with self._lock:
            if old := self._refs.pop(about.dir_id, None):
                self._size_bytes -= old[1]
            self._refs[about.dir_id] = (about.version, buffer.size, ref)
            self._size_bytes += buffer.size
            while self._size_bytes > self._limit_bytes and len(self._refs) > 1:
                _, (_, size_bytes, _) = self._refs.popitem(last=False)
                self._size_bytes -= size_bytes
        return ref


class Register:
    """What the fleet must know after a restart of the master, in the memory of Ray's GCS: it is of use for as long as
    the cluster lives, and no longer."""

    def __init__(self, namespace: str) -> None:
        self._prefix = f"raycache:{namespace}:fleet:"

    def get(self, name: str) -> bytes | None:
        """What was put under a name."""
        found: bytes | None = internal_kv._internal_kv_get(self._prefix + name)
        return found

    def put(self, name: str, value: bytes) -> None:
        """Keep something under a name."""
        internal_kv._internal_kv_put(self._prefix + name, value, overwrite=True)


BACKUP = "backup:"
"""What reaches ``backup_to`` lies in the vault under this name, which no dataset can have."""


class Vault(MutableMapping[str, str]):
    """Options of datasets, secrets included, in the memory of Ray's GCS: they outlive the master and touch no disk
    of ours. When the cluster goes, they go; the next mount brings them again."""

    def __init__(self, namespace: str) -> None:
        self._prefix = f"raycache:{namespace}:options:"

    def __getitem__(self, name: str) -> str:
        value = internal_kv._internal_kv_get(self._prefix + name)
        if value is None:
            raise KeyError(name)
        return str(value.decode())

    def __setitem__(self, name: str, value: str) -> None:
        internal_kv._internal_kv_put(self._prefix + name, value.encode(), overwrite=True)

    def __delitem__(self, name: str) -> None:
        if not internal_kv._internal_kv_del(self._prefix + name):
            raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        keys = internal_kv._internal_kv_list(self._prefix)
        return iter([key.decode()[len(self._prefix) :] for key in keys])

    def __len__(self) -> int:
        return sum(1 for _ in self)
