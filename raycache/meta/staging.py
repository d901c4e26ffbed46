"""What recursive listings have found and not published yet, in the catalog: jobs, parts, staged manifests.

A job stages part after part of a tree and publishes all in one transaction. What a job that did not end has staged is
there for the next one. Tables: ``listings``, ``staged_parts``, ``staged_manifests`` in ``schema``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from raycache.core.inode import ROW_BITS
from raycache.core.values import Buffer, ListingJob
from raycache.errors import NotFound
from raycache.meta.catalog import Catalog, number_directories, put_body, take_changes

RESUME_NS = 3600 * 10**9
"""A job that gave its last sign of life this long ago is not resumed: its source has moved on."""
JOBS_KEPT = 16
"""Jobs that are over, remembered per dataset."""
_VACUUM_PAGES = 2000
"""Pages given back to the disk in one transaction."""
_JOB = "job_id, dataset, path, state, files, directories, changed, started_ns, updated_ns, error_kind, error"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a tree that has been listed and staged."""

    path: str
    """Inside the dataset."""
    whole: bool
    """With all that is below; else the one directory, and what is below it are parts of their own."""
    files: int
    directories: int


@dataclass(frozen=True, slots=True)
class Staged:
    """One directory of a part: what will be published, should it still follow what is there then."""

    dir_id: int
    base_version: int
    """Version that ``body`` follows, 0 for a first one."""
    body: Buffer | None
    """As in ``manifests``; None when the directory did not change."""


_BELOW = "d.dataset = ?1 AND d.path >= ?2 AND (?3 IS NULL OR d.path < ?3)"
_WRITTEN = f"(d.opaque OR EXISTS (SELECT 1 FROM entries WHERE parent = d.dir_id << {ROW_BITS}))"


class JobEnded(Exception):
    """The job is not running any more: cancelled, or its dataset was removed."""


class Staging:
    """Verbs over the staging tables; one transaction each."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def begin(self, dataset: str, dir_id: int, path: str, now_ns: int) -> ListingJob:
        """A running job for a directory: the one that did not end, if it is fresh enough, else a new one."""
        with self._catalog.transaction() as db:
            db.execute(
                "UPDATE listings SET state = 'failed', error_kind = 'Unavailable', error = 'its master went away'"
                " WHERE dir_id = ? AND state = 'running' AND updated_ns < ?",
                (dir_id, now_ns - RESUME_NS),
            )
            unfinished = db.execute(
                "SELECT job_id FROM listings WHERE dir_id = ? AND state != 'done' AND updated_ns >= ?"
                " ORDER BY job_id DESC LIMIT 1",
                (dir_id, now_ns - RESUME_NS),
            ).fetchone()
            if unfinished:
                job_id = unfinished[0]
                db.execute(
                    "UPDATE listings SET state = 'running', error_kind = '', error = '', updated_ns = ?"
                    " WHERE job_id = ?",
                    (now_ns, job_id),
                )
                # What had vanished may have come back.
                db.execute("DELETE FROM staged_manifests WHERE job_id = ? AND part IS NULL", (job_id,))
            else:
                (job_id,) = db.execute(
                    "INSERT INTO listings (dir_id, dataset, path, state, started_ns, updated_ns)"
                    " VALUES (?, ?, ?, 'running', ?, ?) RETURNING job_id",
                    (dir_id, dataset, _key(path), now_ns, now_ns),
                ).fetchone()
            _forget_old(db, dataset, dir_id, job_id, now_ns)
        return self.job(job_id)

    def job(self, job_id: int) -> ListingJob:
        """One job as it was last written. Raises NotFound."""
        with self._catalog.transaction() as db:
            row = db.execute(f"SELECT {_JOB} FROM listings WHERE job_id = ?", (job_id,)).fetchone()
        if row is None:
            raise NotFound(f"no listing job has the number {job_id}; its dataset was removed, or it is long over")
        return _job(row)

    def jobs(self, dataset: str) -> list[ListingJob]:
        """Jobs of a dataset, the latest first."""
        with self._catalog.transaction() as db:
            rows = db.execute(f"SELECT {_JOB} FROM listings WHERE dataset = ? ORDER BY job_id DESC", (dataset,))
            return [_job(row) for row in rows]

    def parts(self, job_id: int) -> dict[str, Part]:
        """Parts that the job has staged, by path."""
        with self._catalog.transaction() as db:
            rows = db.execute(
                "SELECT path, whole, files, directories FROM staged_parts WHERE job_id = ?", (job_id,)
            ).fetchall()
        return {_path(row[0]): Part(_path(row[0]), bool(row[1]), row[2], row[3]) for row in rows}

    def number_directories(self, job_id: int, dataset: str, paths: Sequence[str]) -> list[int]:
        """See Catalog.number_directories. Raises JobEnded: a dataset that was removed gets no new directories."""
        with self._running(job_id) as db:
            return number_directories(db, dataset, paths)

    def versions(self, dir_ids: Sequence[int]) -> list[int]:
        """Published version of each directory, 0 where there is none."""
        with self._catalog.transaction() as db:
            found = [db.execute("SELECT version FROM manifests WHERE dir_id = ?", (one,)).fetchone() for one in dir_ids]
        return [row[0] if row else 0 for row in found]

    def stage(self, job_id: int, parts: Sequence[tuple[Part, Sequence[Staged]]], now_ns: int) -> tuple[int, int]:
        """Keep parts and their directories; files and directories staged in all. Raises JobEnded."""
        with self._running(job_id) as db:
            for part, staged in parts:
                db.execute(
                    "INSERT OR REPLACE INTO staged_parts VALUES (?, ?, ?, ?, ?)",
                    (job_id, _key(part.path), part.whole, part.files, part.directories),
                )
                _insert(db, job_id, _key(part.path), staged)
            db.execute("UPDATE listings SET updated_ns = ? WHERE job_id = ?", (now_ns, job_id))
            return _count(db, job_id)

    def touch(self, job_id: int, now_ns: int) -> None:
        """Note that the job lives, though it has found nothing to stage for a while. Raises JobEnded."""
        with self._running(job_id) as db:
            db.execute("UPDATE listings SET updated_ns = ? WHERE job_id = ?", (now_ns, job_id))

    def stage_vanished(self, job_id: int, staged: Sequence[Staged]) -> None:
        """Keep the last versions of directories that are gone. Raises JobEnded."""
        with self._running(job_id) as db:
            _insert(db, job_id, None, staged)

    def drop_parts(self, job_id: int, paths: Iterable[str]) -> None:
        """Forget parts that the tree has no more. Raises JobEnded."""
        keys = [(job_id, _key(path)) for path in paths]
        with self._running(job_id) as db:
            for table, column in (("staged_manifests", "part"), ("staged_parts", "path")):
                db.executemany(f"DELETE FROM {table} WHERE job_id = ? AND {column} = ?", keys)
            _count(db, job_id)

    def vanished(self, job_id: int) -> list[int]:
        """Listed directories below the job's that it has not found, and nothing was written in. Raises JobEnded."""
        query = (
            f"SELECT dir_id FROM directories d JOIN manifests USING (dir_id) WHERE {_BELOW} AND NOT {_WRITTEN}"
            " AND NOT EXISTS (SELECT 1 FROM staged_manifests s WHERE s.job_id = ?4 AND s.dir_id = d.dir_id)"
        )
        with self._running(job_id) as db:
            return [dir_id for (dir_id,) in db.execute(query, (*_below(db, job_id), job_id))]

    def written(self, job_id: int) -> list[int]:
        """Directories of the job in which something was written: what they show is more than what the source lists.
        Raises JobEnded."""
        query = f"SELECT dir_id FROM directories d WHERE (d.dir_id = ?4 OR ({_BELOW})) AND {_WRITTEN} ORDER BY d.path"
        with self._running(job_id) as db:
            (top,) = db.execute("SELECT dir_id FROM listings WHERE job_id = ?", (job_id,)).fetchone()
            return [dir_id for (dir_id,) in db.execute(query, (*_below(db, job_id), top))]

    def written_of(self, dir_ids: Sequence[int]) -> set[int]:
        """Those of some directories in which something was written."""
        query = f"SELECT 1 FROM directories d WHERE dir_id = ? AND {_WRITTEN}"
        with self._catalog.transaction() as db:
            return {dir_id for dir_id in dir_ids if db.execute(query, (dir_id,)).fetchone()}

    def publish(self, job_id: int, now_ns: int) -> int:
        """Put all that is staged in the place of what was there, in one step, and count it. Raises JobEnded.

        A directory that somebody refreshed since it was staged keeps that newer version.
        """
        with self._running(job_id) as db:
            db.execute(
                "DELETE FROM staged_manifests WHERE job_id = ? AND (base_version !="
                " coalesce((SELECT version FROM manifests m WHERE m.dir_id = staged_manifests.dir_id), 0)"
                # Removed or moved here meanwhile: what the source lists under its path is not it any more.
                " OR NOT EXISTS (SELECT 1 FROM directories d WHERE d.dir_id = staged_manifests.dir_id AND opaque = 0))",
                (job_id,),
            )
            changed: int = db.execute(
                "SELECT count(*) FROM staged_manifests WHERE job_id = ? AND body_id NOT NULL", (job_id,)
            ).fetchone()[0]
            last = take_changes(db, changed)
            db.execute(
                "INSERT INTO manifests (dir_id, version, body_id, changed, changes)"
                " SELECT dir_id, base_version + 1, body_id,"
                " CASE WHEN base_version > 0 THEN ? + row_number() OVER () ELSE 0 END, ''"
                " FROM staged_manifests WHERE job_id = ? AND body_id NOT NULL"
                " ON CONFLICT (dir_id) DO UPDATE SET version = excluded.version, body_id = excluded.body_id,"
                " changed = excluded.changed, changes = ltrim(changes || ',' || excluded.changed, ',')",
                (last, job_id),
            )
            # Bodies belong to the manifests now, and must not go with what was staged.
            db.execute("UPDATE staged_manifests SET body_id = NULL WHERE job_id = ?", (job_id,))
            db.execute(
                "UPDATE listings SET state = 'done', changed = ?, updated_ns = ? WHERE job_id = ?",
                (changed, now_ns, job_id),
            )
        return changed

    def end(self, job_id: int, state: str, error_kind: str, error: str, now_ns: int) -> None:
        """Write how a job that published nothing ended; what it staged stays, for the next one."""
        with self._catalog.transaction() as db:
            db.execute(
                "UPDATE listings SET state = ?, error_kind = ?, error = ?, updated_ns = ? WHERE job_id = ?"
                " AND state = 'running'",
                (state, error_kind, error, now_ns, job_id),
            )

    def clear(self, job_id: int) -> None:
        """Give the room of a job that is done back to the disk."""
        with self._catalog.transaction() as db:
            _unstage(db, [job_id])
        free = None
        while True:
            with self._catalog.transaction() as db:
                (before,) = db.execute("PRAGMA freelist_count").fetchone()
                if before in (0, free):  # the same again: a catalog that was made without this ability
                    break
                free = before
                db.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        self._catalog.shorten_log()

    @contextmanager
    def _running(self, job_id: int) -> Iterator[sqlite3.Connection]:
        with self._catalog.transaction() as db:
            row = db.execute("SELECT state FROM listings WHERE job_id = ?", (job_id,)).fetchone()
            if row is None or row[0] != "running":
                raise JobEnded
            yield db


def _below(db: sqlite3.Connection, job_id: int) -> tuple[str, bytes, bytes | None]:
    """What _BELOW is asked with."""
    dataset, path = db.execute("SELECT dataset, path FROM listings WHERE job_id = ?", (job_id,)).fetchone()
    return (dataset, path + b"/", path + b"0") if path else (dataset, b"\0", None)  # '0' follows '/'


def _count(db: sqlite3.Connection, job_id: int) -> tuple[int, int]:
    """Files and directories that a job has staged, noted with the job."""
    files, directories = db.execute(
        "SELECT coalesce(sum(files), 0), coalesce(sum(directories), 0) FROM staged_parts WHERE job_id = ?", (job_id,)
    ).fetchone()
    db.execute("UPDATE listings SET files = ?, directories = ? WHERE job_id = ?", (files, directories, job_id))
    return files, directories


def _insert(db: sqlite3.Connection, job_id: int, part: bytes | None, staged: Sequence[Staged]) -> None:
    for one in staged:
        db.execute("DELETE FROM staged_manifests WHERE job_id = ? AND dir_id = ?", (job_id, one.dir_id))
        body_id = put_body(db, one.body) if one.body is not None else None
        db.execute(
            "INSERT INTO staged_manifests VALUES (?, ?, ?, ?, ?)",
            (job_id, one.dir_id, part, one.base_version, body_id),
        )


def _forget_old(db: sqlite3.Connection, dataset: str, dir_id: int, job_id: int, now_ns: int) -> None:
    """What was staged and cannot be resumed any more, and jobs that are long over."""
    stale = db.execute(
        "SELECT job_id FROM listings WHERE job_id != ? AND (dir_id = ? OR state = 'done' OR updated_ns < ?)"
        " AND job_id IN (SELECT job_id FROM staged_parts)",
        (job_id, dir_id, now_ns - RESUME_NS),
    ).fetchall()
    _unstage(db, [row[0] for row in stale])
    db.execute(
        "DELETE FROM listings WHERE dataset = ?1 AND (state != 'running' OR updated_ns < ?3)"
        " AND job_id NOT IN (SELECT job_id FROM staged_parts)"
        " AND job_id NOT IN (SELECT job_id FROM listings WHERE dataset = ?1 ORDER BY job_id DESC LIMIT ?2)",
        (dataset, JOBS_KEPT, now_ns - RESUME_NS),
    )


def _unstage(db: sqlite3.Connection, job_ids: Sequence[int]) -> None:
    for table in ("staged_manifests", "staged_parts"):
        db.executemany(f"DELETE FROM {table} WHERE job_id = ?", [(job_id,) for job_id in job_ids])


def _job(row: Sequence[Any]) -> ListingJob:
    job_id, dataset, path, *rest = row
    return ListingJob(job_id, dataset, _path(path), *rest)


def _key(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _path(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")
