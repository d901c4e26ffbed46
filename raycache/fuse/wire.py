"""The FUSE wire protocol as values: what the kernel sends, and what it wants to read.

Responsible for: numbers and layouts of <linux/fuse.h>, parsing of requests, packing of replies and notifications, and
what a session agrees with the kernel at its start. Not responsible for: reading or writing ``/dev/fuse`` (``device``,
``kernel``), or what an answer says (``vfs``).

Invariants
* Whatever bytes come in, ``parse`` returns a Request or raises Malformed.
* A Request holds no part of the buffer that it was parsed from: the buffer is reused while the request waits.
* Integers are in the byte order of the machine, and every record starts at a multiple of 8 bytes.

Imports neither numpy nor Ray, so that a process as small as the holder can use it.

Threading: values and pure functions.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Any, NamedTuple, Protocol

MAJOR = 7
MINOR = 40
"""Protocol that is spoken here: Linux 6.9, the first that can resend. An older kernel's minor is taken instead."""
OLDEST_MINOR = 31
"""Linux 5.4: the first with all of what a session cannot do without (long requests, no open, explicit invalidation)."""
RESENT = 1 << 63
"""Set in the number of a request that was sent before, to a process that did not answer it."""
PAGE_BYTES = 4096
MAX_READ_BYTES = 2**20
"""Longest READ. Longer ones would need ``fs.fuse.max_pages_limit`` raised on the machine."""
MAX_BACKGROUND = 64
"""Read-aheads that may be under way at once. The kernel's own 12 are too few for misses of several readers."""
LIFETIME_S = 10 * 365 * 86_400
"""How long the kernel may trust an entry and its attributes. Rows of a manifest never change, and what a refresh
changes is invalidated by name, so nothing is ever wrong for having been kept."""


class Op(IntEnum):
    """Request numbers that mean something here; others are answered ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52


class Notify(IntEnum):
    """Messages that nobody asked for."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7


class Flag(IntFlag):
    """What INIT agrees. Those of the upper 32 bits travel in a field of their own."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    INIT_EXT = 1 << 30
    HAS_RESEND = 1 << 39


COMMON = (
    Flag.ASYNC_READ
    | Flag.DO_READDIRPLUS
    | Flag.PARALLEL_DIROPS
    | Flag.ABORT_ERROR
    | Flag.MAX_PAGES
    | Flag.CACHE_SYMLINKS
    | Flag.EXPLICIT_INVAL_DATA
    | Flag.INIT_EXT
    | Flag.HAS_RESEND
)
"""Never READDIRPLUS_AUTO, with which the kernel soon lists names alone: an ``ls -l`` after a ``find`` then asks for
each file by itself (100,000 files: 3.7 s in place of 0.5), as does the ``open`` of each file in the first epoch. Never
AUTO_INVAL_DATA, which drops pages when an mtime looks new, nor ASYNC_DIO, with which not even a kill ends the wait of a
program for an O_DIRECT read."""


class Profile(NamedTuple):
    """What a kind of session wants of the kernel."""

    wanted: Flag
    needed: Flag
    """What it cannot do without."""
    max_write: int
    """Longest WRITE. The kernel refuses a read buffer smaller than this plus its headers (EINVAL, for ever)."""
    request_bytes: int
    """Read buffer. Batches of FORGETs are as long as it."""


READING = Profile(
    COMMON | Flag.NO_OPEN_SUPPORT | Flag.NO_OPENDIR_SUPPORT,
    Flag.MAX_PAGES | Flag.NO_OPEN_SUPPORT | Flag.NO_OPENDIR_SUPPORT,
    max_write=4096,  # nothing is written, so the least that the kernel allows is the best
    request_bytes=2**16,
)

_ATTR = "QQQqqq10I"
_IN_HEADER = Struct("=IIQQIIIHH")
_IN_HEADER_START = Struct("=IIQ")
_OUT_HEADER = Struct("=IiQ")
_READ_IN = Struct("=QQII")
_INTERRUPT_IN = Struct("=Q")
_INIT_IN = Struct("=IIII")
_INIT_IN_FLAGS2 = Struct("=I")
_INIT_OUT = Struct("=4I2H2I2HI28x")
_ENTRY_OUT = Struct("=4Q2I" + _ATTR)
_ATTR_OUT = Struct("=QII" + _ATTR)
_DIRENT = Struct("=QQII")
_DIRENTPLUS = Struct("=4Q2I" + _ATTR + "QQII")
_STATFS_OUT = Struct("=5Q3I28x")
_INVAL_INODE_OUT = Struct("=Qqq")
_INVAL_ENTRY_OUT = Struct("=QII")

DIRENT_BYTES = _DIRENT.size
"""What an entry of a listing takes at least, without its name."""
DIRENTPLUS_BYTES = _DIRENTPLUS.size
IN_HEADER_BYTES = _IN_HEADER.size
OUT_HEADER_BYTES = _OUT_HEADER.size
NEGATIVE_ENTRY = _ENTRY_OUT.pack(0, 0, LIFETIME_S, 0, 0, 0, *(0,) * 16)
"""LOOKUP's answer for a name that is certainly not there: the kernel remembers that, too."""

FILE_MODE = stat.S_IFREG | 0o444
DIRECTORY_MODE = stat.S_IFDIR | 0o555
FILE_TYPE = stat.S_IFREG >> 12
DIRECTORY_TYPE = stat.S_IFDIR >> 12
_PADDING = tuple(bytes(-length % 8) for length in range(8))
_SECOND_NS = 10**9


class Malformed(Exception):
    """A message that is not what its header says. ``unique`` is None when not even the header can be believed."""

    def __init__(self, reason: str, unique: int | None = None) -> None:
        super().__init__(reason)
        self.unique = unique


class Request(NamedTuple):
    """A request with the arguments of its kind; those of other kinds keep their defaults."""

    opcode: int
    unique: int
    """To be repeated in the answer as it came, RESENT included."""
    nodeid: int
    pid: int
    """Thread that asks; 0 where it is not visible from here."""
    name: bytes = b""
    offset: int = 0
    size: int = 0
    target: int = 0
    """INTERRUPT: number of the request that is no longer waited for."""


class Offer(NamedTuple):
    """INIT: what the kernel can do."""

    unique: int
    major: int
    minor: int
    flags: int


@dataclass(frozen=True)
class Agreed:
    """What INIT agreed. With this and the descriptor, another process can go on with a session."""

    minor: int
    flags: int
    max_write: int
    max_pages: int

    @property
    def can_resend(self) -> bool:
        """Whether the kernel sends requests again that a dead process left unanswered (Linux 6.9)."""
        return bool(self.flags & Flag.HAS_RESEND)

    def to_json(self) -> dict[str, int]:
        """As a JSON object."""
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Agreed:
        """The value that ``to_json`` wrote."""
        return Agreed(**{name: int(value) for name, value in data.items()})


DOTS = 2
"""``.`` and ``..`` come first in a directory, so the kernel's offsets are those of a vfs plus this."""


class AttrLike(Protocol):
    """``vfs.Attr``, without importing what it stands on."""

    @property
    def ino(self) -> int: ...
    @property
    def is_dir(self) -> bool: ...
    @property
    def size(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...


EntryLike = tuple[bytes, AttrLike, int]
"""Name, attributes, and where to go on after it, in the vfs's offsets."""


def peek(buffer: memoryview, length: int) -> tuple[int, int]:
    """Kind and number of the request in the first ``length`` bytes of ``buffer``. Raises Malformed.

    Enough to refuse it, and cheap: every ``open`` of Python before 3.14 asks for the terminal settings of its file.
    """
    if length < IN_HEADER_BYTES:
        raise Malformed(f"{length} bytes are no request")
    size, opcode, unique = _IN_HEADER_START.unpack_from(buffer)
    if size != length:
        raise Malformed(f"request of {length} bytes says that it has {size}")
    return opcode, unique


def parse(buffer: memoryview, length: int) -> Request:
    """The request in the first ``length`` bytes of ``buffer``, ``peek``ed at before. Raises Malformed."""
    _, opcode, unique, nodeid, _, _, pid, _, _ = _IN_HEADER.unpack_from(buffer)
    if opcode in _RANGED:
        if length < IN_HEADER_BYTES + _READ_IN.size:
            raise Malformed(f"request {opcode} without a range", unique)
        _, offset, size, _ = _READ_IN.unpack_from(buffer, IN_HEADER_BYTES)
        return Request(opcode, unique, nodeid, pid, b"", offset, size)
    if opcode == _LOOKUP:
        name = bytes(buffer[IN_HEADER_BYTES:length])
        if len(name) < 2 or name.find(b"\0") != len(name) - 1:
            raise Malformed("not a name that ends with its only NUL", unique)
        return Request(opcode, unique, nodeid, pid, name[:-1])
    if opcode == _INTERRUPT:
        if length < IN_HEADER_BYTES + _INTERRUPT_IN.size:
            raise Malformed("INTERRUPT of nothing", unique)
        (target,) = _INTERRUPT_IN.unpack_from(buffer, IN_HEADER_BYTES)
        return Request(opcode, unique, nodeid, pid, target=target)
    return Request(opcode, unique, nodeid, pid)


# Plain numbers: an enum costs a lookup at each comparison, and these are compared for every request.
_LOOKUP, _INTERRUPT = int(Op.LOOKUP), int(Op.INTERRUPT)
_RANGED = frozenset({int(Op.READ), int(Op.READDIR), int(Op.READDIRPLUS)})


def parse_init(buffer: memoryview, length: int) -> Offer:
    """The kernel's offer in an INIT request. Raises Malformed when it is none, or a truncated one."""
    opcode, unique = peek(buffer, length)
    if opcode != Op.INIT:
        raise Malformed(f"request {opcode} in place of INIT", unique)
    if length < IN_HEADER_BYTES + _INIT_IN.size:
        raise Malformed("INIT without flags", unique)
    major, minor, _, flags = _INIT_IN.unpack_from(buffer, IN_HEADER_BYTES)
    flags2_at = IN_HEADER_BYTES + _INIT_IN.size
    if flags & Flag.INIT_EXT and length >= flags2_at + _INIT_IN_FLAGS2.size:
        flags |= _INIT_IN_FLAGS2.unpack_from(buffer, flags2_at)[0] << 32
    return Offer(unique, major, minor, flags)


def agree(offer: Offer, profile: Profile = READING) -> Agreed | None:
    """What to agree on, or None when the kernel is too old for a session of this kind."""
    if offer.major != MAJOR or offer.minor < OLDEST_MINOR or offer.flags & profile.needed != profile.needed:
        return None
    return Agreed(
        minor=min(MINOR, offer.minor),
        flags=int(profile.wanted & offer.flags),
        max_write=profile.max_write,
        max_pages=MAX_READ_BYTES // PAGE_BYTES,
    )


def pack_init(agreed: Agreed) -> bytes:
    """INIT's answer."""
    return _INIT_OUT.pack(
        MAJOR,
        agreed.minor,
        MAX_READ_BYTES,
        agreed.flags & 0xFFFFFFFF,
        MAX_BACKGROUND,
        MAX_BACKGROUND * 3 // 4,
        agreed.max_write,
        1,
        agreed.max_pages,
        0,
        agreed.flags >> 32,
    )


def pack_major() -> bytes:
    """INIT's answer to a kernel of a later major version, which then offers again in this one."""
    return _INIT_OUT.pack(MAJOR, MINOR, *(0,) * 9)


def pack_header(unique: int, length: int) -> bytes:
    """Header of an answer whose body has ``length`` bytes."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + length, 0, unique)


def pack_error(unique: int, errno: int) -> bytes:
    """A whole answer that says no."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES, -errno, unique)


def pack_statfs(size_bytes: int, files: int, name_max: int) -> bytes:
    """STATFS: full, for nothing can be added."""
    return _STATFS_OUT.pack(-(-size_bytes // PAGE_BYTES), 0, 0, files, 0, PAGE_BYTES, name_max, PAGE_BYTES)


def pack_inval_inode(nodeid: int) -> bytes:
    """Notification: forget the attributes and all cached bytes of a file, or of a directory its listing."""
    return _notification(Notify.INVAL_INODE, _INVAL_INODE_OUT.pack(nodeid, 0, 0))


def pack_inval_entry(parent: int, name: bytes) -> bytes:
    """Notification: forget what a name meant, or that it meant nothing."""
    return _notification(Notify.INVAL_ENTRY, _INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0")


def pack_resend() -> bytes:
    """Notification: send again what was read and not answered."""
    return _notification(Notify.RESEND, b"")


def _notification(code: Notify, body: bytes) -> bytes:
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + len(body), code, 0) + body


class Packer:
    """Packs attributes for a mount: all that is shown belongs to its owner and cannot be written."""

    def __init__(self, uid: int, gid: int) -> None:
        self._uid = uid
        self._gid = gid

    def _fields(self, attr: AttrLike) -> tuple[int, ...]:
        second, nsec = divmod(attr.mtime_ns, _SECOND_NS)
        mode, nlink = (DIRECTORY_MODE, 2) if attr.is_dir else (FILE_MODE, 1)
        size = attr.size
        return (
            attr.ino, size, (size + 511) // 512, second, second, second, nsec, nsec, nsec,
            mode, nlink, self._uid, self._gid, 0, PAGE_BYTES, 0,
        )  # fmt: skip

    def entry(self, attr: AttrLike) -> bytes:
        """LOOKUP: a name that is there."""
        return _ENTRY_OUT.pack(attr.ino, 0, LIFETIME_S, LIFETIME_S, 0, 0, *self._fields(attr))

    def attr(self, attr: AttrLike) -> bytes:
        """GETATTR."""
        return _ATTR_OUT.pack(LIFETIME_S, 0, 0, *self._fields(attr))

    def directory(self, entries: Iterable[EntryLike], size: int) -> bytes:
        """READDIR: as many entries as fit into ``size`` bytes."""
        return _packed(map(_dirent, entries), size)

    def directory_plus(self, entries: Iterable[EntryLike], size: int) -> bytes:
        """READDIRPLUS: the same with attributes, each a LOOKUP that need not be asked."""
        return _packed(map(self._direntplus, entries), size)

    def _direntplus(self, entry: EntryLike) -> bytes:
        name, attr, following = entry
        ino, length = attr.ino, len(name)
        # No node behind "." and "..": the kernel knows them, and would count a lookup that it never forgets.
        nodeid = ino if following > 0 else 0
        kind = DIRECTORY_TYPE if attr.is_dir else FILE_TYPE
        head = _DIRENTPLUS.pack(
            nodeid, 0, LIFETIME_S, LIFETIME_S, 0, 0, *self._fields(attr), ino, following + DOTS, length, kind
        )
        return head + name + _PADDING[length % 8]


def dot_entries(here: AttrLike, at: int) -> list[EntryLike]:
    """``.`` and ``..`` as a directory begins with them, from position ``at`` on.

    Nothing here knows the parent of a directory, so both show its own number; programs that climb use ``stat("..")``,
    which the kernel answers.
    """
    return [(b".", here, 1 - DOTS), (b"..", here, 0)][at:]


def _dirent(entry: EntryLike) -> bytes:
    name, attr, following = entry
    length = len(name)
    kind = DIRECTORY_TYPE if attr.is_dir else FILE_TYPE
    return _DIRENT.pack(attr.ino, following + DOTS, length, kind) + name + _PADDING[length % 8]


def _packed(records: Iterable[bytes], size: int) -> bytes:
    found: list[bytes] = []
    for record in records:
        size -= len(record)
        if size < 0:
            break
        found.append(record)
    return b"".join(found)
