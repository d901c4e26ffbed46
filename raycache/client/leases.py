"""Views are leased: a client asks every LEASE_S seconds which of the blocks that it has mapped their workers still
keep, and lets go of the others. So what a worker evicts is really freed, LEASE_S and one call later at most, but for
what the program itself still holds of a result.

One call per worker and round, however many views; none while nothing is mapped.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

from raycache.client.reader import Views
from raycache.core.scheduling import Scheduler
from raycache.errors import Unavailable, WorkerLost

LEASE_S = 2.0
StillKept = Callable[[str, Sequence[bytes]], Sequence[bool]]
"""Which of some blocks a worker has in memory. Raises WorkerLost when it is gone, Unavailable when it does not say."""


def renew(views: Views, still_kept: StillKept) -> int:
    """One round; the number of views that were let go."""
    gone: list[bytes] = []
    for worker_id, block_ids in views.by_worker().items():
        try:
            answers = still_kept(worker_id, block_ids)
        except WorkerLost:
            answers = [False] * len(block_ids)
        except Unavailable:
            continue  # busy or stuck: it evicts nothing meanwhile, or says so in the next round
        gone += [block_id for block_id, kept in zip(block_ids, answers, strict=True) if not kept]
    views.let_go(gone)
    return len(gone)


def keep_renewing(views: Views, still_kept: StillKept, scheduler: Scheduler) -> None:
    """Renew beside the caller, for as long as somebody uses the views."""
    used = weakref.ref(views)

    def run() -> None:
        while (mapped := used()) is not None:
            renew(mapped, still_kept)
            del mapped
            scheduler.sleep(LEASE_S)

    scheduler.spawn(run, "raycache-leases")
