"""What a source lists in a directory, with what was written laid over it: first listings, and refreshed ones.

Who wins. What the source is still to get stays, and what it is never to get. What it was given and has no more, or has
another version of, was changed outside: the source wins, and the entry is dropped. A name that was removed here stays
hidden while the source is to be told, and as long as it lists what was removed.

What the source has got may come to be known while it is being listed: an entry counts as given only when it was so
before the listing began, and is still the same when the manifest is stored. Else it stays, for the next time.

Threading: safe; the caller sees to it that a directory is listed by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from sqlite3 import Connection
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raycache.core import paths
from raycache.core.inode import directory_ino
from raycache.core.listing import LISTING_SCHEMA, NOTHING_BESIDE, Beside, prepare_listing
from raycache.core.manifest import Directory, Manifest
from raycache.errors import NotFound, Unavailable
from raycache.meta.catalog import Catalog, Listed, save_listed, stored_version
from raycache.meta.inodes import drop_nameless, within
from raycache.meta.overlay import Entry, Upper, listed_row, look_again, read_entry, read_upper, settled, written
from raycache.meta.versions import next_version
from raycache.ufs.sources import Sources

_TRIES = 3
_NOTHING = pa.RecordBatch.from_arrays([pa.array([], kind.type) for kind in LISTING_SCHEMA], schema=LISTING_SCHEMA)


class _Moment(NamedTuple):
    """A directory as it was, and whether the source is to get anything at or below it."""

    upper: Upper
    is_behind: bool
    cache_only: bool
    """Whether changes of its dataset stay in the cache."""


class Merging:
    """See the module."""

    def __init__(self, catalog: Catalog, sources: Sources, block_bytes: int, now_ns: Callable[[], int]) -> None:
        self._catalog = catalog
        self._sources = sources
        self._block_bytes = block_bytes
        self._now_ns = now_ns

    def list(self, dir_id: int, stored: Callable[[int], Manifest | None], request_id: str | None = None) -> Manifest:
        """List a directory and store what is to be shown of it, if that has changed; its manifest then.

        ``stored``: its manifest, if it has one. ``request_id``: of who asked; its reply, the version, is kept with a
        change. Raises what listing a source raises, and Unavailable when others keep publishing.
        """
        for _ in range(_TRIES):
            found = self._try(dir_id, stored(dir_id), request_id)
            if found is not None:
                return found
        dataset, path = self._catalog.directory(dir_id)
        raise Unavailable(f"{paths.join(dataset.source, path)}: others keep publishing new versions of it; try again")

    def _try(self, dir_id: int, old: Manifest | None, request_id: str | None) -> Manifest | None:
        before = self._look(dir_id)
        listing, hidden, is_there = self._listing(before)
        now = before if before.upper.is_plain else self._look(dir_id)
        drops = _drops(before, now, listing, old) if _is_listed(before) else []
        gone = {each.name for each in drops}
        opens = now.upper.opaque and is_there and _is_listed(before) and _is_listed(now)
        upper = now.upper._replace(
            opaque=now.upper.opaque and not opens, entries=[each for each in now.upper.entries if each.name not in gone]
        )
        dataset, path = self._catalog.directory(dir_id)
        first = Directory(dir_id, dataset.name, dataset.source, path, 1, self._now_ns(), self._block_bytes, hidden)
        rows, known = _laid_over(upper, listing, old)
        number = partial(self._catalog.number_directories, dataset.name)
        new = next_version(first, old, rows, number, known)
        packed = None if new is None else Listed.of(new)
        with suppress(_Again), self._catalog.transaction() as db:
            for each in drops:
                _drop(db, now.upper, each, self._now_ns())
            if opens:
                _open(db, now.upper)
            settled(db, upper)
            if packed is None or new is None:
                if old is None or stored_version(db, dir_id) != old.directory.version:
                    raise _Again  # nothing is new beside what was published meanwhile, which may be outdated
                return old
            if old is None:
                look_again(db, dir_id)
            saved = save_listed(db, packed, request_id)
            if saved is None:
                raise _Again
            return Manifest(saved, new.columns)
        return None

    def _look(self, dir_id: int) -> _Moment:
        with self._catalog.transaction() as db:
            upper = read_upper(db, dir_id)
            if upper is None:
                raise NotFound(f"no directory has the id {dir_id}; its dataset was removed, or it was")
            (write_type,) = db.execute(
                "SELECT write_type FROM datasets WHERE name = ?", (upper.dataset,)
            ).fetchone() or ("",)
            return _Moment(upper, upper.opaque and _is_behind(db, upper), write_type == "cache")

    def _listing(self, of: _Moment) -> tuple[pa.RecordBatch, int, bool]:
        """What the source lists, how much of it cannot be shown, and whether it has the directory at all."""
        upper = of.upper
        if not _is_listed(of):
            return _NOTHING, 0, False
        try:
            found = self._sources.call(upper.dataset, lambda ufs: ufs.list_directory(upper.path))
        except NotFound:
            if upper.is_plain or not upper.path:
                raise
            # Removed outside, or never made there; or the whole source is away, and then this raises.
            self._sources.call(upper.dataset, lambda ufs: ufs.stat(""))
            return _NOTHING, 0, False
        return *prepare_listing(found), True


class _Again(Exception):
    """Undoes a transaction: what it was decided on has changed."""


def _is_listed(of: _Moment) -> bool:
    """Whether what the source lists is shown. Under a path that was made here it has what was there before, until all
    that is to be done about it has been done."""
    return not of.upper.opaque or not (of.is_behind or of.cache_only)


def _is_behind(db: Connection, upper: Upper) -> bool:
    dataset, path, low, high = within(upper.dataset, _key(upper.path))
    query = "SELECT 1 FROM pending WHERE dataset = ?1 AND (path = ?2 OR (path > ?3 AND path < ?4)) LIMIT 1"
    if not path:
        query, low, high = "SELECT 1 FROM pending WHERE dataset = ?1 LIMIT 1", b"", b""
        return db.execute(query, (dataset,)).fetchone() is not None
    return db.execute(query, (dataset, path, low, high)).fetchone() is not None


def _drops(before: _Moment, now: _Moment, listing: pa.RecordBatch, old: Manifest | None) -> Sequence[Entry]:
    """Entries of which the source knows better."""
    known = {each.name: each for each in before.upper.entries}
    same = [each for each in now.upper.entries if not each.is_pending and known.get(each.name) == each]
    if not same:
        return []
    at = pc.index_in(pa.array([each.name for each in same], pa.binary()), value_set=listing.column("name")).to_pylist()
    return [
        each
        for each, row in zip(same, at, strict=True)
        if _is_outdated(now, each, None if row is None else _Row(listing, row), old)
    ]


class _Row:
    """A row of a listing."""

    def __init__(self, listing: pa.RecordBatch, row: int) -> None:
        self.is_dir: bool = listing.column("is_dir")[row].as_py()
        self.size_bytes: int = listing.column("size_bytes")[row].as_py()
        self.etag: str = (listing.column("etag")[row].as_py() or b"").decode("utf-8", "surrogateescape")


def _is_outdated(now: _Moment, entry: Entry, row: _Row | None, old: Manifest | None) -> bool:
    if entry.ino is None:
        return row is None or not (now.cache_only or _is_what_was_removed(entry, row, old))
    if not entry.is_file:
        return False  # of directories a source may know nothing
    if (entry.put_ino, entry.put_version) == (entry.ino, entry.version):
        etag = entry.put_etag
    else:
        listed = listed_row(now.upper, entry, old)
        if listed is None or old is None:
            return False  # the cache alone has it
        etag = old.etag(listed)
    return row is None or row.is_dir or (row.etag, row.size_bytes) != (etag, entry.size_bytes)


def _is_what_was_removed(entry: Entry, row: _Row, old: Manifest | None) -> bool:
    """Whether the source lists under a name what it listed before that was removed here."""
    if old is None or row.is_dir:
        return not row.is_dir
    return any(
        old.name(each) == entry.name and old.etag(each) == row.etag and old.size(each) == row.size_bytes
        for each in old.index.candidates(entry.name)
        if each < old.row_count
    )


def _laid_over(upper: Upper, listing: pa.RecordBatch, old: Manifest | None) -> tuple[pa.RecordBatch, Beside]:
    """A listing without what is hidden, with what was written."""
    of = written(upper, old)
    known = NOTHING_BESIDE._replace(dir_ids=of.dir_ids)
    if not of.hides:
        return listing, known
    hidden = pc.is_in(listing.column("name"), value_set=pa.array(of.hides, pa.binary()))
    left = listing.filter(pc.invert(hidden))
    both = pa.Table.from_batches([left, of.rows]).sort_by("name").combine_chunks().to_batches()
    return (both[0] if both else _NOTHING), known


def _drop(db: Connection, upper: Upper, entry: Entry, now_ns: int) -> None:
    """Have a name mean what the source lists; part of a transaction. Raises _Again when the entry has changed."""
    if read_entry(db, upper, entry.name) != entry:
        raise _Again
    parent = directory_ino(upper.dir_id)
    path = paths.join(upper.path, entry.name.decode("utf-8", "surrogateescape"))
    db.execute("DELETE FROM entries WHERE parent = ? AND name = ?", (parent, entry.name))
    db.execute("DELETE FROM persisted WHERE dataset = ? AND path = ?", (upper.dataset, _key(path)))
    db.execute("UPDATE inodes SET mtime_ns = ?1, ctime_ns = ?1 WHERE ino = ?2", (now_ns, parent))
    if entry.ino is not None:
        db.execute("UPDATE inodes SET nlink = nlink - 1, ctime_ns = ? WHERE ino = ?", (now_ns, entry.ino))
        drop_nameless(db, entry.ino)


def _open(db: Connection, upper: Upper) -> None:
    """Have what the source lists in a directory shown from now on; part of a transaction."""
    if _is_behind(db, upper):
        raise _Again
    db.execute("UPDATE directories SET opaque = 0 WHERE dir_id = ?", (upper.dir_id,))


def _key(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
