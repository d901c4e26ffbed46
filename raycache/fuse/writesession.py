"""The session of a mount that is written: requests of the kernel, answered from a ``WritableVfs``.

Responsible for: what each request means, and which are answered at once. Not responsible for: the connection
(``session``), what a mount shows (``writable``), bytes on the wire (``wirewrite``).

WRITE goes from the buffer into a segment, without a thread in between. What is asked most often of the master is asked
by the serving thread, which goes on meanwhile (``beside``); all else goes to ``misses``, and so does what that gives
back. What waits at the same time is asked in one call. There is no table of handles: they say nothing, and a successor
of this process goes on with them.

Threading: as in ``session``.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable

from raycache.client.namespace import WouldBlock
from raycache.core import paths
from raycache.core.values import Buffer
from raycache.errors import NotFound, Refused
from raycache.fuse import wire, wirewrite
from raycache.fuse.beside import Beside, Steps, VerbStream
from raycache.fuse.errno import errno_of
from raycache.fuse.misses import Limits
from raycache.fuse.session import Session
from raycache.fuse.vfs import Counters
from raycache.fuse.wire import IN_HEADER_BYTES, RESENT, Agreed, Malformed, Op
from raycache.fuse.wirewrite import Ask
from raycache.fuse.writable import MadeAs, WritableVfs

_log = logging.getLogger(__name__)

Handler = Callable[[Ask], Buffer]
"""Works out the body of an answer, waiting where it must."""
_WRITE = int(Op.WRITE)
_REFUSED: dict[int, int] = {Op.IOCTL: errno.ENOTTY}


class WriteSession(Session[Ask]):
    """Serves one mount that is written."""

    profile = wirewrite.WRITING

    def __init__(
        self,
        vfs: WritableVfs,
        fd: int,
        owner: tuple[int, int],
        agreed: Agreed | None = None,
        limits: Limits | None = None,
        stream: VerbStream | None = None,
    ) -> None:
        """``owner``: uid and gid of what nobody gave one. ``stream``: to the master. The others as in Session."""
        super().__init__(fd, agreed, limits)
        self._vfs = vfs
        self.beside = Beside(stream, self._done) if stream is not None else None
        self._packer = wirewrite.Packer(*owner)
        self.counters = Counters()
        self._at_once: dict[int, Handler] = {
            Op.GETATTR: self._getattr_at_once,
            Op.GETXATTR: self._getxattr_at_once,
            Op.OPEN: self._open_at_once,
            Op.FLUSH: self._flush_at_once,
            Op.RELEASE: self._release_at_once,
        }
        """Those that raise WouldBlock where somebody would have to be asked."""
        self._steps: dict[int, Callable[[Ask, bool], Steps[Buffer]]] = {
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.CREATE: self._create,
            Op.FLUSH: self._flush,
            Op.RELEASE: self._flush,  # of what is not committed; all others are answered at once
        }
        """The most frequent ones. The second argument is whether they may wait; else they raise WouldBlock."""
        self._handlers: dict[int, Handler] = {
            Op.SETATTR: self._setattr,
            Op.READLINK: self._readlink,
            Op.SYMLINK: self._symlink,
            Op.MKNOD: self._mknod,
            Op.MKDIR: self._mkdir,
            Op.UNLINK: self._unlink,
            Op.RMDIR: self._rmdir,
            Op.RENAME: self._rename,
            Op.RENAME2: self._rename2,
            Op.LINK: self._link,
            Op.OPEN: self._open,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.FSYNC: self._fsync,
            Op.FSYNCDIR: self._fsyncdir,
            Op.STATFS: self._statfs,
            Op.OPENDIR: self._opendir,
            Op.READDIR: self._readdir,
            Op.READDIRPLUS: self._readdirplus,
            Op.RELEASEDIR: self._releasedir,
            Op.GETXATTR: self._getxattr,
            Op.LISTXATTR: self._listxattr,
            Op.SETXATTR: self._setxattr,
            Op.REMOVEXATTR: self._removexattr,
            Op.FALLOCATE: self._fallocate,
            Op.LSEEK: self._lseek,
            Op.COPY_FILE_RANGE: self._copy_file_range,
        }

    def dispatch(self, buffer: memoryview, length: int) -> None:
        """Answer the request in ``buffer``, now or later. Never raises, whatever is in it."""
        try:
            opcode, _ = wire.peek(buffer, length)
            if opcode == _WRITE and self._wrote_at_once(buffer, length):
                return
            ask = wirewrite.parse(buffer, length)
            if opcode in self._at_once and self._answered_at_once(ask):
                return
            if opcode in self._steps and self.beside is not None:
                self.beside.begin(ask, self._steps[opcode](ask, False))
            elif opcode in self._steps or opcode in self._handlers:
                self._misses.submit(ask)
            else:
                self._dispatch_rest(ask)
        except Malformed as error:
            _log.error("a message of the kernel makes no sense: %s", error)
            if error.unique is not None:
                self._refuse(error.unique, errno.EINVAL)

    def _wrote_at_once(self, buffer: memoryview, length: int) -> bool:
        """Whether a WRITE was answered without asking anybody."""
        head = IN_HEADER_BYTES + wirewrite.WRITE_IN.size
        if length < head:
            raise Malformed("WRITE without a range")
        ask = wirewrite.parse(buffer, head)
        _, offset, size, write_flags, _, _, _ = wirewrite.WRITE_IN.unpack(ask.body)
        if write_flags & wirewrite.KILL_SUIDGID or length != head + size:
            return False
        try:
            self._vfs.files.write(ask.nodeid, offset, buffer[head:length], wait=False)
        except WouldBlock:
            return False
        except Exception as error:  # noqa: BLE001  whatever it is, someone waits for an answer
            self._refuse(ask.unique, self._failed(ask, error))
        else:
            self._reply(ask.unique, wirewrite.pack_size(size))
        return True

    def _answered_at_once(self, ask: Ask) -> bool:
        """Whether a request needed to ask nobody."""
        try:
            body = self._at_once[ask.opcode](ask)
        except WouldBlock:
            return False
        except Exception as error:  # noqa: BLE001  whatever it is, someone waits for an answer
            self._refuse(ask.unique, self._failed(ask, error))
        else:
            self._reply(ask.unique, body)
        return True

    def _dispatch_rest(self, ask: Ask) -> None:
        opcode = ask.opcode
        if opcode in (Op.FORGET, Op.BATCH_FORGET):
            self._vfs.forget(wirewrite.forgotten(ask))
        elif opcode == Op.INTERRUPT:
            self._interrupt(wirewrite.fields(wirewrite.INTERRUPT_IN, ask)[0])
        elif opcode == Op.DESTROY:
            self._reply(ask.unique, b"")
        else:
            self._refuse(ask.unique, _REFUSED.get(opcode, errno.ENOSYS))

    def _begin_beside(self) -> int | None:
        return None if self.beside is None else self.beside.fd

    def _waits_beside(self) -> bool:
        return self.beside is not None and self.beside.is_busy

    def _ask_beside(self) -> None:
        if self.beside is not None:
            self.beside.send()

    def _end_beside(self) -> bool:
        return self.beside is not None and self.beside.receive()

    def _done(self, ask: Ask, outcome: Buffer | Exception) -> None:
        """What has come of a request for which no thread waited."""
        if isinstance(outcome, WouldBlock):
            self._misses.submit(ask)
        elif isinstance(outcome, Exception):
            self._refuse(ask.unique, self._failed(ask, outcome))
        else:
            self._reply(ask.unique, outcome)

    def _interrupt(self, unique: int) -> None:
        """Give a request up if its program is being killed; ``misses`` look after that."""
        if self.beside is not None:
            self.beside.give_back(lambda ask: ask.unique == unique)
        self._misses.interrupt(unique)

    def _answer_late(self, ask: Ask) -> None:
        try:
            if ask.opcode in self._steps:
                body = self._vfs.run(self._steps[ask.opcode](ask, True))
            else:
                body = self._handlers[ask.opcode](ask)
        except Exception as error:  # noqa: BLE001  whatever it is, someone waits for an answer
            number = self._failed(ask, error)
            if self._misses.claim(ask.unique):
                self._refuse(ask.unique, number)
        else:
            if self._misses.claim(ask.unique):
                self._reply(ask.unique, body)

    def _answer_never(self, ask: Ask, killed: bool) -> None:
        if not killed:
            self.counters.errors += 1
            _log.warning("%s: no answer before the deadline; the program sees an I/O error", self._describe(ask))
        self._refuse(ask.unique, errno.EINTR if killed else errno.EIO)

    def _failed(self, ask: Ask, error: Exception) -> int:
        if isinstance(error, Malformed):
            return errno.EINVAL
        self.counters.errors += 1
        return errno_of(error, self._describe(ask))

    def _describe(self, ask: Ask) -> str:
        return f"{Op(ask.opcode).name.lower()} {self._vfs.describe(ask.nodeid)}"

    # What is known here.

    def _getattr_at_once(self, ask: Ask) -> Buffer:
        attr = self._vfs.known(ask.nodeid)
        if attr is None:
            raise WouldBlock
        return self._packer.attr(attr)

    def _getxattr_at_once(self, ask: Ask) -> Buffer:
        if not self._vfs.files.is_bare(ask.nodeid):
            raise WouldBlock
        raise Refused.because(errno.ENODATA, "no attribute")

    def _open_at_once(self, ask: Ask) -> Buffer:
        flags, open_flags = wirewrite.fields(wirewrite.OPEN_IN, ask)
        if open_flags & wirewrite.OPEN_KILL_SUIDGID:
            raise WouldBlock
        kept = self._vfs.files.open(ask.nodeid, bool(flags & os.O_TRUNC), wait=False)
        return wirewrite.pack_open(wirewrite.KEEP_CACHE if kept else 0)

    def _flush_at_once(self, ask: Ask) -> Buffer:
        if not self._vfs.files.is_committed(ask.nodeid):
            raise WouldBlock
        return b""

    def _release_at_once(self, ask: Ask) -> Buffer:
        if self._vfs.files.closed(ask.nodeid):
            raise WouldBlock
        return b""

    # Names.

    def _lookup(self, ask: Ask, wait: bool) -> Steps[Buffer]:
        self.counters.lookups += 1
        (name,) = self._names(ask, 0, 1)
        try:
            attr = yield from self._vfs.lookup(ask.nodeid, name)
        except NotFound:
            return wirewrite.NEGATIVE_ENTRY
        return self._packer.entry(attr)

    def _symlink(self, ask: Ask) -> Buffer:
        name, target = wirewrite.names(ask, 0, 2)
        _check_name(name)
        return self._packer.entry(self._vfs.symlink(ask.nodeid, name, target, ask.uid, ask.gid, _request(ask)))

    def _mknod(self, ask: Ask) -> Buffer:
        mode, rdev, _, _ = wirewrite.fields(wirewrite.MKNOD_IN, ask)
        (name,) = self._names(ask, wirewrite.MKNOD_IN.size, 1)
        return self._packer.entry(self._vfs.mknod(ask.nodeid, name, mode, ask.uid, ask.gid, rdev, _request(ask)))

    def _mkdir(self, ask: Ask) -> Buffer:
        mode, _ = wirewrite.fields(wirewrite.MKDIR_IN, ask)
        (name,) = self._names(ask, wirewrite.MKDIR_IN.size, 1)
        return self._packer.entry(self._vfs.mkdir(ask.nodeid, name, mode, ask.uid, ask.gid, _request(ask)))

    def _unlink(self, ask: Ask) -> Buffer:
        (name,) = self._names(ask, 0, 1)
        self._vfs.unlink(ask.nodeid, name, _request(ask))
        return b""

    def _rmdir(self, ask: Ask) -> Buffer:
        (name,) = self._names(ask, 0, 1)
        self._vfs.rmdir(ask.nodeid, name, _request(ask))
        return b""

    def _rename(self, ask: Ask) -> Buffer:
        (to_parent,) = wirewrite.fields(wirewrite.RENAME_IN, ask)
        name, to_name = self._names(ask, wirewrite.RENAME_IN.size, 2)
        self._vfs.rename(ask.nodeid, name, to_parent, to_name, 0, _request(ask))
        return b""

    def _rename2(self, ask: Ask) -> Buffer:
        to_parent, flags, _ = wirewrite.fields(wirewrite.RENAME2_IN, ask)
        name, to_name = self._names(ask, wirewrite.RENAME2_IN.size, 2)
        self._vfs.rename(ask.nodeid, name, to_parent, to_name, flags, _request(ask))
        return b""

    def _link(self, ask: Ask) -> Buffer:
        (ino,) = wirewrite.fields(wirewrite.LINK_IN, ask)
        (name,) = self._names(ask, wirewrite.LINK_IN.size, 1)
        return self._packer.entry(self._vfs.link(ino, ask.nodeid, name, _request(ask)))

    def _readlink(self, ask: Ask) -> Buffer:
        return self._vfs.readlink(ask.nodeid)

    # Attributes.

    def _getattr(self, ask: Ask, wait: bool) -> Steps[Buffer]:
        attr = yield from self._vfs.getattr_steps(ask.nodeid)
        return self._packer.attr(attr)

    def _setattr(self, ask: Ask) -> Buffer:
        values, kill = wirewrite.changes(ask, time.time_ns())
        return self._packer.attr(self._vfs.setattr(ask.nodeid, values, kill, _request(ask)))

    def _getxattr(self, ask: Ask) -> Buffer:
        size, _ = wirewrite.fields(wirewrite.GETXATTR_IN, ask)
        (name,) = wirewrite.names(ask, wirewrite.GETXATTR_IN.size, 1)
        return _fitting(self._vfs.getxattr(ask.nodeid, name), size)

    def _listxattr(self, ask: Ask) -> Buffer:
        size, _ = wirewrite.fields(wirewrite.GETXATTR_IN, ask)
        return _fitting(b"".join(name + b"\0" for name in self._vfs.listxattr(ask.nodeid)), size)

    def _setxattr(self, ask: Ask) -> Buffer:
        size, flags = wirewrite.fields(wirewrite.SETXATTR_IN, ask)
        name, separator, value = ask.body[wirewrite.SETXATTR_IN.size :].partition(b"\0")
        if not separator or len(value) != size:
            raise Malformed("SETXATTR without a value")
        self._vfs.setxattr(ask.nodeid, name, value, flags, _request(ask))
        return b""

    def _removexattr(self, ask: Ask) -> Buffer:
        (name,) = wirewrite.names(ask, 0, 1)
        self._vfs.removexattr(ask.nodeid, name, _request(ask))
        return b""

    def _statfs(self, ask: Ask) -> Buffer:
        return wirewrite.pack_statfs(0, self._vfs.files.room_bytes(), 0, paths.NAME_MAX)

    # Directories.

    def _opendir(self, ask: Ask) -> Buffer:
        return wirewrite.pack_open(0, self._vfs.opendir(ask.nodeid))

    def _readdir(self, ask: Ask) -> Buffer:
        handle, offset, size, *_ = wirewrite.fields(wirewrite.READ_IN, ask)
        entries = self._vfs.readdir(ask.nodeid, handle, offset, size // wire.DIRENT_BYTES)
        return self._packer.directory(entries, offset, size)

    def _readdirplus(self, ask: Ask) -> Buffer:
        handle, offset, size, *_ = wirewrite.fields(wirewrite.READ_IN, ask)
        entries = self._vfs.readdir(ask.nodeid, handle, offset, size // wire.DIRENTPLUS_BYTES)
        return self._packer.directory_plus(entries, offset, size)

    def _releasedir(self, ask: Ask) -> Buffer:
        self._vfs.releasedir(wirewrite.fields(wirewrite.HANDLE_IN, ask)[0])
        return b""

    # Files.

    def _create(self, ask: Ask, wait: bool) -> Steps[Buffer]:
        flags, mode, _, _ = wirewrite.fields(wirewrite.CREATE_IN, ask)
        (name,) = self._names(ask, wirewrite.CREATE_IN.size, 1)
        made_as = MadeAs(mode, ask.uid, ask.gid)
        attr, pages_known = yield from self._vfs.create(ask.nodeid, name, made_as, flags, _request(ask), wait)
        return self._packer.entry(attr) + wirewrite.pack_open(wirewrite.KEEP_CACHE if pages_known else 0)

    def _open(self, ask: Ask) -> Buffer:
        flags, open_flags = wirewrite.fields(wirewrite.OPEN_IN, ask)
        kept = self._vfs.files.open(ask.nodeid, bool(flags & os.O_TRUNC))
        if open_flags & wirewrite.OPEN_KILL_SUIDGID:
            self._vfs.kill_suid(ask.nodeid, _request(ask))
        return wirewrite.pack_open(wirewrite.KEEP_CACHE if kept else 0)

    def _read(self, ask: Ask) -> Buffer:
        _, offset, size, *_ = wirewrite.fields(wirewrite.READ_IN, ask)
        data = self._vfs.files.read(ask.nodeid, offset, size)
        self.counters.reads += 1
        self.counters.read_bytes += len(data)
        return data

    def _write(self, ask: Ask) -> Buffer:
        _, offset, size, write_flags, *_ = wirewrite.fields(wirewrite.WRITE_IN, ask)
        data = memoryview(ask.body)[wirewrite.WRITE_IN.size :]
        if len(data) != size:
            raise Malformed("WRITE of fewer bytes than it says")
        if write_flags & wirewrite.KILL_SUIDGID:
            self._vfs.kill_suid(ask.nodeid, _request(ask))
        return wirewrite.pack_size(self._vfs.files.write(ask.nodeid, offset, data))

    def _flush(self, ask: Ask, wait: bool) -> Steps[Buffer]:
        yield from self._vfs.flush_steps(ask.nodeid, _request(ask), wait)
        return b""

    def _fsync(self, ask: Ask) -> Buffer:
        self._vfs.flush(ask.nodeid, _request(ask), sync=True)
        return b""

    def _fsyncdir(self, ask: Ask) -> Buffer:
        self._vfs.sync()
        return b""

    def _fallocate(self, ask: Ask) -> Buffer:
        _, offset, length, mode, _ = wirewrite.fields(wirewrite.FALLOCATE_IN, ask)
        self._vfs.files.allocate(ask.nodeid, mode, offset, length)
        self._wrote_as(ask, ask.nodeid)
        return b""

    def _lseek(self, ask: Ask) -> Buffer:
        _, offset, whence, _ = wirewrite.fields(wirewrite.LSEEK_IN, ask)
        return wirewrite.pack_offset(self._vfs.files.seek(ask.nodeid, offset, whence))

    def _copy_file_range(self, ask: Ask) -> Buffer:
        _, offset, to_ino, _, to_offset, length, _ = wirewrite.fields(wirewrite.COPY_IN, ask)
        copied = self._vfs.copy(ask.nodeid, offset, to_ino, to_offset, length, _request(ask))
        if copied:
            self._wrote_as(ask, to_ino)
        return wirewrite.pack_size(copied)

    def _wrote_as(self, ask: Ask, ino: int) -> None:
        """A file was changed otherwise than by WRITE, with which the kernel says whether set-uid bits go: those of
        anybody but root do."""
        if ask.uid and self._vfs.may_be_suid(ino):
            self._vfs.kill_suid(ino, f"{_request(ask)}-suid")

    def _names(self, ask: Ask, skip: int, count: int) -> list[bytes]:
        found = wirewrite.names(ask, skip, count)
        for name in found:
            _check_name(name)
        return found


def _check_name(name: bytes) -> None:
    if len(name) > paths.NAME_MAX:
        raise Refused.because(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _request(ask: Ask) -> str:
    return f"{ask.unique & ~RESENT:x}"


def _fitting(value: bytes, size: int) -> bytes:
    """A value, its length where only that is asked for, or ERANGE."""
    if size == 0:
        return wirewrite.pack_size(len(value))
    if len(value) > size:
        raise Refused.because(errno.ERANGE, f"{len(value)} bytes do not fit into {size}")
    return value
