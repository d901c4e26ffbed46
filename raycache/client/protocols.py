"""What the client needs of master and workers. ``actors`` fulfils it over Ray, tests fulfil it in process."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raycache.core.inode import Place
from raycache.core.manifest import Manifest
from raycache.core.membership import View
from raycache.core.persisting import Behind
from raycache.core.values import Dataset, Failed, Fetch, Freed, ListingJob, Served, Worker
from raycache.errors import WorkerLost


class MasterApi(Protocol):
    """The namespace. Every call raises ClusterUnavailable when the master stays away past its deadline."""

    def attach(self, source: str, name: str | None, options: Mapping[str, Any]) -> Dataset:
        """Name a source, or find the dataset that has it already. Lists its root, so that a wrong one fails here.

        Raises InvalidInput, NotFound, NotADirectory, AccessDenied, SourceUnavailable; then nothing was recorded.
        """
        ...

    def datasets(self) -> list[Dataset]:
        """All datasets."""
        ...

    def manifest(self, dir_id: int, at_least: int = 0) -> Manifest:
        """The published manifest of a directory, of version ``at_least`` or newer; listed now if it never was.

        Raises NotFound (no such directory id; one whose listing was damaged has got another, which the newest version
        of the directory above names), and what listing a source raises.
        """
        ...

    def manifests(self, dir_ids: Sequence[int]) -> list[Manifest | Failed]:
        """The published manifests of several directories, at most MANIFESTS_AT_ONCE, in order, in one call.

        What cannot be had is a Failed in its place, with the error that ``manifest`` would raise. Raises InvalidInput
        for too many.
        """
        ...

    def changes(self, since: int) -> tuple[int, list[int]]:
        """Ids of directories whose listing changed after change number ``since`` (0: ever), and the newest number."""
        ...

    def newest_change(self) -> int:
        """Number of the newest change of any listing, 0 before the first: names the state of all listings now."""
        ...

    def set_refresh(self, name: str, every_s: float) -> Dataset:
        """Have a dataset refreshed every so many seconds, 0 for never; the dataset as it is now.

        Raises NotFound, InvalidInput.
        """
        ...

    def refresh(self, dir_id: int) -> int:
        """List a directory again and return the version now published; unchanged directories keep theirs."""
        ...

    def view(self) -> View:
        """Who is there; the call mends what is dead first."""
        ...


class ListingsApi(Protocol):
    """Recursive listings, which run in the master as jobs. Raises ClusterUnavailable as MasterApi does."""

    def start_listing(self, dir_id: int) -> int:
        """Begin to list all that is below a directory anew, or join who does; the number of the job.

        Raises NotFound, Unavailable (too many at once).
        """
        ...

    def listing(self, job_id: int, wait_s: float) -> ListingJob:
        """How far such a job is; waits up to ``wait_s``, 5 at most, for its end. Raises NotFound."""
        ...

    def cancel_listing(self, job_id: int) -> None:
        """End such a job, with nothing published. Nothing happens when it has ended already."""
        ...


class PersistApi(Protocol):
    """What sources have not got yet. Raises ClusterUnavailable as MasterApi does."""

    def wait_persisted(self, places: Sequence[Place], wait_s: float) -> Behind:
        """Have what is behind of files, and of paths with all below them, brought to the source soon, and wait for it
        up to ``wait_s``, 5 at most; what is behind then. Returns sooner when all that is left is stuck.

        A place that nothing is behind of, or that is not there, is no error.
        """
        ...

    def overwrite_conflicts(self, dataset: str, path: str) -> int:
        """Decide conflicts at and below a path for what was written here: it is put over what the source was found to
        have. How many there were. What has changed in the source since then is a conflict again."""
        ...

    def refresh(self, dir_id: int) -> int:
        """See MasterApi."""
        ...

    def datasets(self) -> list[Dataset]:
        """See MasterApi."""
        ...


class RetentionApi(Protocol):
    """What datasets may keep. Raises ClusterUnavailable as MasterApi does."""

    def set_retention(self, name: str, changes: Mapping[str, Any]) -> Dataset:
        """Choose what a dataset may keep, see core.retention.CHOICES; what is left out stays. The dataset as it is now.

        Raises NotFound, InvalidInput.
        """
        ...

    def pin(self, name: str, path: str, size_bytes: int) -> Dataset:
        """Keep a file or directory of a dataset from being evicted. ``size_bytes``: of its blocks.

        Raises NotFound (no such dataset), InvalidInput with the figures when it does not fit with all that is pinned.
        """
        ...

    def unpin(self, name: str, path: str) -> Dataset:
        """Take a pin back. Raises NotFound when there is none of exactly this path."""
        ...

    def remove(self, name: str) -> None:
        """Forget a dataset, and free its blocks; the source is not touched. Raises NotFound."""
        ...


class KeepingPool(Protocol):
    """All workers, seen as one thing that keeps blocks."""

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        """See WorkerPool."""
        ...

    def load(self, calls: Mapping[str, Sequence[bytes]]) -> Mapping[str, Sequence[str] | WorkerLost]:
        """Have each worker fill blocks, by packed plan; of each what becomes of it: see BlockStore.load."""
        ...

    def free(self, dataset: str, path: str, blocks: Collection[bytes] | None) -> Freed:
        """Have all workers drop blocks: see core.values.Freed."""
        ...


class Call(Protocol):
    """A call to a worker that is under way."""

    def answers(self) -> Served:
        """When it has ended: what the worker says. Raises WorkerLost."""
        ...


@dataclass(eq=False)
class Ended:
    """A Call that ended as it was made, for pools whose workers answer in the caller's thread."""

    found: Served | WorkerLost

    def answers(self) -> Served:
        """See Call."""
        if isinstance(self.found, WorkerLost):
            raise self.found
        return self.found


class WorkerPool(Protocol):
    """All workers, seen as one thing to fetch from."""

    def workers(self, refresh: bool = False) -> Sequence[Worker]:
        """Who there is to ask. ``refresh`` asks the master, which replaces dead workers."""
        ...

    def replicas(self, dataset: str) -> int:
        """On how many workers each block of a dataset lies."""
        ...

    def hint(self, calls: Mapping[str, Sequence[bytes]]) -> None:
        """Tell workers, by packed plan, of blocks that are likely to be wanted soon. Waits for nothing."""
        ...

    def begin(self, worker_id: str, requests: Sequence[Fetch], timeout_s: float) -> Call:
        """Call a worker, which gives up after ``timeout_s``. Does not wait where it can be helped."""
        ...

    def wait(self, calls: Sequence[Call], timeout_s: float) -> Sequence[Call]:
        """Wait until one of several calls has ended, or for so long; those that have ended."""
        ...
