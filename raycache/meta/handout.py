"""Handing out what the source has not got yet to workers, and noting what became of it.

Order. The rows of a dataset are brought about as they were written: puts and new directories that follow each other go
side by side, and so do deletions; deletions wait for the puts before them, and puts for the deletions. What fails in a
way that only somebody's help can end is *set aside*: it is tried again, and nothing waits for it.

A row that is handed out is *leased*: to a process, until ``not_before_ns``. Whoever calls again says what it is at, and
the lease goes on. What a call was told and never heard is free again with its next call; what a process had that is
gone, with its successor's first or at the end of the lease. So a row may be at two workers at once, and each put says
what it expects to find: the mark of a put tells a worker that what it finds is its own.

Nothing is put over, or deleted from a source, that files here take bytes from: it waits for files that are to be put
from there, and for all others, that file itself included, a worker is told to keep these bytes in a segment first. Nor
is anything put over that is being copied from.

Threading: safe; the catalog does one transaction at a time. Calls that wait hold no lock.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice
from random import Random
from sqlite3 import Connection

from raycache.core.inode import Place
from raycache.core.persisting import (
    BLOCKED,
    CONFLICT,
    DONE,
    LATER,
    REFUSED,
    Behind,
    Outcome,
    Task,
)
from raycache.meta.behind import behind, matching
from raycache.meta.catalog import Catalog
from raycache.meta.journal import note_gone
from raycache.meta.settling import note_done
from raycache.meta.tasks import (
    COLUMNS,
    FAILING,
    IN_THE_WAY,
    Row,
    is_copied_from,
    is_there,
    keep_task,
    needed_by,
    raw,
    task_of,
    text,
    waits_for,
)

LEASE_NS = 150 * 10**9
"""How long a worker may be silent and keep what it is at; it calls every second or so. After a call it has at least
four fifths of this: time to begin (store.persisting.BEGIN_S) and for a request to end."""
AWAY_NS = 30 * 10**9
"""A worker that has not called for so long is away: nothing waits for what only it can do."""
BACKOFF_NS, BACKOFF_MAX_NS = 500_000_000, 30 * 10**9
"""Pause after a first failure, doubled with each further one."""
WAIT_MAX_S = 5.0
"""Longest that one call waits."""
WAITERS = 16
"""Calls that wait at once: each keeps a thread of the master's."""
_SCANNED = 20_000
"""Rows looked at for one call, most of which cannot go yet."""
_ASIDE = {CONFLICT: FAILING, REFUSED: FAILING, BLOCKED: IN_THE_WAY}
_RUNS = (("put", "mkdir"), ("delete",), ("rmdir",))


class Handout:
    """See the module."""

    def __init__(self, catalog: Catalog, now_ns: Callable[[], int], random: Random | None = None) -> None:
        self._catalog = catalog
        self._now_ns = now_ns
        self._random = random or Random()
        self._turns: dict[str, tuple[str, int]] = {}
        """Of each worker: its process, and the number of the last call that was heard."""
        self._called_ns: dict[str, int] = {}
        self._pauses: dict[str, tuple[int, int]] = {}
        """Of datasets whose source does not answer: how often it has not, and when to try again."""
        self._next = 0
        self._changed = threading.Condition()
        self._waiters = threading.BoundedSemaphore(WAITERS)

    # Workers.

    def exchange(
        self,
        worker_id: str,
        process: str,
        turn: int,
        outcomes: Sequence[Outcome],
        under_way: Sequence[tuple[str, str]],
        want: int,
    ) -> list[Task]:
        """Note what became of tasks, and hand out at most ``want`` more.

        ``process``: of the worker, another one with each start; ``turn``: of its calls, rising. ``under_way``: dataset
        and path of all that it is still at.
        """
        now_ns, lease = self._now_ns(), f"{worker_id}:{process}"
        with self._catalog.transaction() as db:
            known = self._turns.get(worker_id)
            if known is not None and known[0] == process and turn <= known[1]:
                return []  # overtaken by the worker's next call
            if not self._called_ns:  # the master has just started: workers that were at it can say so
                db.execute("UPDATE pending SET not_before_ns = ? WHERE lease != ''", (now_ns + LEASE_NS,))
            if known is None or known[0] != process:
                _free_others(db, worker_id, lease)
            if now_ns - self._called_ns.get(worker_id, 0) > AWAY_NS:
                db.execute("UPDATE pending SET aside = 0, error = '' WHERE aside = 2 AND worker_id = ?", (worker_id,))
            self._called_ns[worker_id] = now_ns
            self._settle(db, lease, outcomes, now_ns)
            _renew(db, lease, under_way, now_ns)
            found = self._take(db, worker_id, lease, want, now_ns) if want > 0 else []
        self._turns[worker_id] = process, turn
        if outcomes:
            with self._changed:
                self._changed.notify_all()
        return found

    def _settle(self, db: Connection, lease: str, outcomes: Sequence[Outcome], now_ns: int) -> None:
        failing: dict[str, bool] = {}
        for outcome in outcomes:
            key = (outcome.dataset, raw(outcome.path))
            row = db.execute(f"SELECT {COLUMNS} FROM pending WHERE dataset = ? AND path = ?", key).fetchone()
            if row is None or Row._make(row).lease != lease:
                continue  # its dataset was removed, or somebody else has it by now
            if outcome.result == DONE:
                note_done(db, Row._make(row), outcome, lease.partition(":")[0])
                failing[outcome.dataset] = False
            else:
                self._note_failed(db, Row._make(row), outcome, now_ns)
                if outcome.result == LATER:
                    failing.setdefault(outcome.dataset, True)
        for dataset, is_failing in failing.items():
            if not is_failing:
                self._pauses.pop(dataset, None)
            else:
                count = self._pauses.get(dataset, (0, 0))[0] + 1
                self._pauses[dataset] = (count, now_ns + self._backoff_ns(count))

    def _note_failed(self, db: Connection, row: Row, outcome: Outcome, now_ns: int) -> None:
        if row.seq != outcome.seq:  # changed meanwhile: the next try is about something else
            db.execute("UPDATE pending SET lease = '', not_before_ns = 0 WHERE seq = ?", (row.seq,))
            return
        conflict = outcome.result == CONFLICT
        aside = _ASIDE.get(outcome.result, 0)
        db.execute(
            "UPDATE pending SET lease = '', tries = tries + 1, not_before_ns = ?, error = ?, aside = ?, conflict = ?,"
            " found_etag = ? WHERE seq = ?",
            (
                now_ns + self._backoff_ns(row.tries + 1), outcome.error, aside, conflict,
                outcome.etag if conflict else "", row.seq,
            ),
        )  # fmt: skip

    def _backoff_ns(self, failures: int) -> int:
        longest = min(BACKOFF_MAX_NS, BACKOFF_NS << min(failures - 1, 16))
        return int(longest * self._random.uniform(0.5, 1.0))

    def _take(self, db: Connection, worker_id: str, lease: str, want: int, now_ns: int) -> list[Task]:
        datasets = [name for (name,) in db.execute("SELECT DISTINCT dataset FROM pending ORDER BY dataset")]
        if not datasets:
            return []
        self._set_aside_away(db, now_ns)
        self._next = (self._next + 1) % len(datasets)
        found: list[Task] = []
        # Each dataset in turn is the first, and gets all it wants: the next call is another's.
        for dataset in (*datasets[self._next :], *datasets[: self._next]):
            paused = self._pauses.get(dataset)
            if paused is not None and paused[1] > now_ns:
                continue
            room = want - len(found) if paused is None else min(1, want - len(found))
            found += self._take_from(db, dataset, worker_id, lease, room, now_ns)
        return found

    def _take_from(
        self, db: Connection, dataset: str, worker_id: str, lease: str, room: int, now_ns: int
    ) -> list[Task]:
        found: list[Task] = []
        while len(found) < room:
            is_other = False
            for row in _due(db, dataset, worker_id, now_ns, 2 * room):
                if len(found) < room and not (row.kind == "rmdir" and _has_below(db, row)):
                    task, is_settled = self._hand_out(db, row, lease, now_ns)
                    found += [task] if task is not None else []
                    is_other |= is_settled
            if found or not is_other:
                break  # else what has waited for it may go
        return found

    def _hand_out(self, db: Connection, row: Row, lease: str, now_ns: int) -> tuple[Task | None, bool]:
        """The task of a row, if it can be had now; and whether others need not wait for the row any more."""
        if is_there(db, row):
            db.execute("DELETE FROM pending WHERE seq = ?", (row.seq,))
            return None, True
        if is_copied_from(db, row):
            return None, False
        needed = needed_by(db, row)
        first = waits_for(db, row, needed)
        if first is not None:
            if first.aside:
                self._set_aside(db, row, f"waits for {text(first.path)}, which has bytes from here", now_ns)
            return None, first.aside
        task = keep_task(row, needed) if needed else task_of(db, row, now_ns)
        if row.base_etag and not needed:
            note_gone(db, row.dataset, row.path, row.base_etag, row.ino)
        tried = json.dumps(task.tried) if task.tried else row.tried
        db.execute(
            "UPDATE pending SET lease = ?, not_before_ns = ?, tried = ? WHERE seq = ?",
            (lease, now_ns + LEASE_NS, tried, row.seq),
        )
        return task, False

    def _set_aside(self, db: Connection, row: Row, error: str, now_ns: int) -> None:
        db.execute(
            "UPDATE pending SET aside = 1, tries = tries + 1, not_before_ns = ?, error = ? WHERE seq = ?",
            (now_ns + self._backoff_ns(row.tries + 1), error, row.seq),
        )

    def _set_aside_away(self, db: Connection, now_ns: int) -> None:
        """Nothing waits for what only a worker can do that is away."""
        workers = db.execute("SELECT DISTINCT worker_id FROM pending WHERE kind = 'put' AND aside = 0").fetchall()
        for (worker_id,) in workers:
            # After a start of the master nobody has called yet.
            called_ns = self._called_ns.setdefault(worker_id, now_ns) if worker_id else now_ns
            if now_ns - called_ns > AWAY_NS:
                db.execute(
                    "UPDATE pending SET aside = 2, error = 'worker ' || worker_id || ', which has its bytes, is away'"
                    " WHERE worker_id = ? AND aside = 0",
                    (worker_id,),
                )

    # Everybody else.

    def wait(self, places: Sequence[Place], wait_s: float) -> Behind:
        """Have what is behind of files and trees put soon, and wait up to ``wait_s``, WAIT_MAX_S at most, until the
        source has it or something stands in the way; what is behind then."""
        may_wait = self._waiters.acquire(blocking=False)  # others ask again
        try:
            return self._wait(places, time.monotonic() + (min(wait_s, WAIT_MAX_S) if may_wait else 0.0))
        finally:
            if may_wait:
                self._waiters.release()

    def _wait(self, places: Sequence[Place], deadline: float) -> Behind:
        with self._catalog.transaction() as db:
            for place in places:
                _hurry(db, place)
        while True:
            found = self.behind(places)
            left_s = deadline - time.monotonic()
            if found.paths == found.stuck or left_s <= 0:
                return found
            with self._changed:
                self._changed.wait(min(left_s, 0.5))

    def behind(self, places: Sequence[Place]) -> Behind:
        """What the source has not got yet of files and trees."""
        with self._catalog.transaction() as db:
            return behind(db, places)

    def status(self) -> dict[str, Behind]:
        """The same for each dataset of which something is behind."""
        with self._catalog.transaction() as db:
            names = [name for (name,) in db.execute("SELECT DISTINCT dataset FROM pending")]
            return {name: behind(db, [(name, "")]) for name in names}

    def overwrite(self, dataset: str, path: str) -> int:
        """See client.protocols.PersistApi.overwrite_conflicts."""
        place = (dataset, path)
        with self._catalog.transaction() as db:
            return db.execute(
                "UPDATE pending SET base_etag = found_etag, conflict = 0, aside = 0, not_before_ns = 0, tries = 0,"
                f" error = '' {matching(place)[0]} AND conflict = 1",
                matching(place)[1],
            ).rowcount


def _hurry(db: Connection, place: Place) -> None:
    """Leave alone no longer what is behind of a place, and what must go before it."""
    where, args = matching(place)
    for dataset, last in db.execute(f"SELECT dataset, max(seq) FROM pending {where} GROUP BY dataset", args).fetchall():
        db.execute(
            "UPDATE pending SET not_before_ns = 0"
            " WHERE seq <= ? AND dataset = ? AND lease = '' AND tries = 0 AND not_before_ns > 0",
            (last, dataset),
        )


def _free_others(db: Connection, worker_id: str, lease: str) -> None:
    """What earlier processes of a worker were at: they are gone, as it is there."""
    db.execute(
        "UPDATE pending SET lease = '', not_before_ns = 0 WHERE lease > ? AND lease < ? AND lease != ?",
        (f"{worker_id}:", f"{worker_id};", lease),  # ';' follows ':'
    )


def _renew(db: Connection, lease: str, under_way: Sequence[tuple[str, str]], now_ns: int) -> None:
    """Prolong what a process is at; what it was given and does not know of is free again."""
    at = {(dataset, raw(path)) for dataset, path in under_way}
    for seq, dataset, path, until_ns in db.execute(
        "SELECT seq, dataset, path, not_before_ns FROM pending WHERE lease = ?", (lease,)
    ).fetchall():
        if (dataset, path) not in at:
            db.execute("UPDATE pending SET lease = '', not_before_ns = 0 WHERE seq = ?", (seq,))
        elif until_ns - now_ns < LEASE_NS * 4 // 5:
            db.execute("UPDATE pending SET not_before_ns = ? WHERE seq = ?", (now_ns + LEASE_NS, seq))


def _due(db: Connection, dataset: str, worker_id: str, now_ns: int, count: int) -> list[Row]:
    """Rows that a worker may have now, in order, about ``count``; those that were set aside last."""
    first = {
        kind: db.execute(
            "SELECT min(seq) FROM pending WHERE dataset = ? AND kind = ? AND aside = 0", (dataset, kind)
        ).fetchone()[0]
        for kinds in _RUNS
        for kind in kinds
    }
    begins = [min((first[kind] for kind in kinds if first[kind]), default=None) for kinds in _RUNS]
    order = sorted((begin, number) for number, begin in enumerate(begins) if begin is not None)
    found: list[Row] = []
    if order:
        stop = order[1][0] if len(order) > 1 else 1 << 62
        rows = [
            _scan(db, dataset, kind, mine, stop)
            for kind in _RUNS[order[0][1]]
            for mine in dict.fromkeys(("", worker_id))
        ]
        for row in islice(merge(*rows), _SCANNED):
            if row.not_before_ns <= now_ns:
                found.append(row)
            elif not row.lease and not row.tries:
                break  # so are all that were written after it: left alone for a while
            if len(found) >= count:
                break
    aside = db.execute(
        f"SELECT {COLUMNS} FROM pending WHERE dataset = ? AND aside != 0 AND conflict = 0 AND not_before_ns <= ?"
        " AND worker_id IN ('', ?) ORDER BY not_before_ns LIMIT 16",
        (dataset, now_ns, worker_id),
    ).fetchall()
    return found + [Row._make(row) for row in aside]


def _scan(db: Connection, dataset: str, kind: str, worker_id: str, stop: int) -> Iterator[Row]:
    rows = db.execute(
        f"SELECT {COLUMNS} FROM pending WHERE dataset = ? AND kind = ? AND worker_id = ? AND conflict = 0 AND seq < ?"
        " AND aside = 0 ORDER BY seq",
        (dataset, kind, worker_id, stop),
    )
    return map(Row._make, rows)


def _has_below(db: Connection, row: Row) -> bool:
    """Whether something is to go, or to come, in a directory that is to go."""
    return (
        db.execute(
            "SELECT 1 FROM pending WHERE dataset = ? AND path > ? AND path < ? LIMIT 1",
            (row.dataset, row.path + b"/", row.path + b"0"),  # '0' follows '/'
        ).fetchone()
        is not None
    )
