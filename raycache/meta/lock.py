"""Who may write a catalog: one process at a time, by a lock on a file beside it that the kernel drops when it dies.

The master holds it for life. What changes a catalog without the master (``fsck --repair``, ``restore``) takes it first:
the master keeps manifests in memory while it lists, and would write an older state over what was changed behind it.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from raycache.errors import Unavailable

POLL_S = 0.05


class CatalogLock:
    """Held from ``take`` until ``release``, or until the process is gone."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @staticmethod
    def take(catalog: Path, wait_s: float = 0.0) -> CatalogLock:
        """Lock a catalog, which need not exist yet.

        Raises Unavailable when another has it longer than ``wait_s``, or it cannot be locked at all.
        """
        deadline = time.monotonic() + wait_s
        try:
            fd = os.open(f"{catalog}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"{catalog} cannot be locked: {error.strerror}; is this the state directory?") from error
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return CatalogLock(fd)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    raise Unavailable(
                        f"{catalog} is in use, by a running master or another command; `raycache stop` ends the master"
                    ) from None
            time.sleep(POLL_S)

    def release(self) -> None:
        """Let others have it."""
        os.close(self._fd)

    def __enter__(self) -> CatalogLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
