"""What tests do inside a mount, in a process of its own: one that hangs there can be given up, pytest cannot.

Run as a program it takes one ``{"call": name, "arguments": [...]}`` a line, and answers ``{"result": ...}`` or
``{"errno": ...}``.
Standard library only, so that it starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import mmap
import os
import random
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

DIRENT = struct.Struct("=QqHB")


class Reader:
    """A process that reads for a test."""

    def __init__(self, uid: int | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=uid,
            extra_groups=None if uid is None else [],
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a call whose result is asked for later."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"call": function.__name__, "arguments": arguments}) + "\n")
        self._process.stdin.flush()

    def result(self, timeout_s: float = 60.0) -> Any:
        """The result of ``begin``. Raises OSError with the errno that the call met, TimeoutError when it hangs."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            raise TimeoutError(f"a reader hangs for {timeout_s:g} s in state {state_of(self.pid)}")
        line = self._process.stdout.readline()
        if not line:
            raise EOFError("the reader died")
        answer = json.loads(line)
        if "errno" in answer:
            raise OSError(answer["errno"], answer["message"])
        return answer["result"]

    def call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float = 60.0) -> Any:
        """Do it there, and wait."""
        self.begin(function, *arguments)
        return self.result(timeout_s)

    def kill(self) -> None:
        self._process.kill()

    def gone(self, timeout_s: float) -> bool:
        """Whether it ended within a time."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """End it. Not before what it may hang in is gone."""
        self._process.kill()
        self._process.wait(20)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def state_of(pid: int) -> str:
    """One letter, as in ``ps``: D is a sleep that not even a kill ends."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "-"


def ping() -> str:
    return "pong"


def names(path: str) -> list[str]:
    """Directory entries as they come, the two dots left out by Python."""
    return os.listdir(path)


def raw_entries(path: str) -> list[tuple[int, str, int]]:
    """Inode, name and type of all entries as ``getdents64`` gives them, dots included."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    buffer, found = ctypes.create_string_buffer(5000), []
    try:
        while (length := libc.getdents64(fd, buffer, len(buffer))) > 0:
            at, data = 0, buffer.raw[:length]
            while at < length:
                ino, size = (
                    int.from_bytes(data[at : at + 8], "little"),
                    int.from_bytes(data[at + 16 : at + 18], "little"),
                )
                name = os.fsdecode(data[at + 19 : at + size].split(b"\0")[0])
                found.append((ino, name, data[at + 18]))
                at += size
        if length < 0:
            raise OSError(ctypes.get_errno(), "getdents64")
    finally:
        os.close(fd)
    return found


def tree(root: str) -> dict[str, list[Any]]:
    """Everything below a directory: kind, and for files size, mtime and SHA-256."""
    found: dict[str, list[Any]] = {}
    for path in _walk(root):
        info = os.lstat(path)
        rest = [info.st_size, info.st_mtime_ns, digest(path)] if stat.S_ISREG(info.st_mode) else []
        found[os.path.relpath(path, root)] = [stat.S_IFMT(info.st_mode), *rest]
    return found


def _walk(root: str) -> Iterator[str]:
    for directory, below, files in os.walk(root):
        yield from (os.path.join(directory, name) for name in below + files)


def digest(path: str) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(2**20):
            sha.update(data)
    return sha.hexdigest()


def status(path: str) -> dict[str, int]:
    info = os.lstat(path)
    return {name: getattr(info, name) for name in dir(info) if name.startswith("st_")}


def file_system(path: str) -> dict[str, int]:
    info = os.statvfs(path)
    return {name: getattr(info, name) for name in dir(info) if name.startswith("f_")}


def exists(path: str) -> bool:
    return os.path.lexists(path)


def run(command: list[str], timeout_s: float = 60.0) -> str:
    """Output of a program, which must succeed."""
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True, env={
        **os.environ, "LC_ALL": "C", "TZ": "UTC"}).stdout  # fmt: skip


def compare_ranges(path: str, twin: str, seed: int, count: int) -> int:
    """Read the same odd ranges of two files; how many differ."""
    generator, wrong = random.Random(seed), 0
    fds = [os.open(each, os.O_RDONLY) for each in (path, twin)]
    try:
        size = os.fstat(fds[1]).st_size
        for _ in range(count):
            offset, length = generator.randrange(size + 10), generator.choice((1, 7, 4095, 4097, 65_537, 1_500_001))
            wrong += os.pread(fds[0], length, offset) != os.pread(fds[1], length, offset)
    finally:
        for fd in fds:
            os.close(fd)
    return wrong


def direct(path: str) -> str:
    """SHA-256 of a file read past the page cache, in odd steps."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer, sha = mmap.mmap(-1, 3 * 2**20), hashlib.sha256()
    try:
        while length := os.readv(fd, [memoryview(buffer)]):
            sha.update(memoryview(buffer)[:length])
    finally:
        os.close(fd)
    return sha.hexdigest()


def mapped(path: str) -> str:
    """SHA-256 of a file read through ``mmap``, backwards."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        for at in range(len(view) - 1, 0, -70_001):
            _ = view[at]
        return hashlib.sha256(view).hexdigest()


def sent(path: str) -> str:
    """SHA-256 of a file sent by the kernel into a socket."""
    here, there = socket.socketpair()
    sha = hashlib.sha256()

    def receive() -> None:
        while data := there.recv(2**16):
            sha.update(data)

    thread = threading.Thread(target=receive)
    thread.start()
    with open(path, "rb") as file:
        here.sendfile(file)
    here.close()
    thread.join(30)
    there.close()
    return sha.hexdigest()


def refusal(call: str, *arguments: Any) -> int:
    """The errno of a call that must fail; 0 when it works."""
    try:
        if call == "open":
            os.close(os.open(arguments[0], arguments[1], 0o644))
        elif call == "ioctl":
            import fcntl

            with open(arguments[0], "rb", buffering=0) as file:
                fcntl.ioctl(file, arguments[1])
        elif call == "fallocate":
            with open(arguments[0], "rb", buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, 10)
        elif call == "setxattr":
            os.setxattr(arguments[0], arguments[1], b"x")
        else:
            getattr(os, call)(*(tuple(each) if isinstance(each, list) else each for each in arguments))
    except OSError as error:
        return error.errno or -1
    return 0


def harmless(path: str) -> None:
    """What programs do to files they only read."""
    import fcntl

    with open(path, "rb") as file:
        os.fsync(file.fileno())
        fcntl.flock(file, fcntl.LOCK_SH)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == os.fstat(file.fileno()).st_size


def hold_open(paths: list[str]) -> int:
    """Open many files at once, read the end of each; the sum of the bytes read."""
    files = [open(path, "rb") for path in paths]  # noqa: SIM115
    total = 0
    for file in files:
        file.seek(-1, os.SEEK_END)
        total += len(file.read())
    for file in files:
        file.close()
    return total


_held: dict[str, Any] = {}


def keep(path: str) -> None:
    """Open a file and map it, and keep both until ``check_kept``."""
    file = open(path, "rb")  # noqa: SIM115
    _held[path] = (file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def check_kept(path: str) -> tuple[str, str]:
    """SHA-256 through the descriptor and through the mapping of ``keep``."""
    file, view = _held[path]
    size, parts, at = os.fstat(file.fileno()).st_size, [], 0
    while at < size:
        parts.append(os.pread(file.fileno(), 2**20, at))
        at += len(parts[-1])
    return hashlib.sha256(b"".join(parts)).hexdigest(), hashlib.sha256(view).hexdigest()


def let_go(path: str) -> None:
    file, view = _held.pop(path)
    view.close()
    file.close()


def read_at_random(root: str, expected: dict[str, str], seed: int, seconds: float) -> dict[str, Any]:
    """Read files in random order, each checked, dropping its pages so that the next read asks the server again."""
    generator, paths = random.Random(seed), sorted(expected)
    reads, wrong, errors, longest = 0, [], [], 0.0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        path = generator.choice(paths)
        started = time.monotonic()
        try:
            fd = os.open(os.path.join(root, path), os.O_RDONLY)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                sha, at = hashlib.sha256(), 0
                while data := os.pread(fd, 2**18, at):
                    sha.update(data)
                    at += len(data)
            finally:
                os.close(fd)
            if sha.hexdigest() != expected[path]:
                wrong.append(path)
        except OSError as error:
            errors.append([path, error.errno])
        reads += 1
        longest = max(longest, time.monotonic() - started)
    return {"reads": reads, "wrong": wrong[:20], "errors": errors[:20], "longest_s": longest}


def interrupted_read(path: str, every_s: float) -> str:
    """SHA-256 of a file read while a timer's signal comes in all the time, past the page cache."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, every_s, every_s)
    try:
        return direct(path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"result": globals()[asked["call"]](*asked["arguments"])}
        except OSError as error:
            answer = {"errno": error.errno or errno.EIO, "message": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
