"""A recursive refresh as its caller sees it: start a job, ask how far it is, take over what it published."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from raycache import errors
from raycache.client.namespace import Namespace
from raycache.client.protocols import ListingsApi
from raycache.core.values import ListingJob
from raycache.errors import ClusterUnavailable, NotADirectory, RaycacheError, Unavailable

WAIT_S = 0.5
"""How long one call waits for the job."""
TRIES = 5
"""Restarts of the master that one refresh survives."""


def refresh_tree(
    namespace: Namespace, master: ListingsApi, uri: str, show: Callable[[ListingJob], object] = lambda _: None
) -> ListingJob:
    """List all that is below a directory again; the job at its end. ``show`` gets the progress, twice a second.

    An interrupt cancels the job. Raises NotFound, NotADirectory (a file), what the source raised, Unavailable when
    somebody cancelled the job; then nothing was published, and the next call goes on where this one was.
    """
    entry = namespace.entry(uri)
    if entry.row is not None:
        raise NotADirectory(f"{uri} is a file; refresh its directory")
    about = entry.manifest.directory
    for _ in range(TRIES):
        job = _run(master, about.dir_id, show)
        if job.error_kind != ClusterUnavailable.__name__:
            break  # else the master was restarted, and the next job goes on where that one was
    if job.state == "cancelled":
        raise Unavailable(f"{uri}: its listing was cancelled; refresh it again to go on from there")
    if job.state == "failed":
        raise getattr(errors, job.error_kind, RaycacheError)(job.error)
    namespace.forget_below(about.dataset, about.path)
    return job


def _run(master: ListingsApi, dir_id: int, show: Callable[[ListingJob], object]) -> ListingJob:
    job_id: int | None = None
    try:
        job_id = master.start_listing(dir_id)
        while (job := master.listing(job_id, WAIT_S)).state == "running":
            show(job)
    except RaycacheError:
        raise  # the master is away: the job goes on, or will be gone on with
    except BaseException:  # an interrupt above all: who asked for the listing does not want it any more
        with suppress(RaycacheError):
            # Its number may have been on the way here; to join the job is to learn it.
            master.cancel_listing(master.start_listing(dir_id) if job_id is None else job_id)
        raise
    return job
