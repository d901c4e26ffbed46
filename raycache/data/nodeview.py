"""A dataset as a directory of this node, for a process that must not use Ray: a mount, there already or made for it.

A mount of the user's that shows the dataset is used as it is. Where there is none, one is made under
``state_dir/views``: a snapshot, so that it shows what the dataset object was made of, by a process of its own, so that
whoever asks needs no Ray for it. All processes of the node share it. It ends with the last process that said it may
need it (``hold``), or with ``raycache stop``.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from raycache.config import Settings
from raycache.core import paths
from raycache.errors import MountError
from raycache.fuse import device
from raycache.fuse.mount import GATEWAY_READY_S, list_mounts, unmount

MAKE_S = 2 * GATEWAY_READY_S
"""How long the making of a mount may take."""
_held: dict[Path, tuple[int, int]] = {}
"""Directories of views that this process holds: its pid, and the descriptor that is locked."""


class NodeView:
    """What of a dataset is below ``path``, as of a change, as a directory. Threading: safe."""

    def __init__(self, settings: Settings, name: str, source: str, path: str, change: int) -> None:
        """``name`` and ``source`` of the dataset."""
        self._settings = settings
        self._name = name
        self._source = source
        self._path = path
        self._change = change
        self._views = settings.state_dir / "views" / f"{settings.namespace}-{name}"

    def hold(self) -> None:
        """Have a view that is made, by whomever, stay as long as this process lives, and end it then if it is the last
        one that holds it."""
        about = _held.get(self._views)
        if about is not None and about[0] == os.getpid():
            return
        self._views.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._views / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_SH)
        _held[self._views] = (os.getpid(), lock)
        atexit.register(_let_go, self._views, self._settings)

    def directory(self) -> str:
        """A directory that shows it. Raises MountError, which says what to do instead."""
        found = self._find()
        if found is None:
            with _alone(self._views):
                found = self._find() or self._make()
        return found

    def _find(self) -> str | None:
        """In a mount that shows this change, else in one that follows refreshes."""
        found: dict[bool, str] = {}
        for about in list_mounts(self._settings):
            inside = self._inside(about)
            if inside is not None:
                found.setdefault(about["snapshot"] is None, os.path.join(about["mountpoint"], inside))
        return found.get(False) or found.get(True)

    def _inside(self, about: dict[str, Any]) -> str | None:
        """Where in a mount the path is, if it is in it at all."""
        if about["state"] != "served" or about["namespace"] != self._settings.namespace:
            return None
        if about["snapshot"] not in (None, self._change):
            return None
        for root in (self._source, f"{paths.RAYCACHE_SCHEME}://{self._name}"):
            whole = paths.join(root, self._path)
            if whole == about["source"]:
                return ""
            if whole.startswith(about["source"].rstrip("/") + "/"):
                return whole[len(about["source"].rstrip("/")) + 1 :]
        return None

    def _make(self) -> str:
        target = self._views / str(self._change)
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        source = f"{paths.RAYCACHE_SCHEME}://{self._name}"
        words = [sys.executable, "-m", "raycache.cli", "mount", source, str(target), "--at", str(self._change)]
        try:
            done = subprocess.run(
                words, env=self._environ(), capture_output=True, text=True, timeout=MAKE_S, check=False
            )
            said = done.stderr.strip() or done.stdout.strip()
        except subprocess.TimeoutExpired:
            done, said = None, "it took too long"
        if done is None or done.returncode:
            raise MountError(
                "this process was forked from one that uses Ray, which does not survive that, so that it reads through "
                f"a mount; no mount of this node shows {paths.join(self._source, self._path)}, and one could not be "
                f"made: {said}. Give DataLoader multiprocessing_context='forkserver' or 'spawn', which need no mount"
            )
        return os.path.join(target, self._path)

    def _environ(self) -> dict[str, str]:
        """What names the cache that this process's parent was connected to."""
        settings = self._settings
        named = {"NAMESPACE": settings.namespace, "STATE_DIR": str(settings.state_dir), "ADDRESS": settings.address}
        return {**os.environ, **{f"RAYCACHE_{name}": value for name, value in named.items() if value}}


@contextmanager
def _alone(views: Path) -> Iterator[None]:
    """One process at a time makes views, and the others wait for it. Raises MountError after a while."""
    views.mkdir(parents=True, exist_ok=True, mode=0o700)
    deadline = time.monotonic() + MAKE_S
    with open(views / "making", "wb") as turn:
        while True:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise MountError(f"another process has been making a mount in {views} for {MAKE_S:g} s") from None
                time.sleep(0.05)
        yield


def _let_go(views: Path, settings: Settings) -> None:
    """End what was made in ``views``, unless another process holds it too."""
    pid, lock = _held.get(views, (0, -1))
    if pid != os.getpid():
        return  # a fork that leaves as if it were the process that it was forked from
    del _held[views]
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for target in views.glob("[0-9]*"):
            if device.find_mount(str(target)) is not None:
                unmount(target, lazy=True, settings=settings)
            with suppress(OSError):  # somebody is just making it again
                target.rmdir()
    os.close(lock)
