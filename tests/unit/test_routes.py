"""The way through a mount: which mount shows a dataset, and that it never shows other bytes than were selected."""

from __future__ import annotations

import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycache.client.selection import Selection
from raycache.config import load_settings
from raycache.data import nodeview
from raycache.data.nodeview import NodeView
from raycache.data.routes import ClusterRoute, Files, MountRoute, Wanted
from raycache.errors import Changed, MountError, NotFound
from raycache.testing.inprocess import InProcessCache


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(9):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * number * 1000)
    return tmp_path / "data"


def test_both_ways_give_the_same_bytes(source: Path) -> None:
    with InProcessCache(block_bytes=5000) as cache:
        cache.files.attach(str(source), "data", {})
        selection = Selection.of(cache.namespace, "raycache://data/a")
        numbers = np.array([4, 0, 2, 4])
        ways = ClusterRoute(cache.reader, selection, selection.packs()), MountRoute(str(source / "a"), "a", selection)
        ways[0].expect(range(len(selection.packs().files)))
        by_cluster, by_mount = ([bytes(data) for data in way.read(numbers)] for way in ways)
        assert by_cluster == by_mount == [bytes([number]) * number * 1000 for number in (8, 0, 4, 8)]


def test_a_mount_that_shows_another_version_is_an_error(source: Path) -> None:
    with InProcessCache() as cache:
        cache.files.attach(str(source), "data", {})
        selection = Selection.of(cache.namespace, "raycache://data")
        way = MountRoute(str(source), "", selection)
        numbers = {path: np.array([at]) for at, path in enumerate(selection.paths(np.arange(len(selection))))}
        about = (source / "a" / "2.bin").stat()
        (source / "a" / "2.bin").write_bytes(b"x" * 2000)
        with pytest.raises(Changed, match=r"a/2\.bin"):
            way.read(numbers["a/2.bin"])
        os.utime(source / "a" / "2.bin", ns=(about.st_mtime_ns, about.st_mtime_ns))
        assert len(way.read(numbers["a/2.bin"])[0]) == 2000  # size and time are all that a mount tells
        (source / "a" / "4.bin").write_bytes(b"x" * 3999)
        with pytest.raises(Changed):
            way.read(numbers["a/4.bin"])
        (source / "a" / "6.bin").unlink()
        with pytest.raises(NotFound):
            way.read(numbers["a/6.bin"])


@pytest.fixture
def view(tmp_path: Path) -> NodeView:
    settings = load_settings(state_dir=tmp_path / "state", namespace="mine")
    return NodeView(settings, "train", "s3://bucket/train", "a/b", 7)


@pytest.mark.parametrize(
    ("about", "directory"),
    [
        ({}, "/mnt/a/b"),
        ({"source": "raycache://train"}, "/mnt/a/b"),
        ({"source": "raycache://train/a/b"}, "/mnt/"),
        ({"source": "s3://bucket/train/a"}, "/mnt/b"),
        ({"source": "s3://bucket"}, "/mnt/train/a/b"),
        ({"snapshot": 7}, "/mnt/a/b"),
        ({"snapshot": 6}, None),
        ({"source": "s3://bucket/train/a/b/c"}, None),
        ({"source": "s3://bucket/tra"}, None),
        ({"namespace": "other"}, None),
        ({"state": "stale"}, None),
    ],
)
def test_which_mounts_show_it(
    view: NodeView, monkeypatch: pytest.MonkeyPatch, about: dict[str, Any], directory: str | None
) -> None:
    usual = {
        "mountpoint": "/mnt",
        "source": "s3://bucket/train",
        "state": "served",
        "namespace": "mine",
        "snapshot": None,
    }
    monkeypatch.setattr(nodeview, "list_mounts", lambda settings: [{**usual, **about}])
    assert view._find() == directory


def test_a_snapshot_of_the_same_change_is_preferred(view: NodeView, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {"source": "s3://bucket/train", "state": "served", "namespace": "mine"}
    mounts = [{**usual, "mountpoint": f"/mnt{snapshot}", "snapshot": snapshot} for snapshot in (None, 7, 8)]
    monkeypatch.setattr(nodeview, "list_mounts", lambda settings: mounts)
    assert view.directory() == "/mnt7/a/b"


def test_where_no_mount_can_be_made_the_error_says_what_to_do(view: NodeView, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        assert options["env"]["RAYCACHE_NAMESPACE"] == "mine"
        return subprocess.CompletedProcess(words, 1, "", "/dev/fuse is missing")

    monkeypatch.setattr(nodeview, "list_mounts", lambda settings: [])
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(MountError, match=r"forked.*/dev/fuse is missing.*forkserver"):
        view.directory()
    assert "raycache://train" in asked[0]
    assert asked[0][-2:] == ["--at", "7"]


def test_files_pickle_as_what_they_were_selected_by(tmp_path: Path, source: Path) -> None:
    with InProcessCache() as cache:
        cache.files.attach(str(source), "data", {})
        wanted = Wanted(load_settings(state_dir=tmp_path / "state"), "data", str(source), "", "**", 0)
        files = Files(wanted, Selection.of(cache.namespace, "raycache://data"))
        packed = pickle.dumps(files)
        assert len(packed) < 2000
        assert pickle.loads(packed).wanted == wanted
        assert sorted(files.paths(np.arange(3))) == ["a/0.bin", "a/2.bin", "a/4.bin"]
