"""A plain install needs no compiler and brings what the command line needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_pip_install_works_without_a_compiler(tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    # A PATH with Python and nothing that compiles.
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "env", "uname"):
        found = shutil.which(tool)
        assert found
        (tools / tool).symlink_to(found)
    environ = {**os.environ, "PATH": f"{home / 'bin'}:{tools}", "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    environ.pop("PYTHONPATH", None)

    def run(*words: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=timeout_s, check=True
        )

    python = str(home / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", str(ROOT), timeout_s=500)
    heavy = "import sys, raycache; print(sorted({'ray', 'torch', 'pyfuse3', 'numpy', 'pyarrow'} & set(sys.modules)))"
    assert run(python, "-c", heavy).stdout == "[]\n"
    assert "mount" in run(str(home / "bin" / "raycache"), "--help").stdout
    assert run(python, "-c", "import raycache; print(raycache.__version__)").stdout.strip()
