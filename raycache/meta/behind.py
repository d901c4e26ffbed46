"""What the source has not got yet, as users see it. Each function is part of a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection
from typing import Any

from raycache.core.inode import Place
from raycache.core.persisting import TROUBLES_MAX, Behind, Trouble
from raycache.meta.inodes import WITHIN, within

_COUNTS = """
    SELECT count(*) FILTER (WHERE kind = 'put'),
        coalesce(sum((SELECT size_bytes FROM inodes WHERE inodes.ino = pending.ino)), 0),
        count(*) FILTER (WHERE kind != 'put'), count(*) FILTER (WHERE error != ''),
        count(*) FILTER (WHERE conflict = 1 OR (aside != 0 AND tries >= 3)),
        count(*) FILTER (WHERE conflict = 1), coalesce(min(since_ns), 0)
    FROM pending"""


def behind(db: Connection, places: Sequence[Place]) -> Behind:
    """Of files and trees together."""
    total = Behind()
    for place in places:
        total = _sum(total, _behind(db, place))
    return total


def matching(place: Place) -> tuple[str, tuple[Any, ...]]:
    """The rows of ``pending`` that are about a file, or about a path and all below it: a condition and its values."""
    if isinstance(place, int):
        return "WHERE ino = ?", (place,)
    dataset, path = place
    if not path:
        return "WHERE dataset = ?", (dataset,)
    raw = path.encode("utf-8", "surrogateescape")
    return f"WHERE dataset = ?1 AND {WITHIN.format('path')}", within(dataset, raw)


def _behind(db: Connection, place: Place) -> Behind:
    where, args = matching(place)
    counts = db.execute(f"{_COUNTS} {where}", args).fetchone()
    troubles = db.execute(
        f"SELECT path, kind, error, conflict, tries FROM pending {where} AND error != ''"
        f" ORDER BY conflict DESC, seq LIMIT {TROUBLES_MAX}",
        args,
    ).fetchall()
    named = tuple(
        Trouble(path.decode("utf-8", "surrogateescape"), kind, error, bool(conflict), tries)
        for path, kind, error, conflict, tries in troubles
    )
    return Behind(*counts)._replace(troubles=named)


def _sum(one: Behind, other: Behind) -> Behind:
    oldest = [each.oldest_ns for each in (one, other) if each.oldest_ns]
    return Behind(
        one.files + other.files,
        one.size_bytes + other.size_bytes,
        one.others + other.others,
        one.failing + other.failing,
        one.stuck + other.stuck,
        one.conflicts + other.conflicts,
        min(oldest, default=0),
        (one.troubles + other.troubles)[:TROUBLES_MAX],
    )
