"""The master killed while it changes things: what was acknowledged is there, and once."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raycache.actors.cluster import Cluster
from raycache.config import load_settings
from raycache.core.inode import NOREPLACE, Verb
from raycache.errors import ClusterUnavailable

KILLS = 2
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


def test_every_acknowledged_verb_upon_the_tree_was_done_once(cache: Any, tmp_path: Path) -> None:
    (tmp_path / "listed").write_text("1")
    cache.master.attach(str(tmp_path), "data", {})
    tree, root = cache.master.tree, ("data", "")
    done, killed = threading.Event(), set()

    def kill() -> None:
        while len(killed) < KILLS:
            pid = cache.master.status()["pid"]
            time.sleep(0.1 + 0.13 * len(killed))
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        done.set()

    killer = threading.Thread(target=kill)
    killer.start()
    rounds, answers = 0, []
    while not done.is_set() or rounds < 5:
        # Each would fail if it were done a second time.
        tree.mkdir(root, b"dir", 0o755, 0, 0)
        verbs = [Verb("mknod", (("data", "dir"), b"%d" % n, 0o100644, 0, 0, 0), f"{rounds}-{n}") for n in range(50)]
        answers += tree.apply(verbs)
        tree.rename(root, b"dir", root, b"round-%d" % rounds, NOREPLACE)
        rounds += 1
    killer.join(30)
    assert len(killed) == KILLS
    assert len({attr.ino for attr in answers}) == 50 * rounds
    assert [one.name for one in tree.readdir(root, b"", 10_000)] == sorted(
        [b"listed", *(b"round-%d" % number for number in range(rounds))]
    )
    assert sum(len(tree.readdir(("data", f"round-{number}"), b"", 100)) for number in range(rounds)) == 50 * rounds


def test_a_master_that_is_gone_for_good_is_an_error_at_once(cache: Any) -> None:
    cache.stop()
    started = time.monotonic()
    with pytest.raises(ClusterUnavailable, match="raycache start"):
        cache.master.datasets()
    assert time.monotonic() - started < 10


@pytest.fixture
def backups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYCACHE_BACKUP_TO", str(tmp_path / "backups"))
    monkeypatch.setenv("RAYCACHE_BACKUP_EVERY_S", "0.3")
    return tmp_path / "backups"


def test_the_master_backs_up_on_its_interval_and_has_its_catalog_for_itself(
    backups: Path, cache: Any, cli: Any
) -> None:
    deadline = time.monotonic() + 30
    while cache.master.status()["backup"]["made"] < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    about = cache.master.status()["backup"]
    assert about["made"] >= 4
    assert (about["to"], about["failed"], about["error"]) == (str(backups), 0, None)
    assert Path(about["last"].removeprefix("file://")).is_file()
    assert 1 <= len(list(backups.iterdir())) <= 4, "three are kept, while the next is being written"
    assert "backup to" in cli("status", COLUMNS="200").stdout
    assert cli("fsck").returncode == 0
    for words in (("fsck", "--repair"), ("restore", "--force", str(backups))):
        refused = cli(*words)
        assert refused.returncode == 1
        assert "raycache stop" in refused.stderr


def test_a_catalog_that_cannot_be_used_is_said_and_repaired(
    ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    monkeypatch.setenv("RAYCACHE_NAMESPACE", "broken")
    monkeypatch.setenv("RAYCACHE_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("RAYCACHE_ADDRESS", ray_address)
    settings = load_settings()
    settings.catalog_file.write_bytes(b"no SQLite" * 1000)
    with pytest.raises(ClusterUnavailable, match=r"catalog-broken\.db cannot be used.*raycache fsck --repair"):
        Cluster.open(settings)
    assert cli("fsck", "--repair").returncode == 0
    cluster = Cluster.open(settings)
    assert cluster.master.datasets() == []
    cluster.stop()
