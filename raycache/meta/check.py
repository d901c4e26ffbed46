"""``raycache fsck``: is a catalog file what it should be, and what can be done about it.

``check`` only reads, in one snapshot, and so may run beside the master. ``repair`` needs the catalog for itself (see
``lock``): the master holds versions in memory that it is about to extend. What is lost is only ever a listing, and the
source has it: a directory whose listing is damaged is listed anew at its next use, under a new id (see ``recovery``).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from raycache.core import paths
from raycache.core.inode import ROW_BITS
from raycache.core.manifest import Manifest
from raycache.core.values import Dataset
from raycache.errors import InvalidInput, NotFound, Unavailable
from raycache.meta.catalog import Catalog, Listed, open_manifest, set_last_id
from raycache.meta.recovery import LOST_AND_FOUND, keep_aside, move_aside, relist_under_new_id, renumber
from raycache.meta.schema import SCHEMA_VERSION, version_of
from raycache.meta.treecheck import Wrong, mend, place_of, wrong_tree

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be."""

    kind: str
    """``file``, ``root``, ``directory``, ``manifest``, ``child``, or one of ``treecheck.Wrong``."""
    where: str
    """The file, or dataset and path of a directory."""
    what: str
    dataset: str = ""
    dir_id: int = 0
    child: bytes = b""
    """For ``child``: its name."""
    wrong: Wrong | None = None
    """For those of the tree that writers see."""


@dataclass(slots=True)
class Report:
    """What a check looked at and found."""

    path: str
    datasets: int = 0
    directories: int = 0
    files: int = 0
    problems: list[Problem] = field(default_factory=list)
    """Those that are there now: after a repair, those that it left."""
    repaired: list[str] = field(default_factory=list)
    """What a repair did, a line each."""


def check(path: Path, *, deep: bool = True) -> Report:
    """Look at all of a catalog. ``deep``: at each entry too, some 2 s per million of them; else checksums must do.

    Raises NotFound when there is none, InvalidInput when it is another program's or of another raycache.
    """
    report = Report(str(path))
    if not path.is_file():
        raise NotFound(f"{path}: there is no catalog; run this where the master runs, on Ray's head node")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)) as db:
            db.execute("BEGIN")
            version = version_of(db, path)
            if version < SCHEMA_VERSION:
                raise InvalidInput(
                    f"{path} was written by an older raycache (schema {version}, now {SCHEMA_VERSION}); "
                    "it is migrated when the cache starts the next time, check it then"
                )
            broken = [line for (line,) in db.execute("PRAGMA integrity_check(20)") if line != "ok"]
            report.problems += [Problem("file", str(path), line) for line in broken]
            if not broken:
                report.problems += [*_roots(db, report), *_directories(db, report), *_manifests(db, report, deep)]
                report.problems += _tree(db)
    except sqlite3.OperationalError as error:
        raise Unavailable(f"{path} cannot be read: {error}") from error
    except sqlite3.DatabaseError as error:
        report.problems.append(Problem("file", str(path), str(error)))
    return report


def repair(path: Path, *, deep: bool = True) -> Report:
    """Check, mend what can be mended, and check again. Raises what ``check`` does. The caller holds the lock."""
    found = check(path, deep=deep)
    if not found.problems:
        return found
    if any(problem.kind == "file" for problem in found.problems):
        return Report(str(path), repaired=[_start_over(path)])
    catalog = Catalog.open(path)
    try:
        done = [line for problem in found.problems if (line := _mend(catalog, path.parent / LOST_AND_FOUND, problem))]
    finally:
        catalog.close()
    report = check(path, deep=deep)
    report.repaired = done
    return report


def _roots(db: sqlite3.Connection, report: Report) -> Iterator[Problem]:
    query = (
        "SELECT name, root_id, dir_id FROM datasets LEFT JOIN directories"
        " ON dir_id = root_id AND dataset = name AND path = x'' ORDER BY name"
    )
    for name, root_id, found in db.execute(query):
        report.datasets += 1
        if found is None:
            yield Problem("root", name, f"its root, directory {root_id}, is not there", name, root_id)


def _directories(db: sqlite3.Connection, report: Report) -> Iterator[Problem]:
    (report.directories,) = db.execute("SELECT count(*) FROM directories").fetchone()
    lost = (
        "SELECT dir_id, dataset, path FROM directories WHERE dataset NOT IN (SELECT name FROM datasets)"
        " UNION ALL SELECT dir_id, '', x'' FROM manifests WHERE dir_id NOT IN (SELECT dir_id FROM directories)"
    )
    for dir_id, dataset, path in db.execute(lost):
        what = f"{_where(dataset, path)}: no dataset has this name" if dataset else "it has a listing, but no path"
        yield Problem("directory", f"directory {dir_id}", what, dataset, dir_id)


def _manifests(db: sqlite3.Connection, report: Report, deep: bool) -> Iterator[Problem]:
    query = (
        "SELECT dir_id, dataset, path, version, checksum, body, manifests.changes, since_ns NOT NULL FROM manifests"
        " JOIN directories USING (dir_id) JOIN bodies USING (body_id) LEFT JOIN touched USING (dir_id) ORDER BY dir_id"
    )
    for dir_id, dataset, path, version, checksum, body, changes, is_behind in db.execute(query):
        where = _where(dataset, path)
        try:
            manifest = open_manifest(body, checksum, changes)
            about = manifest.directory
            stored = (about.dir_id, about.dataset, about.path.encode("utf-8", "surrogateescape"), about.version)
            # What was moved keeps a listing of its old path until the next one is published.
            if stored != (dir_id, dataset, stored[2] if is_behind else path, version):
                raise InvalidInput(f"it is the listing of {about.dataset}/{about.path}, directory {about.dir_id}")
            if deep and (wrong := _wrong_entry(manifest)):
                raise InvalidInput(wrong)
        except InvalidInput as error:
            yield Problem("manifest", where, str(error), dataset, dir_id)
            continue
        report.files += manifest.file_count
        if is_behind:  # it may name directories that have been removed or moved
            continue
        for name, what in _wrong_children(db, manifest):
            child = paths.join(where, name.decode("utf-8", "backslashreplace"))
            yield Problem("child", child, what, dataset, dir_id, name)


def _tree(db: sqlite3.Connection) -> list[Problem]:
    found = []
    for wrong in wrong_tree(db):
        dataset, path = place_of(db, wrong.ino)
        where = paths.join(dataset, path)
        if wrong.kind == "entry":
            where = f"{wrong.name.decode('utf-8', 'backslashreplace')!r} in directory {wrong.parent >> ROW_BITS}"
        found.append(Problem(wrong.kind, where, wrong.what, dataset, wrong=wrong))
    return found


def _wrong_entry(manifest: Manifest) -> str:
    """What is wrong with the columns, seen through what readers use of them; empty if nothing is."""
    try:
        ends = manifest.columns.ends
        if (falls := np.flatnonzero(ends[1:] < ends[:-1])).size:
            return f"row {falls[0]} ends before it begins"
        start = 0
        while (rows := manifest.live_rows(start, _ROWS_AT_ONCE)).size:
            names = [manifest.name(row) for row in rows.tolist()]
            for row, name in zip(rows.tolist(), names, strict=True):
                if not paths.is_shown(name):
                    return f"row {row} has the name {name!r}"
            if (lost := np.flatnonzero(manifest.find_many(names) != rows)).size:
                return f"row {rows[lost[0]]}, {names[lost[0]]!r}, is not found by its name"
            start = int(rows[-1]) + 1
    # What a column that is not as it should be ends in depends on where it is wrong.
    except (LookupError, TypeError, ValueError, ArithmeticError, pa.ArrowException) as error:
        return f"its columns cannot be read: {error}"
    return ""


def _wrong_children(db: sqlite3.Connection, manifest: Manifest) -> Iterator[tuple[bytes, str]]:
    about = manifest.directory
    rows, dir_ids = manifest.columns.dir_rows, manifest.columns.dir_ids
    live = ~np.isin(rows, manifest.columns.dead_rows)
    for row, dir_id in zip(rows[live].tolist(), dir_ids[live].tolist(), strict=True):
        name = manifest.name(row)
        found = db.execute("SELECT dataset, path FROM directories WHERE dir_id = ?", (dir_id,)).fetchone()
        path = paths.join(about.path, name.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
        if found is None:
            yield name, f"it should be directory {dir_id}, which is not there"
        elif found != (about.dataset, path):
            yield name, f"it should be directory {dir_id}, which is {_where(*found)}"


def _mend(catalog: Catalog, lost_found: Path, problem: Problem) -> str:
    """Put one problem right and say how; empty when an earlier repair has seen to it."""
    now_ns = time.time_ns()
    if problem.wrong is not None:
        with catalog.transaction() as db:
            line = mend(db, problem.wrong)
        return f"{problem.where}: {line}" if line else ""
    if problem.kind == "directory":
        catalog.drop_directory(problem.dir_id)
        return f"{problem.where}: forgotten, nothing leads to it"
    if problem.kind == "root":
        return f"{problem.where}: its root is directory {catalog.renew_root(problem.dataset)} now"
    try:
        dataset, path = catalog.directory(problem.dir_id)
    except NotFound:
        return ""
    if problem.kind == "manifest":
        kept = keep_aside(lost_found, f"{dataset.name}-{problem.dir_id}.manifest", catalog.body(problem.dir_id))
        new_id = relist_under_new_id(catalog, dataset, path, problem.dir_id, now_ns)
        return f"{problem.where}: listed anew at its next use, as directory {new_id}; what was stored is in {kept}"
    return _mend_child(catalog, dataset, path, problem, now_ns)


def _mend_child(catalog: Catalog, dataset: Dataset, path: str, problem: Problem, now_ns: int) -> str:
    """The directory above gets a row with the id that the path really has, known or new."""
    try:
        manifest = catalog.manifest(problem.dir_id)
    except InvalidInput:
        manifest = None
    row = None if manifest is None else manifest.find(problem.child)
    if manifest is None or row is None:
        return ""
    child_path = paths.join(path, problem.child.decode("utf-8", "surrogateescape"))
    (child_id,) = catalog.number_directories(dataset.name, [child_path])
    if manifest.child_id(row) == child_id:
        return ""
    catalog.save_manifest(*Listed.of(renumber(manifest, {row: child_id}, now_ns)))
    return f"{problem.where}: is directory {child_id} now"


def _start_over(path: Path) -> str:
    """Move a file away that SQLite cannot use, and go on with an empty catalog and numbers not used before, as far as
    they can be read: mounts made before may still ask for the old ones."""
    last_id = 0
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
            (last_id,) = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'directories'").fetchone() or (0,)
    except sqlite3.DatabaseError:
        last_id = 0  # then mounts find out by the root, whose number or age is another
    kept = move_aside(path, time.time_ns())
    Catalog.open(path).close()
    if last_id:
        with closing(sqlite3.connect(path)) as db, db:
            set_last_id(db, last_id)
    return f"{path}: moved to {kept}; an empty catalog is in its place, sources are listed anew when they are mounted"


def _where(dataset: str, path: bytes) -> str:
    return paths.join(dataset, path.decode("utf-8", "backslashreplace"))
