"""Writes files for ever, and notes each before it begins and when it was acknowledged; it goes on after errors.

python acknowledging_writer.py mount SEED DIRECTORY LOG      files are fsynced, or closed; every other one under another
                                                             name, and then moved to its own; the oldest are deleted
python acknowledging_writer.py api SEED URI LOG              whole files, one by one or many at once, often over others

The log has lines of a word, a name and a number: ``begun``, ``done`` or ``failed``, and where a file is deleted
``dropping`` and ``dropped``. It is on a disk of this machine: a
line is there when ``os.write`` has returned, whoever is killed.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

KEPT = 400
"""Files of a writer through the mount: whoever writes for hours fills no disk."""
SIZES = (0, 10, 5000, 200_000, 1_500_000)


def body(seed: int, number: int) -> bytes:
    """What file ``number`` of a writer holds."""
    generator = random.Random(f"{seed}-{number}")
    return generator.randbytes(generator.choice(SIZES))


class Log:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(self, word: str, names: Iterable[tuple[str, int]]) -> None:
        os.write(self._fd, "".join(f"{word} {name} {number}\n" for name, number in names).encode())


def write_to_mount(seed: int, number: int, directory: Path, generator: random.Random) -> None:
    """Raises OSError."""
    moved = number % 2
    path = directory / (f"tmp-{number}" if moved else f"direct-{number}")
    with open(path, "wb", buffering=0) as file:
        data = memoryview(body(seed, number))
        while data:
            data = data[file.write(data[: generator.choice([4096, 100_000, 1 << 20])]) :]
        if generator.random() < 0.5:
            os.fsync(file.fileno())
    if moved:
        os.rename(path, directory / mount_name(number))


def mount_name(number: int) -> str:
    return f"moved-{number}" if number % 2 else f"direct-{number}"


def drop(number: int, directory: Path, log: Log) -> None:
    """Delete a file that may be there or not. Raises OSError; then it is tried again with the next."""
    name = mount_name(number)
    log.say("dropping", [(name, number)])
    opened = os.open(directory, os.O_DIRECTORY)  # while nothing is mounted, it is this that is not found
    try:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=opened)
    finally:
        os.close(opened)
    log.say("dropped", [(name, number)])


def main(how: str, seed: int, where: str, log: Log) -> None:
    generator = random.Random(seed)
    number = oldest = 0
    while True:
        count = generator.choice([1, 1, 5]) if how == "api" else 1
        numbers = range(number, number + count)
        number += count
        names = [(f"f{generator.randrange(200)}" if how == "api" else mount_name(each), each) for each in numbers]
        names = list(dict(names).items())  # a name once
        log.say("begun", names)
        try:
            if how == "api":
                write_by_api(seed, where, dict(names))
            else:
                while number - oldest > KEPT:
                    drop(oldest, Path(where), log)
                    oldest += 1
                write_to_mount(seed, numbers[0], Path(where), generator)
        except OSError as error:
            log.say("failed", names)
            print(f"{error!r}", file=sys.stderr, flush=True)  # noqa: T201
            time.sleep(0.3)
        else:
            log.say("done", names)


def write_by_api(seed: int, where: str, names: dict[str, int]) -> None:
    import raycache

    if len(names) > 1:
        raycache.write_many({f"{where}/{name}": body(seed, number) for name, number in names.items()})
        return
    for name, number in names.items():
        with raycache.open(f"{where}/{name}", "wb") as file:
            file.write(body(seed, number))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Log(sys.argv[4]))
