from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import raycache

HEAVY = {"ray", "torch", "pyfuse3", "numpy", "pyarrow", "trio", "fsspec", "obstore", "pydantic"}
_CODE = """
import json, sys, time
start = time.perf_counter()
import raycache
print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))
"""


def test_importing_raycache_is_quick_and_brings_nothing_heavy():
    home = str(Path(raycache.__file__).parent.parent)
    runs = [
        json.loads(subprocess.check_output([sys.executable, "-c", _CODE], cwd=home, stdin=subprocess.DEVNULL))
        for _ in range(3)
    ]
    assert not HEAVY & set(runs[0][1])
    assert min(seconds for seconds, _ in runs) < 0.3
