"""What users do with what is kept: load, free, pin, unpin, remove. Names become blocks here; workers and master act."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raycache.client.loading import LoadJob, blocks_of
from raycache.client.namespace import Namespace
from raycache.client.protocols import KeepingPool, RetentionApi
from raycache.core.retention import is_within
from raycache.core.scheduling import THREADS, Scheduler
from raycache.core.values import Dataset, Freed
from raycache.errors import InvalidInput, WorkerLost


class Keeping:
    """See the module. Threading: safe."""

    def __init__(
        self, namespace: Namespace, master: RetentionApi, pool: KeepingPool, scheduler: Scheduler = THREADS
    ) -> None:
        self._namespace = namespace
        self._master = master
        self._pool = pool
        self._scheduler = scheduler

    def set_retention(self, name: str, changes: Mapping[str, Any]) -> Dataset:
        """See RetentionApi.set_retention."""
        self._master.set_retention(name, changes)
        return self._namespace.dataset(name)

    def load(self, uri: str) -> LoadJob:
        """Bring a dataset, directory or file into the cache. See LoadJob."""
        return LoadJob(self._namespace, self._pool, self._named(uri), self._scheduler)

    def free(self, uri: str) -> Freed:
        """Drop the blocks of a dataset, directory or file from every tier of every worker.

        A block holds several small files, which go with it. Raises NotFound, InvalidInput for what is pinned; pinned
        parts of a tree stay, and are counted.
        """
        uri = self._named(uri)
        dataset, path = self._namespace.locate(uri)
        pins = self._namespace.dataset(dataset.name).retention.pins
        pin = next((pin for pin in pins if is_within(path, pin)), None)
        if pin is not None:
            raise InvalidInput(f"{uri} is pinned, by raycache://{dataset.name}/{pin}; unpin that first")
        entry = self._namespace.entry(uri)
        if entry.row is None:
            return self._pool.free(dataset.name, path, None)
        blocks = {block.manifest.block_id(block.number) for block in blocks_of(self._namespace, uri)}
        return self._pool.free(dataset.name, entry.manifest.directory.path, blocks)

    def pin(self, uri: str) -> LoadJob:
        """Keep a dataset, directory or file from being evicted, and load it. All below it is listed first.

        Raises NotFound, InvalidInput with the figures when it does not fit with all that is pinned already.
        """
        uri = self._named(uri)
        dataset, path = self._namespace.locate(uri)
        sizes = {block.manifest.block_id(block.number): block.size_bytes for block in blocks_of(self._namespace, uri)}
        self._master.pin(dataset.name, path, sum(sizes.values()))
        self._namespace.learn_datasets()
        return self.load(uri)

    def unpin(self, uri: str) -> None:
        """Take a pin back: exactly the path that was pinned. Raises NotFound."""
        uri = self._named(uri)
        dataset, path = self._namespace.locate(uri)
        self._master.unpin(dataset.name, path)
        self._namespace.learn_datasets()

    def _named(self, uri: str) -> str:
        """The URI of a dataset where its bare name is given."""
        is_name = "/" not in uri and ":" not in uri and self._namespace.is_dataset(uri)
        return f"raycache://{uri}" if is_name else uri

    def remove(self, name: str) -> Freed:
        """Forget a dataset and free its blocks. Raises NotFound."""
        self._master.remove(name)
        self._namespace.learn_datasets()
        self._namespace.forget_below(name, "")
        return self._pool.free(name, "", None)


def sum_freed(answers: Sequence[Freed | WorkerLost]) -> Freed:
    """What all workers dropped together."""
    freed = [answer for answer in answers if isinstance(answer, Freed)]
    return Freed(
        sum(each.blocks for each in freed),
        sum(each.size_bytes for each in freed),
        sum(each.pinned_bytes for each in freed),
        len(answers) - len(freed),
    )


def dataset_figures(status: dict[str, Any]) -> None:
    """Put into each dataset of a status what the workers' tiers say of it: ``tiers`` (bytes by medium), the sum
    ``cached_bytes`` without second copies on one worker, ``cached_fraction`` where the size of the dataset is known,
    ``hits``, ``misses``, ``hit_rate``, ``over_quota_bytes``."""
    for dataset in status["datasets"]:
        name = dataset["name"]
        tiers: dict[str, int] = {}
        spare_bytes = hits = misses = over_bytes = 0
        for worker in status["workers"]:
            misses += worker.get("missed", {}).get(name, 0)
            over_bytes += worker.get("over_quota_bytes", {}).get(name, 0)
            for tier in worker.get("tiers", ()):
                about = tier.get("datasets", {}).get(name, {})
                medium = tier["medium"] or "disk"
                tiers[medium] = tiers.get(medium, 0) + about.get("bytes", 0)
                spare_bytes += about.get("spare_bytes", 0)
                hits += about.get("hits", 0)
        held_bytes = sum(tiers.values())
        dataset |= {
            "tiers": tiers,
            "cached_bytes": held_bytes - spare_bytes,
            "held_bytes": held_bytes,
            "cached_fraction": _fraction(held_bytes - spare_bytes, dataset["size_bytes"]),
            "hits": hits,
            "misses": misses,
            "hit_rate": round(hits / (hits + misses), 4) if hits + misses else None,
            "over_quota_bytes": over_bytes,
        }


def _fraction(part: int, whole: int | None) -> float | None:
    return round(min(1.0, part / whole), 4) if whole else None
