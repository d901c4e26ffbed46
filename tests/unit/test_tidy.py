"""House rules that no linter of ours knows: sizes, and that ARCHITECTURE.md names every module."""

from __future__ import annotations

import ast
from collections import Counter
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


@pytest.mark.parametrize(
    ("package", "rooms"), [("ray", {"actors", "data"}), ("torch", {"data"}), ("pyfuse3", {"fuse"})]
)
def test_heavy_packages_stay_in_their_rooms(package: str, rooms: set[str]) -> None:
    """As import-linter checks it, without it: a second pair of eyes on the rule that everything else leans on."""
    users = {path for path in MODULES if package in _imported(ast.parse(path.read_text(encoding="utf-8")))}
    assert {path.relative_to(ROOT / "raycache").parts[0] for path in users} <= rooms
    if package == "torch":
        assert {path.stem for path in users} <= {"torch", "decoding"}


def _imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_every_test_module_has_a_name_of_its_own() -> None:
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == [], "pytest cannot import two of one name"
