"""What a node knows of its mounts: one JSON file per mount point under ``state_dir/mounts``, written by its gateway.

A record says what is served where and by whom; whether a process still lives is asked of the system. Written aside and
renamed, so that a reader never sees half a record.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One mount of this node."""

    mountpoint: str
    source: str
    session: str
    """``kernel`` or ``pyfuse3``."""
    gateway_pid: int
    gateway_started: int
    """Start time of that process in clock ticks, since a pid alone may be another process by now."""
    log: str
    notes: tuple[str, ...] = ()
    """What could not be set up and what it costs."""
    counters: dict[str, int] = field(default_factory=dict)
    holder_pid: int | None = None
    """Process that keeps the mount when its gateway dies; None where the session has none (pyfuse3)."""
    holder_started: int = 0
    restarts: int = 0
    """Gateways that were replaced because they died."""
    namespace: str = ""
    """Of the cache that it is a mount of."""
    degraded: bool = False
    """Whether reads go to the source because the cluster is away."""
    snapshot: int | None = None
    """The change number that it shows everything at; None follows refreshes."""
    mode: str = "r"
    """``r`` or ``w``."""

    @property
    def alive(self) -> bool:
        """Whether somebody serves it, or sees to it that somebody will."""
        return self.gateway_alive or self.held

    @property
    def gateway_alive(self) -> bool:
        """Whether the gateway runs."""
        return process_started(self.gateway_pid) == self.gateway_started

    @property
    def held(self) -> bool:
        """Whether the holder runs."""
        return self.holder_pid is not None and process_started(self.holder_pid) == self.holder_started


def process_started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, or None when there is none (a zombie counts as none)."""
    try:
        fields = _stat(Path(f"/proc/{pid}/stat"))
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def is_runnable(pid: int) -> bool:
    """Whether a thread of a process runs, or waits for nothing but a processor."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # it has ended
            if _stat(path)[0] == "R":
                return True
    return False


def _stat(path: Path) -> list[str]:
    """What proc(5) says of a process or thread after its name: the state first. Raises OSError."""
    return path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes()


def record_path(state_dir: Path, mountpoint: str) -> Path:
    """File of the record of a mount point."""
    # A state directory may be shared by machines, and outlive a reboot: neither makes their mounts ours.
    digest = hashlib.sha256(_boot_id() + os.fsencode(mountpoint)).hexdigest()[:16]
    return state_dir / "mounts" / f"{digest}.json"


@contextmanager
def control_path(state_dir: Path, mountpoint: str) -> Iterator[str]:
    """Address of the socket on which the holder of a mount point takes commands, short enough for a socket.

    A socket's address has at most 107 bytes, which a state directory may exceed; through a descriptor it does not.
    """
    path = record_path(state_dir, mountpoint).with_suffix(".sock")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def log_path(state_dir: Path, mountpoint: str) -> Path:
    """Log of the gateway of a mount point."""
    return record_path(state_dir, mountpoint).with_suffix(".log")


def write_record(state_dir: Path, record: MountRecord) -> None:
    """Create or replace a record."""
    path = record_path(state_dir, record.mountpoint)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = path.with_suffix(f".{os.getpid()}.new")
    aside.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
    os.replace(aside, path)


def read_record(state_dir: Path, mountpoint: str) -> MountRecord | None:
    """The record of a mount point, or None."""
    return _read(record_path(state_dir, mountpoint))


def forget_record(state_dir: Path, mountpoint: str, gateway_pid: int) -> None:
    """Drop the record of a mount point, if it is that gateway's: a successor may have written its own by now."""
    record = read_record(state_dir, mountpoint)
    if record is not None and record.gateway_pid == gateway_pid:
        record_path(state_dir, mountpoint).unlink(missing_ok=True)


def all_records(state_dir: Path) -> list[MountRecord]:
    """Records of this node, by mount point."""
    found = (_read(path) for path in (state_dir / "mounts").glob("*.json"))
    found = (one for one in found if one is not None and record_path(state_dir, one.mountpoint).exists())
    return sorted((record for record in found if record is not None), key=lambda record: record.mountpoint)


def _read(path: Path) -> MountRecord | None:
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return MountRecord(**{**raw, "notes": tuple(raw.get("notes", ()))})
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None  # being replaced, or of another raycache: the mount table still tells what is mounted
