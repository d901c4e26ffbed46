"""Making, finding and ending mounts, from a process that is not the one that serves them.

Responsible for: checks before anything is made, starting the gateway and waiting for it, read-ahead, replacing what a
crash left, unmounting. Nothing here looks into a mount, which would wait for its gateway.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from raycache import errors
from raycache.actors.cluster import FIXED_SETTINGS, Cluster, current
from raycache.config import Settings, load_settings
from raycache.core.arguments import check_refresh_every
from raycache.core.paths import RAYCACHE_SCHEME, parse_uri
from raycache.errors import MountError, RaycacheError
from raycache.fuse import device
from raycache.fuse.holder import READ_AHEAD_KIB, UPGRADE
from raycache.fuse.records import (
    MountRecord,
    all_records,
    control_path,
    forget_record,
    log_path,
    read_record,
    write_record,
)
from raycache.fuse.task import Task
from raycache.ufs.registry import capture_access

SESSIONS = ("auto", "kernel", "pyfuse3")
MODES = ("r", "w")
OLDEST_KERNEL = (5, 4)
"""First Linux whose FUSE the kernel session speaks; before it, ``auto`` means pyfuse3."""
GATEWAY_READY_S = 60.0
RECORD_S = 2.0
"""How long after a new mount answers its record may come."""
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
UNMOUNT_S = 10.0
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""With it Ray makes a driver that is started by a submitted job a part of that job, runtime_env included."""


class _Wanted(NamedTuple):
    """What a mount is to show."""

    uri: str
    snapshot: bool | int = False
    mode: str = "r"


class Mount:
    """A mount made or found by this process. As a context manager, one that was made is unmounted at the end."""

    def __init__(self, record: MountRecord, settings: Settings, *, made: bool) -> None:
        """``made``: by us, and so ended by us; else found, and left as it was."""
        self.mountpoint = record.mountpoint
        self.source = record.source
        self.session = record.session
        self.gateway_pid = record.gateway_pid
        self.snapshot = record.snapshot
        """The change number that it shows everything at, or None."""
        self.mode = record.mode
        """``r``, or ``w`` where it can be written."""
        self.made = made
        self._settings = settings

    def __enter__(self) -> Mount:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.made:
            self.unmount(lazy=True)

    def __fspath__(self) -> str:
        return self.mountpoint

    def __repr__(self) -> str:
        return f"Mount({self.source!r} on {self.mountpoint!r}, {self.session}, gateway {self.gateway_pid})"

    def unmount(self, *, lazy: bool = False) -> None:
        """End the mount. Busy files keep it (MountError with EBUSY) unless ``lazy``, which lets them finish."""
        if device.find_mount(self.mountpoint) is not None:
            unmount(self.mountpoint, lazy=lazy, settings=self._settings)


def mount(
    source: str,
    mountpoint: str | os.PathLike[str],
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    allow_other: bool = False,
    session: str = "auto",
    snapshot: bool | int = False,
    refresh_every_s: float | None = None,
    mode: str = "r",
    settings: Settings | None = None,
) -> Mount:
    """Show ``source`` at ``mountpoint``, through the cache, of which what is missing is started.

    ``source``: a URI, or ``raycache://dataset/path``. ``options``: storage options of the source (credentials,
    endpoint); the environment's AWS_*, GOOGLE_*, AZURE_* variables are taken along. ``session``: ``kernel`` (default
    on Linux 5.4 and newer) or ``pyfuse3``. ``snapshot``: show everything as it is now, or as it was after this change
    number, for as long as the mount lives. ``refresh_every_s``: have the dataset refreshed so often, 0 for never; left
    out, its interval stays what it is. ``mode``: ``w`` for a mount that can be written, which takes the kernel session
    and shows what is newest. A mount of the same source and kind that is alive at ``mountpoint`` is used as
    it is, so that a training script that was killed can start again; what a dead gateway left is replaced.

    Raises MountError, InvalidInput, NotFound, NotADirectory, AccessDenied, SourceUnavailable, ClusterUnavailable.
    """
    settings = settings or load_settings()
    target = device.resolve(os.fspath(mountpoint))
    uri = parse_uri(source).uri
    check_refresh_every(refresh_every_s or 0)
    chosen = _choose_session(session, mode, snapshot)
    wanted = _Wanted(uri, snapshot, mode)
    there = _existing(target, wanted, settings)
    if there is not None:
        _set_refresh(uri, refresh_every_s, settings)
        return Mount(there, settings, made=False)
    _check(target)
    cluster = current(settings)
    view = cluster.view(snapshot)  # first: a number that is wrong must not leave a dataset behind
    access = _attach(cluster, uri, name, options)
    if mode == "r" and not view.stat(uri).is_dir:  # what is written is looked at by its gateway
        raise errors.NotADirectory(f"{uri} is a file; mount the directory that it is in")
    _set_refresh(uri, refresh_every_s, settings)
    settings = _as_it_runs(cluster, settings)
    task = Task(
        settings.model_dump(mode="json"), uri, target, "", (os.getuid(), os.getgid()), allow_other, chosen, access,
        snapshot=view.change, mode=mode, mount_id=uuid.uuid4().hex,
    )  # fmt: skip
    return _make(task, wanted, settings)


def _make(task: Task, wanted: _Wanted, settings: Settings) -> Mount:
    target, log = task.mountpoint, log_path(settings.state_dir, task.mountpoint)
    try:
        _start(task, log)
    except MountError as error:
        # Several ranks may mount at the same moment; one wins, and the others find what it made.
        if error.errno == errno.EBUSY and (there := _soon_there(target, wanted, settings)) is not None:
            return Mount(there, settings, made=False)
        raise
    record = read_record(settings.state_dir, target)
    if record is None:
        raise MountError(f"the gateway of {target} ended at once; see {log}")
    if task.session == "pyfuse3":
        record = _raise_read_ahead(record, settings)
    return Mount(record, settings, made=True)


def _attach(cluster: Cluster, uri: str, name: str | None, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """See to it that a source is a dataset; what reaches it."""
    if uri.startswith(f"{RAYCACHE_SCHEME}://"):
        return capture_access(cluster.files.dataset_of(uri).source, options)
    access = capture_access(uri, options)
    cluster.files.attach(uri, name, access)
    return access


def _set_refresh(uri: str, every_s: float | None, settings: Settings) -> None:
    if every_s is not None:
        files = current(settings).files
        files.set_refresh(files.dataset_of(uri).name, every_s)


def _as_it_runs(cluster: Cluster, settings: Settings) -> Settings:
    """Settings for a gateway, which may have to start the cache again: as it runs now, whatever this process was told
    or not told."""
    running = cluster.master.settings()
    fixed = {name: getattr(running, name) for name in FIXED_SETTINGS}
    return settings.model_copy(update={"address": cluster.address, **fixed})


def _soon_there(
    target: str, wanted: _Wanted, settings: Settings, wait_s: float = GATEWAY_READY_S
) -> MountRecord | None:
    """The live mount of the same source that another process is just making."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline and device.find_mount(target) is not None:
        record = read_record(settings.state_dir, target)
        if record is not None and record.alive:
            return record if _shows(record, wanted) else None
        time.sleep(0.1)
    return None


def upgrade(mountpoint: str | os.PathLike[str], settings: Settings | None = None) -> int:
    """Swap the gateway of a mount for a new process, with the code that is installed now; its pid.

    Nobody who reads notices. Raises MountError when there is no holder to do it, or it took too long.
    """
    settings = settings or load_settings()
    target = device.resolve(os.fspath(mountpoint))
    record = read_record(settings.state_dir, target)
    if record is None or not record.held:
        raise MountError(f"{target} has no holder that could swap its gateway; unmount it and mount it again")
    try:
        with control_path(settings.state_dir, target) as path, socket.socket(socket.AF_UNIX) as link:
            link.settimeout(GATEWAY_READY_S)
            link.connect(path)
            link.sendall(UPGRADE)
            answer = json.loads(link.recv(4096) or b"{}")
    except OSError as error:
        raise MountError(f"the holder of {target} did not swap its gateway: {error}; see {record.log}") from error
    if "gateway_pid" not in answer:
        raise MountError(f"the holder of {target} could not swap its gateway; see {record.log}")
    return int(answer["gateway_pid"])


def unmount(mountpoint: str | os.PathLike[str], *, lazy: bool = False, settings: Settings | None = None) -> None:
    """End a mount of raycache and wait for its gateway to go.

    ``lazy`` takes it out of sight at once; open files go on until they are closed.
    Raises MountError: no such mount, or busy.
    """
    settings = settings or load_settings()
    target = device.resolve(os.fspath(mountpoint))
    record = read_record(settings.state_dir, target)
    device.unmount(target, lazy=lazy)
    if record is not None:
        deadline = time.monotonic() + UNMOUNT_S
        while record.alive and not lazy and time.monotonic() < deadline:
            time.sleep(0.02)
        if not record.alive:
            forget_record(settings.state_dir, target, record.gateway_pid)


def unmount_all(settings: Settings) -> list[str]:
    """End this node's mounts of a cache, lazily; their mount points. One that stays would start its cache again."""
    mounts = (about for about in list_mounts(settings) if about["state"] != "unmounting")
    found = [about["mountpoint"] for about in mounts if about["namespace"] in ("", settings.namespace)]
    for mountpoint in found:
        unmount(mountpoint, lazy=True, settings=settings)
    return found


def list_mounts(settings: Settings | None = None) -> list[dict[str, Any]]:
    """Mounts of this node, for ``raycache status``: what is recorded, and whether it is there and served."""
    settings = settings or load_settings()
    table = {mount.mountpoint for mount in device.mounts() if mount.fstype == device.FSTYPE}
    found = []
    for record in all_records(settings.state_dir):
        about = asdict(record)
        for internal in ("gateway_started", "holder_started"):
            about.pop(internal)
        about["state"] = ("served" if record.alive else "stale") if record.mountpoint in table else "unmounting"
        if record.mountpoint in table or record.alive:
            found.append(about)
    return found


def check_free(mountpoint: str | os.PathLike[str], settings: Settings) -> None:
    """Raise MountError for a directory that has a live mount, of the same source too; clear a dead one away."""
    target = device.resolve(os.fspath(mountpoint))
    there = device.find_mount(target)
    if there is not None and (record := _existing(target, _Wanted(there.source), settings)) is not None:
        raise _busy(f"{record.source} is mounted on {target} already; end it with `raycache umount {target}`")


def _shows(record: MountRecord, wanted: _Wanted) -> bool:
    """Whether a mount shows what is asked for."""
    at = wanted.snapshot
    same = (record.snapshot is not None) == at if isinstance(at, bool) else record.snapshot == at
    return same and record.source == wanted.uri and record.mode == wanted.mode


def _existing(target: str, wanted: _Wanted, settings: Settings) -> MountRecord | None:
    """A live mount of the same source, or None after clearing away a dead one. Raises MountError for another."""
    there = device.find_mount(target)
    if there is None:
        return None
    if there.fstype != device.FSTYPE:
        raise _busy(f"{target} is the mount point of {there.source} ({there.fstype}); choose another directory")
    record = read_record(settings.state_dir, target)
    if record is not None and record.alive:
        if _shows(record, wanted):
            return record
        kind = "" if record.snapshot is None else f", a snapshot at change {record.snapshot},"
        kind += ", to be written," if record.mode == "w" else ""
        raise _busy(f"{record.source}{kind} is mounted on {target} already; end it with `raycache umount {target}`")
    if record is None and (answer := _ask(target)) not in _DEAD:
        # Another rank may be making it at this moment: its record comes when its gateway is ready, which then answers.
        wait_s = GATEWAY_READY_S if answer is None else RECORD_S
        if there.source == wanted.uri and (made := _soon_there(target, wanted, settings, wait_s)) is not None:
            return made
        raise _busy(f"{there.source} is mounted on {target} by another user or state directory")
    device.unmount(target, lazy=True)
    if record is not None:
        forget_record(settings.state_dir, target, record.gateway_pid)
    return None


def _ask(target: str) -> int | None:
    """What a ``stat`` of a mount ends in: 0 or an errno, at once if nobody serves it (``_DEAD``); None when no answer
    came. Asked in a process that can be given up."""
    code = "import os, sys\ntry: os.stat(sys.argv[1])\nexcept OSError as error: sys.exit(error.errno)"
    try:
        done = subprocess.run([sys.executable, "-S", "-c", code, target], timeout=5, check=False, capture_output=True)
    except subprocess.TimeoutExpired:
        return None
    return done.returncode


def _check(target: str) -> None:
    """What can be wrong with a mount point, before anything is started."""
    if not os.path.lexists(target):
        raise MountError(f"{target} does not exist; create it with: mkdir -p {target}")
    if not os.path.isdir(target):
        raise MountError(f"{target} is not a directory; give an empty directory")
    try:
        empty = not os.listdir(target)
    except PermissionError as error:
        raise MountError(f"{target} cannot be read by this user") from error
    if not empty:
        raise MountError(f"{target} is not empty; what is in it would be hidden. Give an empty directory")
    device.check_device()


def _choose_session(session: str, mode: str, snapshot: bool | int) -> str:
    """Raises InvalidInput for what cannot be chosen together."""
    if session not in SESSIONS:
        raise errors.InvalidInput(f"session {session!r}: choose one of {', '.join(SESSIONS)}")
    if mode not in MODES:
        raise errors.InvalidInput(f"mode {mode!r}: choose r, or w for a mount that can be written")
    found = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    chosen = session if session != "auto" else "kernel" if found >= OLDEST_KERNEL else "pyfuse3"
    if mode == "w" and chosen != "kernel":
        raise errors.InvalidInput(
            "a mount that can be written needs the kernel session (Linux 5.4 and newer); the pyfuse3 session reads only"
        )
    if mode == "w" and snapshot is not False:
        raise errors.InvalidInput("a snapshot stays as it is; mount it with mode r")
    return chosen


def _start(task: Task, log: Path) -> None:
    """Start the holder (or pyfuse3's gateway) in a session of its own, so that it outlives us; wait for its answer."""
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    task = task.but(log=str(log), shelf=str(log.with_suffix(f".{uuid.uuid4().hex[:8]}.manifests")))
    module = "raycache.fuse.holder" if task.session == "kernel" else "raycache.fuse.gateway"
    with open(log, "ab") as errors_to:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors_to,
            start_new_session=True,
            cwd="/",
            # A mount outlives the job that made it, and is no part of it.
            env={name: value for name, value in os.environ.items() if name != JOB_CONFIG},
        )
    try:
        _await_answer(task, log, process)
    except BaseException:  # an interrupt too: what nobody waits for any more must not come to be
        process.terminate()  # which unmounts what it mounted, and nothing that another process did
        with suppress(subprocess.TimeoutExpired):
            process.wait(UNMOUNT_S)
        process.kill()
        raise
    for shelf in log.parent.glob(f"{log.stem}.*.manifests"):  # of holders that were killed
        if str(shelf) != task.shelf:
            shutil.rmtree(shelf, ignore_errors=True)
    # Nobody else would wait for it, and a zombie of ours would look like a gateway that does not go.
    threading.Thread(target=process.wait, name="reap-gateway", daemon=True).start()


def _await_answer(task: Task, log: Path, process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        process.stdin.write(task.line())
        process.stdin.flush()
        readable, _, _ = select.select([process.stdout], [], [], GATEWAY_READY_S)
        line = process.stdout.readline() if readable else b""
    if not readable:
        raise MountError(f"the gateway of {task.mountpoint} was not ready within {GATEWAY_READY_S:g} s; see {log}")
    if not line:
        raise MountError(f"the gateway of {task.mountpoint} died while starting (exit {process.wait(5)}); see {log}")
    answer = json.loads(line)
    if "error" in answer:
        process.wait(5)
        kind = getattr(errors, answer["kind"], MountError)
        error = kind(answer["error"]) if issubclass(kind, RaycacheError) else MountError(answer["error"])
        error.errno = answer.get("errno", error.errno)
        raise error


def _raise_read_ahead(record: MountRecord, settings: Settings) -> MountRecord:
    try:
        device.set_read_ahead(record.mountpoint, READ_AHEAD_KIB)
    except MountError as error:
        record = replace(record, notes=(*record.notes, str(error)))
        write_record(settings.state_dir, record)
    return record


def _busy(message: str) -> MountError:
    error = MountError(message)
    error.errno = errno.EBUSY
    return error
