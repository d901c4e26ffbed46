"""``raycache cp``, ``mv``, ``rm`` and ``mkdir``: what goes where, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raycache.cli import change
from raycache.errors import Exists, InvalidInput, IsADirectory, NotADirectory, NotFound, RaycacheError, Refused
from raycache.testing.inprocess import InProcessCache

ROOT = "raycache://data"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcessCache]:
    with InProcessCache(segments=tmp_path / "segments") as cache:
        for name in ("data", "other"):
            (tmp_path / name).mkdir()
            cache.files.attach(str(tmp_path / name), name, {})
        monkeypatch.setattr(change, "connect", lambda address: cache)
        yield cache


@pytest.fixture
def local(tmp_path: Path) -> Path:
    (tmp_path / "local" / "sub").mkdir(parents=True)
    (tmp_path / "local" / "one").write_bytes(b"one")
    (tmp_path / "local" / "sub" / "two").write_bytes(b"two" * 1_000_000)
    return tmp_path / "local"


def test_files_go_into_directories_and_under_names(cache: InProcessCache, local: Path, tmp_path: Path) -> None:
    files = cache.files
    change.cp([str(local / "one"), f"{ROOT}/new/one"])
    change.cp([str(local), f"{ROOT}/tree"], recursive=True)
    change.cp([f"{ROOT}/tree/one", str(local / "sub" / "two"), f"{ROOT}/new"])
    assert files.listdir(f"{ROOT}/new") == ["one", "two"]
    change.cp([str(local / "one"), f"{ROOT}/made/"])
    assert files.listdir(f"{ROOT}/made") == ["one"]
    change.cp([f"{ROOT}/tree/", f"{ROOT}/new"], recursive=True)
    assert files.listdir(f"{ROOT}/new/tree") == ["one", "sub"]
    change.cp([f"{ROOT}/new/tree", str(tmp_path)], recursive=True)
    assert (tmp_path / "tree" / "sub" / "two").read_bytes() == b"two" * 1_000_000
    change.cp([f"{ROOT}/new/one", f"{ROOT}/new/two", str(tmp_path)])
    assert (tmp_path / "one").read_bytes() == b"one"
    change.cp([f"{ROOT}/new/one", "raycache://other"])
    assert files.listdir("raycache://other") == ["one"]


def test_streams(cache: InProcessCache, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"streamed")))
    change.cp(["-", f"{ROOT}/file"])
    capsysbinary.readouterr()
    change.cp([f"{ROOT}/file", "-"])
    assert capsysbinary.readouterr().out == b"streamed"
    with pytest.raises(IsADirectory, match="stream"):
        change.cp(["-", f"{ROOT}/"])


def test_what_was_done_is_said(cache: InProcessCache, local: Path, capsys: Any) -> None:
    (local / "link").symlink_to(local)
    change.cp([str(local), f"{ROOT}/tree"], recursive=True)
    said = capsys.readouterr().out
    assert "2 files, 3.0 MB" in said
    assert "left out 1" in said
    change.cp([str(local), f"{ROOT}/tree"], recursive=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "to": f"{ROOT}/tree", "files": 2, "size_bytes": 3_000_003, "left_out": 1,
    }  # fmt: skip
    change.rm([f"{ROOT}/tree/one"])
    assert "removed 1 " in capsys.readouterr().out
    change.rm([f"{ROOT}/tree"], recursive=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["removed"] > 3


def test_moves(cache: InProcessCache, local: Path) -> None:
    files = cache.files
    change.cp([str(local), f"{ROOT}/tree"], recursive=True)
    change.mv([f"{ROOT}/tree/", f"{ROOT}/moved"])
    change.mkdir([f"{ROOT}/a/b", f"{ROOT}/a"], parents=True)
    change.mv([f"{ROOT}/moved/one", f"{ROOT}/moved/sub", f"{ROOT}/a"])
    assert files.listdir(f"{ROOT}/a") == ["b", "one", "sub"]
    assert files.listdir(f"{ROOT}/moved") == []
    with pytest.raises(Refused):
        change.mv([f"{ROOT}/a", "raycache://other"])


def test_what_is_refused_says_what_to_do(cache: InProcessCache, local: Path, tmp_path: Path) -> None:
    one = str(local / "one")
    change.cp([one, f"{ROOT}/dir/one"])
    refused: list[tuple[type[RaycacheError], str, Callable[[], None]]] = [
        (InvalidInput, "give what to copy", lambda: change.cp([ROOT])),
        (InvalidInput, "none of these is a URI", lambda: change.cp(["a", "b"])),
        (InvalidInput, "system's cp", lambda: change.cp([f"{ROOT}/dir/one", one, str(tmp_path)])),
        (IsADirectory, "with -r", lambda: change.cp([f"{ROOT}/dir", f"{ROOT}/x"])),
        (IsADirectory, "with -r", lambda: change.cp([str(local), f"{ROOT}/x"])),
        (NotADirectory, "several files", lambda: change.cp([one, one, f"{ROOT}/none"])),
        (NotFound, "No such file", lambda: change.cp([str(tmp_path / "none"), f"{ROOT}/x"])),
        (NotFound, "none", lambda: change.cp([f"{ROOT}/none", str(tmp_path / "x")])),
        (InvalidInput, "no name of its own", lambda: change.cp(["..", f"{ROOT}/"], recursive=True)),
        (InvalidInput, "choose one of", lambda: change.cp([one, f"{ROOT}/x"], write_type="often")),
        (InvalidInput, "give what to move", lambda: change.mv([ROOT])),
        (InvalidInput, "within a dataset", lambda: change.mv([f"{ROOT}/dir", str(tmp_path)])),
        (NotADirectory, "several files", lambda: change.mv([f"{ROOT}/dir", f"{ROOT}/dir", f"{ROOT}/none"])),
        (IsADirectory, "rm -r", lambda: change.rm([f"{ROOT}/dir"])),
        (NotFound, "no such", lambda: change.rm([f"{ROOT}/none"])),
        (Exists, "there already", lambda: change.mkdir([f"{ROOT}/dir"])),
        (NotFound, "none", lambda: change.mkdir([f"{ROOT}/none/x"])),
    ]
    for kind, message, call in refused:
        with pytest.raises(kind, match=message):
            call()
    assert cache.files.listdir(ROOT) == ["dir"]
