"""The FUSE wire protocol of a mount that is written: its requests and answers as values. ``wire`` has what is common.

Invariants
* Whatever bytes come in, ``parse`` and the functions that take a body apart return values or raise Malformed.
* An Ask holds no part of the buffer that it was parsed from: the buffer is reused while the request waits.

Threading: values and pure functions.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import NamedTuple

from raycache.core.inode import MOUNT_OWNER, Attr, Name
from raycache.fuse.wire import (
    COMMON,
    DOTS,
    IN_HEADER_BYTES,
    PAGE_BYTES,
    Flag,
    Malformed,
    Profile,
)

MAX_WRITE_BYTES = 2**20
WRITING = Profile(
    COMMON | Flag.ATOMIC_O_TRUNC | Flag.BIG_WRITES | Flag.HANDLE_KILLPRIV_V2,
    Flag.MAX_PAGES,
    MAX_WRITE_BYTES,
    request_bytes=MAX_WRITE_BYTES + PAGE_BYTES,
)
LIFETIME_S = 1
"""How long the kernel may trust an entry and its attributes: others may change them."""

KEEP_CACHE = 1 << 1
"""Answer to OPEN: what the kernel has of the file is what it holds now."""
KILL_SUIDGID = 1 << 2
"""Flag of a WRITE: who writes may not keep the set-uid and set-gid bits of the file."""
OPEN_KILL_SUIDGID = 1 << 0
FROM_PAGES = 1 << 0
"""Flag of a WRITE: pages that the kernel wrote back, of whoever dirtied them."""
DATASYNC = 1 << 0

_HEADER = Struct("=IIQQIIIHH")
_ATTR = "QQQqqq10I"
_ENTRY_OUT = Struct("=4Q2I" + _ATTR)
_ATTR_OUT = Struct("=QII" + _ATTR)
_OPEN_OUT = Struct("=QII")
_WRITE_OUT = Struct("=II")
_LSEEK_OUT = Struct("=Q")
_STATFS_OUT = Struct("=5Q3I28x")
_DIRENT = Struct("=QQII")
_DIRENTPLUS = Struct("=4Q2I" + _ATTR + "QQII")
_PADDING = tuple(bytes(-length % 8) for length in range(8))
_SECOND_NS = 10**9
NEGATIVE_ENTRY = _ENTRY_OUT.pack(0, 0, LIFETIME_S, 0, 0, 0, *(0,) * 16)
"""LOOKUP's answer for a name that is not there."""

WRITE_IN = Struct("=QQIIQII")
READ_IN = Struct("=QQIIQII")
OPEN_IN = Struct("=II")
CREATE_IN = Struct("=IIII")
MKNOD_IN = Struct("=IIII")
MKDIR_IN = Struct("=II")
RENAME_IN = Struct("=Q")
RENAME2_IN = Struct("=QII")
LINK_IN = Struct("=Q")
SETATTR_IN = Struct("=IIQQQQQQIIIIIIII")
HANDLE_IN = Struct("=Q")
FSYNC_IN = Struct("=QII")
FALLOCATE_IN = Struct("=QQQII")
LSEEK_IN = Struct("=QQII")
COPY_IN = Struct("=QQQQQQQ")
GETXATTR_IN = Struct("=II")
SETXATTR_IN = Struct("=II")
FORGET_IN = Struct("=Q")
BATCH_FORGET_IN = Struct("=II")
FORGET_ONE = Struct("=QQ")
INTERRUPT_IN = Struct("=Q")

_MODE, _UID, _GID, _SIZE, _ATIME, _MTIME = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
_FH, _ATIME_NOW, _MTIME_NOW, _CTIME, _KILL = 1 << 6, 1 << 7, 1 << 8, 1 << 10, 1 << 11


class Ask(NamedTuple):
    """A request, its arguments still packed."""

    opcode: int
    unique: int
    """To be repeated in the answer as it came, RESENT included."""
    nodeid: int
    uid: int
    gid: int
    pid: int
    """Thread that asks; 0 where it is not visible from here."""
    body: bytes


class Changes(NamedTuple):
    """SETATTR: what is to be set."""

    values: dict[str, int]
    """As ``TreeApi.setattr`` takes them, the size too."""
    kill: bool
    """Whether the set-uid bit goes, and the set-gid bit of what the group may execute."""


def parse(buffer: memoryview, length: int) -> Ask:
    """The request in the first ``length`` bytes of ``buffer``, ``wire.peek``ed at before."""
    _, opcode, unique, nodeid, uid, gid, pid, _, _ = _HEADER.unpack_from(buffer)
    return Ask(opcode, unique, nodeid, uid, gid, pid, bytes(buffer[IN_HEADER_BYTES:length]))


def fields(layout: Struct, ask: Ask) -> tuple[int, ...]:
    """The arguments that a request begins with. Raises Malformed when it is too short for them."""
    try:
        return layout.unpack_from(ask.body)
    except struct.error as error:
        raise Malformed(f"request {ask.opcode} of {len(ask.body)} bytes: {error}", ask.unique) from error


def names(ask: Ask, skip: int, count: int) -> list[bytes]:
    """``count`` names behind the first ``skip`` bytes, each ended by a NUL. Raises Malformed."""
    *found, rest = ask.body[skip:].split(b"\0")
    if len(found) != count or rest or not all(found):
        raise Malformed(f"request {ask.opcode} without {count} names", ask.unique)
    return found


def changes(ask: Ask, now_ns: int) -> Changes:
    """What a SETATTR asks for. Raises Malformed."""
    (
        valid, _, _, size, _, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, _, uid, gid, _,
    ) = fields(SETATTR_IN, ask)  # fmt: skip
    values: dict[str, int] = {}
    for bit, name, value in (
        (_MODE, "mode", stat.S_IMODE(mode)),
        (_UID, "uid", uid),
        (_GID, "gid", gid),
        (_SIZE, "size_bytes", size),
        (_ATIME, "atime_ns", now_ns if valid & _ATIME_NOW else _signed(atime) * _SECOND_NS + atimensec),
        (_MTIME, "mtime_ns", now_ns if valid & _MTIME_NOW else _signed(mtime) * _SECOND_NS + mtimensec),
        (_CTIME, "ctime_ns", _signed(ctime) * _SECOND_NS + ctimensec),
    ):
        if valid & bit:
            values[name] = value
    return Changes(values, bool(valid & _KILL))


def _signed(second: int) -> int:
    return second - (1 << 64) if second >> 63 else second


def forgotten(ask: Ask) -> Iterator[int]:
    """Inodes that a FORGET or BATCH_FORGET is about."""
    if len(ask.body) == FORGET_IN.size:
        yield ask.nodeid
        return
    (count, _) = fields(BATCH_FORGET_IN, ask)
    stop = BATCH_FORGET_IN.size + count * FORGET_ONE.size
    for nodeid, _ in FORGET_ONE.iter_unpack(ask.body[BATCH_FORGET_IN.size : stop]):
        yield nodeid


class Packer:
    """Packs attributes for a mount: what belongs to nobody in particular belongs to its owner."""

    def __init__(self, uid: int, gid: int) -> None:
        self._uid = uid
        self._gid = gid

    def _fields(self, attr: Attr) -> tuple[int, ...]:
        ino, mode, nlink, uid, gid, size, atime_ns, mtime_ns, ctime_ns, rdev, _ = attr
        atime, atimensec = divmod(atime_ns, _SECOND_NS)
        mtime, mtimensec = divmod(mtime_ns, _SECOND_NS)
        ctime, ctimensec = divmod(ctime_ns, _SECOND_NS)
        return (
            ino, size, (size + 511) // 512, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
            mode, nlink, self._uid if uid == MOUNT_OWNER else uid, self._gid if gid == MOUNT_OWNER else gid,
            rdev, PAGE_BYTES, 0,
        )  # fmt: skip

    def entry(self, attr: Attr) -> bytes:
        """LOOKUP and all that makes something: a name that is there."""
        return _ENTRY_OUT.pack(attr.ino, 0, LIFETIME_S, LIFETIME_S, 0, 0, *self._fields(attr))

    def attr(self, attr: Attr) -> bytes:
        """GETATTR and SETATTR."""
        return _ATTR_OUT.pack(LIFETIME_S, 0, 0, *self._fields(attr))

    def directory(self, entries: Iterable[Name], offset: int, size: int) -> bytes:
        """READDIR: as many entries as fit into ``size`` bytes. ``offset``: of the first."""
        return _packed((_dirent(name, attr, at) for at, (name, attr) in enumerate(entries, offset + 1)), size)

    def directory_plus(self, entries: Iterable[Name], offset: int, size: int) -> bytes:
        """READDIRPLUS: the same with attributes, each a LOOKUP that need not be asked."""
        return _packed((self._direntplus(name, attr, at) for at, (name, attr) in enumerate(entries, offset + 1)), size)

    def _direntplus(self, name: bytes, attr: Attr, following: int) -> bytes:
        # No node behind "." and "..": the kernel knows them, and would count a lookup that it never forgets.
        nodeid = attr.ino if following > DOTS else 0
        head = _DIRENTPLUS.pack(
            nodeid,
            0,
            LIFETIME_S,
            LIFETIME_S,
            0,
            0,
            *self._fields(attr),
            attr.ino,
            following,
            len(name),
            attr.mode >> 12,
        )
        return head + name + _PADDING[len(name) % 8]


def _dirent(name: bytes, attr: Attr, following: int) -> bytes:
    return _DIRENT.pack(attr.ino, following, len(name), attr.mode >> 12) + name + _PADDING[len(name) % 8]


def _packed(records: Iterable[bytes], size: int) -> bytes:
    found: list[bytes] = []
    for record in records:
        size -= len(record)
        if size < 0:
            break
        found.append(record)
    return b"".join(found)


def pack_open(flags: int, handle: int = 0) -> bytes:
    """OPEN and OPENDIR."""
    return _OPEN_OUT.pack(handle, flags, 0)


def pack_size(size: int) -> bytes:
    """WRITE and COPY_FILE_RANGE, how many bytes; GETXATTR and LISTXATTR that only ask for the length."""
    return _WRITE_OUT.pack(size, 0)


def pack_offset(offset: int) -> bytes:
    """LSEEK."""
    return _LSEEK_OUT.pack(offset)


def pack_statfs(used_bytes: int, free_bytes: int, files: int, name_max: int) -> bytes:
    """STATFS."""
    free = free_bytes // PAGE_BYTES
    total = free + -(-used_bytes // PAGE_BYTES)
    return _STATFS_OUT.pack(total, free, free, files + free, free, PAGE_BYTES, name_max, PAGE_BYTES)
