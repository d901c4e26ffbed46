"""Views are leased: a client asks every LEASE_S seconds which of the blocks that it has mapped their workers still
keep, and lets go of the others. So what a worker evicts is really freed, LEASE_S and one call later at most, but for
what the program itself still holds of a result. The same call tells workers which of their blocks were read here
without asking them, from views and from block files: it is what eviction and ttl go by.

One call per worker and round, however many views; none while nothing is mapped or read.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

from raycache.client.blockfiles import BlockFiles
from raycache.client.reader import Reader, Views
from raycache.core.scheduling import Scheduler
from raycache.errors import Unavailable, WorkerLost

LEASE_S = 2.0
StillKept = Callable[[str, Sequence[bytes], Sequence[bytes]], Sequence[bool]]
"""Which of some blocks a worker has in memory; it is told as well which of its blocks were read. Raises WorkerLost when
it is gone, Unavailable when it does not say."""


def renew(views: Views, files: BlockFiles, still_kept: StillKept) -> int:
    """One round; the number of views that were let go."""
    gone: list[bytes] = []
    mapped, read_views, read_files = views.by_worker(), views.take_read(), files.take_read()
    for worker_id in {**mapped, **read_files}:
        block_ids = mapped.get(worker_id, [])
        read = read_files.get(worker_id, set()).union(read_views.intersection(block_ids))
        try:
            answers = still_kept(worker_id, block_ids, list(read))
        except WorkerLost:
            answers = [False] * len(block_ids)
        except Unavailable:
            continue  # busy or stuck: it evicts nothing meanwhile, or says so in the next round
        gone += [block_id for block_id, kept in zip(block_ids, answers, strict=True) if not kept]
    views.let_go(gone)
    return len(gone)


def keep_renewing(reader: Reader, still_kept: StillKept, scheduler: Scheduler) -> None:
    """Renew beside the caller, for as long as somebody uses the reader."""
    used = weakref.ref(reader)

    def run() -> None:
        while (reader := used()) is not None:
            renew(reader.views, reader.files, still_kept)
            del reader
            scheduler.sleep(LEASE_S)

    scheduler.spawn(run, "raycache-leases")
