"""What was written through a mount and is not committed yet, on record: a successor of a dead gateway goes on with it.

The bytes themselves lie in segments, which outlive processes; here is where in a file they belong. Each change is on
record before the program that made it hears that it was made.

Responsible for: files of records, in the order in which things happened; reading what a predecessor left. Not
responsible for: what the records mean for a draft (``recovering``). The death of the machine is none of its concern:
the mount dies with it.

A file that has grown long is followed by another, into which everything that still matters is written again, before the
first is deleted. What is done twice when both are read has the same outcome: an edit is a range, or a size.

Threading: safe.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

from raycache.errors import NoSpace

LOG_BYTES = 4 * 2**20
"""Length at which a file is followed by another."""


class Kind(IntEnum):
    """What a record tells; behind each what comes with it."""

    SEGMENT = 1
    """A segment was begun: its name and its worker."""
    PUT = 2
    """A range of a file: inode, extent, time."""
    SIZE = 3
    """A file was cut or made longer: inode, size, time."""
    WHOLE = 4
    """All that a file holds: inode, contents, time."""
    CLEAN = 5
    """The master has all of a file: inode."""
    ORPHAN = 6
    """A file has lost its last name: inode."""
    FORGOTTEN = 7
    """And nobody has it open any more: inode."""


class DraftLog:
    """See the module."""

    def __init__(self, path: Path) -> None:
        """``path``: of the files, to which numbers are appended."""
        self._path = path
        self._lock = threading.Lock()
        self._number = 0
        self._fd = -1
        self._size_bytes = 0

    def open(self) -> None:
        """Begin a file of its own; for the gateway that serves, and no other at that time. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._number = max(self._numbers(), default=0) + 1
        self._fd = self._new()

    def _new(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(self._file(self._number), flags, 0o600)

    def _file(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _numbers(self) -> list[int]:
        found = (
            path.name.removeprefix(f"{self._path.name}.") for path in self._path.parent.glob(f"{self._path.name}.*")
        )
        return sorted(int(number) for number in found if number.isdigit())

    def add(self, kind: Kind, *values: Any) -> None:
        """Put something on record. Raises NoSpace."""
        record = pickle.dumps((int(kind), *values), pickle.HIGHEST_PROTOCOL)
        with self._lock:
            try:
                written = os.write(self._fd, record)
            except OSError as error:
                raise self._failed(error) from error
            if written != len(record):
                os.ftruncate(self._fd, self._size_bytes)  # a torn record would hide all that follow it
                raise self._failed(OSError(0, "no room"))
            self._size_bytes += written

    def _failed(self, error: OSError) -> NoSpace:
        return NoSpace(
            f"{self._file(self._number)} cannot be written ({error.strerror}): the state directory needs room"
        )

    @property
    def is_long(self) -> bool:
        """Whether it is time to ``renew``."""
        return self._size_bytes > LOG_BYTES

    def renew(self) -> list[int]:
        """Begin another file. Everything that matters is to be added again, and then the files before it dropped.

        Returns their numbers. Raises NoSpace.
        """
        with self._lock:
            before = self._numbers()
            self._number += 1
            old_fd = self._fd
            try:
                self._fd = self._new()
            except OSError as error:
                self._number -= 1
                raise self._failed(error) from error
            os.close(old_fd)
            self._size_bytes = 0
        return before

    def drop(self, numbers: list[int]) -> None:
        """Delete files that were followed by another."""
        for number in numbers:
            self._file(number).unlink(missing_ok=True)

    def left(self) -> tuple[list[int], Iterator[tuple[Any, ...]]]:
        """Files that predecessors left, and all their records, oldest first."""
        numbers = [number for number in self._numbers() if number < self._number]
        return numbers, (record for number in numbers for record in _records(self._file(number)))

    def close(self, *, delete: bool) -> None:
        """Close it; and delete it, where nothing in it matters any more."""
        with self._lock:
            os.close(self._fd)
            self._fd = -1
        if delete:
            self.drop(self._numbers())


def _records(path: Path) -> Iterator[tuple[Any, ...]]:
    """The records of a file, to the first that its writer did not live to end."""
    with open(path, "rb") as file:
        while True:
            try:
                yield pickle.load(file)
            except (EOFError, pickle.UnpicklingError, ValueError, IndexError):
                return
