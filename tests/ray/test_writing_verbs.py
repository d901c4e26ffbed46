"""Files written by name in one process, read in another: when they are seen, and what is there after a death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.client.following import QUIET_S

ROOT = "raycache://data"


@pytest.fixture
def dataset(cache: Any, tmp_path: Path) -> str:
    source = tmp_path / "source"
    source.mkdir()
    (source / "listed").write_bytes(b"listed")
    raycache.dataset("data", str(source), write_type="cache")
    return ROOT


class Other:
    """Another process, which does what it is told."""

    _CODE = """
import sys, raycache
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self._CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def do(self, line: str) -> str:
        """Run a line there; what it printed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        said = []
        while (answer := self.process.stdout.readline()) != "done\n":
            assert answer, "the other process has ended"
            said.append(answer)
        return "".join(said)


@pytest.fixture
def other(dataset: str) -> Iterator[Other]:
    other = Other()
    other.do(f"raycache.listdir('{dataset}')")
    yield other
    other.process.kill()
    other.process.communicate()


def test_a_process_sees_what_it_wrote(dataset: str) -> None:
    assert raycache.listdir(dataset) == ["listed"]
    with raycache.open(f"{dataset}/a/b/new", "wb") as file:
        file.write(b"new")
    assert raycache.listdir(dataset) == ["a", "listed"]
    assert raycache.read_many([f"{dataset}/a/b/new"]) == [b"new"]
    assert raycache.write_many({f"{dataset}/many/{number}": b"%d" % number for number in range(2000)}) == 2000
    assert raycache.read_many([f"{dataset}/many/{number}" for number in range(2000)]) == [
        b"%d" % number for number in range(2000)
    ]
    raycache.rename(f"{dataset}/many", f"{dataset}/moved")
    raycache.copy(f"{dataset}/moved/7", f"{dataset}/seven")
    raycache.remove(f"{dataset}/moved", recursive=True)
    raycache.makedirs(f"{dataset}/empty/er")
    raycache.rmdir(f"{dataset}/empty/er")
    raycache.touch(f"{dataset}/touched")
    raycache.mkdir(f"{dataset}/made")
    assert raycache.listdir(dataset) == ["a", "empty", "listed", "made", "seven", "touched"]
    assert raycache.open(f"{dataset}/seven").read() == b"7"
    view = raycache.snapshot()
    raycache.remove(f"{dataset}/seven")
    assert view.exists(f"{dataset}/seven")
    assert not raycache.exists(f"{dataset}/seven")


def test_a_name_that_another_process_made_is_found_at_once(dataset: str, other: Other) -> None:
    for number in range(10):
        assert not raycache.exists(f"{dataset}/{number}")
        raycache.write_many({f"{dataset}/mine-{number}": b"mine"})
        time.sleep(0.05)
        assert other.do(f"print(raycache.read_many(['{dataset}/mine-{number}']) == [b'mine'])") == "True\n"
        other.do(f"raycache.write_many({{'{dataset}/{number}': b'x'}})")
        time.sleep(0.05)
        assert raycache.read_many([f"{dataset}/{number}"]) == [b"x"]


def test_what_another_process_changed_is_followed(dataset: str, other: Other) -> None:
    raycache.write_many({f"{dataset}/mine": b"1"})
    assert raycache.listdir(dataset) == ["listed", "mine"]
    assert raycache.read_many([f"{dataset}/mine"]) == [b"1"]
    other.do(
        f"raycache.write_many({{'{dataset}/mine': b'2', '{dataset}/new': b'x'}}); raycache.remove('{dataset}/listed')"
    )
    deadline = time.monotonic() + QUIET_S + 30
    while raycache.listdir(dataset) != ["mine", "new"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert raycache.read_many([f"{dataset}/mine"]) == [b"2"]


def test_what_was_written_outlives_its_writer_and_the_master(cache: Any, dataset: str, other: Other) -> None:
    other.do(f"raycache.write_many({{'{dataset}/whole': b'x' * 100000}})")
    other.do(f"file = raycache.open('{dataset}/half', 'wb'); file.write(bytes(10_000_000))")
    other.process.kill()
    os.kill(cache.master.status()["pid"], signal.SIGKILL)
    with raycache.open(f"{dataset}/mine", "wb") as file:
        file.write(b"mine")
    assert raycache.listdir(dataset) == ["listed", "mine", "whole"]
    assert raycache.read_many([f"{dataset}/whole", f"{dataset}/mine"]) == [b"x" * 100000, b"mine"]


def test_through_returns_when_the_source_has_it(cache: Any, dataset: str, tmp_path: Path) -> None:
    with raycache.open(f"{dataset}/dir/new", "w", write_type="through") as file:
        file.write("new")
    assert (tmp_path / "source" / "dir" / "new").read_text() == "new"
    raycache.dataset("data", str(tmp_path / "source"), write_type="through")
    raycache.write_many({f"{dataset}/{number}": b"x" for number in range(20)})
    assert len(list((tmp_path / "source").glob("[0-9]*"))) == 20
    raycache.rename(f"{dataset}/dir", f"{dataset}/moved")
    assert (tmp_path / "source" / "moved" / "new").read_text() == "new"
    assert not (tmp_path / "source" / "dir").exists()
    raycache.remove(f"{dataset}/moved", recursive=True)
    assert not (tmp_path / "source" / "moved").exists()
