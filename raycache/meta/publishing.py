"""What was written, shown to readers: of each directory that was touched, the next version of its manifest.

A version is made from one look at the directory, outside of transactions, and stored in another one, if nobody else
has published since that look. A change that comes in between leaves the directory touched.

Cost. To publish takes time in proportion to the directory, however little has changed: one that took t is not published
by itself again for REST times t, so that publishing takes a tenth of the time of each directory at most; all of them
together leave half of the time to others. ``publish`` does it at once.

Bounds: GROUP_ROWS entries read, or one directory, in one transaction. Threading: safe; one thread at a time publishes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from raycache.core.listing import Beside, append
from raycache.core.manifest import Manifest
from raycache.errors import InvalidInput, Unavailable
from raycache.meta.catalog import Catalog, Listed, save_listed, stored_version
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


class _Look(NamedTuple):
    """A directory as the tree has it, and the version that was published at that moment; 0: none."""

    upper: Upper
    version: int


class _Next(NamedTuple):
    """The next version of a directory, ready to be stored; None where the stored one shows all."""

    look: _Look
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
        self._askers = 0
        """Who waits for a turn; with the lock below."""
        self._asking = threading.Lock()
        self._rests: dict[int, float] = {}
        """Until when a directory is left alone."""
        self.published = 0
        """Versions stored, for figures."""

    def publish(self, dir_ids: Sequence[int]) -> list[int]:
        """See TreeApi.publish; 0 for a directory that is gone. Raises Unavailable."""
        with self._my_turn():
            late = self._publish_all(self._touched(dir_ids))
        if late:
            dataset, path = self._catalog.directory(late[0])
            raise Unavailable(f"{dataset.name}/{path}: others keep publishing new versions of it; try again")
        return [self._catalog.version(dir_id) for dir_id in dir_ids]

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        with self._asking:
            self._askers += 1
        try:
            has_turn = self._turn.acquire(timeout=WAIT_S)
        finally:
            with self._asking:
                self._askers -= 1
        if not has_turn:
            raise Unavailable(f"what was written could not be published within {WAIT_S:g} s; try again")
        try:
            yield
        finally:
            self._turn.release()

    def step(self) -> float:
        """Publish what is due, unless somebody is at it, and until somebody waits to; how long that took, seconds."""
        if not self._turn.acquire(blocking=False):
            return 0.0
        try:
            begun = self._clock()
            due = self._due(begun)
            while due and not self._askers:
                self._publish_group(due)
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

    def _publish_all(self, dir_ids: list[int]) -> list[int]:
        """Those that others publish at the same time are tried again; which of them still were too late."""
        for _ in range(_TRIES):
            late: list[int] = []
            while dir_ids:
                late += self._publish_group(dir_ids)
            dir_ids = late
        return dir_ids

    def _publish_group(self, dir_ids: list[int]) -> list[int]:
        """Publish the first of these, and take them from the list; those that have to be tried again."""
        begun = self._clock()
        looks: list[_Look] = []
        with self._catalog.transaction() as db:
            rows = 0
            while dir_ids and len(looks) < GROUP and rows < GROUP_ROWS:
                dir_id = dir_ids.pop(0)
                upper = read_upper(db, dir_id)
                if upper is None:
                    db.execute("DELETE FROM touched WHERE dir_id = ?", (dir_id,))  # removed since it was touched
                else:
                    looks.append(_Look(upper, stored_version(db, dir_id)))
                    rows += len(upper.entries)
        made = [each for each in map(self._made, looks) if each is not None]
        late: list[int] = []
        with self._catalog.transaction() as db:
            for (upper, version), listed in made:
                if stored_version(db, upper.dir_id) != version:
                    late.append(upper.dir_id)
                    continue
                if listed is not None:
                    save_listed(db, listed)
                    self.published += 1
                settled(db, upper)
        ended = self._clock()
        share_s = (ended - begun) / max(1, len(looks))
        self._rests.update((look.upper.dir_id, ended + REST * share_s) for look in looks)
        return late

    def _made(self, look: _Look) -> _Next | None:
        """None where it cannot be made: the directory stays touched until it is listed anew."""
        upper = look.upper
        try:
            old = self._catalog.manifest(upper.dir_id)
        except InvalidInput as error:  # whoever asks for it has it listed anew
            _log.warning("what was written in %s/%s is not published: %s", upper.dataset, upper.path, error)
            return None
        if old is None or old.directory.version != look.version:
            # Nobody has been shown it, and the first listing shows all; or it shows more than was seen here: too late.
            return _Next(look, None)
        here = replace(old.directory, path=upper.path)
        shown = Manifest(here, old.columns)
        of = written(upper, shown)
        known = beside(upper, shown, of)
        new = next_version(here, shown, of.rows, _number_none, known)
        if new is None and here != old.directory:  # it was moved as it is
            live = shown.live_rows(0, shown.row_count)
            new = append(shown, of.rows.slice(0, 0), _NO_IDS, here.listed_ns, here.hidden, Beside(live, {}))
        return _Next(look, None if new is None else Listed.of(new))


def _number_none(paths: Sequence[str]) -> Sequence[int]:
    assert not paths, paths  # what was written has its numbers
    return ()
