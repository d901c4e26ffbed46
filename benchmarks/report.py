"""RESULTS.md: one section per benchmark, replaced by each run; what machine it was, and how to run it again."""

from __future__ import annotations

import datetime
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = """# Measurements

Each section is written by the command that it names, in one run, on one machine. The machine is shared and noisy:
ratios within a section mean more than figures, and figures of two sections should not be compared.
"""


def machine() -> str:
    """One line about this machine."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    gib = int(memory.group(1)) / 2**20 if memory else 0
    return (
        f"{os.cpu_count()} cores ({cpu.group(1).strip() if cpu else platform.machine()}), {gib:.0f} GiB, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, Ray {_version('ray')}"
    )


def write_section(title: str, command: str, text: str) -> None:
    """Put a section into RESULTS.md, in place of the one with the same title."""
    today = datetime.date.today().isoformat()
    commit = _commit()
    section = f"## {title}\n\n`{command}` on {today}, commit {commit}: {machine()}.\n\n{text.strip()}\n"
    whole = RESULTS.read_text() if RESULTS.exists() else _HEAD
    sections = re.split(r"(?m)^(?=## )", whole)
    kept = [each for each in sections if not each.startswith(f"## {title}\n")]
    RESULTS.write_text("\n".join(each.rstrip() + "\n" for each in [*kept, section]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Median, and the range in brackets."""
    middle = format(statistics.median(values), form)
    return f"{middle} ({format(min(values), form)}-{format(max(values), form)})" if len(values) > 1 else middle


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Ratios of two series that were measured side by side."""
    return [one / other for one, other in zip(over, under, strict=True)]


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
