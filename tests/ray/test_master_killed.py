"""The master killed while it changes things: what was acknowledged is there, and once."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raycache.errors import ClusterUnavailable

KILLS = 3
SOURCES = 4


def test_every_acknowledged_change_is_there_and_was_made_once(cache: Any, tmp_path: Path) -> None:
    sources = [tmp_path / f"source-{number}" for number in range(SOURCES)]
    for source in sources:
        source.mkdir()
        (source / "first").write_text("1")
    done = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        """Each master a little later in what it does than the one before."""
        while len(killed) < KILLS:
            pid = cache.master.status()["pid"]
            time.sleep(0.05 + 0.11 * len(killed))
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        done.set()

    killer = threading.Thread(target=kill)
    killer.start()
    roots: dict[Path, int] = {}
    rounds = 0
    while not done.is_set() or rounds < 3:
        for number, source in enumerate(sources):
            attached = cache.master.attach(str(source), f"data-{number}", {})
            assert roots.setdefault(source, attached.root_id) == attached.root_id
            (source / f"new-{rounds}").write_text("x")
            # Lost, it would be less; made twice, more.
            assert cache.master.refresh(attached.root_id) == rounds + 2
        rounds += 1
    killer.join(30)
    assert len(set(killed)) == KILLS
    for root_id in roots.values():
        manifest = cache.master.manifest(root_id)
        assert manifest.directory.version == rounds + 1
        names = {manifest.name(row) for row in manifest.rows()}
        assert names == {b"first", *(b"new-%d" % number for number in range(rounds))}
    assert {dataset.root_id for dataset in cache.master.datasets()} == set(roots.values())
    assert cache.master.changes(0)[0] == SOURCES * rounds


def test_a_master_that_is_gone_for_good_is_an_error_at_once(cache: Any) -> None:
    cache.stop()
    started = time.monotonic()
    with pytest.raises(ClusterUnavailable, match="raycache start"):
        cache.master.datasets()
    assert time.monotonic() - started < 10
