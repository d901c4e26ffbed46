"""The read-only session: FUSE in pure Python on ``/dev/fuse``.

Responsible for: answering requests from a ``vfs``. Not responsible for: the connection (``session``), what a mount
shows (``vfs``), bytes on the wire (``wire``).

Why it is fast: OPEN, OPENDIR and FLUSH are answered ENOSYS, once, after which the kernel opens and closes files by
itself; entries, attributes, pages and directory listings stay with the kernel until they are invalidated; READ is
answered by one ``writev`` of a header and a view of the block.

Invariants
* A request has all that is needed to answer it: there are no handles, and an inode number says where its row is. So
  any process with the same manifests can answer what this one left open.
* What the vfs has in memory is answered by the serving thread, and so are reads of block files, which the kernel makes
  beside it; all else goes to ``misses``, reads that do not end well or in time too.

Threading: as in ``session``.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable
from functools import partial

from raycache.client.blockfiles import Begun
from raycache.core import paths
from raycache.core.values import Buffer
from raycache.errors import NotFound
from raycache.fuse import dirents, wire
from raycache.fuse.errno import errno_of
from raycache.fuse.misses import Limits
from raycache.fuse.session import Session
from raycache.fuse.vfs import Entries, Vfs, WouldBlock
from raycache.fuse.wire import Agreed, Malformed, Op, Request

_log = logging.getLogger(__name__)

Answer = Callable[[Request, bool], Buffer | None]
"""Body of the answer to a request, None where it comes later; the second argument is whether it may wait."""

_SILENT = frozenset({int(Op.FORGET), int(Op.BATCH_FORGET)})
_WRITES: tuple[int, ...] = (
    Op.SETATTR, Op.SYMLINK, Op.MKNOD, Op.MKDIR, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.RENAME2, Op.LINK, Op.WRITE,
    Op.CREATE, Op.SETXATTR, Op.REMOVEXATTR, Op.FALLOCATE, Op.COPY_FILE_RANGE, Op.TMPFILE,
)  # fmt: skip
_REFUSED: dict[int, int] = dict.fromkeys(_WRITES, errno.EROFS) | {
    Op.READLINK: errno.EINVAL,  # nothing here is a link
    Op.IOCTL: errno.ENOTTY,
}
"""What is refused without asking. All else that is not answered is ENOSYS, which switches it off in the kernel for
good: OPEN, OPENDIR and FLUSH (the point of this session), STATX (there is no birth time to add), extended attributes
(EOPNOTSUPP from then on), ACCESS (the kernel checks modes), FSYNC (succeeds), LSEEK (files are dense)."""


class KernelSession(Session[Request]):
    """Serves one mount that is read."""

    def __init__(
        self, vfs: Vfs, fd: int, owner: tuple[int, int], agreed: Agreed | None = None, limits: Limits | None = None
    ) -> None:
        """``owner``: uid and gid to show. The others as in Session."""
        vfs.threads_may_hang()
        super().__init__(fd, agreed, limits, hanging=vfs.is_disk_hanging)
        self._vfs = vfs
        self._owner = owner
        self._packer = wire.Packer(*owner)
        self._beside: dict[Begun, Request] = {}
        """Reads that the kernel makes."""
        self._answers: dict[int, Answer] = {
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.READ: self._read,
            Op.READDIR: self._readdir,
            Op.READDIRPLUS: self._readdirplus,
            Op.STATFS: self._statfs,
        }

    def _begin_beside(self) -> int | None:
        return self._vfs.begin_beside()

    def dispatch(self, buffer: memoryview, length: int) -> None:
        """Answer the request in ``buffer``, now or later. Never raises, whatever is in it."""
        try:
            opcode, unique = wire.peek(buffer, length)
            if opcode in _REFUSED:
                self._refuse(unique, _REFUSED[opcode])
                return
            request = wire.parse(buffer, length)
        except Malformed as error:
            _log.error("a message of the kernel makes no sense: %s", error)
            if error.unique is not None:
                self._refuse(error.unique, errno.EINVAL)
            return
        answer = self._answers.get(opcode)
        if answer is None:
            self._dispatch_rest(request)
            return
        try:
            body = answer(request, False)
        except WouldBlock:
            self._misses.submit(request)
        except Exception as error:  # noqa: BLE001  whatever it is, someone waits for an answer
            self._refuse(request.unique, self._failed(request, error))
        else:
            if body is not None:
                self._reply(request.unique, body)

    def _waits_beside(self) -> bool:
        return bool(self._beside)

    def _end_beside(self) -> bool:
        """Answer reads of block files that have ended; whether there were any."""
        ended = self._vfs.ended()
        for begun, data in ended:
            request = self._beside.pop(begun, None)
            if request is None:
                continue  # its program is being killed
            if data is None:
                self._misses.submit(request)
            else:
                self._reply(request.unique, data)
        return bool(ended)

    def _interrupt(self, unique: int) -> None:
        """Give a request up if its program is being killed; ``misses`` look after that."""
        for begun, request in self._beside.items():
            if request.unique == unique:
                del self._beside[begun]
                self._misses.submit(request)
                break
        self._misses.interrupt(unique)

    def _dispatch_rest(self, request: Request) -> None:
        opcode = request.opcode
        if opcode in _SILENT:
            return
        if opcode == Op.INTERRUPT:
            self._interrupt(request.target)
        elif opcode == Op.DESTROY:
            self._reply(request.unique, b"")
        else:
            self._refuse(request.unique, errno.ENOSYS)

    def _answer_late(self, request: Request) -> None:
        try:
            body = self._answers[request.opcode](request, True)
            assert body is not None
        except Exception as error:  # noqa: BLE001  as in dispatch
            number = self._failed(request, error)
            if self._misses.claim(request.unique):
                self._refuse(request.unique, number)
        else:
            if self._misses.claim(request.unique):
                self._reply(request.unique, body)

    def _answer_never(self, request: Request, killed: bool) -> None:
        if not killed:
            self._vfs.counters.errors += 1
            _log.warning("%s: no answer before the deadline; the program sees an I/O error", self._describe(request))
        self._refuse(request.unique, errno.EINTR if killed else errno.EIO)

    def _failed(self, request: Request, error: Exception) -> int:
        self._vfs.counters.errors += 1
        return errno_of(error, self._describe(request))

    def _lookup(self, request: Request, wait: bool) -> Buffer:
        if len(request.name) > paths.NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        try:
            attr = self._vfs.lookup(request.nodeid, request.name, wait=wait)
        except NotFound:
            if wait:
                raise  # perhaps the directory itself could not be listed: not to be remembered
            return wire.NEGATIVE_ENTRY
        return self._packer.entry(attr)

    def _getattr(self, request: Request, wait: bool) -> Buffer:
        return self._packer.attr(self._vfs.getattr(request.nodeid, wait=wait))

    def _read(self, request: Request, wait: bool) -> Buffer | None:
        if wait:
            return self._vfs.read(request.nodeid, request.offset, request.size)
        found = self._vfs.begin_read(request.nodeid, request.offset, request.size)
        if isinstance(found, Begun):
            self._beside[found] = request
            return None
        return found

    def _readdir(self, request: Request, wait: bool) -> Buffer:
        return self._list(request, wait, wire.DIRENT_BYTES, self._packer.directory, dirents.pack_plain)

    def _readdirplus(self, request: Request, wait: bool) -> Buffer:
        pack = partial(dirents.pack_plus, owner=self._owner)
        return self._list(request, wait, wire.DIRENTPLUS_BYTES, self._packer.directory_plus, pack)

    def _list(
        self,
        request: Request,
        wait: bool,
        head_bytes: int,
        pack_dots: Callable[[Iterable[wire.EntryLike], int], bytes],
        pack: Callable[[Entries, int], bytes],
    ) -> Buffer:
        ino, at, size = request.nodeid, request.offset, request.size
        entries = self._vfs.scan(ino, max(0, at - wire.DOTS), size // head_bytes, wait=wait)
        if at >= wire.DOTS:
            return pack(entries, size)
        dots = pack_dots(wire.dot_entries(self._vfs.getattr(ino, wait=wait), at), size)
        return dots + pack(entries, size - len(dots))

    def _statfs(self, request: Request, wait: bool) -> Buffer:
        size_bytes, files = self._vfs.totals()
        return wire.pack_statfs(size_bytes, files, paths.NAME_MAX)

    def _describe(self, request: Request) -> str:
        name = f" {request.name!r} in" if request.name else ""
        return f"{Op(request.opcode).name.lower()}{name} {self._vfs.path(request.nodeid) or '/'}"
