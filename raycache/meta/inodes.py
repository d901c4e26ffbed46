"""The tree within one transaction: inodes and entries of the catalog, laid over what sources list.

Responsible for: what a name means, what an inode shows, turning what was only listed into rows when it is changed
(*copying up*), and the marks that each change leaves: times of the directory, ``touched``, ``pending``. Not responsible
for: what verbs allow (``naming``, ``renaming``, ``contents`` ...), nor for loading listings.

Invariants: an inode that has rows has entries under all its names; the directories above have rows and entries too, so
that nothing that was written hangs on what a source happens to list. An entry covers what is listed under its name.

Threading: lives as long as a transaction, and is used by the thread that has it.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Mapping
from sqlite3 import Connection
from typing import NamedTuple

from raycache.core.inode import (
    LISTED_DIRECTORY,
    MADE_MAX,
    MOUNT_OWNER,
    Attr,
    Name,
    Place,
    directory_ino,
    split_ino,
)
from raycache.core.paths import NAME_MAX, is_shown, split
from raycache.core.values import Failed
from raycache.errors import InvalidInput, NoSpace, NotADirectory, NotFound, Refused
from raycache.meta import journal
from raycache.meta.extents import drop_extents
from raycache.meta.lowers import Lower, Lowers, Missing

ATTR = "ino, mode, nlink, uid, gid, size_bytes, atime_ns, mtime_ns, ctime_ns, rdev, version"
"""Columns of ``inodes`` in the order of Attr."""
WITHIN = "{0} >= ?2 AND {0} < ?4 AND ({0} = ?2 OR {0} > ?3)"
"""Finds a path and all below it in a range of an index: with the OR alone, SQLite would look at the whole dataset."""
_INSERT = f"INSERT INTO inodes ({ATTR}, dataset, target) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FIND = f"SELECT e.ino, i.{ATTR.replace(', ', ', i.')} FROM entries e LEFT JOIN inodes i USING (ino)"


class Folder(NamedTuple):
    """A directory that is there."""

    dir_id: int
    dataset: str
    path: bytes
    opaque: bool
    version: int
    """Of its manifest; 0 where there is none."""

    @property
    def ino(self) -> int:
        """Its number."""
        return directory_ino(self.dir_id)

    def below(self, name: bytes) -> bytes:
        """Path of a name in it."""
        return self.path + b"/" + name if self.path else name


class About(NamedTuple):
    """What verbs need to know of a dataset."""

    root_id: int
    attached_ns: int
    write_type: str


class Inodes:
    """See the module."""

    def __init__(self, db: Connection, lowers: Lowers, held: Mapping[int, Lower | Failed], now_ns: int) -> None:
        self.db = db
        self.now_ns = now_ns
        self._lowers = lowers
        self._held = held
        self._folders: dict[int, Folder] = {}
        self._paths: dict[tuple[str, bytes], int] = {}
        self._copied: set[int] = set()
        self._abouts: dict[str, About] = {}
        self._inos: list[int] = []

    def forget(self) -> None:
        """Nothing that was read is sure any more: a verb was undone, or has moved directories."""
        self._folders.clear()
        self._paths.clear()
        self._copied.clear()

    # What is there.

    def about(self, dataset: str) -> About:
        """Raises NotFound."""
        found = self._abouts.get(dataset)
        if found is None:
            row = self.db.execute(
                "SELECT root_id, attached_ns, write_type FROM datasets WHERE name = ?", (dataset,)
            ).fetchone()
            if row is None:
                raise NotFound(f"no dataset is named {dataset!r}")
            found = self._abouts[dataset] = About(*row)
        return found

    def folder(self, dir_id: int) -> Folder:
        """A directory by its id. Raises NotFound."""
        found = self._folders.get(dir_id)
        if found is None:
            row = self.db.execute(
                "SELECT dataset, path, opaque, version FROM directories LEFT JOIN manifests USING (dir_id)"
                " WHERE dir_id = ?",
                (dir_id,),
            ).fetchone()
            if row is None:
                raise NotFound(f"directory {dir_id} was removed")
            found = self._folders[dir_id] = Folder(dir_id, row[0], row[1], bool(row[2]), row[3] or 0)
        return found

    def lower(self, folder: Folder) -> Lower | None:
        """What the source lists in a directory; None where that is not shown. Raises Missing, and what listing it
        raised."""
        if folder.opaque:
            return None
        found = self._held.get(folder.dir_id) or self._lowers.find(folder.dir_id)
        if isinstance(found, Failed):
            raise found.error
        if found is None or found.version != folder.version:
            raise Missing(folder.dir_id)
        return found

    def find(self, folder: Folder, name: bytes) -> Attr | None:
        """What a name of a directory means. Raises Refused (ENAMETOOLONG)."""
        row = self.db.execute(f"{_FIND} WHERE parent = ? AND name = ?", (folder.ino, name)).fetchone()
        if row is not None:
            return None if row[0] is None else Attr._make(row[1:])
        if len(name) > NAME_MAX:
            raise Refused.because(errno.ENAMETOOLONG, f"a name of {len(name)} bytes; names have at most {NAME_MAX}")
        lower = self.lower(folder)
        at = lower.find(name) if lower is not None else None
        return self._listed(lower, at) if lower is not None and at is not None else None

    def get(self, folder: Folder, name: bytes) -> Attr:
        """The same. Raises NotFound."""
        found = self.find(folder, name)
        if found is None:
            raise NotFound(f"{where(folder, name)}: there is no such entry")
        return found

    def _listed(self, lower: Lower, row: int) -> Attr | None:
        child_id = lower.child_id(row)
        if child_id is None:
            return lower.attr(row)
        folder = self.listed_folder(child_id)
        return None if folder is None else self.attr(folder.ino)

    def listed_folder(self, dir_id: int) -> Folder | None:
        """What a row that is a directory is; None when it was removed, made here, or moved away."""
        try:
            folder = self.folder(dir_id)
        except NotFound:
            return None
        return None if folder.opaque else folder

    def attr(self, ino: int) -> Attr:
        """What a number means. Raises NotFound."""
        row = self.db.execute(f"SELECT {ATTR} FROM inodes WHERE ino = ?", (ino,)).fetchone()
        if row is not None:
            return Attr._make(row)
        dir_id, at = split_ino(ino)
        if not dir_id:
            raise NotFound(f"file {ino} was removed")
        folder = self.folder(dir_id)
        if at is None:
            listed_ns = self.about(folder.dataset).attached_ns
            times = (listed_ns, listed_ns, listed_ns)
            return Attr(ino, LISTED_DIRECTORY, 2, MOUNT_OWNER, MOUNT_OWNER, 0, *times)
        lower = self.lower(folder)
        if lower is None or not lower.has(at) or lower.child_id(at) is not None:
            raise NotFound(f"file {ino} was removed")
        covered = self.db.execute(
            "SELECT 1 FROM entries WHERE parent = ? AND name = ?", (folder.ino, lower.name(at))
        ).fetchone()
        if covered:
            raise NotFound(f"{where(folder, lower.name(at))} was removed")
        return lower.attr(at)

    def locate(self, place: Place) -> Attr:
        """What a place is. Raises NotFound, NotADirectory."""
        if isinstance(place, int):
            return self.attr(place)
        dataset, path = place
        names = path.encode("utf-8", "surrogateescape").split(b"/") if path else []
        folder, at = self.folder(self.about(dataset).root_id), b""
        if not names:
            return self.attr(folder.ino)
        for name in names[:-1]:
            at = at + b"/" + name if at else name
            dir_id = self._paths.get((dataset, at))
            if dir_id is None:
                found = self.get(folder, name)
                if not found.is_dir:
                    raise NotADirectory(f"{where(folder, name)} is no directory")
                dir_id = self._paths[dataset, at] = split_ino(found.ino)[0]
            folder = self.folder(dir_id)
        return self.get(folder, names[-1])

    def locate_folder(self, place: Place) -> Folder:
        """A place that must be a directory. Raises NotFound, NotADirectory."""
        if isinstance(place, int):
            dir_id, at = split_ino(place)
            if dir_id and at is None:
                return self.folder(dir_id)
        elif (known := self.known_folder(*place)) is not None:
            return known
        found = self.locate(place)
        if not found.is_dir:
            raise NotADirectory(f"{place} is no directory")
        folder = self.folder(split_ino(found.ino)[0])
        self.know_folder(folder)
        return folder

    def known_folder(self, dataset: str, path: str) -> Folder | None:
        """A directory that was found by its path before."""
        dir_id = self._paths.get((dataset, path.encode("utf-8", "surrogateescape")))
        return None if dir_id is None else self.folder(dir_id)

    def know_folder(self, folder: Folder) -> None:
        """Find a directory by its path at once from now on."""
        self._paths[folder.dataset, folder.path] = folder.dir_id

    def children(self, folder: Folder, after: bytes = b"") -> Iterator[Name]:
        """Entries whose names are greater than ``after``, in order."""
        lower = self.lower(folder)
        listed = lower.after(after) if lower is not None else iter(())
        below = next(listed, None)
        query = f"SELECT e.name, {_FIND.removeprefix('SELECT ')} WHERE parent = ? AND name > ? ORDER BY e.name"
        for name, covers, *row in self.db.execute(query, (folder.ino, after)):
            while lower is not None and below is not None and below[0] < name:
                if found := self._listed(lower, below[1]):
                    yield Name(below[0], found)
                below = next(listed, None)
            if below is not None and below[0] == name:
                below = next(listed, None)
            if covers is not None:
                yield Name(name, Attr._make(row))
        while lower is not None and below is not None:
            if found := self._listed(lower, below[1]):
                yield Name(below[0], found)
            below = next(listed, None)

    def is_empty(self, folder: Folder) -> bool:
        """Whether a directory has no entries."""
        if self.db.execute("SELECT 1 FROM entries WHERE parent = ? AND ino NOT NULL", (folder.ino,)).fetchone():
            return False
        lower = self.lower(folder)
        if lower is None:
            return True
        covered = {name for (name,) in self.db.execute("SELECT name FROM entries WHERE parent = ?", (folder.ino,))}
        return all(lower.name(row) in covered or self._listed(lower, row) is None for row in lower.rows())

    def dataset_of(self, ino: int) -> str:
        """Dataset of an inode that has rows."""
        return str(self.db.execute("SELECT dataset FROM inodes WHERE ino = ?", (ino,)).fetchone()[0])

    def names(self, ino: int) -> list[tuple[Folder, bytes]]:
        """Directories and names under which an inode that has rows is found."""
        rows = self.db.execute("SELECT parent, name FROM entries WHERE ino = ?", (ino,)).fetchall()
        return [(self.folder(split_ino(parent)[0]), name) for parent, name in rows]

    def name_at(self, place: Place, attr: Attr) -> tuple[Folder, bytes]:
        """Directory and name of a file that has rows: the ones that a path says, or any."""
        if isinstance(place, int):
            return next(iter(self.names(attr.ino)))
        above, name = split(place[1])
        return self.locate_folder((place[0], above)), name.encode("utf-8", "surrogateescape")

    # Copying up.

    def copy_up(self, ino: int) -> Attr:
        """Give what is to be changed rows of its own; what it shows now. Raises NotFound."""
        dir_id, at = split_ino(ino)
        if dir_id and at is None:
            self.copy_up_folder(self.folder(dir_id))
        found = self.attr(ino)
        if not dir_id or at is None or self.db.execute("SELECT 1 FROM inodes WHERE ino = ?", (ino,)).fetchone():
            return found
        folder = self.folder(dir_id)
        lower = self.lower(folder)
        assert lower is not None  # else ``attr`` would not have found it
        self.copy_up_folder(folder)
        name = lower.name(at)
        self.insert(folder.dataset, found)
        self.put_entry(folder, name, ino)
        if found.size_bytes:
            self.db.execute(
                "INSERT INTO extents VALUES (?, 0, ?, NULL, 0, ?, ?, ?)",
                (ino, found.size_bytes, folder.below(name), lower.etag(at), ino),
            )
        return found

    def copy_up_folder(self, folder: Folder) -> None:
        """Give a directory, and those above it, rows and entries."""
        if folder.dir_id in self._copied:
            return
        if not self.db.execute("SELECT 1 FROM inodes WHERE ino = ?", (folder.ino,)).fetchone():
            lower = self.lower(folder)
            assert lower is not None  # one that was made here has rows from the beginning
            links = sum(self.listed_folder(dir_id) is not None for _, dir_id in lower.directories())
            self.insert(folder.dataset, self.attr(folder.ino)._replace(nlink=2 + links))
            if folder.path:
                above, name = self.above(folder)
                self.copy_up_folder(above)
                self.put_entry(above, name, folder.ino)
        self._copied.add(folder.dir_id)

    def above(self, folder: Folder) -> tuple[Folder, bytes]:
        """The directory that a directory is in, and its name there."""
        path, _, name = folder.path.rpartition(b"/")
        row = self.db.execute(
            "SELECT dir_id FROM directories WHERE dataset = ? AND path = ?", (folder.dataset, path)
        ).fetchone()
        if row is None:
            raise NotFound(f"{where(folder)}: the directory that it was in is gone")
        return self.folder(row[0]), name

    # Changing rows.

    def take_inos(self, count: int) -> None:
        """Take numbers for what is to be made here: outside of what may be undone alone. Raises NoSpace when there are
        none left."""
        update = "UPDATE counters SET value = value + ? WHERE name = 'inos' RETURNING value"
        if count:
            (last,) = self.db.execute(update, (count,)).fetchone()
            if last > MADE_MAX:
                raise NoSpace("all numbers for new files have been given out; `raycache backup`, then a new catalog")
            self._inos = list(range(last, last - count, -1))

    def give_inos_back(self) -> None:
        """Numbers that were not needed."""
        if self._inos:
            self.db.execute("UPDATE counters SET value = value - ? WHERE name = 'inos'", (len(self._inos),))

    def new_ino(self) -> int:
        """One of the numbers that were taken. That of a verb that is undone is not given out again."""
        return self._inos.pop()

    def insert(self, dataset: str, attr: Attr, target: bytes | None = None) -> None:
        """Rows for an inode."""
        self.db.execute(_INSERT, (*attr, dataset, target))

    def new_folder(self, dataset: str, path: bytes) -> int:
        """Number a directory that is made here."""
        insert = "INSERT INTO directories (dataset, path, opaque) VALUES (?, ?, 1)"
        if self.db.execute("SELECT 1 FROM directories WHERE dataset = ? AND path = ?", (dataset, path)).fetchone():
            # Of a listing that is not shown: the source has got a directory under a name that was removed here.
            forget_directories(self.db, dataset, path)
            self.forget()
        dir_id = int(self.db.execute(f"{insert} RETURNING dir_id", (dataset, path)).fetchone()[0])
        self._copied.add(dir_id)
        return dir_id

    def drop_folder(self, folder: Folder) -> None:
        """Forget an empty directory that has no name any more."""
        self.drop(folder.ino)
        forget_directories(self.db, folder.dataset, folder.path)
        self.forget()

    def put_entry(self, folder: Folder, name: bytes, ino: int) -> None:
        """Have a name mean an inode, whatever it meant."""
        self.db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", (folder.ino, name, ino))

    def hide(self, folder: Folder, name: bytes) -> None:
        """Have a name mean nothing, also where the source has it."""
        lower = self.lower(folder)
        if lower is not None and (lower.knows(name) or self._is_persisted(folder, name)):
            self.db.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, NULL)", (folder.ino, name))
        else:
            self.db.execute("DELETE FROM entries WHERE parent = ? AND name = ?", (folder.ino, name))

    def _is_persisted(self, folder: Folder, name: bytes) -> bool:
        key = (folder.dataset, folder.below(name))
        return self.db.execute("SELECT 1 FROM persisted WHERE dataset = ? AND path = ?", key).fetchone() is not None

    def changed(self, folder: Folder, links: int = 0) -> tuple[int, int]:
        """Entries of a directory have changed; its mode and gid. ``links``: directories that it has more."""
        self.copy_up_folder(folder)
        row = self.db.execute(
            "UPDATE inodes SET mtime_ns = ?1, ctime_ns = ?1, nlink = nlink + ?2 WHERE ino = ?3 RETURNING mode, gid",
            (self.now_ns, links, folder.ino),
        ).fetchone()
        self.touch(folder)
        return row[0], row[1]

    def touch(self, folder: Folder) -> None:
        """What the manifest of a directory shows has changed."""
        self.db.execute(
            "INSERT INTO touched (dir_id, since_ns) VALUES (?, ?) ON CONFLICT DO UPDATE SET changes = random()",
            (folder.dir_id, self.now_ns),
        )

    def touch_names(self, ino: int) -> None:
        """What manifests show of a file has changed."""
        for folder, _ in self.names(ino):
            self.touch(folder)

    def drop(self, *inos: int) -> None:
        """Forget inodes that have neither names nor holders."""
        drop_extents(self.db, inos)
        for table in ("inodes", "xattrs", "orphans"):
            self.db.executemany(f"DELETE FROM {table} WHERE ino = ?", ((ino,) for ino in inos))

    # What is to become of it in the source.

    def persists(self, dataset: str, write_type: str = "") -> bool:
        """Whether changes are to get to the source."""
        return (write_type or self.about(dataset).write_type) != "cache"

    def source_etag(self, folder: Folder, name: bytes) -> str | None:
        """The version that the source has under a name as far as is known; empty: nothing; None: not known."""
        return journal.known_etag(self.db, folder.dataset, folder.below(name), self._listed_etag(folder, name))

    def _listed_etag(self, folder: Folder, name: bytes) -> str | None:
        lower = self.lower(folder)
        if lower is None:
            return ""
        covers = self.db.execute("SELECT ino FROM entries WHERE parent = ? AND name = ?", (folder.ino, name)).fetchone()
        if covers is None:
            row = lower.find(name)
        else:
            # What was changed here, and published, is a tombstone in the listing by now.
            dir_id, row = split_ino(covers[0] or 0)
            row = row if dir_id == folder.dir_id and row is not None and lower.name(row) == name else None
        if row is not None:
            return lower.etag(row)
        # It was removed or replaced here: how far the source is with that, the listing does not say.
        return None if lower.knows(name) else ""

    def want_put(self, folder: Folder, name: bytes, attr: Attr, base_etag: str | None) -> None:
        """Have a regular file in the source; after its extents are written."""
        if stat.S_ISREG(attr.mode):
            path = folder.below(name)
            journal.want_put(self.db, folder.dataset, path, attr.ino, attr.version, base_etag)


def drop_nameless(db: Connection, ino: int) -> None:
    """Forget an inode that has neither names nor holders."""
    if db.execute(
        "SELECT 1 FROM inodes WHERE ino = ?1 AND nlink < 1 AND NOT EXISTS (SELECT 1 FROM orphans WHERE ino = ?1)",
        (ino,),
    ).fetchone():
        drop_extents(db, (ino,))
        for table in ("inodes", "xattrs"):
            db.execute(f"DELETE FROM {table} WHERE ino = ?", (ino,))


def forget_directories(db: Connection, dataset: str, path: bytes) -> None:
    """Forget a directory and all below it: what was listed there, and the names in it; not the inodes they mean."""
    rows = db.execute(
        f"SELECT dir_id FROM directories WHERE dataset = ?1 AND {WITHIN.format('path')}",
        within(dataset, path),
    ).fetchall()
    for table in ("directories", "manifests", "touched"):
        db.executemany(f"DELETE FROM {table} WHERE dir_id = ?", rows)
    db.executemany("DELETE FROM entries WHERE parent = ?", [(directory_ino(dir_id),) for (dir_id,) in rows])


def within(dataset: str, path: bytes) -> tuple[str, bytes, bytes, bytes]:
    """Values for WITHIN, after the dataset."""
    return dataset, path, path + b"/", path + b"0"  # '0' follows '/'


def where(folder: Folder, name: bytes = b"") -> str:
    """For messages."""
    path = folder.below(name) if name else folder.path
    return f"raycache://{folder.dataset}/{path.decode('utf-8', 'backslashreplace')}"


def check_name(name: bytes) -> None:
    """What a new entry may be called. Raises InvalidInput, Refused (ENAMETOOLONG)."""
    if len(name) > NAME_MAX:
        raise Refused.because(errno.ENAMETOOLONG, f"a name of {len(name)} bytes; names have at most {NAME_MAX}")
    if not is_shown(name):
        raise InvalidInput(f"{name!r} cannot name a file")
