"""What was written, shown to readers: of each directory that was touched, the next version of its manifest.

A version is made from one look at the directory, outside of transactions, and stored in another one, if nobody else
published meanwhile. A change that comes in between leaves the directory touched.

Cost. To publish takes time in proportion to the directory, however little has changed: one that took t is not published
by itself again for REST times t, so that publishing takes a tenth of the time of each directory at most; all of them
together leave half of the time to others. ``publish`` does it at once.

Bounds: GROUP_ROWS entries read, or one directory, in one transaction. Threading: safe; one thread at a time publishes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from raycache.core.listing import Beside, append
from raycache.core.manifest import Manifest
from raycache.errors import InvalidInput, Unavailable
from raycache.meta.catalog import Catalog, Listed, save_listed
from raycache.meta.overlay import Upper, beside, read_upper, settled, written
from raycache.meta.versions import next_version

REST = 9
POLL_S = 0.2
"""How often it is looked for directories that were touched."""
GROUP, GROUP_ROWS = 64, 20_000
"""Directories that are stored in one transaction, and entries beyond which no more join them."""
DUE_AT_ONCE = 4096
"""Touched directories that are looked at in one step, those touched first."""
WAIT_S = 5.0
"""How long ``publish`` waits for its turn."""
_TRIES = 5
_NO_IDS = np.zeros(0, np.uint64)
_log = logging.getLogger("raycache.master")


class _Next(NamedTuple):
    """The next version of a directory, ready to be stored; None where the stored one shows all."""

    upper: Upper
    listed: Listed | None


class Publisher:
    """See the module."""

    def __init__(
        self,
        catalog: Catalog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._catalog = catalog
        self._clock = clock
        self._turn = threading.Lock()
        self._rests: dict[int, float] = {}
        """Until when a directory is left alone."""
        self.published = 0
        """Versions stored, for figures."""

    def publish(self, dir_ids: Sequence[int]) -> list[int]:
        """See TreeApi.publish; 0 for a directory that is gone. Raises Unavailable."""
        if not self._turn.acquire(timeout=WAIT_S):
            raise Unavailable("others are being published; try again")
        try:
            self._publish_all(self._touched(dir_ids))
        finally:
            self._turn.release()
        return [self._catalog.version(dir_id) for dir_id in dir_ids]

    def step(self) -> float:
        """Publish what is due, unless somebody is at it; how long that took, seconds."""
        if not self._turn.acquire(blocking=False):
            return 0.0
        try:
            begun = self._clock()
            due = self._due(begun)
            if due:
                self._publish_all(due)
            return self._clock() - begun
        finally:
            self._turn.release()

    def run(self, stop: threading.Event) -> None:
        """Publish what is due until told to stop."""
        pause_s = POLL_S
        while not stop.wait(pause_s):
            try:
                pause_s = max(POLL_S, self.step())
            except Exception:  # noqa: BLE001 - the thread must outlive whatever one directory brings
                _log.exception("cannot publish what was written")
                pause_s = WAIT_S

    def _touched(self, dir_ids: Sequence[int]) -> list[int]:
        """Those of some directories that are behind: the others need not be looked at."""
        find = "SELECT EXISTS (SELECT 1 FROM touched WHERE dir_id = ?)"
        with self._catalog.transaction() as db:
            return [each for each in dict.fromkeys(dir_ids) if db.execute(find, (each,)).fetchone()[0]]

    def _due(self, now: float) -> list[int]:
        with self._catalog.transaction() as db:
            touched = [
                row[0] for row in db.execute("SELECT dir_id FROM touched ORDER BY since_ns LIMIT ?", (DUE_AT_ONCE,))
            ]
        self._rests = {dir_id: until for dir_id, until in self._rests.items() if until > now}
        return [dir_id for dir_id in touched if dir_id not in self._rests]

    def _publish_all(self, dir_ids: list[int]) -> None:
        """Those that others publish at the same time are tried again."""
        for _ in range(_TRIES):
            late: list[int] = []
            while dir_ids:
                late += self._publish_group(dir_ids)
            if not late:
                return
            dir_ids = late

    def _publish_group(self, dir_ids: list[int]) -> list[int]:
        """Publish the first of these, and take them from the list; those that have to be tried again."""
        begun = self._clock()
        uppers: list[Upper] = []
        with self._catalog.transaction() as db:
            rows = 0
            while dir_ids and len(uppers) < GROUP and rows < GROUP_ROWS:
                dir_id = dir_ids.pop(0)
                upper = read_upper(db, dir_id)
                if upper is None:
                    db.execute("DELETE FROM touched WHERE dir_id = ?", (dir_id,))  # removed since it was touched
                else:
                    uppers.append(upper)
                    rows += len(upper.entries)
        made = [each for each in map(self._made, uppers) if each is not None]
        late: list[int] = []
        with self._catalog.transaction() as db:
            for upper, listed in made:
                if listed is None or save_listed(db, listed) is not None:
                    settled(db, upper)
                    self.published += listed is not None
                else:
                    late.append(upper.dir_id)
        ended = self._clock()
        share_s = (ended - begun) / max(1, len(uppers))
        self._rests.update((upper.dir_id, ended + REST * share_s) for upper in uppers)
        return late

    def _made(self, upper: Upper) -> _Next | None:
        """None where it cannot be made: the directory stays touched until it is listed anew."""
        try:
            old = self._catalog.manifest(upper.dir_id)
        except InvalidInput as error:  # whoever asks for it has it listed anew
            _log.warning("what was written in %s/%s is not published: %s", upper.dataset, upper.path, error)
            return None
        if old is None:
            return _Next(upper, None)  # nobody has been shown it; the first listing shows all
        here = replace(old.directory, path=upper.path)
        shown = Manifest(here, old.columns)
        of = written(upper, shown)
        known = beside(upper, shown, of)
        new = next_version(here, shown, of.rows, _number_none, known)
        if new is None and here != old.directory:  # it was moved as it is
            live = shown.live_rows(0, shown.row_count)
            new = append(shown, of.rows.slice(0, 0), _NO_IDS, here.listed_ns, here.hidden, Beside(live, {}))
        return _Next(upper, None if new is None else Listed.of(new))


def _number_none(paths: Sequence[str]) -> Sequence[int]:
    assert not paths, paths  # what was written has its numbers
    return ()
