"""Reads that the kernel makes beside the caller."""

from __future__ import annotations

import errno
import os
import random
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from raycache.client.diskreads import DiskReads, Ended
from raycache.client.pagememory import fresh

BODY = random.Random(1).randbytes(1_000_000)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    with (tmp_path / "file").open("wb") as file:
        file.write(BODY)
        file.flush()
        os.fsync(file.fileno())  # what is not on the disk yet would have to be waited for
    fd = os.open(tmp_path / "file", os.O_RDONLY | os.O_DIRECT)
    yield fd
    os.close(fd)


def wait(reads: DiskReads, count: int) -> dict[int, int]:
    """Outcomes of that many reads, by ticket."""
    poll = select.poll()
    poll.register(reads.fd, select.POLLIN)
    found: list[Ended] = []
    while len(found) < count:
        assert poll.poll(10_000)
        found += reads.ended()
    return dict(found)


def test_many_reads_are_under_way_at_once_and_each_has_its_bytes(fd: int) -> None:
    reads, rng = DiskReads(8), random.Random(2)
    for _ in range(50):
        asked = {}
        for _ in range(8):
            offset, (memory, address, _) = rng.randrange(0, 200) * 4096, fresh(rng.randrange(1, 100_000))
            ticket = reads.begin(fd, memory, address, offset)
            assert ticket is not None
            asked[ticket] = offset, memory
        outcomes = wait(reads, 8)
        assert reads.ended() == []
        for ticket, (offset, memory) in asked.items():
            expected = BODY[offset : offset + len(memory)]
            assert outcomes[ticket] == len(expected)
            assert memory[: len(expected)] == expected


def test_no_more_are_begun_than_there_is_room_for(fd: int) -> None:
    reads = DiskReads(2)
    memory, address, _ = fresh(4096)
    assert None not in [reads.begin(fd, memory, address, 0) for _ in range(2)]
    assert reads.begin(fd, memory, address, 0) is None
    wait(reads, 2)
    assert reads.begin(fd, memory, address, 0) is not None
    wait(reads, 1)


def test_errors_are_told(fd: int) -> None:
    reads = DiskReads(2)
    memory, address, _ = fresh(4096)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        reads.begin(10_000, memory, address, 0)
    assert reads.begin(fd, memory, address, len(BODY) // 4096 * 4096) is not None
    assert list(wait(reads, 1).values()) == [len(BODY) % 4096]
    assert reads.begin(fd, memory, address, 4096 * 1000) is not None
    assert list(wait(reads, 1).values()) == [0]
