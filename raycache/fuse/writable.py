"""A file system that is written, without FUSE and without Ray: names, attributes and listings over ``TreeApi``.

Responsible for: what a mount asks of the master, and what of the answers it shows. Not responsible for: contents
(``files``), permissions (the kernel checks modes), the wire (``writesession``).

Nothing that a request needs is kept for it here but what was written and is not committed: inode numbers are the
master's, handles of files mean nothing, and a listing that is not known is taken anew. The kernel calls the root of a
mount 1; all other numbers are those of the tree.

Each change carries the id of its request, so that one that the kernel sends again takes effect once.

Threading: safe.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from raycache.client.treeapi import EXCHANGE
from raycache.core.inode import Attr, Name, Verb
from raycache.core.values import Failed
from raycache.errors import Exists, RaycacheError, Refused
from raycache.fuse.beside import Steps, T, given
from raycache.fuse.draftlog import DraftLog, Kind
from raycache.fuse.files import Files
from raycache.fuse.folders import Folders
from raycache.fuse.grouped import Grouped
from raycache.fuse.recovering import recover

ROOT_INO = 1
LISTING_NAMES = 2048
"""Entries asked for at a time."""
LISTINGS_MAX = 1024
"""Directories that are being listed; beyond them the oldest is listed anew when it goes on."""
RELEASE_AT_ONCE = 512
_DOTS = 2
_XATTRS = (b"user.", b"trusted.", b"security.")
_RENAME_FLAGS = 1 | EXCHANGE


class MadeAs(NamedTuple):
    """What a new file is made with."""

    mode: int
    uid: int
    gid: int


class Opened(NamedTuple):
    """A file that was made or found, and is open."""

    attr: Attr
    pages_known: bool
    """Whether the pages that the kernel has of it are of its contents."""


class Listing:
    """A directory as it is being read: the names that were there when it was opened or rewound, as far as was asked."""

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.lock = threading.Lock()
        self.names: list[Name] = []
        self.is_whole = False


class WritableVfs:
    """A tree that is written, over one directory of a dataset."""

    def __init__(self, master: Grouped, files: Files, log: DraftLog, root_ino: int, mount_id: str) -> None:
        """``mount_id``: names the mount to the master, for as long as it lives, whoever serves it."""
        self._log = log
        self._master = master
        self.files = files
        self._root_ino = root_ino
        self._mount_id = mount_id
        self._folders = Folders()
        self._lock = threading.Lock()
        self._handles = itertools.count(1)
        self._listings: OrderedDict[int, Listing] = OrderedDict()
        self._orphans: set[int] = set()
        """Inodes without a name that the kernel has not forgotten: some process may have them open."""
        self._forgotten: list[int] = []
        self._removed: dict[int, Attr] = {}
        """Directories that are gone, and which the kernel has not forgotten: some process may be in them."""

    def recover(self) -> None:
        """Go on with what a predecessor left. Before anything is served."""
        self._orphans |= recover(self._log, self.files, self._master)

    # Questions.

    def run(self, steps: Steps[T]) -> T:
        """Go through steps, waiting. Raises what they raise, and Unavailable."""
        return self._master.run(steps)

    def lookup(self, parent: int, name: bytes) -> Steps[Attr]:
        """The entry of a directory. Raises NotFound, NotADirectory."""
        (found,) = yield [Verb("lookup", (self._tree(parent), name))]
        return self._shown(given(found))

    def getattr(self, ino: int) -> Attr:
        """Attributes. Raises NotFound."""
        return self.run(self.getattr_steps(ino))

    def getattr_steps(self, ino: int) -> Steps[Attr]:
        """The same in steps."""
        draft = self.files.drafts.find(ino)
        if draft is not None and draft.orphan:
            return draft.shown()
        removed = self._removed.get(ino)
        if removed:
            return removed
        (found,) = yield [Verb("getattr", (self._tree(ino),))]
        return self._shown(given(found))

    def known(self, ino: int) -> Attr | None:
        """Attributes, where they were heard a moment ago."""
        return self.files.known(ino) or self._folders.known(self._tree(ino))

    def readlink(self, ino: int) -> bytes:
        """Target of a symbolic link. Raises InvalidInput."""
        return self._master.ask("readlink", ino)  # type: ignore[no-any-return]

    def opendir(self, ino: int) -> int:
        """Begin to list a directory; the handle."""
        with self._lock:
            handle = next(self._handles)
            self._begin_listing(handle, ino)
        return handle

    def readdir(self, ino: int, handle: int, offset: int, count: int) -> list[Name]:
        """At most ``count`` entries from ``offset`` on, with the two dots first. Raises NotFound, NotADirectory."""
        with self._lock:
            listing = self._listings.get(handle)
            if listing is None or listing.ino != ino or (offset == 0 and listing.names):
                listing = self._begin_listing(handle, ino)
            self._listings.move_to_end(handle)
        with listing.lock:
            if not listing.names:
                here = self.getattr(ino)
                # Nothing here knows the parent of a directory; programs that climb use stat("..").
                listing.names += [Name(b".", here), Name(b"..", here)]
            while len(listing.names) < offset + count and not listing.is_whole:
                after = listing.names[-1].name if len(listing.names) > _DOTS else b""
                found = self._master.ask("readdir", self._tree(ino), after, LISTING_NAMES)
                listing.names += found
                listing.is_whole = len(found) < LISTING_NAMES
            return [Name(name, self._shown(attr)) for name, attr in listing.names[offset : offset + count]]

    def _begin_listing(self, handle: int, ino: int) -> Listing:
        """With the lock held."""
        listing = self._listings[handle] = Listing(ino)
        while len(self._listings) > LISTINGS_MAX:
            self._listings.popitem(last=False)
        return listing

    def releasedir(self, handle: int) -> None:
        """A directory is not listed any more."""
        with self._lock:
            self._listings.pop(handle, None)

    # Names.

    def create(self, parent: int, name: bytes, made_as: MadeAs, flags: int, request: str, wait: bool) -> Steps[Opened]:
        """Make a file if there is none, and open it. Raises Exists, and what Files.open raises."""
        where, mark = self._tree(parent), self._folders.mark()
        args = (where, name, stat.S_IFREG | stat.S_IMODE(made_as.mode), made_as.uid, made_as.gid, 0)
        made, folder = yield [Verb("mknod", args, self._id(request)), Verb("getattr", (where,))]
        if not isinstance(folder, Failed):
            self._folders.learn(folder, mark)
        if not isinstance(made, Failed):
            self.files.created(made)
            return Opened(made, True)
        if flags & os.O_EXCL or not isinstance(made.error, Exists):
            raise made.error
        attr = yield from self.lookup(parent, name)
        if not stat.S_ISREG(attr.mode):
            # The kernel asked as it knew of no such name: it will look again, and do what is right for what it is.
            raise Refused.because(errno.ESTALE, f"{name!r} came to be meanwhile, and is no regular file")
        return Opened(attr, self.files.open(attr.ino, bool(flags & os.O_TRUNC), wait=wait))

    def mknod(self, parent: int, name: bytes, mode: int, uid: int, gid: int, rdev: int, request: str) -> Attr:
        """Make an empty file, a pipe, a socket or a device node. Raises Exists."""
        args = (self._tree(parent), name, mode, uid, gid, rdev)
        return self._change("mknod", request, *args)  # type: ignore[no-any-return]

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int, request: str) -> Attr:
        """Make a directory. Raises Exists."""
        args = (self._tree(parent), name, mode, uid, gid)
        return self._change("mkdir", request, *args)  # type: ignore[no-any-return]

    def symlink(self, parent: int, name: bytes, target: bytes, uid: int, gid: int, request: str) -> Attr:
        """Make a symbolic link. Raises Exists."""
        args = (self._tree(parent), name, target, uid, gid)
        return self._change("symlink", request, *args)  # type: ignore[no-any-return]

    def link(self, ino: int, parent: int, name: bytes, request: str) -> Attr:
        """Give a file another name. Raises Exists, Refused."""
        return self._shown(self._change("link", request, ino, self._tree(parent), name))

    def unlink(self, parent: int, name: bytes, request: str) -> None:
        """Take a name from a file. Raises NotFound, IsADirectory."""
        args = (self._tree(parent), name, self._mount_id)
        self._lost_name(self._change("unlink", request, *args))

    def rmdir(self, parent: int, name: bytes, request: str) -> None:
        """Remove an empty directory. Raises NotEmpty, NotFound."""
        self._lost_name(self._change("rmdir", request, self._tree(parent), name))

    def rename(self, parent: int, name: bytes, to_parent: int, to_name: bytes, flags: int, request: str) -> None:
        """As renameat2(2). Raises what TreeApi.rename raises."""
        if flags & ~_RENAME_FLAGS:
            raise Refused.because(errno.EINVAL, f"flags {flags:#x} of a rename")
        target = (self._tree(to_parent), to_name)
        verbs = [
            Verb("lookup", target),
            Verb("rename", (self._tree(parent), name, *target, flags, self._mount_id), self._id(request)),
        ]
        with self._folders.changing():
            there, moved = self._master.try_all(verbs)
        if isinstance(moved, Failed):
            raise moved.error
        self._shown(moved)
        if isinstance(there, Failed):
            return
        self.files.doubt(there.ino)
        if not flags and there.ino != moved.ino:
            self._lost_name(there._replace(nlink=0 if there.is_dir else there.nlink - 1))

    def _lost_name(self, attr: Attr) -> None:
        """A name was taken from a file, or a directory. With the last one it is kept until the kernel forgets it."""
        if attr.nlink > 0:
            self._shown(attr)
            return
        if attr.is_dir:
            self._removed[attr.ino] = attr
            return
        draft = self.files.drafts.find(attr.ino)
        if draft is not None:
            with draft.lock:
                draft.orphan = True
                draft.attr = draft.attr._replace(nlink=0, ctime_ns=attr.ctime_ns)
        with self._lock:
            self._orphans.add(attr.ino)
        self._log.add(Kind.ORPHAN, attr.ino)

    def forget(self, inos: Iterable[int]) -> None:
        """The kernel has let go of inodes: no process has them open."""
        if not self._orphans and not self._removed:
            return
        for ino in inos:
            self._removed.pop(ino, None)
            if ino in self._orphans:
                with self._lock:
                    self._orphans.discard(ino)
                    self._forgotten.append(ino)
                self.files.forget(ino)
                self._log.add(Kind.FORGOTTEN, ino)

    def tidy(self) -> None:
        """What is to be done every second or so. Raises what the master raises; it is done the next time then."""
        self.files.spool.tidy()
        if self._log.is_long:
            self._renew_log()
        with self._lock:
            inos = self._forgotten[:RELEASE_AT_ONCE]
        while inos:
            self._master.ask("release", self._mount_id, inos)
            with self._lock:
                del self._forgotten[: len(inos)]
                inos = self._forgotten[:RELEASE_AT_ONCE]

    def _renew_log(self) -> None:
        before = self._log.renew()
        self.files.record_again()
        with self._lock:
            orphans = list(self._orphans)
        for ino in orphans:
            self._log.add(Kind.ORPHAN, ino)
        self._log.drop(before)

    # Attributes.

    def setattr(self, ino: int, changes: dict[str, int], kill: bool, request: str) -> Attr:
        """Set attributes, the size too. ``kill``: set-uid and set-gid bits go. Raises what TreeApi.setattr raises."""
        values = dict(changes)
        size_bytes = values.pop("size_bytes", None)
        if size_bytes is not None:
            draft = self.files.resize(ino, size_bytes)
            if draft.opens == 0:  # else it is committed when it is closed
                self.files.commit(ino, self._id(request, "size"))
        if kill:
            mode = self.getattr(ino).mode
            if (killed := without_suid(mode)) != mode:
                values["mode"] = stat.S_IMODE(killed)
        if "mtime_ns" in values:
            self.files.commit(ino, self._id(request, "before"))  # a commit has a time of its own
        if not values:
            return self.getattr(ino)
        return self._shown(self._change("setattr", request, self._tree(ino), values))

    def kill_suid(self, ino: int, request: str) -> None:
        """Who writes to a file may not keep its set-uid and set-gid bits."""
        self.setattr(ino, {}, True, request)

    def may_be_suid(self, ino: int) -> bool:
        """False where it is certain that a file has no set-uid and set-gid bits."""
        known = self.files.known(ino)
        return known is None or bool(known.mode & (stat.S_ISUID | stat.S_ISGID))

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """Raises Refused (ENODATA, EOPNOTSUPP)."""
        _check_xattr(name)
        return self._master.ask("getxattr", self._tree(ino), name)  # type: ignore[no-any-return]

    def listxattr(self, ino: int) -> list[bytes]:
        """Names of all."""
        return self._master.ask("listxattr", self._tree(ino))  # type: ignore[no-any-return]

    def setxattr(self, ino: int, name: bytes, value: bytes, flags: int, request: str) -> None:
        """Raises Exists, Refused."""
        _check_xattr(name)
        self._change("setxattr", request, self._tree(ino), name, value, flags)
        self.files.doubt(ino)

    def removexattr(self, ino: int, name: bytes, request: str) -> None:
        """Raises Refused (ENODATA)."""
        _check_xattr(name)
        self._change("removexattr", request, self._tree(ino), name)
        self.files.doubt(ino)

    # Files, where names and attributes have a part in it.

    def flush(self, ino: int, request: str, *, sync: bool = False) -> None:
        """A descriptor is closed, or synced. Raises what TreeApi.commit raises."""
        self.files.commit(ino, self._id(request), sync=sync)

    def flush_steps(self, ino: int, request: str, wait: bool) -> Steps[None]:
        """A descriptor is closed, in steps."""
        return self.files.commit_steps(ino, self._id(request), wait=wait)

    def sync(self) -> None:
        """Have names and attributes outlive a power cut. Raises Unavailable."""
        self._master.ask("sync")

    def copy(self, ino: int, offset: int, to_ino: int, to_offset: int, length: int, request: str) -> int:
        """See Files.copy."""
        return self.files.copy(ino, offset, to_ino, to_offset, length, self._id(request))

    def end(self) -> None:
        """The mount is gone: commit what is left, let go of everything. Raises nothing."""
        for draft in self.files.drafts.dirty():
            try:
                self.files.commit(draft.attr.ino, self._id(f"end-{draft.attr.ino:x}"))
            except RaycacheError:
                continue
        self.files.spool.close()
        self._log.close(delete=True)
        with suppress(RaycacheError):
            self._master.ask("release", self._mount_id, None)

    def describe(self, ino: int) -> str:
        """For messages."""
        return "/" if ino == ROOT_INO else f"inode {ino:#x}"

    def _change(self, verb: str, request: str, *args: Any) -> Any:
        """Ask for a change other than a new file."""
        with self._folders.changing():
            return self._master.ask(verb, *args, request_id=self._id(request))

    def _tree(self, ino: int) -> int:
        """A number of the kernel's in the tree."""
        return self._root_ino if ino == ROOT_INO else ino

    def _shown(self, attr: Attr) -> Attr:
        return self.files.drafts.learn(attr)

    def _id(self, request: str, part: str = "") -> str:
        """The same for a request that the kernel sends again."""
        return f"{self._mount_id}:{request}{':' if part else ''}{part}"


def without_suid(mode: int) -> int:
    """A mode without the bits that give a program rights of its owner; a set-gid bit without execution is a lock's."""
    lost = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
    return mode & ~lost


def _check_xattr(name: bytes) -> None:
    if not name.startswith(_XATTRS):
        raise Refused.because(errno.EOPNOTSUPP, f"{name!r}: only user., trusted. and security. attributes are kept")
