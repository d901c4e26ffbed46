"""``/dev/fuse``, mount points and what the kernel shows of them.

Responsible for: making and ending a mount (by system call as root, else through fusermount3), the handshake that
opens a session, read-ahead, errors that say what to do. Not responsible for: answering requests (``kernel``), or who
keeps the descriptor.

Nothing here looks *into* a mount - a ``stat`` of a mount point waits for its server, which may be the caller or be
dead. What is known of mounts comes from ``/proc/self/mountinfo``.

Imports neither numpy nor Ray, so that a process as small as the holder can use it.

Threading: safe.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
import shutil
import socket
import subprocess
import time
from typing import NamedTuple

from raycache.errors import MountError
from raycache.fuse import wire

DEVICE = "/dev/fuse"
_DEVICE_NUMBER = (10, 229)
FSTYPE = "fuse.raycache"
HANDSHAKE_S = 10.0
FUSERMOUNT_S = 30.0

_LINKS_MAX = 40
"""As many links in a row as Linux follows."""
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_OCTAL = re.compile(r"\\([0-7]{3})")
_NEEDS_DEVICE = (
    "load it with `modprobe fuse`; in a container add `--device /dev/fuse --cap-add SYS_ADMIN` (Kubernetes: a "
    "privileged container or a device plugin). Without it the Python API still works: raycache.open, raycache.data"
)


class Mount(NamedTuple):
    """A line of the mount table."""

    mountpoint: str
    source: str
    fstype: str
    device: str
    """``major:minor``, its name under ``/sys/class/bdi``."""


def mounts() -> list[Mount]:
    """All mounts that this process sees, in the order they were made."""
    found: list[Mount] = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            fields, (fstype, source, *_) = before.split(" "), after.split(" ")
            found.append(Mount(_unescaped(fields[4]), _unescaped(source), fstype, fields[2]))
    return found


def find_mount(mountpoint: str) -> Mount | None:
    """The uppermost mount on a directory, or None."""
    wanted = resolve(mountpoint)
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == wanted), None)


def resolve(mountpoint: str) -> str:
    """A mount point as the mount table writes it: without links, and without a look into any mount of the table.

    A mount whose server is stopped or dead would hold up whoever looks, and those are the ones to be ended.
    """
    path = os.path.abspath(os.path.expanduser(mountpoint))
    taken = {mount.mountpoint for mount in mounts()}
    for _ in range(_LINKS_MAX):
        parent, name = os.path.split(path)
        path = os.path.join(os.path.realpath(parent), name)
        if path in taken or not os.path.islink(path):
            break
        path = os.path.normpath(os.path.join(parent, os.readlink(path)))
    return path


def mount(source: str, mountpoint: str, *, allow_other: bool = False, writable: bool = False) -> int:
    """Mount and return the descriptor on which the kernel asks. ``source`` is shown in the mount table.

    Raises MountError. The session begins with ``handshake``; until then whoever looks into the mount waits.
    """
    target = resolve(mountpoint)
    _check_mountpoint(target)
    options = [f"max_read={wire.MAX_READ_BYTES}", "default_permissions"]
    if allow_other:
        options.append("allow_other")
    if os.geteuid() != 0:
        return _fusermount(source, target, ["rw" if writable else "ro", *options])
    fd = _open_device()
    options += [f"fd={fd}", "rootmode=40000", f"user_id={os.getuid()}", f"group_id={os.getgid()}"]
    flags = _MS_NOSUID | _MS_NODEV | (0 if writable else _MS_RDONLY)
    try:
        _call("mount", os.fsencode(source), os.fsencode(target), FSTYPE.encode(), flags, ",".join(options).encode())
    except OSError as error:
        os.close(fd)
        raise _mount_error(target, error) from error
    return fd


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """End a mount of ours. ``lazy`` takes it out of sight now and ends it when its last file is closed.

    Raises MountError, with errno EBUSY when files are open in it and with EINVAL when no such mount is there.
    """
    target = resolve(mountpoint)
    found = find_mount(target)
    if found is None or found.fstype != FSTYPE:
        raise MountError(f"{target} is not a raycache mount; `raycache status` lists those")
    if os.geteuid() == 0:
        try:
            _call("umount2", os.fsencode(target), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))
        except OSError as error:
            raise _unmount_error(target, error.errno == errno.EBUSY, os.strerror(error.errno or 0)) from error
        return
    done = _run_fusermount(["-u", *(["-z"] if lazy else []), "--", target])
    if done.returncode:
        raise _unmount_error(target, "busy" in done.stderr, done.stderr.strip())


def handshake(fd: int, profile: wire.Profile = wire.READING, timeout_s: float = HANDSHAKE_S) -> wire.Agreed:
    """Answer INIT on a new mount's descriptor. Raises MountError when the kernel is too old, or says nothing."""
    deadline = time.monotonic() + timeout_s
    buffer = bytearray(profile.request_bytes)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        try:
            length = os.readv(fd, [buffer])
            offer = wire.parse_init(memoryview(buffer), length)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                continue
            raise MountError(f"the mount ended before its session began: {error.strerror}") from error
        except wire.Malformed as error:
            raise MountError(f"the kernel did not begin with INIT: {error}") from error
        if offer.major > wire.MAJOR:
            _answer(fd, offer.unique, wire.pack_major())
            continue
        agreed = wire.agree(offer, profile)
        if agreed is None:
            os.write(fd, wire.pack_error(offer.unique, errno.EPROTO))
            raise MountError(
                f"this kernel speaks FUSE {offer.major}.{offer.minor}; the fast session needs "
                f"{wire.MAJOR}.{wire.OLDEST_MINOR} (Linux 5.4). Mount with the pyfuse3 session"
            )
        _answer(fd, offer.unique, wire.pack_init(agreed))
        return agreed
    raise MountError(f"the kernel sent no INIT within {timeout_s:g} s")


def set_read_ahead(mountpoint: str, kib: int) -> None:
    """Let the kernel read ``kib`` ahead in files of a mount, in place of 128. After the handshake, which resets it.

    With 128 a file of 300 KiB is three requests. Raises MountError where this process may not write it.
    """
    found = find_mount(mountpoint)
    if found is None:
        raise MountError(f"{mountpoint} is not a mount")
    path = f"/sys/class/bdi/{found.device}/read_ahead_kb"
    try:
        with open(path, "w", encoding="ascii") as setting:
            setting.write(str(kib))
    except OSError as error:
        raise MountError(
            f"cannot write {path} ({error.strerror}): files over 128 KiB take more requests than they need. "
            f"As root on the host: echo {kib} > {path}"
        ) from error


def _answer(fd: int, unique: int, body: bytes) -> None:
    os.write(fd, wire.pack_header(unique, len(body)) + body)


def _check_mountpoint(target: str) -> None:
    there = find_mount(target)
    if there is not None and there.fstype == FSTYPE:
        error = MountError(f"{there.source} is mounted on {target} already; end it with `raycache umount {target}`")
        error.errno = errno.EBUSY
        raise error
    if not os.path.isdir(target):
        missing = not os.path.lexists(target)
        raise MountError(f"{target} {'does not exist; create it' if missing else 'is not a directory'}")


def check_device() -> None:
    """Raise MountError, with what to do, where FUSE cannot be had."""
    os.close(_open_device())


def _open_device() -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MountError(f"no {DEVICE} here: {_NEEDS_DEVICE}") from error
    except OSError as error:
        raise MountError(f"cannot open {DEVICE} ({error.strerror}): {_NEEDS_DEVICE}") from error
    if os.fstat(fd).st_rdev != os.makedev(*_DEVICE_NUMBER):  # containers hide a device behind /dev/null
        os.close(fd)
        raise MountError(f"{DEVICE} is not the FUSE device here: {_NEEDS_DEVICE}")
    return fd


def _mount_error(target: str, error: OSError) -> MountError:
    reasons = {
        errno.EPERM: "mounting needs CAP_SYS_ADMIN; in a container add `--cap-add SYS_ADMIN`, and with AppArmor "
        "`--security-opt apparmor=unconfined`",
        errno.ENODEV: f"this kernel has no FUSE: {_NEEDS_DEVICE}",
        errno.EBUSY: "the directory is in use by another mount",
    }
    reason = reasons.get(error.errno or 0, error.strerror)
    made = MountError(f"cannot mount on {target}: {reason}")
    made.errno = error.errno or errno.EIO
    return made


def _unmount_error(target: str, busy: bool, reason: str) -> MountError:
    if not busy:
        return MountError(f"cannot unmount {target}: {reason}")
    error = MountError(
        f"{target} is in use: close its files and leave it with every shell (`fuser -vm {target}` shows who), "
        f"or take it away under them with `raycache umount --lazy {target}`"
    )
    error.errno = errno.EBUSY
    return error


def _fusermount(source: str, target: str, options: list[str]) -> int:
    """Mount as an ordinary user: the setuid program mounts, and passes the descriptor through a socket."""
    name = source.replace("\\", "\\\\").replace(",", "\\,")
    options = [f"fsname={name}", f"subtype={FSTYPE.removeprefix('fuse.')}", "nosuid", "nodev", *options]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        done = _run_fusermount(["-o", ",".join(options), "--", target], theirs.fileno())
        if done.returncode:
            raise _fusermount_error(target, done.stderr.strip())
        ours.settimeout(FUSERMOUNT_S)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not fds:
        raise MountError(f"fusermount3 mounted {target} and passed no descriptor; see `dmesg`")
    return fds[0]


def _fusermount_error(target: str, said: str) -> MountError:
    if "user_allow_other" in said:
        return MountError("other users may be let in by root only, or when /etc/fuse.conf says user_allow_other")
    if DEVICE in said:
        return MountError(f"{said}: {_NEEDS_DEVICE}")
    return MountError(f"cannot mount on {target}: {said or 'fusermount3 failed'}")


def _run_fusermount(arguments: list[str], socket_fd: int | None = None) -> subprocess.CompletedProcess[str]:
    program = shutil.which("fusermount3")
    if program is None:
        raise MountError("mounting without being root needs fusermount3: `apt install fuse3` (or `dnf install fuse3`)")
    passed = [] if socket_fd is None else [socket_fd]
    environment = {"_FUSE_COMMFD": str(socket_fd)} if passed else {}
    try:
        return subprocess.run(
            [program, *arguments],
            env={**os.environ, **environment},
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FUSERMOUNT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MountError(f"fusermount3 did not return within {FUSERMOUNT_S:g} s") from error


def _call(name: str, *arguments: bytes | int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    function = getattr(libc, name)
    function.argtypes = [ctypes.c_ulong if isinstance(each, int) else ctypes.c_char_p for each in arguments]
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _unescaped(text: str) -> str:
    """The mount table writes blanks and backslashes in octal."""
    return _OCTAL.sub(lambda found: chr(int(found.group(1), 8)), text)
