"""The id of a worker, kept in its directories: whoever finds their blocks again is the same worker to placement."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from raycache.store.fileops import FileOps

NAME = "worker-id"
_ID = re.compile(r"[0-9a-f]{32}")
_log = logging.getLogger("raycache.store")


def find_identity(directories: Sequence[Path], fresh: Callable[[], str], files: FileOps | None = None) -> str | None:
    """The id in the first directory that has one, else a fresh one; None when no directory can keep it.

    ``directories``: those in service, in their order. Each gets the id, so that it survives the loss of the first.
    ``fresh``: 32 hexadecimal digits, as of a random UUID.
    """
    files = files or FileOps()
    known = [_read(directory) for directory in directories]
    identity = next((found for found in known if found), None) or fresh()
    for directory, found in zip(directories, known, strict=True):
        if found != identity:
            _write(files, directory, identity)
    return identity if any(_read(directory) == identity for directory in directories) else None


def _read(directory: Path) -> str | None:
    try:
        found = (directory / NAME).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return found if _ID.fullmatch(found) else None


def _write(files: FileOps, directory: Path, identity: str) -> None:
    temporary = directory / f"{NAME}.writing"
    try:
        files.write_synced(temporary, identity.encode())
        files.publish(temporary, directory / NAME)
    except OSError as error:
        _log.warning("%s cannot keep the id of its worker: %s", directory, error)
