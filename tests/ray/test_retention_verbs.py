"""Quotas, pins, ttl, load and free over real actors, from Python and from the command line."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.cli import main
from raycache.errors import InvalidInput, NotFound

FILES, FILE_BYTES, BLOCK_BYTES = 60, 100_000, 1 << 20


def body(number: int) -> bytes:
    return random.Random(number).randbytes(FILE_BYTES)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two directories of 3 MB each, in a cache with 3 MB of memory and 20 MB of disk."""
    monkeypatch.setenv("RAYCACHE_BLOCK_BYTES", str(BLOCK_BYTES))
    monkeypatch.setenv("RAYCACHE_MEM", str(3 * BLOCK_BYTES))
    monkeypatch.setenv("RAYCACHE_TIERS", f"{tmp_path}/tier:20MB")
    for number in range(FILES):
        directory = tmp_path / "source" / ("even" if number % 2 == 0 else "odd")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number:02d}").write_bytes(body(number))
    return tmp_path / "source"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, standard output, standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["raycache", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


def about(name: str = "data") -> dict[str, Any]:
    return next(each for each in raycache.status()["datasets"] if each["name"] == name)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline, raycache.status()
        time.sleep(0.1)


def test_what_a_dataset_may_keep(source: Path, cache: Any, command: Any) -> None:
    raycache.dataset("data", str(source), quota="4MB", priority=1)
    report = raycache.load("raycache://data").wait(30)
    assert report.bytes + report.beyond_bytes == FILES * FILE_BYTES
    assert 0 < report.bytes <= about()["held_bytes"] <= 4_000_000
    assert about()["tiers"].keys() >= {"memory"}

    with pytest.raises(InvalidInput, match="quota"):
        raycache.pin("raycache://data")
    loaded = json.loads(command("pin", "raycache://data/odd", "--json")[1])
    assert (loaded["state"], loaded["bytes"]) == ("done", FILES // 2 * FILE_BYTES)
    assert about()["pinned_bytes"] == FILES // 2 * FILE_BYTES
    assert command("free", "raycache://data/odd")[0] == 2
    freed = json.loads(command("free", "raycache://data", "--json")[1])
    assert freed["pinned_bytes"] >= FILES // 2 * FILE_BYTES

    # What is on disk is found again by the next worker, with its pin.
    (worker,) = raycache.status()["workers"]
    os.kill(worker["pid"], signal.SIGKILL)
    eventually(lambda: raycache.status()["workers"][0].get("pid") not in (None, worker["pid"]))
    eventually(lambda: raycache.load("raycache://data/odd").wait(30).bytes == FILES // 2 * FILE_BYTES)
    raycache.dataset("data", str(source), quota="default", ttl_s=1)
    for number in (1, 0):
        uri = f"raycache://data/{'odd' if number else 'even'}/{number:02d}"
        assert raycache.read_many([uri])[0] == body(number)
    raycache.load("raycache://data/even").wait(30)
    eventually(lambda: about()["cached_bytes"] == FILES // 2 * FILE_BYTES)
    time.sleep(1.5)
    assert about()["cached_bytes"] == FILES // 2 * FILE_BYTES, "what is pinned stays"

    raycache.unpin("raycache://data/odd")
    eventually(lambda: about()["cached_bytes"] == 0)
    shown = json.loads(command("dataset", "info", "data", "--json")[1])
    assert (shown["retention"]["ttl_s"], shown["retention"]["pins"]) == (1, [])
    assert "data" in command("status")[1]
    assert command("dataset", "remove", "data")[0] == 0
    with pytest.raises(NotFound):
        raycache.listdir("raycache://data")


def test_the_command_line_says_what_is_wrong(source: Path, cache: Any, command: Any) -> None:
    raycache.dataset("data", str(source))
    for words, code, part in [
        (("dataset", "set", "data", "--quota", "many"), 2, "size"),
        (("dataset", "set", "data"), 2, "nothing to set"),
        (("dataset", "info", "nobody"), 1, "nobody"),
        (("load", "raycache://data/none"), 1, "none"),
        (("unpin", "raycache://data/odd"), 1, "not pinned"),
    ]:
        ended = command(*words)
        assert ended[:2] == (code, "")
        assert part in ended[2]
