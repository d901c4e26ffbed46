"""A process keeps near what others change: it asks the master now and then, and takes over what it holds of that.

One call per round where nothing changed. Threading: one thread, which ends with whoever it asks for.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Protocol

from raycache.core.scheduling import THREADS, Scheduler
from raycache.errors import RaycacheError

FOLLOW_S, QUIET_S = 1.0, 3.0
"""From one round to the next: where something has ever been changed, and where nothing has."""
_log = logging.getLogger("raycache.client")


class Follower(Protocol):
    """Who takes over what changed."""

    def catch_up(self) -> bool:
        """Ask what changed and take it over; whether anything has ever been changed."""
        ...


def keep_following(follower: Follower, may_ask: Callable[[], bool], scheduler: Scheduler = THREADS) -> None:
    """Follow beside the caller, for as long as somebody uses the follower. ``may_ask``: False when that is over too."""
    used = weakref.ref(follower)

    def run() -> None:
        while (follower := used()) is not None and may_ask():
            period_s = QUIET_S
            try:
                if follower.catch_up():
                    period_s = FOLLOW_S
            except RaycacheError as error:
                _log.debug("cannot ask what changed: %s", error)
            except Exception:  # noqa: BLE001 - whatever Ray raises as it ends: the thread must outlive it, if it goes on
                _log.debug("cannot ask what changed", exc_info=True)
            del follower
            scheduler.sleep(period_s)

    scheduler.spawn(run, "raycache-following")
