"""What POSIX and Linux say of each system call that writes, as programs meet it: run in two directories and compared.

    python posix.py DIRECTORY      prints {case: outcome} as JSON

A case is a function of an empty directory that returns what it saw; an errno that it meets is part of that. Numbers
that two file systems need not share (inodes, times of now, devices) are left out. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import stat
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
CASES: dict[str, Callable[[str], Any]] = {}
PAGE = 4096
NOBODY = 65534


def case(function: Callable[[str], Any]) -> Callable[[str], Any]:
    CASES[function.__name__] = function
    return function


def met(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What a call returns, or the name of its errno."""
    try:
        found = call(*arguments, **named)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return found.decode("latin-1") if isinstance(found, bytes) else found


def libc(name: str, *arguments: Any) -> Any:
    """The same of a function of the C library that returns -1 when it fails."""
    ctypes.set_errno(0)
    found = getattr(LIBC, name)(*arguments)
    return errno.errorcode[ctypes.get_errno()] if found < 0 else found


@contextlib.contextmanager
def opened(path: str, flags: int, mode: int = 0o644) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def put(path: str, data: bytes = b"", mode: int = 0o644) -> str:
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode) as fd:
        os.write(fd, data)
    return path


def get(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode("latin-1")


def about(path: str) -> list[Any]:
    info = os.lstat(path)
    size = None if stat.S_ISDIR(info.st_mode) else info.st_size
    return [oct(info.st_mode), info.st_nlink, info.st_uid, info.st_gid, size]


def as_user(uid: int, call: Callable[[], Any], gids: tuple[int, ...] = ()) -> Any:
    """What a call comes to for another user; in a process of its own."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups(gids)
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        os.write(write_end, json.dumps(met(call)).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


# ---- open -----------------------------------------------------------------------------------------------------------


@case
def open_creates_and_refuses(root: str) -> Any:
    path, directory = f"{root}/f", f"{root}/d"
    os.mkdir(directory)
    os.symlink("f", f"{root}/link")
    os.symlink("missing", f"{root}/dangling")
    flags = os.O_CREAT | os.O_RDWR
    seen = [
        met(os.open, path, os.O_RDWR),
        os.close(os.open(path, flags | os.O_EXCL, 0o640)),
        met(os.open, path, flags | os.O_EXCL),
        met(os.open, f"{root}/link", flags | os.O_EXCL),
        met(os.open, f"{root}/link", os.O_RDONLY | os.O_NOFOLLOW),
        met(os.open, path, os.O_RDONLY | os.O_DIRECTORY),
        met(os.open, directory, os.O_WRONLY),
        met(os.open, directory, flags),
        met(os.open, f"{path}/x", flags),
        met(os.open, f"{root}/no/x", flags),
        met(os.open, f"{root}/" + "n" * 256, flags),
        os.close(os.open(f"{root}/" + "n" * 255, flags)),
        os.close(os.open(f"{root}/dangling", flags)),
    ]
    return [*seen, sorted(os.listdir(root)), about(path)]


@case
def open_truncates(root: str) -> Any:
    path = put(f"{root}/f", b"something")
    with opened(path, os.O_RDWR | os.O_TRUNC) as fd, opened(path, os.O_RDONLY) as other:
        first = [os.fstat(fd).st_size, os.stat(path).st_size, met(os.read, other, 10)]
        os.write(fd, b"new")
        return [*first, met(os.pread, other, 10, 0), get(path)]


@case
def open_modes_allow_what_they_say(root: str) -> Any:
    path = put(f"{root}/f", b"abc")
    with opened(path, os.O_RDONLY) as reads, opened(path, os.O_WRONLY) as writes:
        return [met(os.write, reads, b"x"), met(os.read, writes, 1), met(os.ftruncate, reads, 0), get(path)]


@case
def append_goes_to_the_end(root: str) -> Any:
    path = put(f"{root}/f", b"0")
    flags = os.O_WRONLY | os.O_APPEND
    with opened(path, flags) as first, opened(path, flags) as second, opened(path, os.O_RDWR) as third:
        for number in range(20):
            os.write((first, second)[number % 2], b"%d" % (number % 10))
        os.lseek(first, 0, os.SEEK_SET)
        os.write(first, b"end")
        os.pwrite(third, b"X", 0)
        os.ftruncate(third, 5)
        os.write(second, b"again")
    return get(path)


@case
def append_by_many_processes(root: str) -> Any:
    path, pids = put(f"{root}/f"), []
    for number in range(4):
        pids.append(os.fork())
        if pids[-1] == 0:
            with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
                for _ in range(100):
                    os.write(fd, b"%d" % number * 10)
            os._exit(0)
    for pid in pids:
        os.waitpid(pid, 0)
    data = get(path)
    return [len(data), {data[at : at + 10] for at in range(0, len(data), 10)} == {str(n) * 10 for n in range(4)}]


# ---- write, read, lseek ---------------------------------------------------------------------------------------------


@case
def writes_anywhere_are_read_back(root: str) -> Any:
    path = f"{root}/f"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        seen = [os.pwrite(fd, b"hello", 10_000), os.pwrite(fd, b"", 50_000), os.fstat(fd).st_size]
        seen += [os.pwritev(fd, [b"a" * 5000, b"b" * 5000], 3), met(os.pread, fd, 20, 9990)]
        seen += [met(os.pread, fd, 10, 10_004), met(os.pread, fd, 10, 10_005), met(os.pwrite, fd, b"x", -1)]
        os.lseek(fd, 4, os.SEEK_SET)
        os.write(fd, b"Z")
        seen += [os.lseek(fd, 0, os.SEEK_CUR), os.lseek(fd, -5, os.SEEK_END), met(os.lseek, fd, -1, os.SEEK_SET)]
    return [*seen, get(path)]


@case
def large_writes_and_small_ones_over_them(root: str) -> Any:
    path, expected = f"{root}/f", bytearray(9 * 2**20 + 17)
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        for at in range(0, len(expected), 3_000_017):
            chunk = bytes([at % 251]) * min(3_000_017, len(expected) - at)
            expected[at : at + len(chunk)] = chunk
            os.pwrite(fd, chunk, at)
        for at in range(0, len(expected) - 100, 654_321):
            expected[at : at + 77] = b"x" * 77
            os.pwrite(fd, b"x" * 77, at)
        inside = os.pread(fd, len(expected), 0) == expected
    with open(path, "rb") as file:
        return [inside, file.read() == expected]


@case
def sparse_files_read_as_zeros(root: str) -> Any:
    path = f"{root}/f"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"end", 2**40)
        seen = [os.fstat(fd).st_size, met(os.pread, fd, 5, 2**39), met(os.pread, fd, 5, 2**40 - 1)]
    with opened(path, os.O_RDONLY) as fd:
        return [*seen, os.lseek(fd, 0, os.SEEK_END), met(os.pread, fd, 10, 2**40)]


@case
def seek_finds_data_and_holes(root: str) -> Any:
    path = f"{root}/f"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"a" * 65_536, 65_536 * 2)
        os.ftruncate(fd, 65_536 * 5)
        os.fsync(fd)
        where = [met(os.lseek, fd, at * 65_536, whence) for whence in (os.SEEK_DATA, os.SEEK_HOLE) for at in range(7)]
        return [*where, met(os.lseek, fd, 65_536 * 2 + 5, os.SEEK_DATA)]


@case
def writers_and_readers_share_a_file(root: str) -> Any:
    path = put(f"{root}/f", b"0123456789")
    with opened(path, os.O_RDONLY) as reads, opened(path, os.O_WRONLY) as writes:
        seen = [met(os.read, reads, 4)]
        os.pwrite(writes, b"abc", 3)
        seen += [met(os.read, reads, 4), os.fstat(reads).st_size]
        os.pwrite(writes, b"later", 20)
        return [*seen, os.fstat(reads).st_size, met(os.pread, reads, 30, 0), get(path)]


@case
def a_copy_of_a_descriptor_goes_on_where_the_other_is(root: str) -> Any:
    path = f"{root}/f"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    twin = os.dup(fd)
    os.write(fd, b"one")
    os.close(fd)
    os.write(twin, b"two")
    seen = [get(path)]
    if (pid := os.fork()) == 0:
        os.write(twin, b"three")
        os._exit(0)
    os.waitpid(pid, 0)
    os.write(twin, b"four")
    os.close(twin)
    return [*seen, get(path)]


# ---- truncate, fallocate, copy --------------------------------------------------------------------------------------


@case
def truncate_cuts_and_fills(root: str) -> Any:
    path = put(f"{root}/f", b"abcdefghij" * 1000)
    seen = []
    for size in (5000, 3, 3, 20, 0, 12):
        os.truncate(path, size)
        seen.append([os.stat(path).st_size, get(path)])
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"tail", 8190)
        os.ftruncate(fd, 8192)
        os.ftruncate(fd, 8191)
        os.ftruncate(fd, 9000)
        seen.append(met(os.pread, fd, 900, 8180))
    os.mkdir(f"{root}/d")
    errors = [met(os.truncate, f"{root}/d", 0), met(os.truncate, f"{root}/no", 0), met(os.truncate, path, -1)]
    return [*seen, *errors]


@case
def fallocate_makes_room_holes_and_zeros(root: str) -> Any:
    path, seen = put(f"{root}/f", b"x" * 20_000), []
    with opened(path, os.O_RDWR) as fd:
        for mode, offset, length in (
            (0, 0, 30_000), (1, 0, 90_000), (3, 4096, 4096), (3, 5, 10), (3, 29_000, 90_000), (16, 8000, 200),
            (17, 29_990, 500), (16, 30_100, 100), (2, 0, 10), (0, 0, 0), (0, -1, 5), (1, 10, 5),
        ):  # fmt: skip
            found = libc("fallocate", fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
            seen.append([found, os.fstat(fd).st_size])
        os.posix_fallocate(fd, 40_000, 10)
    with opened(path, os.O_RDONLY) as fd:
        seen.append(libc("fallocate", fd, 0, ctypes.c_long(0), ctypes.c_long(10)))
    return [*seen, get(path)]


@case
def copy_file_range_copies(root: str) -> Any:
    source, target = put(f"{root}/a", b"0123456789" * 5000), put(f"{root}/b", b"-" * 100)
    with opened(source, os.O_RDWR) as one, opened(target, os.O_RDWR) as two:
        seen = [os.copy_file_range(one, two, 20_000, 5, 50), os.copy_file_range(one, two, 100_000, 49_995, 120)]
        seen += [os.copy_file_range(one, two, 10, 60_000, 0), os.fstat(two).st_size]
        os.pwrite(one, b"changed", 5)
        os.pwrite(two, b"XYZ", 60)
        seen += [os.copy_file_range(one, one, 10, 0, 40_000)]
    return [*seen, get(source), get(target)]


@case
def who_changes_a_file_takes_its_set_uid_bits(root: str) -> Any:
    source, seen = put(f"{root}/source", b"0123456789"), []

    def changes(fd: int, other: int) -> list[Callable[[], Any]]:
        return [
            lambda: os.pwrite(fd, b"x", 0),
            lambda: os.ftruncate(fd, 5),
            lambda: libc("fallocate", fd, 0, ctypes.c_long(0), ctypes.c_long(20)),
            lambda: os.copy_file_range(other, fd, 10, 0, 0),
            lambda: os.copy_file_range(other, fd, 10, 100, 0),
        ]

    for number in range(5):
        for uid in (0, 1000):
            path = put(f"{root}/{number}-{uid}", b"before")
            os.chmod(path, 0o6777)
            with opened(path, os.O_RDWR) as fd, opened(source, os.O_RDONLY) as other:
                seen.append([as_user(uid, changes(fd, other)[number]), about(path)])
    return seen


@case
def sendfile_sends(root: str) -> Any:
    source = put(f"{root}/a", bytes(range(256)) * 1000)
    with opened(source, os.O_RDONLY) as one, opened(f"{root}/b", os.O_WRONLY | os.O_CREAT) as two:
        at = 0
        while count := os.sendfile(two, one, at, 100_000):
            at += count
    return [at, get(f"{root}/b") == get(source)]


# ---- names ----------------------------------------------------------------------------------------------------------


@case
def mkdir_and_rmdir(root: str) -> Any:
    d = f"{root}/d"
    put(f"{root}/f")
    os.symlink("d", f"{root}/l")
    seen = [met(os.mkdir, d, 0o751), about(d), os.stat(root).st_nlink, met(os.mkdir, d), met(os.mkdir, f"{root}/f")]
    seen += [met(os.mkdir, f"{root}/l"), met(os.mkdir, f"{root}/no/x"), met(os.mkdir, f"{root}/f/x")]
    os.mkdir(f"{d}/e")
    seen += [
        about(d),
        met(os.rmdir, d),
        met(os.rmdir, f"{root}/f"),
        met(os.rmdir, f"{root}/l"),
        met(os.rmdir, root + "/no"),
    ]
    seen += [met(os.rmdir, f"{d}/."), met(os.rmdir, f"{d}/e/.."), met(os.rmdir, f"{d}/e"), met(os.rmdir, d)]
    return [*seen, os.stat(root).st_nlink, sorted(os.listdir(root)), met(os.listdir, d)]


@case
def a_removed_directory_that_is_open(root: str) -> Any:
    os.mkdir(f"{root}/d")
    with opened(f"{root}/d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.rmdir(f"{root}/d")
        seen = [met(os.listdir, fd), met(os.open, "f", os.O_CREAT | os.O_RDWR, dir_fd=fd)]
        os.mkdir(f"{root}/d")
        put(f"{root}/d/x")
        return [*seen, met(os.listdir, fd), os.listdir(f"{root}/d")]


@case
def unlink_of_what_is_open(root: str) -> Any:
    path = put(f"{root}/f", b"first")
    with opened(path, os.O_RDWR) as fd:
        os.unlink(path)
        seen = [os.fstat(fd).st_nlink, met(os.stat, path), met(os.unlink, path)]
        os.pwrite(fd, b" and more", 5)
        os.fsync(fd)
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 12)
        seen += [met(os.pread, fd, 50, 0), os.fstat(fd).st_size, oct(os.fstat(fd).st_mode)]
        put(path, b"another")
        seen += [met(os.pread, fd, 50, 0), get(path)]
        with open(f"/proc/self/fd/{fd}", "rb") as again:
            seen.append(again.read().decode())
    os.mkdir(f"{root}/d")
    return [*seen, met(os.unlink, f"{root}/d"), met(os.unlink, f"{root}/no"), met(os.unlink, f"{path}/x")]


@case
def rename_of_files(root: str) -> Any:
    a, b, d = put(f"{root}/a", b"A"), put(f"{root}/b", b"B"), f"{root}/d"
    os.mkdir(d)
    ino = os.stat(a).st_ino
    with opened(b, os.O_RDWR) as replaced, opened(a, os.O_RDWR) as moved:
        os.rename(a, b)
        os.write(moved, b"more")
        os.pwrite(replaced, b"still", 1)
        seen = [os.stat(b).st_ino == ino, met(os.stat, a), get(b), met(os.pread, replaced, 9, 0)]
        seen += [os.fstat(replaced).st_nlink, os.fstat(moved).st_nlink]
    os.rename(b, f"{d}/c")
    os.rename(f"{d}/c", f"{d}/c")
    seen += [met(os.rename, f"{d}/c", d), met(os.rename, d, f"{d}/c"), met(os.rename, f"{root}/no", a), get(f"{d}/c")]
    return [*seen, met(os.rename, f"{d}/c", f"{root}/no/x"), met(os.rename, f"{d}/c", f"{root}/" + "n" * 256)]


@case
def rename_of_directories(root: str) -> Any:
    for name in ("a/x/y", "empty", "full/z"):
        os.makedirs(f"{root}/{name}")
    put(f"{root}/a/x/f", b"data")
    put(f"{root}/file")
    seen = [met(os.rename, f"{root}/a", f"{root}/full"), met(os.rename, f"{root}/a", f"{root}/a/x/inside")]
    seen += [met(os.rename, f"{root}/a", f"{root}/file"), met(os.rename, f"{root}/file", f"{root}/empty")]
    here = os.open(f"{root}/a/x", os.O_RDONLY)
    seen += [met(os.rename, f"{root}/a", f"{root}/empty"), get(f"{root}/empty/x/f"), met(os.stat, f"{root}/a")]
    seen += [sorted(os.listdir(here)), os.stat("f", dir_fd=here).st_size]
    os.rename(f"{root}/empty/x", f"{root}/x")
    seen += [os.stat(f"{root}/empty").st_nlink, os.stat(f"{root}/x").st_nlink, os.stat(root).st_nlink]
    seen += [os.stat("..", dir_fd=here).st_ino == os.stat(root).st_ino, sorted(os.listdir(root))]
    os.close(here)
    return seen


@case
def rename_with_flags(root: str) -> Any:
    a, b, d = put(f"{root}/a", b"A"), put(f"{root}/b", b"B"), f"{root}/d"
    os.mkdir(d)
    put(f"{d}/x")

    def rename2(source: str, target: str, flags: int) -> Any:
        return libc("renameat2", -100, source.encode(), -100, target.encode(), flags)

    seen = [rename2(a, b, 1), rename2(a, f"{root}/c", 1), rename2(f"{root}/c", b, 2), get(b), get(f"{root}/c")]
    seen += [rename2(b, d, 2), get(d), sorted(os.listdir(b)), rename2(b, f"{root}/no", 2), rename2(d, f"{root}/c", 3)]
    return [*seen, os.stat(root).st_nlink, sorted(os.listdir(root))]


@case
def hard_links(root: str) -> Any:
    a, b, d = put(f"{root}/a", b"one"), f"{root}/b", f"{root}/d"
    os.mkdir(d)
    os.link(a, b)
    seen = [os.stat(a).st_ino == os.stat(b).st_ino, os.stat(a).st_nlink]
    with open(b, "ab") as file:
        file.write(b" two")
    seen += [get(a), met(os.link, a, b), met(os.link, d, f"{root}/e"), met(os.link, f"{root}/no", f"{root}/e")]
    os.chmod(a, 0o600)
    os.rename(a, f"{d}/c")
    seen += [
        about(b),
        os.stat(f"{d}/c").st_ino == os.stat(b).st_ino,
        met(os.rename, b, f"{d}/c"),
        sorted(os.listdir(root)),
    ]
    os.unlink(b)
    seen += [os.stat(f"{d}/c").st_nlink, get(f"{d}/c")]
    os.symlink("d/c", f"{root}/s")
    os.link(f"{root}/s", f"{root}/s2", follow_symlinks=False)
    return [*seen, os.readlink(f"{root}/s2"), os.lstat(f"{root}/s").st_nlink]


@case
def symbolic_links(root: str) -> Any:
    os.symlink("loop", f"{root}/loop")
    os.symlink("x" * 4000, f"{root}/long")
    os.symlink("d", f"{root}/to-d")
    seen = [os.readlink(f"{root}/long") == "x" * 4000, about(f"{root}/to-d"), met(os.stat, f"{root}/loop")]
    seen += [met(os.symlink, "a", f"{root}/loop"), met(os.readlink, root), met(os.symlink, "", f"{root}/e")]
    os.mkdir(f"{root}/d")
    put(f"{root}/to-d/f", b"through")
    seen += [get(f"{root}/d/f"), met(os.open, f"{root}/to-d", os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)]
    os.unlink(f"{root}/to-d")
    os.symlink("\udcff\udc80", f"{root}/bytes")
    return [*seen, os.readlink(os.fsencode(f"{root}/bytes")) == b"\xff\x80", sorted(os.listdir(root))]


@case
def odd_names(root: str) -> Any:
    names = [b"a b", b"new\nline", b"\xff\xfe", b"-rf", b"...", "ünï".encode(), b"n" * 255, b"*?[", b"\\", b"'\""]
    for name in names:
        put(os.fsdecode(os.fsencode(root) + b"/" + name), name)
    found = os.listdir(os.fsencode(root))
    same = all(get(os.fsdecode(os.fsencode(root) + b"/" + name)).encode("latin-1") == name for name in names)
    for name in found:
        os.unlink(os.fsencode(root) + b"/" + name)
    return [sorted(name.decode("latin-1") for name in found), same, os.listdir(root)]


@case
def listings_while_entries_come_and_go(root: str) -> Any:
    for number in range(3000):
        put(f"{root}/{number:05d}")
    seen = 0
    with os.scandir(root) as entries:
        for entry in entries:
            os.unlink(entry.path)
            seen += 1
    left = len(os.listdir(root))
    with opened(root, os.O_RDONLY) as fd:
        first = os.listdir(fd)
        put(f"{root}/new")
        os.lseek(fd, 0, os.SEEK_SET)
        return [seen, left, first, os.listdir(fd)]


@case
def special_files(root: str) -> Any:
    os.mkfifo(f"{root}/pipe", 0o620)
    seen = [about(f"{root}/pipe")]
    if (pid := os.fork()) == 0:
        with open(f"{root}/pipe", "wb") as file:
            file.write(b"through the pipe")
        os._exit(0)
    seen.append(get(f"{root}/pipe"))
    os.waitpid(pid, 0)
    here = os.getcwd()
    os.chdir(root)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind("socket")
        listener.listen()
        caller.connect("socket")
        seen += [oct(stat.S_IFMT(os.stat("socket").st_mode)), met(os.open, "socket", os.O_RDONLY)]
    os.chdir(here)
    if os.geteuid() == 0:
        os.mknod(f"{root}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        info = os.stat(f"{root}/null")
        seen += [oct(info.st_mode), os.major(info.st_rdev), os.minor(info.st_rdev)]
    return seen


# ---- attributes -----------------------------------------------------------------------------------------------------


@case
def umask_and_modes(root: str) -> Any:
    old = os.umask(0o027)
    try:
        put(f"{root}/f", mode=0o666)
        os.mkdir(f"{root}/d", 0o777)
        os.mkfifo(f"{root}/p", 0o666)
    finally:
        os.umask(old)
    seen = [about(f"{root}/{name}") for name in "fdp"]
    os.chmod(f"{root}/f", 0o7751)
    os.chmod(f"{root}/d", 0o3770)
    seen += [about(f"{root}/{name}") for name in "fd"]
    with opened(f"{root}/f", os.O_RDONLY) as fd:
        os.fchmod(fd, 0o400)
    return [*seen, about(f"{root}/f"), met(os.chmod, f"{root}/no", 0o600)]


@case
def owners_and_what_changes_with_them(root: str) -> Any:
    if os.geteuid() != 0:
        return "needs root"
    path, d = put(f"{root}/f"), f"{root}/d"
    os.chmod(path, 0o6755)
    os.chown(path, 1000, 1001)
    seen = [about(path)]
    os.chown(path, -1, 5)
    os.chown(path, 7, -1)
    seen.append(about(path))
    os.symlink("f", f"{root}/l")
    os.lchown(f"{root}/l", 8, 9)
    seen += [about(f"{root}/l"), about(path)]
    os.mkdir(d)
    os.chown(d, 0, 77)
    os.chmod(d, 0o2775)
    put(f"{d}/f")
    os.mkdir(f"{d}/e")
    os.symlink("x", f"{d}/s")
    return [*seen, about(f"{d}/f"), about(f"{d}/e"), about(f"{d}/s")]


@case
def permissions_hold_for_others(root: str) -> Any:
    if os.geteuid() != 0:
        return "needs root"
    path, d = put(f"{root}/f", b"secret", 0o600), f"{root}/sticky"
    os.mkdir(d)
    os.chmod(d, 0o1777)
    put(f"{d}/mine")
    os.chmod(root, 0o755)
    seen = [as_user(NOBODY, lambda: get(path)), as_user(NOBODY, lambda: os.chmod(path, 0o666))]
    seen += [as_user(NOBODY, lambda: put(f"{root}/new")), as_user(NOBODY, lambda: os.unlink(f"{d}/mine"))]
    seen += [as_user(NOBODY, lambda: os.path.basename(put(f"{d}/theirs", b"x"))), about(f"{d}/theirs")]
    seen += [
        as_user(NOBODY, lambda: os.chown(f"{d}/theirs", 0, 0)),
        as_user(NOBODY, lambda: os.chmod(f"{d}/theirs", 0o4711)),
    ]
    os.chmod(path, 0o640)
    os.chown(path, 0, 42)
    seen += [as_user(NOBODY, lambda: get(path)), as_user(NOBODY, lambda: get(path), (42,))]
    return [*seen, as_user(NOBODY, lambda: os.utime(path)), as_user(1234, lambda: os.unlink(f"{d}/theirs"))]


@case
def set_uid_goes_when_others_write(root: str) -> Any:
    if os.geteuid() != 0:
        return "needs root"
    os.chmod(root, 0o777)
    seen = []

    def overwrite(path: str) -> None:
        with opened(path, os.O_RDWR) as fd:
            os.write(fd, b"x")

    for change in (
        overwrite,
        lambda path: os.truncate(path, 1),
        lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
        lambda path: os.chown(path, NOBODY, NOBODY),
        os.utime,
    ):
        path = put(f"{root}/f", b"abc")
        os.chown(path, NOBODY, NOBODY)
        os.chmod(path, 0o6777)
        seen.append([as_user(NOBODY, lambda: change(path) and None), oct(os.stat(path).st_mode)])  # noqa: B023
        os.unlink(path)
    return seen


@case
def times_are_kept_and_move(root: str) -> Any:
    path, d = put(f"{root}/f", b"x"), f"{root}/d"
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_000_000_001))
    seen = [os.stat(path).st_mtime_ns, os.stat(path).st_atime_ns]
    os.utime(path, ns=(-5_000_000_001, -1))
    seen.append(os.stat(path).st_mtime_ns)
    with opened(path, os.O_RDWR) as fd:
        os.write(fd, b"later")
        os.utime(fd, ns=(10**9, 2 * 10**9))
    seen.append(os.stat(path).st_mtime_ns)
    os.mkdir(d)
    moved = []
    for change in (
        lambda: put(f"{d}/a"),
        lambda: os.rename(f"{d}/a", f"{d}/b"),
        lambda: os.link(f"{d}/b", f"{d}/c"),
        lambda: os.unlink(f"{d}/c"),
        lambda: os.mkdir(f"{d}/e"),
        lambda: os.rmdir(f"{d}/e"),
        lambda: os.symlink("x", f"{d}/s"),
        lambda: os.chmod(f"{d}/b", 0o600),
        lambda: get(f"{d}/b"),
        lambda: put(f"{d}/b", b"overwritten"),
    ):
        os.utime(d, ns=(0, 0))
        before = os.stat(d).st_ctime_ns
        time.sleep(0.02)
        change()
        after = os.stat(d)
        moved.append([after.st_mtime_ns != 0, after.st_ctime_ns > before])
    return [*seen, moved]


@case
def ctime_moves_with_attributes_and_contents(root: str) -> Any:
    path, moved = put(f"{root}/f", b"x"), []
    for change in (
        lambda: os.chmod(path, 0o600),
        lambda: os.link(path, f"{root}/g"),
        lambda: os.unlink(f"{root}/g"),
        lambda: os.rename(path, f"{root}/h") or os.rename(f"{root}/h", path),
        lambda: os.truncate(path, 10),
        lambda: put(path, b"y"),
        lambda: os.utime(path, ns=(5, 5)),
        lambda: os.setxattr(path, "user.a", b"b"),
        lambda: get(path),
    ):
        before = os.stat(path)
        time.sleep(0.02)
        change()
        after = os.stat(path)
        moved.append([after.st_ctime_ns > before.st_ctime_ns, after.st_mtime_ns > before.st_mtime_ns])
    return moved


@case
def extended_attributes(root: str) -> Any:
    path = put(f"{root}/f")
    seen = [met(os.getxattr, path, "user.a"), os.listxattr(path), met(os.setxattr, path, "user.a", b"1")]
    seen += [
        met(os.setxattr, path, "user.a", b"2", os.XATTR_CREATE),
        met(os.setxattr, path, "user.b", b"", os.XATTR_REPLACE),
    ]
    seen += [
        met(os.setxattr, path, "user.b", b"\0\xff" * 1000),
        met(os.getxattr, path, "user.b"),
        met(os.getxattr, path, "user.a"),
    ]
    os.rename(path, f"{root}/g")
    path = f"{root}/g"
    seen += [sorted(os.listxattr(path)), met(os.removexattr, path, "user.a"), met(os.removexattr, path, "user.a")]
    os.mkdir(f"{root}/d")
    seen += [met(os.setxattr, f"{root}/d", "user.d", b"x"), sorted(os.listxattr(f"{root}/d"))]
    os.symlink("g", f"{root}/l")
    return [
        *seen,
        met(os.setxattr, f"{root}/l", "user.l", b"x", follow_symlinks=False),
        met(os.setxattr, path, "bad.a", b""),
    ]


# ---- memory, locks, sync --------------------------------------------------------------------------------------------


@case
def shared_mappings_write(root: str) -> Any:
    path = put(f"{root}/f", b"a" * (PAGE * 3 + 10))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[PAGE - 2 : PAGE + 2] = b"WXYZ"
        view[PAGE * 3 + 5 :] = b"-end-"
        seen = [os.pread(file.fileno(), 6, PAGE - 3).decode()]
        os.pwrite(file.fileno(), b"written", 2 * PAGE)
        seen.append(view[2 * PAGE : 2 * PAGE + 8].decode())
        view.flush()
        view[0:5] = b"after"
    return [*seen, get(path)]


@case
def a_mapping_outlives_its_descriptor(root: str) -> Any:
    path = put(f"{root}/f", bytes(PAGE * 2))
    file = open(path, "r+b")  # noqa: SIM115
    view = mmap.mmap(file.fileno(), 0)
    file.close()
    view[10:14] = b"late"
    view[PAGE : PAGE + 4] = b"more"
    view.close()
    deadline = time.monotonic() + 10
    while "late" not in get(path) and time.monotonic() < deadline:
        time.sleep(0.1)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as private:
        private[0:4] = b"mine"
        seen = [private[0:14].decode("latin-1")]
    return [*seen, get(path)]


@case
def locks_between_processes(root: str) -> Any:
    path = put(f"{root}/f", b"x" * 100)

    def other(how: str) -> Any:
        read_end, write_end = os.pipe()
        if (pid := os.fork()) == 0:
            with opened(path, os.O_RDWR) as fd:
                if how == "flock":
                    found = met(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                elif how == "shared":
                    found = met(fcntl.flock, fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                else:
                    found = met(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, int(how))
            os.write(write_end, json.dumps(found).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(write_end)
        with os.fdopen(read_end, "rb") as file:
            return json.loads(file.read())

    with opened(path, os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        seen = [other("flock"), other("shared")]
        fcntl.flock(fd, fcntl.LOCK_SH)
        seen += [other("flock"), other("shared")]
        fcntl.flock(fd, fcntl.LOCK_UN)
        seen.append(other("flock"))
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)
        seen += [other("0"), other("25"), other("40")]
        wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
        seen.append(struct.unpack("hhqqi", fcntl.fcntl(fd, fcntl.F_GETLK, wanted))[0])
    return [*seen, other("25"), other("flock")]


@case
def everything_syncs(root: str) -> Any:
    with opened(f"{root}/f", os.O_RDWR | os.O_CREAT) as fd, opened(root, os.O_RDONLY) as directory:
        os.write(fd, b"x")
        seen = [met(os.fsync, fd), met(os.fdatasync, fd), met(os.fsync, directory)]
        seen.append(met(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED))
        seen += [met(os.pread, fd, 5, 0), libc("sync_file_range", fd, ctypes.c_long(0), ctypes.c_long(1), 7)]
    with opened(f"{root}/s", os.O_RDWR | os.O_CREAT | os.O_SYNC) as fd:
        seen.append(os.write(fd, b"synced"))
    return [*seen, get(f"{root}/s")]


@case
def direct_io(root: str) -> Any:
    with opened(f"{root}/f", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as fd, mmap.mmap(-1, 8 * PAGE) as buffer:
        buffer[:] = bytes(range(256)) * (8 * PAGE // 256)
        seen = [os.pwritev(fd, [buffer], PAGE), os.pwritev(fd, [memoryview(buffer)[:PAGE]], 0), os.fstat(fd).st_size]
        buffer[:] = bytes(8 * PAGE)
        seen.append(os.preadv(fd, [buffer], PAGE))
        seen.append(buffer[:8] == bytes(range(8)))
    return [*seen, len(get(f"{root}/f"))]


@case
def the_file_system_says_what_it_is(root: str) -> Any:
    info = os.statvfs(root)
    return [
        info.f_namemax,
        info.f_bfree > 0,
        info.f_bavail <= info.f_blocks,
        info.f_ffree > 0,
        os.pathconf(root, "PC_NAME_MAX"),
    ]


@case
def deep_paths(root: str) -> Any:
    here = os.getcwd()
    os.chdir(root)
    try:
        for _ in range(60):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        put("f", b"deep")
        seen = [get("f"), met(os.stat, root + ("/" + "d" * 100) * 60)]
        for _ in range(60):
            os.chdir("..")
        return [*seen, os.getcwd() == os.path.realpath(root)]
    finally:
        os.chdir(here)


@case
def a_killed_writer_leaves_what_it_wrote(root: str) -> Any:
    path = f"{root}/f"
    read_end, write_end = os.pipe()
    if (pid := os.fork()) == 0:
        with opened(path, os.O_RDWR | os.O_CREAT) as fd:
            os.write(fd, b"before the end")
            os.write(write_end, b"x")
            time.sleep(60)
    os.read(read_end, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 5
    while not get(path) and time.monotonic() < deadline:
        time.sleep(0.02)
    return get(path)


def main(root: str) -> None:
    found: dict[str, Any] = {}
    for name, run in CASES.items():
        directory = os.path.join(root, name)
        os.mkdir(directory)
        try:
            found[name] = run(directory)
        except Exception:  # noqa: BLE001 - it is what the case came to
            found[name] = traceback.format_exc()
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    os.umask(0o022)
    main(os.path.realpath(sys.argv[1]))
