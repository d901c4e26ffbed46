"""The read-only session: FUSE in pure Python on ``/dev/fuse``.

Responsible for: one kernel connection - reading requests, answering them from a ``vfs``, telling the kernel what became
stale. Not responsible for: what a mount shows (``vfs``), bytes on the wire (``wire``), mounting (``device``), keeping
the descriptor alive when this process dies (the holder).

Why it is fast: OPEN, OPENDIR and FLUSH are answered ENOSYS, once, after which the kernel opens and closes files by
itself; entries, attributes, pages and directory listings stay with the kernel until they are invalidated; READ is
answered by one ``writev`` of a header and a view of the block.

Invariants
* A request has all that is needed to answer it: there are no handles, and an inode number says where its row is. So
  any process with the same manifests can answer what this one left open.
* Each request is answered once, except FORGET and its kind, which nobody waits for.
* What the vfs has in memory is answered by the serving thread, and so are reads of block files, which the kernel makes
  beside it; all else goes to ``misses``, reads that do not end well or in time too.

Threading: one thread calls ``serve``. ``stop`` and ``invalidate`` may be called from any other, never from one that
answers requests: an invalidation may wait for locks that are held until an answer comes. While it serves, threads of
the whole process take turns more often (SWITCH_S).
"""

from __future__ import annotations

import errno
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import Enum
from functools import partial

from raycache.client.blockfiles import Begun
from raycache.core import paths
from raycache.core.values import Buffer
from raycache.errors import MountError, NotFound
from raycache.fuse import device, dirents, wire
from raycache.fuse.errno import errno_of
from raycache.fuse.misses import Limits, Misses
from raycache.fuse.vfs import Entries, Vfs, WouldBlock
from raycache.fuse.wire import Agreed, Malformed, Op, Request

_log = logging.getLogger(__name__)

Answer = Callable[[Request, bool], Buffer | None]
"""Body of the answer to a request, None where it comes later; the second argument is whether it may wait."""

SWITCH_S = 0.0002
"""How long a thread of ``misses`` may keep the interpreter from the serving one. With Python's own 5 ms, four busy
threads made a hit wait 20 ms and more; with this, about 1 ms."""

LOOK_S = 60e-6
"""How long to look for the next request before sleeping, letting others run in between. To be woken on another
processor takes longer than to answer: one reader of small files got 13,000 a second without this, 24,000 with it."""
IN_A_ROW_S = 200e-6
"""Requests as near as this come from a program that goes from one to the next; after a lone one nobody looks."""

OVERDUE_LOOK_MS = 1000
"""How often to look whether a read of a block file has been under way for too long."""

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


class Ended(Enum):
    """Why ``serve`` returned."""

    UNMOUNTED = "unmounted"
    STOPPED = "stopped"


class KernelSession:
    """Serves one mount."""

    def __init__(
        self, vfs: Vfs, fd: int, owner: tuple[int, int], agreed: Agreed | None = None, limits: Limits | None = None
    ) -> None:
        """``fd``: from ``device.mount``, or a copy of it; stays the caller's. ``owner``: uid and gid to show.

        ``agreed``: what INIT agreed, when that was before; None leaves the handshake to ``begin`` or ``serve``.
        """
        self._vfs = vfs
        self._fd = fd
        self._owner = owner
        self._packer = wire.Packer(*owner)
        self._agreed = agreed
        self._stopped = False
        self._lock = threading.Lock()
        self._wake: int | None = None
        self._reads: dict[Begun, Request] = {}
        """Reads of block files under way."""
        vfs.threads_may_hang()
        self._misses = Misses(self._answer_late, self._answer_never, limits or Limits(), hanging=vfs.is_disk_hanging)
        self._answers: dict[int, Answer] = {
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.READ: self._read,
            Op.READDIR: self._readdir,
            Op.READDIRPLUS: self._readdirplus,
            Op.STATFS: self._statfs,
        }

    def begin(self) -> Agreed:
        """What INIT agreed; on a new mount, agree now. Raises MountError."""
        if self._agreed is None:
            self._agreed = device.handshake(self._fd)
        return self._agreed

    def serve(self) -> Ended:
        """Answer requests until the mount ends or ``stop`` is called."""
        self.begin()
        with self._lock:
            self._wake = os.eventfd(int(self._stopped), os.EFD_CLOEXEC)
        # Not to sleep in a read that only a request ends: ``stop`` must end it as well. All copies of the descriptor
        # share this setting.
        os.set_blocking(self._fd, False)
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        reads = self._vfs.begin_beside()
        if reads is not None:
            poll.register(reads, select.POLLIN)
        switch_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            return self._serve(poll)
        finally:
            sys.setswitchinterval(switch_s)
            self._misses.close()
            with self._lock:
                os.close(self._wake)
                self._wake = None

    def _serve(self, poll: select.poll) -> Ended:
        fd, buffer = self._fd, bytearray(wire.REQUEST_BYTES)
        view, into = memoryview(buffer), [buffer]
        answered = look_until = 0.0
        while not self._stopped:
            ready = poll.poll(0)
            if not ready:
                if time.monotonic() < look_until:
                    os.sched_yield()
                    continue
                ready = poll.poll(OVERDUE_LOOK_MS if self._reads else None)
            if self._reads and self._end_reads():
                answered = time.monotonic()
            if all(each != fd for each, _ in ready):
                look_until = answered + LOOK_S if not self._reads else 0.0
                continue
            try:
                length = os.readv(fd, into)
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return Ended.UNMOUNTED
                # ENOENT: the request was taken back while it was copied. The others cannot last.
                if error.errno not in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    raise MountError(f"cannot read {device.DEVICE}: {error.strerror}") from error
                continue
            in_a_row = time.monotonic() - answered < IN_A_ROW_S
            self.dispatch(view, length)
            answered = time.monotonic()
            look_until = answered + LOOK_S if in_a_row and not self._reads else 0.0
        return Ended.STOPPED

    def stop(self) -> None:
        """Make ``serve`` return. The mount stays; what is unanswered waits for whoever serves it next."""
        self._misses.close()
        with self._lock:
            self._stopped = True
            if self._wake is not None:
                os.eventfd_write(self._wake, 1)

    def resend(self) -> None:
        """Have the kernel send again what a dead process had read and not answered. Before ``serve``."""
        self._notify(wire.pack_resend())

    def invalidate(self, entries: Iterable[tuple[int, bytes]], inodes: Iterable[int]) -> None:
        """Make the kernel forget names, as ``(directory, name)``, and bytes, attributes or listings of inodes.

        Returns when it has. What the kernel does not know of is none of its concern, nor ours.
        """
        for parent, name in entries:
            self._notify(wire.pack_inval_entry(parent, name))
        for ino in inodes:
            self._notify(wire.pack_inval_inode(ino))

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

    def _end_reads(self) -> bool:
        """Answer reads of block files that have ended; whether there were any."""
        ended = self._vfs.ended()
        for begun, data in ended:
            request = self._reads.pop(begun, None)
            if request is None:
                continue  # its program is being killed
            if data is None:
                self._misses.submit(request)
            else:
                self._reply(request.unique, data)
        return bool(ended)

    def _interrupt(self, unique: int) -> None:
        """Give a request up if its program is being killed; ``misses`` look after that."""
        for begun, request in self._reads.items():
            if request.unique == unique:
                del self._reads[begun]
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
        """In a thread of ``misses``: answer with waiting."""
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
            self._reads[found] = request
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

    def _reply(self, unique: int, body: Buffer) -> None:
        try:
            os.writev(self._fd, (wire.pack_header(unique, len(body)), body))
        except OSError as error:
            self._not_sent(unique, error)

    def _refuse(self, unique: int, number: int) -> None:
        try:
            os.write(self._fd, wire.pack_error(unique, number))
        except OSError as error:
            self._not_sent(unique, error)

    def _not_sent(self, unique: int, error: OSError) -> None:
        """ENOENT: taken back, as its program was killed or the mount ended. Anything else must not leave it waiting."""
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return
        _log.error("the kernel did not take an answer: %s", error.strerror)
        with suppress(OSError):  # the first refusal may have ended the request all the same
            os.write(self._fd, wire.pack_error(unique, errno.EIO))

    def _notify(self, message: bytes) -> None:
        try:
            os.write(self._fd, message)
        except OSError as error:
            # ENOENT: not cached. ENODEV and ENOTCONN: the mount is gone, and with it whatever was stale.
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN):
                raise MountError(f"cannot notify the kernel: {error.strerror}") from error

    def _describe(self, request: Request) -> str:
        name = f" {request.name!r} in" if request.name else ""
        return f"{Op(request.opcode).name.lower()}{name} {self._vfs.path(request.nodeid) or '/'}"
