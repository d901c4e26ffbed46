"""The FUSE wire format, the errno table, and a session fed with whatever comes."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycache import errors
from raycache.client.namespace import Namespace
from raycache.client.protocols import Call, Ended
from raycache.client.reader import Reader
from raycache.core.listing import LISTING_SCHEMA, build, prepare_listing
from raycache.core.manifest import Directory, Manifest
from raycache.core.values import BlockPlan, Dataset, Fetch, Sealed, Served, Worker
from raycache.errors import NotFound
from raycache.fuse import dirents, wire
from raycache.fuse.errno import errno_of
from raycache.fuse.kernel import KernelSession
from raycache.fuse.misses import Limits
from raycache.fuse.vfs import Attr, Entries, Vfs
from raycache.fuse.wire import Flag, Malformed, Op

times = st.integers(-(2**63), 2**63 - 1)
AGREED = wire.Agreed(minor=40, flags=int(wire.READING.wanted), max_write=4096, max_pages=256)
SILENT = {Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT}
FILES = {b"a": b"alpha", b"b": b"", b"c" * 255: b"x" * 10_000}


def request(opcode: int, body: bytes = b"", unique: int = 8, nodeid: int = 1, size: int | None = None) -> bytes:
    length = 40 + len(body) if size is None else size
    return struct.pack("=IIQQIIIHH", length, opcode, unique, nodeid, 1000, 1000, 77, 0, 0) + body


def ranged(offset: int, size: int) -> bytes:
    return struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0)


def parse(message: bytes) -> wire.Request:
    wire.peek(memoryview(message), len(message))
    return wire.parse(memoryview(message), len(message))


# ---- requests -------------------------------------------------------------------------------------------------------


def test_requests_parse_to_their_arguments() -> None:
    assert parse(request(Op.LOOKUP, b"name\0", nodeid=5)) == wire.Request(Op.LOOKUP, 8, 5, 77, name=b"name")
    seen = parse(request(Op.READ, ranged(2**40, 2**20), nodeid=9))
    assert (seen.offset, seen.size, seen.nodeid) == (2**40, 2**20, 9)
    assert parse(request(Op.READDIRPLUS, ranged(3, 4096))).offset == 3
    assert parse(request(Op.INTERRUPT, struct.pack("=Q", 1234))).target == 1234
    assert parse(request(Op.GETATTR, bytes(16))).opcode == Op.GETATTR
    assert parse(request(999)).opcode == 999


def test_a_request_that_was_sent_before_keeps_its_whole_number() -> None:
    assert parse(request(Op.GETATTR, bytes(16), unique=wire.RESENT | 6)).unique == wire.RESENT | 6


def test_a_request_does_not_change_with_the_buffer() -> None:
    buffer = bytearray(request(Op.LOOKUP, b"name\0"))
    seen = wire.parse(memoryview(buffer), len(buffer))
    buffer[40:] = b"XXXX\0"
    assert seen.name == b"name"


@pytest.mark.parametrize("message", [b"", b"x" * 39, request(Op.LOOKUP, b"a\0", size=43), request(Op.LOOKUP, size=0)])
def test_a_message_whose_header_lies_has_no_number_to_answer(message: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        parse(message)
    assert caught.value.unique is None


@pytest.mark.parametrize(
    "message",
    [
        request(Op.LOOKUP),
        request(Op.LOOKUP, b"\0"),
        request(Op.LOOKUP, b"name"),
        request(Op.LOOKUP, b"na\0me\0"),
        request(Op.READ, ranged(0, 1)[:23]),
        request(Op.READDIR),
        request(Op.INTERRUPT, bytes(7)),
    ],
)
def test_a_body_that_is_not_of_its_kind_can_be_refused(message: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        parse(message)
    assert caught.value.unique == 8


# ---- INIT -----------------------------------------------------------------------------------------------------------


def offer(minor: int = 45, flags: int = 2**43 - 1, major: int = 7) -> wire.Offer:
    flags |= Flag.INIT_EXT
    body = struct.pack("=IIIII", major, minor, 2**17, flags & 0xFFFFFFFF, flags >> 32) + bytes(44)
    message = request(Op.INIT, body)
    return wire.parse_init(memoryview(message), len(message))


def test_init_agrees_on_what_both_can_do() -> None:
    agreed = wire.agree(offer())
    assert agreed == AGREED
    assert agreed.can_resend
    words = struct.unpack("=4I2H2I2HI28x", wire.pack_init(agreed))
    major, minor, read_ahead, flags, background, congestion, max_write, gran, pages, _, flags2 = words
    assert (major, minor, read_ahead, max_write, gran, pages) == (7, 40, 2**20, 4096, 1, 256)
    assert flags | flags2 << 32 == wire.READING.wanted
    assert 0 < congestion < background
    # The kernel refuses a read buffer smaller than a header, a write's header and the longest write.
    assert max_write + 40 + 40 <= wire.READING.request_bytes


def test_an_older_kernel_gets_what_it_has() -> None:
    agreed = wire.agree(offer(minor=34, flags=0xFFFFFFFF))
    assert agreed is not None
    assert agreed.minor == 34
    assert not agreed.can_resend
    short = request(Op.INIT, struct.pack("=IIII", 7, 31, 0, 0xFFFFFFFF))
    assert wire.parse_init(memoryview(short), len(short)).flags == 0xFFFFFFFF


def test_a_kernel_that_cannot_do_without_open_is_refused() -> None:
    assert wire.agree(offer(minor=30)) is None
    assert wire.agree(offer(major=6)) is None
    assert wire.agree(offer(flags=int(wire.READING.wanted & ~Flag.NO_OPEN_SUPPORT))) is None


def test_what_is_no_init_is_malformed() -> None:
    for message in (request(Op.GETATTR), request(Op.INIT, bytes(15)), b"short"):
        with pytest.raises(Malformed):
            wire.parse_init(memoryview(message), len(message))


def test_agreed_travels_as_json() -> None:
    assert wire.Agreed.from_json(AGREED.to_json()) == AGREED


# ---- answers --------------------------------------------------------------------------------------------------------


def test_entries_and_attributes_have_the_kernels_layout() -> None:
    packer = wire.Packer(1000, 100)
    entry = packer.entry(Attr(2**32 + 1, False, 1025, 5 * 10**9 + 7))
    assert len(entry) == 128
    nodeid, generation, *_ = struct.unpack_from("=QQQQII", entry)
    assert (nodeid, generation) == (2**32 + 1, 0)
    ino, size, blocks, _, mtime, _, _, nsec, _, mode, nlink, uid, gid, _, blksize, _ = struct.unpack_from(
        "=QQQqqq10I", entry, 40
    )
    assert (ino, size, blocks, mtime, nsec) == (2**32 + 1, 1025, 3, 5, 7)
    assert (mode, nlink, uid, gid, blksize) == (0o100444, 1, 1000, 100, 4096)
    attr = packer.attr(Attr(1, True, 4096, -1))
    assert len(attr) == 104
    assert struct.unpack_from("=q", attr, 16 + 32) == (-1,)  # a time before 1970: rounded down, the rest positive
    assert struct.unpack_from("=I", attr, 16 + 52) == (999_999_999,)
    assert struct.unpack_from("=II", attr, 16 + 60) == (0o40555, 2)
    assert len(wire.NEGATIVE_ENTRY) == 128
    assert struct.unpack_from("=QQQ", wire.NEGATIVE_ENTRY) == (0, 0, wire.LIFETIME_S)


def test_the_longest_lifetime_fits_the_kernels_arithmetic() -> None:
    assert wire.LIFETIME_S * 1000 < 2**62  # jiffies, at any tick rate


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=40), st.integers(0, 9000), st.booleans())
def test_directories_are_cut_at_whole_aligned_entries(names: list[bytes], size: int, plus: bool) -> None:
    entries = [(name, Attr(at + 10, at % 2 == 0, at, 0), at + 1) for at, name in enumerate(names)]
    packer = wire.Packer(0, 0)
    packed = packer.directory_plus(entries, size) if plus else packer.directory(entries, size)
    assert len(packed) <= size
    head, at, seen = 128 if plus else 0, 0, []
    while at < len(packed):
        assert at % 8 == 0
        ino, offset, length, kind = struct.unpack_from("=QQII", packed, at + head)
        if plus:
            assert struct.unpack_from("=Q", packed, at) == (ino,)
            assert struct.unpack_from("=Q", packed, at + 40) == (ino,)
        name = packed[at + head + 24 : at + head + 24 + length]
        seen.append((name, ino, offset, kind))
        at += (head + 24 + length + 7) // 8 * 8
    assert at == len(packed)
    assert seen == [
        (name, attr.ino, following + 2, 4 if attr.is_dir else 8) for name, attr, following in entries[: len(seen)]
    ]
    if len(seen) < len(entries):
        assert len(packed) + head + 24 + (len(entries[len(seen)][0]) + 7) // 8 * 8 > size


@given(st.data(), st.integers(0, 9000))
def test_columns_are_packed_as_single_entries_are(data: st.DataObject, size: int) -> None:
    names = data.draw(st.lists(st.binary(min_size=1, max_size=255), max_size=40))
    number = st.integers(0, 2**63)
    attrs = [Attr(data.draw(number), data.draw(st.booleans()), data.draw(number), data.draw(times)) for _ in names]
    lengths = np.array([len(name) for name in names], np.int64)
    entries = Entries(
        ino=np.array([attr.ino for attr in attrs], np.uint64),
        is_dir=np.array([attr.is_dir for attr in attrs], bool),
        size=np.array([attr.size for attr in attrs], np.uint64),
        mtime_ns=np.array([attr.mtime_ns for attr in attrs], np.int64),
        next_offset=np.arange(1, len(names) + 1, dtype=np.uint64),
        name_at=1 + np.cumsum(lengths) - lengths,
        name_length=lengths,
        names=np.frombuffer(b"?" + b"".join(names), np.uint8),
        directory_rows=dirents.KNOWN_AT_ONCE,
    )
    one_by_one = [(name, attr, at + 1) for at, (name, attr) in enumerate(zip(names, attrs, strict=True))]
    packer = wire.Packer(1000, 100)
    assert dirents.pack_plain(entries, size) == packer.directory(one_by_one, size)
    packed = dirents.pack_plus(entries, size, (1000, 100))
    assert packed == packer.directory_plus(one_by_one, size)
    in_a_large_one = dirents.pack_plus(entries._replace(directory_rows=dirents.KNOWN_AT_ONCE + 1), size, (1000, 100))
    assert len(in_a_large_one) == len(packed)
    assert in_a_large_one[:8] in (b"", bytes(8)), "no node: the kernel takes the name alone"
    assert in_a_large_one[8:40] == packed[8:40]


def test_the_dots_come_first_and_are_no_lookups() -> None:
    here = Attr(2**32, True, 4096, 0)
    packed = wire.Packer(0, 0).directory_plus(wire.dot_entries(here, 0), 4096)
    assert struct.unpack_from("=Q", packed) == (0,)
    assert struct.unpack_from("=QQII", packed, 128) == (2**32, 1, 1, 4)
    assert struct.unpack_from("=QQII", packed, 160 + 128) == (2**32, 2, 2, 4)
    assert wire.dot_entries(here, 1) == [(b"..", here, 0)]
    assert wire.dot_entries(here, 2) == []


def test_notifications_and_statfs() -> None:
    assert wire.pack_resend() == struct.pack("=IiQ", 16, 7, 0)
    assert wire.pack_inval_inode(5) == struct.pack("=IiQQqq", 40, 2, 0, 5, 0, 0)
    assert wire.pack_inval_entry(5, b"ab") == struct.pack("=IiQQII", 35, 3, 0, 5, 2, 0) + b"ab\0"
    assert wire.pack_error(3, errno.ENOENT) == struct.pack("=IiQ", 16, -errno.ENOENT, 3)
    blocks, free, available, files, _, bsize, namelen, frsize = struct.unpack_from(
        "=5Q3I", wire.pack_statfs(4097, 3, 255)
    )
    assert (blocks, free, available, files, bsize, namelen, frsize) == (2, 0, 0, 3, 4096, 255, 4096)
    assert len(wire.pack_statfs(0, 0, 255)) == 80


# ---- errno ----------------------------------------------------------------------------------------------------------


def test_every_error_of_ours_has_its_number() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, Exception)]
    for each in classes:
        assert errno_of(each("what happened"), "test") == (each.errno or errno.EIO)
    assert errno_of(errors.Changed("x"), "test") == errno.ESTALE


def test_numbers_that_the_kernel_would_take_amiss_become_eio() -> None:
    for number in (errno.ENOSYS, errno.EINTR, errno.EAGAIN, 512, -1, 0):
        assert errno_of(OSError(number, "x"), "test") == errno.EIO
    assert errno_of(OSError("no number"), "test") == errno.EIO
    assert errno_of(TimeoutError(), "test") == errno.EIO
    assert errno_of(OSError(errno.ENOSPC, "x"), "test") == errno.ENOSPC


def test_defects_are_io_errors_with_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    assert errno_of(KeyError("x"), "read a/b") == errno.EIO
    assert "read a/b: KeyError" in caplog.text
    assert "defect" in caplog.text
    caplog.clear()
    assert errno_of(errors.SourceUnavailable("s3 is away"), "read a/b") == errno.EIO
    assert "read a/b: s3 is away" in caplog.text
    caplog.clear()
    assert errno_of(NotFound("nothing"), "lookup") == errno.ENOENT
    assert not caplog.text


# ---- a session ------------------------------------------------------------------------------------------------------


class OneDirectory:
    """A MasterApi and a WorkerPool of one directory."""

    def __init__(self, files: Mapping[bytes, bytes]) -> None:
        self._files = files
        rows = [
            {"name": name, "is_dir": False, "size_bytes": len(data), "mtime_ns": 0, "etag": b""}
            for name, data in files.items()
        ]
        listing, _ = prepare_listing(pa.RecordBatch.from_pylist(rows, schema=LISTING_SCHEMA))
        about = Directory(1, "d", "memory://d", "", 1, 1, 2**20)
        self._manifest = build(about, listing, np.zeros(0, np.uint64))

    def attach(self, source: str, name: str | None, options: Mapping[str, Any]) -> Dataset:
        raise NotImplementedError

    def datasets(self) -> list[Dataset]:
        return [Dataset("d", "memory://d", 1, 0)]

    def manifest(self, dir_id: int, at_least: int = 0) -> Manifest:
        if dir_id != 1:
            raise NotFound(f"no directory {dir_id}")
        return self._manifest

    def refresh(self, dir_id: int) -> int:
        return 1

    def workers(self, refresh: bool = False) -> list[Worker]:
        return [Worker("w", 1, local=True)]

    def replicas(self, dataset: str) -> int:
        return 1

    def hint(self, calls: Mapping[str, Sequence[bytes]]) -> None:
        """Nothing is made ahead."""

    def begin(self, worker_id: str, requests: Sequence[Fetch], timeout_s: float) -> Ended:
        return Ended(Served([self._make(BlockPlan.unpack(each.packed_plan)) for each in requests]))

    def wait(self, calls: Sequence[Call], timeout_s: float) -> Sequence[Call]:
        return calls

    def _make(self, plan: BlockPlan) -> Sealed:
        return Sealed(memoryview(b"".join(self._files[part.path.encode()] for part in plan.parts)))


@contextmanager
def session() -> Iterator[tuple[KernelSession, socket.socket]]:
    """A session on one end of a socket; what it answers is read from the other."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        place = OneDirectory(FILES)
        vfs = Vfs(Namespace(place), Reader(place, 2**20, 5.0), 1, 10**18)
        made = KernelSession(vfs, theirs.fileno(), (0, 0), AGREED, Limits(threads=4, requests=8, deadline_s=20.0))
        yield made, ours
        made.stop()


def feed(made: KernelSession, message: bytes) -> None:
    made.dispatch(memoryview(bytearray(message)), len(message))


def answer(ours: socket.socket, timeout_s: float = 10.0) -> tuple[int, int, bytes]:
    """``(number, errno, body)`` of the next answer."""
    assert select.select([ours], [], [], timeout_s)[0], "no answer"
    data = ours.recv(2**21)
    length, error, unique = struct.unpack_from("=IiQ", data)
    assert length == len(data)
    assert -512 < error <= 0
    return unique, -error, data[16:]


def ask(made: KernelSession, ours: socket.socket, message: bytes) -> tuple[int, bytes]:
    feed(made, message)
    unique, error, body = answer(ours)
    assert unique == struct.unpack_from("=Q", message, 8)[0]
    return error, body


def test_a_session_answers() -> None:
    with session() as (made, ours):
        error, body = ask(made, ours, request(Op.LOOKUP, b"a\0"))
        assert error == 0
        ino = struct.unpack_from("=Q", body)[0]
        assert ask(made, ours, request(Op.READ, ranged(1, 100), nodeid=ino)) == (0, b"lpha")
        assert ask(made, ours, request(Op.READ, ranged(5, 100), nodeid=ino, unique=wire.RESENT | 2)) == (0, b"")
        assert ask(made, ours, request(Op.READ, ranged(0, 1))) == (errno.EISDIR, b"")
        assert ask(made, ours, request(Op.LOOKUP, b"absent\0")) == (0, wire.NEGATIVE_ENTRY)
        assert ask(made, ours, request(Op.LOOKUP, b"x" * 256 + b"\0")) == (errno.ENAMETOOLONG, b"")
        assert ask(made, ours, request(Op.GETATTR, bytes(16), nodeid=2**32 + 99)) == (errno.ENOENT, b"")
        assert ask(made, ours, request(Op.DESTROY)) == (0, b"")


def test_what_is_switched_off_and_what_is_refused() -> None:
    off = (Op.OPEN, Op.OPENDIR, Op.FLUSH, Op.STATX, Op.GETXATTR, Op.LISTXATTR, Op.ACCESS, Op.FSYNC, Op.LSEEK, 999)
    writes = (Op.WRITE, Op.CREATE, Op.MKDIR, Op.UNLINK, Op.SETATTR, Op.RENAME2, Op.SETXATTR, Op.TMPFILE)
    with session() as (made, ours):
        for opcode in off:
            assert ask(made, ours, request(opcode, bytes(64))) == (errno.ENOSYS, b"")
        for opcode in writes:
            assert ask(made, ours, request(opcode, bytes(64))) == (errno.EROFS, b"")
        assert ask(made, ours, request(Op.IOCTL, bytes(32))) == (errno.ENOTTY, b"")
        assert ask(made, ours, request(Op.READLINK)) == (errno.EINVAL, b"")


_opcodes = st.one_of(st.sampled_from(sorted(int(op) for op in Op if op != Op.INIT)), st.integers(0, 2**32 - 1))
_numbers = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([1, 2**32, 2**32 + 1, 2**32 + 3, 2**33, 2**64 - 1]))
_bodies = st.one_of(
    st.binary(max_size=80),
    st.builds(ranged, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)),
    st.builds(lambda name: name + b"\0", st.binary(max_size=300)),
    st.sampled_from([b"a\0", b"b\0", b"..\0", b"a/b\0"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(_opcodes, _numbers, _bodies, st.integers(0, 200)), max_size=12))
def test_whatever_comes_is_answered_once_or_dropped(messages: list[tuple[int, int, bytes, int]]) -> None:
    with session() as (made, ours):
        expected = set()
        for at, (opcode, nodeid, body, cut) in enumerate(messages):
            whole = request(opcode, body, unique=at + 1, nodeid=nodeid)
            feed(made, whole[:cut] if cut < len(whole) and at % 3 == 0 else whole)
            if not (cut < len(whole) and at % 3 == 0) and (opcode not in SILENT or _bad_interrupt(opcode, body)):
                expected.add(at + 1)
        answered = [answer(ours)[0] for _ in expected]
        assert set(answered) == expected
        assert not select.select([ours], [], [], 0)[0]


def _bad_interrupt(opcode: int, body: bytes) -> bool:
    return opcode == Op.INTERRUPT and len(body) < 8


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_never_gets_out_of_a_session(noise: bytes) -> None:
    with session() as (made, _):
        feed(made, noise)


def test_an_answer_that_cannot_be_sent_is_dropped() -> None:
    with session() as (made, _):
        made._fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        feed(made, request(Op.GETATTR, bytes(16)))
        os.close(made._fd)
