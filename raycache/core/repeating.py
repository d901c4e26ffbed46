"""A thread that does a step now and then, for as long as the process lives, whatever becomes of one step."""

from __future__ import annotations

import logging
from collections.abc import Callable

from raycache.core.scheduling import THREADS, Scheduler
from raycache.errors import RaycacheError

_log = logging.getLogger("raycache")


def keep_doing(
    step: Callable[[], object], every_s: float, name: str, trouble: str, scheduler: Scheduler = THREADS
) -> None:
    """Do it beside the caller, the first time after one pause. ``trouble``: what cannot be done when it fails, for the
    log."""

    def run() -> None:
        while True:
            scheduler.sleep(every_s)
            try:
                step()
            except RaycacheError as error:
                _log.warning("%s: %s", trouble, error)
            except Exception:  # noqa: BLE001 - the thread must outlive whatever one step brings
                _log.exception("%s", trouble)

    scheduler.spawn(run, name)
