"""Many paths and refreshes over real actors."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

import raycache
from raycache.errors import InvalidInput, NotFound


def test_many_directories_are_one_call_and_a_dataset_refreshes_itself(cache: Any, tmp_path: Path, cli: Any) -> None:
    source = tmp_path / "source"
    for number in range(40):
        (source / f"{number:02d}").mkdir(parents=True)
        (source / f"{number:02d}" / "old").write_bytes(b"x" * number)
    with pytest.raises(InvalidInput, match="seconds"):
        raycache.dataset("data", str(source), refresh_every_s=0.1)
    with pytest.raises(NotFound):
        raycache.stat("raycache://data")
    assert raycache.dataset("data", str(source)).refresh_every_s == 0

    directories = [f"raycache://data/{number:02d}" for number in range(40)]
    raycache.listdir("raycache://data")
    before = cache.master.calls
    assert raycache.listdir_many(directories) == [["old"]] * 40
    assert cache.master.calls <= before + 2, "one for all, and now and then it is asked what others changed"
    uris = [f"{directory}/old" for directory in directories]
    assert [about.size_bytes for about in raycache.stat_many(uris)] == list(range(40))
    assert raycache.exists_many([*uris, "raycache://data/none"]) == [True] * 40 + [False]
    assert raycache.lookup_many(directories[7], ["old", "new"]).size_bytes.tolist() == [7, 0]
    assert len(raycache.glob("raycache://data/*/o*")) == 40
    assert cache.master.calls <= before + 2

    assert raycache.dataset("data", str(source), refresh_every_s=1).refresh_every_s == 1

    view = raycache.snapshot()
    (source / "07" / "new").touch()
    deadline = time.monotonic() + 20
    while raycache.status()["datasets"][0]["refreshed"] < 41 or cache.master.newest_change() == view.change:
        assert time.monotonic() < deadline, "nobody refreshed it"
        time.sleep(0.2)
    cache.namespace.forget()
    assert raycache.listdir(directories[7]) == ["new", "old"]
    assert view.listdir(directories[8]) == ["old"]
    fs = pickle.loads(pickle.dumps(raycache.filesystem(snapshot=view.change)))
    assert (fs.snapshot, fs.cat_file(uris[3])) == (view.change, b"xxx")
    (shown,) = json.loads(cli("ls", "--json").stdout)
    assert shown["refresh_every_s"] == 1
    for number in (view.change + 100, -1):
        with pytest.raises(InvalidInput, match="snapshot"):
            raycache.snapshot(number)
    assert raycache.dataset("data", str(source)).refresh_every_s == 1, "left out, it stays"
    assert raycache.dataset("data", str(source), refresh_every_s=0).refresh_every_s == 0
