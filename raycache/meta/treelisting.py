"""Recursive listings: the whole tree below a directory, listed side by side and published in one step.

A tree is listed in parts: the top one level deep, and so on down until there are parts enough to list side by side;
these are listed whole. One that turns out to be large and to have directories of its own is listed one level deep
instead, and what is below it become parts. While parts are listed, others become manifests; memory is bounded by
``ROWS_UNDER_WAY`` rows and the largest part.

Nothing is seen of a listing before its end. What it found is staged in the catalog (``staging``), where a job that
failed, was cancelled or lost its master has left it for the next one. A part that is listed half is not staged.

Threading: safe. One thread per job stages and publishes; a few more per job ask the source.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pyarrow as pa

from raycache.core import paths
from raycache.core.listing import LISTING_SCHEMA, prepare_listing
from raycache.core.manifest import Directory
from raycache.core.tree import cut, has_directories
from raycache.core.values import Dataset, ListingJob
from raycache.errors import NotADirectory, NotFound, RaycacheError, Unavailable
from raycache.meta.catalog import Catalog, Listed
from raycache.meta.staging import JobEnded, Part, Staged, Staging
from raycache.meta.versions import next_version
from raycache.ufs.base import UnderFileSystem
from raycache.ufs.sources import Sources

PART_ROWS = 1 << 18
"""A part that is larger and has directories is listed directory by directory."""
PART_COUNT = 512
"""A directory with more sub-directories is first tried whole: a request for each would be more than there are pages."""
PARTS = 6
"""Parts of one job that are listed at once."""
ROWS_UNDER_WAY = 500_000
"""Rows of a job that have come and are not staged, about 250 bytes each while they become manifests. Beyond that only
the part that was asked for first goes on, so that memory is bounded by this and the largest part."""
STAGE_ROWS = 32_000
"""Rows that are staged at once: a commit for each small part would cost more than listing it."""
STAGE_S = 2.0
"""Longest that fewer rows wait for that."""
JOBS = 4
"""Jobs that run at once."""
WAIT_S = 5.0
"""Longest that ``job`` waits: a caller must not occupy the master."""
_TURN_S = 0.2
_TOUCH_S = 60.0
_LAST_WORDS_S = 1.0
"""How long a job that ends early waits for parts that are nearly listed."""
_VANISHED_AT_ONCE = 500
_NUMBERED_AT_ONCE = 10_000
"""Others wait for the catalog meanwhile."""
_NOTHING = pa.RecordBatch.from_arrays([pa.array([], kind.type) for kind in LISTING_SCHEMA], schema=LISTING_SCHEMA)
_Item = TypeVar("_Item")
_log = logging.getLogger("raycache.master")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A part that has still to be listed."""

    path: str
    one_level: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """A part that was listed: its directories, by path below it, each one level."""

    part: Part
    since_ns: int
    """When its listing began: it knows of nothing later."""
    levels: list[tuple[str, pa.RecordBatch]]
    more: list[_Wanted]


@dataclass(frozen=True, slots=True)
class _Level:
    """One directory of a part, ready to become a manifest."""

    found: _Found
    path: str
    """Inside the dataset."""
    listing: pa.RecordBatch
    hidden: int


@dataclass
class _Job:
    """A job that runs in this process."""

    dataset: Dataset
    dir_id: int
    about: ListingJob
    stop: threading.Event = field(default_factory=threading.Event)
    """Somebody cancelled it, or it is over: whoever lists for it should end."""
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    under_way: int = 0
    """Rows that have come and are not staged yet, for the progress that is shown."""

    def count(self, rows: int) -> None:
        with self.lock:
            self.under_way += rows

    def shown(self) -> ListingJob:
        with self.lock:
            return replace(self.about, files=self.about.files + self.under_way)


class TreeListings:
    """The recursive listings of one master."""

    def __init__(
        self,
        catalog: Catalog,
        sources: Sources,
        block_bytes: int,
        now_ns: Callable[[], int],
        part_rows: int = PART_ROWS,
        relist: Callable[[int], object] = lambda dir_id: None,
    ) -> None:
        """``relist``: lists a directory in which something was written, and publishes it."""
        self._relist = relist
        self._catalog = catalog
        self._staging = Staging(catalog)
        self._sources = sources
        self._block_bytes = block_bytes
        self._now_ns = now_ns
        self._part_rows = part_rows
        self._lock = threading.Lock()
        self._running: dict[int, _Job] = {}

    def start(self, dir_id: int) -> int:
        """Begin to list the tree below a directory, or join the job that does so already; the job's number.

        Goes on where the last job for this directory failed, was cancelled or lost its master, if that was within
        ``staging.RESUME_NS``. Raises NotFound (no such directory), Unavailable (too many jobs).
        """
        with self._lock:
            for job in self._running.values():
                if job.dir_id == dir_id:
                    return job.about.job_id
            if len(self._running) >= JOBS:
                raise Unavailable(f"{JOBS} recursive listings are under way already; try again when one has ended")
            dataset, path = self._catalog.directory(dir_id)
            about = self._staging.begin(dataset.name, dir_id, path, self._now_ns())
            job = self._running[about.job_id] = _Job(dataset, dir_id, about)
        threading.Thread(target=self._run, args=(job,), name=f"listing-{about.job_id}", daemon=True).start()
        return about.job_id

    def job(self, job_id: int, wait_s: float = 0.0) -> ListingJob:
        """How far a job is, or how it ended; waits up to ``wait_s`` (at most WAIT_S) for its end. Raises NotFound."""
        with self._lock:
            running = self._running.get(job_id)
        if running is not None and not running.ended.wait(min(wait_s, WAIT_S)):
            return running.shown()
        return self._as_it_is(self._staging.job(job_id))

    def cancel(self, job_id: int) -> None:
        """End a job; what it staged stays for the next one. Nothing happens when it has ended already."""
        with self._lock:
            job = self._running.get(job_id)
        if job is not None:
            job.stop.set()

    def cancel_all(self, dataset: str) -> None:
        """End the jobs of a dataset."""
        with self._lock:
            for job in self._running.values():
                if job.dataset.name == dataset:
                    job.stop.set()

    def jobs(self, dataset: str) -> list[ListingJob]:
        """Jobs of a dataset, the latest first: those that run and the last ones that ended."""
        with self._lock:
            running = {job_id: job.shown() for job_id, job in self._running.items()}
        return [running.get(job.job_id) or self._as_it_is(job) for job in self._staging.jobs(dataset)]

    def _as_it_is(self, job: ListingJob) -> ListingJob:
        with self._lock:
            lost = job.state == "running" and job.job_id not in self._running
        if not lost:
            return job
        message = f"the master was restarted while it listed {job.dataset}/{job.path}; refresh again, it goes on there"
        return replace(job, state="failed", error_kind="ClusterUnavailable", error=message)

    def _run(self, job: _Job) -> None:
        job_id, outcome = job.about.job_id, ("", "", "")
        try:
            _Listing(job, self._staging, self._sources, self._part_rows, self._stage, self._now_ns).run()
            self._stage_vanished(job)
            self._relist_written(job)
            if job.stop.is_set():
                raise JobEnded
            self._staging.publish(job_id, self._now_ns())
        except JobEnded:
            outcome = ("cancelled", "", "")
        except RaycacheError as error:
            outcome = ("failed", type(error).__name__, str(error))
        except Exception as error:  # noqa: BLE001 - the end of the thread: nobody else would hear of it
            _log.exception("listing %s/%s", job.dataset.name, job.about.path)
            outcome = (
                "failed",
                "RaycacheError",
                f"{job.dataset.name}/{job.about.path}: {error!r}; see the master's log",
            )
        finally:
            job.stop.set()
            if outcome[0]:
                with suppress(Exception):  # a full disk: then it counts as lost with the master
                    self._staging.end(job_id, *outcome, self._now_ns())
            with self._lock:
                del self._running[job_id]
            job.ended.set()
        if not outcome[0]:
            try:
                self._staging.clear(job_id)
            except Exception:  # noqa: BLE001 - what it published stands; the next job tries to clear it again
                _log.exception("clearing up after listing %s/%s", job.dataset.name, job.about.path)

    def _stage(self, job: _Job, found: list[_Found]) -> None:
        """Make the next version of each directory of some parts, and keep them."""
        found = [one for one in found if one.levels]
        levels = []
        for one in found:
            for below, listing in one.levels:
                prepared, hidden = prepare_listing(listing)
                levels.append(_Level(one, paths.join(one.part.path, below), prepared, hidden))
        ids = self._number(job, levels)
        versions = self._staging.versions([ids[level.path] for level in levels])
        written = self._staging.written_of([ids[level.path] for level in levels])
        staged: dict[str, list[Staged]] = {one.part.path: [] for one in found}
        for level, version in zip(levels, versions, strict=True):
            dir_id = ids[level.path]
            # What was written is laid over what the source lists, at the end.
            next_one = Staged(dir_id, version, None) if dir_id in written else self._next(job, ids, level, version)
            staged[level.found.part.path].append(next_one)
        parts = [(one.part, staged[one.part.path]) for one in found]
        files, directories = self._staging.stage(job.about.job_id, parts, self._now_ns())
        with job.lock:
            job.about = replace(job.about, files=files, directories=directories, updated_ns=self._now_ns())
            job.under_way -= sum(one.part.files for one in found)

    def _number(self, job: _Job, levels: list[_Level]) -> dict[str, int]:
        """Ids of all directories that are listed or named in some levels, by path."""
        wanted = dict.fromkeys(level.path for level in levels)
        for level in levels:
            for name in level.listing.column("name").filter(level.listing.column("is_dir")).to_pylist():
                wanted[paths.join(level.path, name.decode("utf-8", "surrogateescape"))] = None
        wanted.pop(job.about.path, None)
        ids = {job.about.path: job.dir_id}
        for some in _slices(list(wanted), _NUMBERED_AT_ONCE):
            numbers = self._staging.number_directories(job.about.job_id, job.dataset.name, some)
            ids.update(zip(some, numbers, strict=True))
        return ids

    def _next(self, job: _Job, ids: dict[str, int], level: _Level, version: int) -> Staged:
        dir_id, dataset, since_ns = ids[level.path], job.dataset, level.found.since_ns
        old = self._catalog.manifest(dir_id) if version else None
        if old is not None and old.directory.listed_ns >= since_ns:
            return Staged(dir_id, version, None)  # somebody else listed it since
        first = Directory(
            dir_id, dataset.name, dataset.source, level.path, 1, since_ns, self._block_bytes, level.hidden
        )
        new = next_version(first, old, level.listing, lambda children: [ids[child] for child in children])
        body = Listed.of(new).body if new is not None else None
        return Staged(dir_id, old.directory.version if old is not None else 0, body)

    def _stage_vanished(self, job: _Job) -> None:
        """Directories that were listed once and that this job has not found are empty from now on."""
        for gone in _slices(self._staging.vanished(job.about.job_id), _VANISHED_AT_ONCE):
            staged = []
            for dir_id in gone:
                old = self._catalog.manifest(dir_id)
                # One that was listed since the job began is newer than what the job knows.
                if old is None or not old.live_count or old.directory.listed_ns >= job.about.started_ns:
                    continue
                first = replace(old.directory, listed_ns=self._now_ns(), hidden=0)
                if new := next_version(first, old, _NOTHING, lambda _: []):
                    staged.append(Staged(dir_id, old.directory.version, Listed.of(new).body))
            self._staging.stage_vanished(job.about.job_id, staged)

    def _relist_written(self, job: _Job) -> None:
        """Directories in which something was written are listed one by one: who wins is decided as they are stored."""
        pool = ThreadPoolExecutor(PARTS, thread_name_prefix="raycache-relist")
        try:
            under_way = {
                pool.submit(self._relist_one, job, dir_id) for dir_id in self._staging.written(job.about.job_id)
            }
            for future in as_completed(under_way):
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _relist_one(self, job: _Job, dir_id: int) -> None:
        if job.stop.is_set():
            raise JobEnded
        with suppress(NotFound):  # removed meanwhile; the source itself was found a moment ago
            self._relist(dir_id)


class _Listing:
    """The listing of one job, part by part."""

    def __init__(
        self,
        job: _Job,
        staging: Staging,
        sources: Sources,
        part_rows: int,
        stage: Callable[[_Job, list[_Found]], None],
        now_ns: Callable[[], int],
    ) -> None:
        self._job = job
        self._staging = staging
        self._sources = sources
        self._part_rows = part_rows
        self._stage = stage
        self._now_ns = now_ns
        self._staged = staging.parts(job.about.job_id)
        self._met: set[str] = set()
        self._wanted = deque([_Wanted(job.about.path, one_level=True)])
        # It comes as one piece, and obstore needs several times its size meanwhile.
        self._levels = threading.Semaphore(2)
        self._under_way: set[Future[_Found]] = set()
        self._found: list[_Found] = []
        self._unstaged: dict[str, None] = {}

    def run(self) -> None:
        """List and stage every part. Raises JobEnded, and what the source raises."""
        pool = ThreadPoolExecutor(PARTS, thread_name_prefix="raycache-part")
        staged_at = time.monotonic()
        try:
            while self._wanted or self._under_way:
                self._submit(pool)
                done, self._under_way = wait(self._under_way, timeout=_TURN_S, return_when=FIRST_COMPLETED)
                self._take(done)
                if self._job.stop.is_set():
                    raise JobEnded
                rows, waited_s = sum(one.part.files for one in self._found), time.monotonic() - staged_at
                if self._found and (rows >= STAGE_ROWS or waited_s > STAGE_S):
                    self._stage_found()
                    staged_at = time.monotonic()
                elif waited_s > _TOUCH_S:
                    self._staging.touch(self._job.about.job_id, self._now_ns())
                    staged_at = time.monotonic()
            self._stage_found()
        except BaseException:  # whatever ended the job, the parts that are complete are worth keeping
            self._job.stop.set()
            last, _ = wait(self._under_way, timeout=_LAST_WORDS_S)
            with suppress(Exception):
                self._take(last)
            with suppress(Exception):
                self._stage(self._job, self._found)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        # What an earlier attempt found and is not in the tree any more.
        self._staging.drop_parts(self._job.about.job_id, self._staged.keys() - self._met)

    def _stage_found(self) -> None:
        found, self._found = self._found, []
        self._stage(self._job, found)
        for one in found:
            self._unstaged.pop(one.part.path, None)

    def _pace(self, path: str) -> None:
        """Wait while too much is under way, unless this part is the first in line. Raises JobEnded."""
        while self._job.under_way > ROWS_UNDER_WAY and next(iter(self._unstaged), path) != path:
            if self._job.stop.wait(_TURN_S / 10):
                raise JobEnded

    def _take(self, done: set[Future[_Found]]) -> None:
        """What has come, the good parts before the first error is raised."""
        errors = [error for future in done if (error := future.exception()) is not None]
        for future in done:
            if future.exception() is None:
                found = future.result()
                self._found.append(found)
                self._wanted.extend(found.more)
        if errors:
            raise errors[0]

    def _submit(self, pool: ThreadPoolExecutor) -> None:
        while self._wanted and len(self._under_way) < PARTS:
            wanted = self._wanted.popleft()
            self._met.add(wanted.path)
            staged = self._staged.get(wanted.path)
            if staged is not None and staged.whole:
                continue
            self._unstaged[wanted.path] = None
            few = len(self._met) + len(self._wanted) < PARTS
            one_level = wanted.one_level or few or staged is not None
            # A part that is alone may use all threads; of many, each gets one.
            threads = max(1, PARTS // (1 + len(self._under_way) + len(self._wanted)))
            self._under_way.add(pool.submit(self._list, replace(wanted, one_level=one_level), threads))

    def _list(self, wanted: _Wanted, threads: int) -> _Found:
        since_ns = self._now_ns()
        try:
            if not wanted.one_level:
                return self._try_whole(wanted.path, threads, since_ns) or self._list_level(wanted.path, since_ns)
            level = self._list_level(wanted.path, since_ns)
            whole = self._try_whole(wanted.path, threads, since_ns) if len(level.more) > PART_COUNT else None
            if whole is None:
                return level
            self._job.count(-level.part.files)
            return whole
        except (NotFound, NotADirectory):
            if wanted.path == self._job.about.path:
                raise
            # Deleted since its parent was listed; or the whole source is away, and then this raises.
            self._call(lambda ufs: ufs.stat(self._job.about.path))
            return _Found(Part(wanted.path, True, 0, 0), since_ns, [], [])

    def _try_whole(self, path: str, threads: int, since_ns: int) -> _Found | None:
        """A part with all that is below it; None when it is too large for that."""
        batches = self._call(lambda ufs: self._collect(ufs, path, threads))
        if batches is None:
            return None
        levels = list(cut(batches))
        files = sum(level.num_rows - level.column("is_dir").true_count for _, level in levels)
        rows = sum(batch.num_rows for batch in batches)
        self._job.count(files - rows)
        return _Found(Part(path, True, files, len(levels)), since_ns, levels, [])

    def _collect(self, ufs: UnderFileSystem, path: str, threads: int) -> list[Any] | None:
        batches, rows, nested, complete = [], 0, False, False
        try:
            with closing(ufs.list_tree(path, threads)) as listing:
                for batch in listing:
                    self._pace(path)
                    if self._job.stop.is_set():
                        raise JobEnded
                    batches.append(batch)
                    rows += batch.num_rows
                    self._job.count(batch.num_rows)
                    nested = nested or has_directories(batch)
                    if rows > self._part_rows and nested:
                        return None
            complete = True
            return batches
        finally:
            if not complete:
                self._job.count(-rows)

    def _list_level(self, path: str, since_ns: int) -> _Found:
        with self._levels:
            listing = self._call(lambda ufs: ufs.list_directory(path))
        names = listing.column("name").filter(listing.column("is_dir")).to_pylist()
        shown = sorted({name for name in names if paths.is_shown(name)})
        more = [_Wanted(paths.join(path, name.decode("utf-8", "surrogateescape")), len(shown) == 1) for name in shown]
        files = listing.num_rows - len(names)
        self._job.count(files)
        return _Found(Part(path, not more, files, 1), since_ns, [("", listing)], more)

    def _call(self, use: Callable[[UnderFileSystem], Any]) -> Any:
        if self._job.stop.is_set():
            raise JobEnded
        return self._sources.call(self._job.dataset.name, use)


def _slices(whole: list[_Item], size: int) -> Iterator[list[_Item]]:
    return (whole[start : start + size] for start in range(0, len(whole), size))
