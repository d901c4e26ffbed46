"""Handing out what the source has not got yet to workers, and noting what became of it.

Order. The rows of a dataset are brought about as they were written: puts and new directories that follow each other go
side by side, and so do deletions; deletions wait for the puts before them, and puts for the deletions. What fails in a
way that only somebody's help can end is *set aside*: it is tried again, and nothing waits for it.

A row that is handed out is *leased*: to a process, until ``not_before_ns``. Whoever calls again says what it is at, and
the lease goes on. What a call was told and never heard is free again with its next call; what a process had that is
gone, with its successor's first or at the end of the lease. So a row may be at two workers at once, and each put says
what it expects to find: the mark of a put tells a worker that what it finds is its own.

Nothing is put over, or deleted from, a source that other files still take bytes from.

Threading: safe; the catalog does one transaction at a time. Calls that wait hold no lock.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from heapq import merge
from itertools import islice
from random import Random
from sqlite3 import Connection
from typing import NamedTuple

from raycache.core.inode import Content, Place
from raycache.core.persisting import (
    CONFLICT,
    DONE,
    LATER,
    REFUSED,
    Attempt,
    Behind,
    Outcome,
    Task,
    relocated,
)
from raycache.meta.behind import behind, matching
from raycache.meta.catalog import Catalog
from raycache.meta.extents import read_content, replace_extents

LEASE_NS = 60 * 10**9
"""How long a worker may be silent and keep what it is at; it calls every second or so."""
AWAY_NS = 30 * 10**9
"""A worker that has not called for so long is away: nothing waits for what only it can do."""
ATTEMPTS_MAX = 16
"""Versions remembered of one path that may have got to the source unheard; only changes while it is away add one."""
BACKOFF_NS, BACKOFF_MAX_NS = 500_000_000, 30 * 10**9
"""Pause after a first failure, doubled with each further one."""
WAIT_MAX_S = 5.0
"""Longest that one call waits."""
_SCANNED = 20_000
"""Rows looked at for one call, most of which cannot go yet."""
_RUNS = (("put", "mkdir"), ("delete",), ("rmdir",))
_ROW = "seq, dataset, path, kind, ino, version, base_etag, tried, tries, not_before_ns, lease"


class _Row(NamedTuple):
    """A row of ``pending``."""

    seq: int
    dataset: str
    path: bytes
    kind: str
    ino: int | None
    version: int | None
    base_etag: str | None
    tried: str
    tries: int
    not_before_ns: int
    lease: str

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Of the puts, which may be there."""
        return tuple(Attempt(*each) for each in json.loads(self.tried or "[]"))


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
            key = (outcome.dataset, _raw(outcome.path))
            row = db.execute(f"SELECT {_ROW} FROM pending WHERE dataset = ? AND path = ?", key).fetchone()
            if row is None or _Row._make(row).lease != lease:
                continue  # its dataset was removed, or somebody else has it by now
            if outcome.result == DONE:
                _note_done(db, _Row._make(row), outcome)
                failing[outcome.dataset] = False
            else:
                self._note_failed(db, _Row._make(row), outcome, now_ns)
                if outcome.result == LATER:
                    failing.setdefault(outcome.dataset, True)
        for dataset, is_failing in failing.items():
            if not is_failing:
                self._pauses.pop(dataset, None)
            else:
                count = self._pauses.get(dataset, (0, 0))[0] + 1
                self._pauses[dataset] = (count, now_ns + self._backoff_ns(count))

    def _note_failed(self, db: Connection, row: _Row, outcome: Outcome, now_ns: int) -> None:
        if row.seq != outcome.seq:  # changed meanwhile: the next try is about something else
            db.execute("UPDATE pending SET lease = '', not_before_ns = 0 WHERE seq = ?", (row.seq,))
            return
        conflict = outcome.result == CONFLICT
        aside = 1 if conflict or outcome.result == REFUSED else 0
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
            was_set_aside = False
            for row in _due(db, dataset, worker_id, now_ns, 2 * room):
                if len(found) < room and not (row.kind == "rmdir" and _has_below(db, row)):
                    if self._set_aside_needed(db, row, now_ns):
                        was_set_aside = True
                    elif (task := _hand_out(db, row, lease, now_ns)) is not None:
                        found.append(task)
            if found or not was_set_aside:
                break  # else what has waited for it may go
        return found

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

    def _set_aside_needed(self, db: Connection, row: _Row, now_ns: int) -> bool:
        """Set aside what would take bytes away that other files are made of."""
        needed = _needed_by(db, row)
        if needed:
            db.execute(
                "UPDATE pending SET aside = 1, tries = tries + 1, not_before_ns = ?, error = ? WHERE seq = ?",
                (now_ns + self._backoff_ns(row.tries + 1), needed, row.seq),
            )
        return bool(needed)

    # Everybody else.

    def wait(self, places: Sequence[Place], wait_s: float) -> Behind:
        """Have what is behind of files and trees put soon, and wait up to ``wait_s``, WAIT_MAX_S at most, until the
        source has it or something stands in the way; what is behind then."""
        deadline = time.monotonic() + min(wait_s, WAIT_MAX_S)
        with self._catalog.transaction() as db:
            for place in places:
                _hurry(db, place)
        while True:
            found = self.behind(places)
            left_s = deadline - time.monotonic()
            if not found.paths or found.conflicts or left_s <= 0:
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
        """Decide conflicts at and below a path for what was written here: put over what the source was found to have.

        How many there were. What has changed in the source since then is a conflict again.
        """
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


def _hand_out(db: Connection, row: _Row, lease: str, now_ns: int) -> Task | None:
    """The task of a row, which is leased from now on; None where there is nothing to do any more."""
    attempts, content, origin = row.attempts, None, None
    if row.kind == "put":
        inode = db.execute("SELECT version, size_bytes FROM inodes WHERE ino = ?", (row.ino,)).fetchone()
        if inode is None:
            db.execute("DELETE FROM pending WHERE seq = ?", (row.seq,))
            return None
        content = read_content(db, row.ino or 0, inode[1])
        origin = _origin(db, row, inode[0], content)
        attempts = _with_attempt(attempts, (row.ino or 0, *inode), now_ns, origin)
    db.execute(
        "UPDATE pending SET lease = ?, not_before_ns = ?, tried = ? WHERE seq = ?",
        (lease, now_ns + LEASE_NS, json.dumps(attempts) if attempts else "", row.seq),
    )
    return Task(row.seq, row.dataset, _text(row.path), row.kind, row.base_etag or "", attempts, content, origin)


def _free_others(db: Connection, worker_id: str, lease: str) -> None:
    """What earlier processes of a worker were at: they are gone, as it is there."""
    db.execute(
        "UPDATE pending SET lease = '', not_before_ns = 0 WHERE lease > ? AND lease < ? AND lease != ?",
        (f"{worker_id}:", f"{worker_id};", lease),  # ';' follows ':'
    )


def _renew(db: Connection, lease: str, under_way: Sequence[tuple[str, str]], now_ns: int) -> None:
    """Prolong what a process is at; what it was given and does not know of is free again."""
    at = {(dataset, _raw(path)) for dataset, path in under_way}
    for seq, dataset, path, until_ns in db.execute(
        "SELECT seq, dataset, path, not_before_ns FROM pending WHERE lease = ?", (lease,)
    ).fetchall():
        if (dataset, path) not in at:
            db.execute("UPDATE pending SET lease = '', not_before_ns = 0 WHERE seq = ?", (seq,))
        elif until_ns - now_ns < LEASE_NS // 2:
            db.execute("UPDATE pending SET not_before_ns = ? WHERE seq = ?", (now_ns + LEASE_NS, seq))


def _due(db: Connection, dataset: str, worker_id: str, now_ns: int, count: int) -> list[_Row]:
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
    found: list[_Row] = []
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
        f"SELECT {_ROW} FROM pending WHERE dataset = ? AND aside != 0 AND conflict = 0 AND not_before_ns <= ?"
        " AND worker_id IN ('', ?) ORDER BY not_before_ns LIMIT 16",
        (dataset, now_ns, worker_id),
    ).fetchall()
    return found + [_Row._make(row) for row in aside]


def _scan(db: Connection, dataset: str, kind: str, worker_id: str, stop: int) -> Iterator[_Row]:
    rows = db.execute(
        f"SELECT {_ROW} FROM pending WHERE dataset = ? AND kind = ? AND worker_id = ? AND conflict = 0 AND seq < ?"
        " AND aside = 0 ORDER BY seq",
        (dataset, kind, worker_id, stop),
    )
    return map(_Row._make, rows)


def _has_below(db: Connection, row: _Row) -> bool:
    """Whether something is to go, or to come, in a directory that is to go."""
    return (
        db.execute(
            "SELECT 1 FROM pending WHERE dataset = ? AND path > ? AND path < ? LIMIT 1",
            (row.dataset, row.path + b"/", row.path + b"0"),  # '0' follows '/'
        ).fetchone()
        is not None
    )


def _needed_by(db: Connection, row: _Row) -> str:
    """Which file takes bytes from what a row would put over or delete, as a message; empty: none."""
    if not row.base_etag:
        return ""
    other = db.execute(
        "SELECT e.ino FROM extents e JOIN inodes i USING (ino) WHERE e.path = ? AND e.etag = ? AND i.dataset = ?"
        " AND e.ino IS NOT ? LIMIT 1",
        (row.path, row.base_etag, row.dataset, row.ino),
    ).fetchone()
    return (
        f"file {other[0]} takes bytes from what the source has there, and is not in the source itself" if other else ""
    )


def _origin(db: Connection, row: _Row, version: int, content: Content) -> tuple[str, str] | None:
    """Where the source has the same bytes under another path."""
    put = db.execute(
        "SELECT path, etag FROM persisted WHERE ino = ? AND version = ? AND dataset = ? AND path != ?",
        (row.ino, version, row.dataset, row.path),
    ).fetchone()
    if put is not None:
        return _text(put[0]), put[1]
    if len(content.extents) == 1:
        (extent,) = content.extents
        if extent.path and extent.offset == 0 and extent.etag:
            return extent.path, extent.etag
    return None


def _with_attempt(
    attempts: tuple[Attempt, ...], about: tuple[int, int, int], now_ns: int, origin: tuple[str, str] | None
) -> tuple[Attempt, ...]:
    """The attempts, of which the last one is about this number, version and size; as it was where it is there."""
    mine = next((each for each in attempts if (each.ino, each.version) == about[:2]), None)
    others = tuple(each for each in attempts if each is not mine)
    mark, since_ns = (mine.mark, mine.since_ns) if mine else (secrets.token_hex(8), now_ns)
    return (*others, Attempt(mark, *about, since_ns, origin[1] if origin else ""))[-ATTEMPTS_MAX:]


def _note_done(db: Connection, row: _Row, outcome: Outcome) -> None:
    """The source has what a row said; or what it said when it was handed out, if it has changed since."""
    key = (row.dataset, row.path)
    if outcome.content is not None:
        _note_put(db, row, outcome, outcome.content)
    else:
        db.execute("DELETE FROM persisted WHERE dataset = ? AND path = ?", key)
    if row.seq == outcome.seq:
        db.execute("DELETE FROM pending WHERE seq = ?", (row.seq,))
        return
    db.execute(
        "UPDATE pending SET lease = '', not_before_ns = 0, tries = 0, tried = '', error = '', base_etag = ?"
        " WHERE seq = ?",
        (outcome.etag, row.seq),
    )


def _note_put(db: Connection, row: _Row, outcome: Outcome, content: Content) -> None:
    attempt = next((each for each in row.attempts if each.mark == outcome.mark), None)
    if attempt is None:
        return  # heard before: the answer to that was lost
    db.execute(
        "INSERT OR REPLACE INTO persisted (dataset, path, ino, version, etag) VALUES (?, ?, ?, ?, ?)",
        (row.dataset, row.path, attempt.ino, attempt.version, outcome.etag),
    )
    # What the file was made of in the source may be gone: it was put over, or will be deleted now.
    inos = {attempt.ino}
    if row.base_etag:
        inos.update(
            ino
            for (ino,) in db.execute(
                "SELECT DISTINCT e.ino FROM extents e JOIN inodes i USING (ino)"
                " WHERE e.path = ? AND e.etag = ? AND i.dataset = ?",
                (row.path, row.base_etag, row.dataset),
            )
        )
    for ino in inos:
        inode = db.execute("SELECT size_bytes FROM inodes WHERE ino = ?", (ino,)).fetchone()
        if inode is not None:
            old = read_content(db, ino, inode[0]).extents
            if any(extent.path for extent in old):
                replace_extents(db, ino, relocated(old, content, outcome.path, outcome.etag))


def _raw(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
