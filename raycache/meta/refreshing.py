"""Refreshing by itself: which directory of which dataset is listed anew next.

``Schedule`` is the policy: pure, told the time. ``Refresher`` does one step of it; the master's loop calls it. One
listing at a time, whatever there is to do: datasets that are due take turns, directory by directory, so that a large
one does not hold up the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from raycache.core.values import Dataset
from raycache.errors import AccessDenied, NotFound, Unavailable
from raycache.meta.catalog import Catalog

_log = logging.getLogger("raycache.refresh")


@dataclass
class Round:
    """How far a dataset is."""

    begun_s: float
    """When its last round began; before the first one, when the dataset was first seen here."""
    cursor: int = 0
    """The directory that was listed last in the round under way."""
    under_way: bool = False
    turn: int = 0
    """Number of the turn that it had last."""
    refreshed: int = 0
    failures: int = 0
    error: str = ""
    """What failed last; empty again after a round without a failure."""
    failed_now: bool = False


class Schedule:
    """A round over all listed directories of a dataset begins at most once in its interval; one that takes longer is
    followed by the next at once, and rounds that were missed are not made up for."""

    def __init__(self) -> None:
        self._rounds: dict[str, Round] = {}
        self._turns = 0

    def next(self, datasets: Sequence[Dataset], now_s: float) -> tuple[Dataset, int] | None:
        """The dataset whose turn it is, and the directory after which to go on; None when nothing is due."""
        wanted = {dataset.name: dataset for dataset in datasets if dataset.refresh_every_s}
        self._rounds = {name: self._rounds.get(name) or Round(now_s) for name in wanted}
        for name, each in self._rounds.items():
            if not each.under_way and now_s - each.begun_s >= wanted[name].refresh_every_s:
                each.under_way, each.begun_s, each.cursor, each.failed_now = True, now_s, 0, False
        due = [(each.turn, name) for name, each in self._rounds.items() if each.under_way]
        if not due:
            return None
        _, name = min(due)
        self._turns += 1
        self._rounds[name].turn = self._turns
        return wanted[name], self._rounds[name].cursor

    def refreshed(self, name: str, dir_id: int) -> None:
        """A directory was listed."""
        self._rounds[name].cursor = dir_id
        self._rounds[name].refreshed += 1

    def skipped(self, name: str, dir_id: int) -> None:
        """A directory is no more."""
        self._rounds[name].cursor = dir_id

    def failed(self, name: str, dir_id: int, error: Exception) -> None:
        """A directory could not be listed; it is tried again in the next round."""
        each = self._rounds[name]
        each.cursor, each.error, each.failed_now = dir_id, str(error), True
        each.failures += 1

    def finished(self, name: str) -> None:
        """The round is over: all directories had their turn, or there is no use in going on."""
        each = self._rounds[name]
        each.under_way = False
        if not each.failed_now:
            each.error = ""

    def about(self, name: str) -> dict[str, Any]:
        """Counters of a dataset since the master started."""
        each = self._rounds.get(name) or Round(0)
        return {"refreshed": each.refreshed, "refresh_failures": each.failures, "refresh_error": each.error}


class Refresher:
    """Takes the steps. One thread calls ``step``; ``about`` may be called by others."""

    def __init__(self, catalog: Catalog, refresh: Callable[[int], object]) -> None:
        """``refresh``: lists a directory, by its id, anew."""
        self._catalog = catalog
        self._refresh = refresh
        self._schedule = Schedule()

    def step(self, now_s: float) -> bool:
        """List the one directory whose turn it is; whether there was any. ``now_s``: a clock that never goes back."""
        turn = self._schedule.next(self._catalog.datasets(), now_s)
        if turn is None:
            return False
        dataset, cursor = turn
        dir_id = self._catalog.next_listed(dataset.name, cursor)
        if dir_id is None:
            self._schedule.finished(dataset.name)
            return True
        try:
            self._refresh(dir_id)
            self._schedule.refreshed(dataset.name, dir_id)
        except Exception as error:  # noqa: BLE001 - whatever one listing ends in, the others must go on
            self._failed(dataset, dir_id, error)
        return True

    def about(self, name: str) -> dict[str, Any]:
        """See Schedule.about."""
        return self._schedule.about(name)

    def _failed(self, dataset: Dataset, dir_id: int, error: Exception) -> None:
        if isinstance(error, NotFound) and dir_id != dataset.root_id:
            self._schedule.skipped(dataset.name, dir_id)  # its parent's listing says so too
            return
        _log.warning("cannot refresh dataset %s: %s", dataset.name, error)
        self._schedule.failed(dataset.name, dir_id, error)
        if isinstance(error, Unavailable | AccessDenied):  # the next directory would wait as long for the same
            self._schedule.finished(dataset.name)
