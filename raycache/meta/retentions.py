"""What datasets may keep, as the catalog has it: choices and pins, and which blocks a pinned file lies in.

A pin is weighed before it is taken: with all other pins, copies counted, it must fit into what the workers have.
Pins are paths, so that they hold for what a directory gets later, too; what was weighed is what was listed then.

Threading: safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from raycache.core import paths
from raycache.core.manifest import Manifest
from raycache.core.retention import PINS_MAX, Retention, is_within
from raycache.core.values import Dataset
from raycache.errors import InvalidInput, NotFound, RaycacheError
from raycache.meta.catalog import Catalog

FileKey = tuple[str, str]


class Retentions:
    """See the module."""

    def __init__(self, catalog: Catalog, manifest: Callable[[int], Manifest], now_ns: Callable[[], int]) -> None:
        """``manifest``: of a directory id, as ``Metadata.manifest``."""
        self._catalog = catalog
        self._manifest = manifest
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._files: dict[FileKey, tuple[int, int, frozenset[bytes]]] = {}
        """Of each pinned file: directory id, version and the blocks that it lies in."""

    def set(self, name: str, changes: Mapping[str, Any]) -> Dataset:
        """See client.protocols.MasterApi.set_retention."""
        dataset = self._catalog.dataset(name)
        chosen = dataset.retention.changed(changes)
        pinned_bytes = self.pinned_bytes().get(name, 0)
        if pinned_bytes and chosen.replicas > dataset.retention.replicas:
            raise InvalidInput(
                f"dataset {name!r} has pins, which were weighed for {dataset.retention.replicas} replica(s); unpin "
                "them, then pin again with more"
            )
        if chosen.quota_bytes is not None and pinned_bytes * chosen.replicas > chosen.quota_bytes:
            raise InvalidInput(
                f"dataset {name!r} has {pinned_bytes * chosen.replicas:,} bytes pinned, and a quota of "
                f"{chosen.quota_bytes:,} is less; unpin something first"
            )
        with self._catalog.transaction() as db:
            db.execute(
                "UPDATE datasets SET eviction = ?, quota_bytes = ?, ttl_s = ?, priority = ?, replicas = ?"
                " WHERE name = ?",
                (chosen.eviction, chosen.quota_bytes, chosen.ttl_s, chosen.priority, chosen.replicas, name),
            )
        return self._catalog.dataset(name)

    def pin(self, name: str, path: str, size_bytes: int, capacity_bytes: int) -> Dataset:
        """See client.protocols.MasterApi.pin. ``capacity_bytes``: what all workers may keep."""
        dataset = self._catalog.dataset(name)
        if len({*dataset.retention.pins, path}) > PINS_MAX:
            raise InvalidInput(f"{_uri(name, path)}: dataset {name!r} has {PINS_MAX} pins, the most; pin directories")
        replicas = {each.name: each.retention.replicas for each in self._catalog.datasets()}
        with self._catalog.transaction() as db:
            rows = db.execute("SELECT dataset, path, size_bytes FROM pins").fetchall()
            pins = {(each, _text(raw)): stored for each, raw, stored in rows}
            pins[name, path] = size_bytes
            wanted = _sum(pins, replicas)
            quota = dataset.retention.quota_bytes
            mine = _sum({key: size for key, size in pins.items() if key[0] == name}, replicas)
            figures = f"{size_bytes:,} bytes in {replicas[name]} replica(s)"
            if wanted > capacity_bytes:
                raise InvalidInput(
                    f"{_uri(name, path)} cannot be pinned: {figures} make {wanted:,} with all that is pinned, and the "
                    f"workers may keep {capacity_bytes:,}; unpin something, pin less, or give the workers more"
                )
            if quota is not None and mine > quota:
                raise InvalidInput(
                    f"{_uri(name, path)} cannot be pinned: {figures} make {mine:,} with the other pins of the dataset, "
                    f"and its quota is {quota:,}; raise the quota or pin less"
                )
            db.execute(
                "INSERT OR REPLACE INTO pins VALUES (?, ?, ?, ?)", (name, _raw(path), size_bytes, self._now_ns())
            )
        return self._catalog.dataset(name)

    def unpin(self, name: str, path: str) -> Dataset:
        """See client.protocols.MasterApi.unpin."""
        dataset = self._catalog.dataset(name)
        if path not in dataset.retention.pins:
            above = next((pin for pin in dataset.retention.pins if is_within(path, pin)), None)
            raise NotFound(
                f"{_uri(name, path)} is not pinned" + (f"; {_uri(name, above)} is" if above is not None else "")
            )
        with self._catalog.transaction() as db:
            db.execute("DELETE FROM pins WHERE dataset = ? AND path = ?", (name, _raw(path)))
        return self._catalog.dataset(name)

    def pinned_bytes(self) -> dict[str, int]:
        """Per dataset what its pins were weighed at, one copy."""
        with self._catalog.transaction() as db:
            rows = db.execute("SELECT dataset, path, size_bytes FROM pins").fetchall()
        names = {name for name, _, _ in rows}
        pins = {(name, _text(raw)): size for name, raw, size in rows}
        return {name: _sum({key: size for key, size in pins.items() if key[0] == name}, {}) for name in names}

    def all(self) -> dict[str, Retention]:
        """Of each dataset, with the blocks of the files that are pinned. What workers go by."""
        found: dict[str, Retention] = {}
        known: set[FileKey] = set()
        for dataset in self._catalog.datasets():
            keys = [(dataset.name, pin) for pin in dataset.retention.pins]
            known.update(keys)
            blocks = frozenset().union(*(self._file_blocks(*key) for key in keys))
            found[dataset.name] = replace(dataset.retention, pinned_blocks=blocks)
        with self._lock:
            for key in self._files.keys() - known:
                del self._files[key]
        return found

    def _file_blocks(self, name: str, path: str) -> Iterable[bytes]:
        """Blocks that a pinned file lies in; none for a directory. A listing that cannot be had changes nothing."""
        if self._catalog.find_directory(name, path) is not None:
            return ()
        above, last = paths.split(path)
        dir_id = self._catalog.find_directory(name, above)
        version = 0 if dir_id is None else self._catalog.version(dir_id)
        with self._lock:
            kept = self._files.get((name, path))
        if dir_id is None or not version or (kept is not None and kept[:2] == (dir_id, version)):
            return kept[2] if kept is not None else ()
        try:
            blocks = blocks_of_file(self._manifest(dir_id), last)
        except RaycacheError:
            return kept[2] if kept is not None else ()
        with self._lock:
            self._files[name, path] = (dir_id, version, blocks)
        return blocks


def blocks_of_file(manifest: Manifest, name: str) -> frozenset[bytes]:
    """Blocks that a file of a directory lies in; none when there is no such file."""
    row = manifest.find(name.encode("utf-8", "surrogateescape"))
    if row is None or manifest.child_id(row) is not None:
        return frozenset()
    return frozenset(manifest.block_id(piece.block) for piece in manifest.pieces(row, 0, manifest.size(row)))


def _sum(pins: Mapping[FileKey, int], replicas: Mapping[str, int]) -> int:
    """Bytes of all pins, those below another one not counted twice."""
    return sum(
        size * replicas.get(name, 1)
        for (name, path), size in pins.items()
        if not any(other == name and above != path and is_within(path, above) for other, above in pins)
    )


def _uri(name: str, path: str) -> str:
    return "raycache://" + paths.join(name, path)


def _raw(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
