"""What the disk tier asks of the file system, in one place: tests put faults here."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from raycache.core.values import Buffer

_LOCK_PAUSE_S = 0.05


class FileOps:
    """Each raises OSError as the system does."""

    def make_private(self, path: Path) -> None:
        """Make a directory that only we may enter. Raises PermissionError when it belongs to somebody else."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            about = path.stat(follow_symlinks=False)
            if about.st_uid != os.geteuid():
                raise PermissionError(errno.EACCES, "belongs to another user", str(path)) from None
            if about.st_mode & 0o077:
                path.chmod(0o700)
        else:
            self.sync_directory(path.parent)

    def take_lock(self, path: Path, wait_s: float) -> int:
        """A descriptor that holds the lock until it is closed. Raises BlockingIOError when another holds it."""
        return _lock(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), path, wait_s)

    def lock_file(self, path: Path, wait_s: float) -> int:
        """The same for a file that is there. Raises FileNotFoundError as well."""
        return _lock(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW), path, wait_s)

    def make_locked(self, path: Path) -> int:
        """A descriptor of a new, empty file, that holds its lock until it is closed. Raises FileExistsError when there
        is one; also when whoever looks for files without a lock was quicker than we are."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if not self.is_gone(_lock(fd, path, 0.0)):
                return fd
            os.close(fd)
        except BlockingIOError:
            pass
        raise FileExistsError(errno.EEXIST, "it was taken as it was made", str(path))

    def scan(self, path: Path) -> Iterator[os.DirEntry[str]]:
        """Entries of a directory."""
        with os.scandir(path) as entries:
            yield from entries

    def names(self, path: Path) -> list[str]:
        """Names in a directory."""
        return os.listdir(path)

    def open_to_read(self, path: Path) -> tuple[int, int]:
        """A descriptor, and the length of the file."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return fd, os.fstat(fd).st_size
        except BaseException:  # an interrupt too must not leak the descriptor
            os.close(fd)
            raise

    def close(self, fd: int) -> None:
        """Let go of a descriptor."""
        os.close(fd)

    def is_gone(self, fd: int) -> bool:
        """Whether an open file has been deleted."""
        return os.fstat(fd).st_nlink == 0

    def size_bytes(self, fd: int) -> int:
        """Length of an open file."""
        return os.fstat(fd).st_size

    def pread(self, fd: int, length: int, offset: int) -> bytearray:
        """Bytes of a file, fewer only at its end."""
        data = bytearray(length)
        view = memoryview(data)
        done = 0
        while done < length:
            count = os.preadv(fd, [view[done:]], offset + done)
            if not count:
                break
            done += count
        view.release()
        del data[done:]
        return data

    def write_synced(self, path: Path, *parts: Buffer | bytearray) -> None:
        """Write a file anew, and return when it is on the disk."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._write_out(fd, *parts)

    def append_synced(self, path: Path, data: bytes) -> None:
        """Add to the end of a file, and return when it is on the disk."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._write_out(fd, data)

    def read(self, path: Path) -> bytes:
        """All of a file; nothing where there is none."""
        try:
            fd, _ = self.open_to_read(path)
        except FileNotFoundError:
            return b""
        with os.fdopen(fd, "rb") as file:
            return file.read()

    def write(self, fd: int, data: memoryview) -> int:
        """Write some bytes; returns how many."""
        return os.write(fd, data)

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        """Write some bytes at an offset; returns how many."""
        return os.pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        """Wait until a file or directory is on the disk."""
        os.fsync(fd)

    def sync_data(self, fd: int) -> None:
        """Wait until the bytes of a file are on the disk, and as much about it as is needed to read them."""
        os.fdatasync(fd)

    def free_bytes(self, path: Path) -> int:
        """What the disk under a directory has free for us."""
        about = os.statvfs(path)
        return about.f_bavail * about.f_frsize

    def publish(self, temporary: Path, path: Path) -> None:
        """Give a file its name, and return when the name is on the disk."""
        os.replace(temporary, path)
        self.sync_directory(path.parent)

    def remove(self, path: Path) -> None:
        """Delete a file, if it is there. Its bytes are free at once, whoever has it open: it is cut short as well."""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        try:
            os.unlink(path)
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def sync_directory(self, path: Path) -> None:
        """Wait until the names in a directory are on the disk."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(fd)
        finally:
            os.close(fd)

    def _write_out(self, fd: int, *parts: Buffer | bytearray) -> None:
        """Write all of this, wait until it is on the disk, and close the file."""
        try:
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[self.write(fd, view) :]
            self.sync(fd)
        finally:
            os.close(fd)


def _lock(fd: int, path: Path, wait_s: float) -> int:
    """The descriptor, with its lock; closed when that cannot be had."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise BlockingIOError(
                    errno.EAGAIN, "another worker uses it: give each its own directory", str(path)
                ) from None
            time.sleep(_LOCK_PAUSE_S)
        except BaseException:  # an interrupt too must not leak the descriptor
            os.close(fd)
            raise
        else:
            return fd


def medium(path: Path) -> str | None:
    """``ssd`` or ``hdd`` as the kernel says of the disk under a path; None where it says nothing."""
    with suppress(OSError):
        device = os.stat(path).st_dev
        block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
        for directory in (block, block.parent):  # a partition has its queue in its disk
            with suppress(OSError):
                return "hdd" if (directory / "queue" / "rotational").read_text().strip() == "1" else "ssd"
    return None
