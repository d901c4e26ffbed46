"""The same code and values have the same fingerprint, in any process; other code or other values have another."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from raycache.core.fingerprint import fingerprint
from raycache.errors import InvalidInput

CODE = """
import math
import numpy as np

RATE = 2

def scaled(value):
    return [each * RATE for each in value]

class Model:
    size = 3

    def __init__(self, depth=1):
        self.depth = depth

    @property
    def wide(self):
        return self.size * 2

    def __call__(self, batch):
        return scaled(batch)

def transform(batch, threshold={"low": 1, "high": {3, 4, 5}}):
    def inner(value):
        return math.sqrt(value) + RATE
    return [inner(each) for each in scaled(batch)], np.zeros(3), threshold

def both():
    return transform, Model, Model(4), lambda batch: Model()(batch)
"""


def module(code: str) -> ModuleType:
    found = ModuleType("users_own")
    exec(compile(code, "<users_own>", "exec"), found.__dict__)
    return found


def prints(code: str) -> list[str]:
    return [fingerprint(call) for call in module(code).both()]


def test_another_process_finds_the_same(tmp_path: Path) -> None:
    script = tmp_path / "users_own.py"
    script.write_text(CODE)
    line = "import users_own; from raycache.core.fingerprint import fingerprint as f; print(*map(f, users_own.both()))"
    found = {
        subprocess.run(
            [sys.executable, "-c", line],
            cwd=tmp_path, env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert found == {" ".join(prints(CODE)) + "\n"}
    assert len(set(prints(CODE))) == 4


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("RATE = 2", "RATE = 3", [0, 1, 2, 3]),
        ("each * RATE", "each / RATE", [0, 1, 2, 3]),
        ("math.sqrt", "math.exp", [0]),
        ("{3, 4, 5}", "{3, 4, 6}", [0]),
        ("size = 3", "size = 4", [1, 2, 3]),
        ("self.size * 2", "self.size * 3", [1, 2, 3]),
        ("Model(4)", "Model(5)", [2]),
        ("scaled(batch)\n", "list(scaled(batch))\n", [1, 2, 3]),
        ("import math", "import math\nimport json", []),
        ("\n\n", "\n\n# what a comment says counts for nothing\n\n", []),
    ],
)
def test_what_may_change_results_changes_it_and_nothing_else(old: str, new: str, changed: list[int]) -> None:
    assert old in CODE
    before, after = prints(CODE), prints(CODE.replace(old, new))
    assert [at for at in range(4) if before[at] != after[at]] == changed


def closed_over(value: Any) -> Callable[[], Any]:
    return lambda: value


def test_values_beside_it_count_and_are_compared_by_what_is_in_them() -> None:
    assert fingerprint(closed_over(np.arange(5))) == fingerprint(closed_over(np.arange(5)))
    assert fingerprint(closed_over(np.arange(5))) != fingerprint(closed_over(np.arange(6)))
    assert fingerprint(functools.partial(max, 1)) != fingerprint(functools.partial(max, 2))
    assert fingerprint(functools.partial(max, key=1)) != fingerprint(functools.partial(max, key=2))
    assert fingerprint("a key", 1) != fingerprint("a key", True)
    assert fingerprint("a", "bc") != fingerprint("ab", "c")
    assert fingerprint([1, [2]]) != fingerprint([1, 2]) != fingerprint((1, 2))
    assert fingerprint(np.sqrt) != fingerprint(np.exp)
    assert fingerprint(len) != fingerprint(max)


def test_what_holds_itself_ends() -> None:
    ring: list[Any] = []
    ring.append(ring)
    assert fingerprint(ring) == fingerprint(ring)

    def counts_down(number: int) -> int:
        return counts_down(number - 1) if number else 0

    assert fingerprint(counts_down) == fingerprint(counts_down)
    kept = functools.lru_cache(counts_down)
    assert fingerprint(kept) == fingerprint(kept) != fingerprint(functools.lru_cache(closed_over))


def test_what_nothing_can_be_said_of_needs_a_key() -> None:
    lock = threading.Lock()
    with pytest.raises(InvalidInput, match=r"_thread\.lock.*give a key"):
        fingerprint(lambda: lock)
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(InvalidInput, match="too deeply"):
        fingerprint(deep)
