"""House rules that no linter of ours knows: sizes, and that ARCHITECTURE.md names every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "raycache").rglob("*.py"))
MODULE_LINES, FUNCTION_LINES = 500, 60
FORBIDDEN = {"utils", "helpers", "manager", "common"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_and_names(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MODULE_LINES
    assert path.stem not in FORBIDDEN
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is responsible for"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES, f"{node.name} has {lines} lines"


def test_the_architecture_names_every_module() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    private = {"__init__", "__main__", "base", "registry", "values", "globbing", "commands", "show", "names", "wire",
               "objectstore", "proxy", "inprocess"}  # fmt: skip
    missing = [path.stem for path in MODULES if path.stem not in private and f"`{path.stem}`" not in page
               and f"`{path.stem}.py`" not in page]  # fmt: skip
    assert missing == []
