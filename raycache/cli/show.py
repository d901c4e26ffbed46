"""Tables and lines that the commands print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from raycache.core.values import Dataset, Stat


def datasets(out: Console, found: Sequence[Dataset], as_json: bool) -> None:
    """All datasets."""
    if as_json:
        out.print_json(json.dumps([asdict(dataset) for dataset in found]))
        return
    if not found:
        out.print("no datasets yet; `raycache mount SOURCE DIR` makes one")
        return
    table = _table("dataset", "source")
    for dataset in found:
        table.add_row(dataset.name, dataset.source)
    out.print(table)


def entries(out: Console, found: Sequence[Stat], long: bool) -> None:
    """A directory, one name per line; control characters are shown escaped, so that a line stays a line."""
    for entry in found:
        name = printable(entry.path.rpartition("/")[2]) + ("/" if entry.is_dir else "")
        line = f"{entry.size_bytes:>14,}  {_time(entry.mtime_ns)}  {name}" if long else name
        out.print(Text(line), soft_wrap=True)


def stat(out: Console, uri: str, about: Stat) -> None:
    """Everything about one path."""
    lines = {
        "uri": printable(uri),
        "kind": "directory" if about.is_dir else "file",
        "size": f"{about.size_bytes:,} bytes",
        "modified": _time(about.mtime_ns),
        "version": about.etag or "-",
        **{name: str(value) for name, value in about.extra.items()},
    }
    for name, value in lines.items():
        out.print(Text(f"{name:>9}  {value}"), soft_wrap=True)


def status(out: Console, about: dict[str, Any]) -> None:
    """The whole cache."""
    out.print(f"Ray {about['address']}, namespace {about['namespace']}, state in {about['state_dir']}", markup=False)
    table = _table("worker", "memory", "quota", "blocks", "hits", "misses", "read through", "from source")
    for worker in about["workers"]:
        if "error" in worker:
            table.add_row(worker["worker_id"][:8], Text(worker["error"], "red"))
            continue
        counters = worker["counters"]
        table.add_row(
            worker["worker_id"][:8],
            decimal(worker["mem_bytes"]),
            decimal(worker["mem_quota_bytes"]),
            str(worker["blocks"]),
            *(f"{counters[name]:,}" for name in ("hits", "misses", "read_through")),
            decimal(counters["ufs_bytes"]),
        )
    out.print(table)
    _tiers(out, about["workers"])
    if about["datasets"]:
        table = _table("dataset", "source", "directories listed", "in memory")
        for dataset in about["datasets"]:
            listed = f"{dataset['directories_listed']:,} of {dataset['directories']:,}"
            table.add_row(dataset["name"], dataset["source"], listed, decimal(dataset["cached_bytes"]))
        out.print(table)
    if about["mounts"]:
        table = _table("mount", "source", "session", "gateway", "state", "reads", "read")
        for mount in about["mounts"]:
            counters = mount["counters"]
            table.add_row(
                mount["mountpoint"],
                mount["source"],
                mount["session"],
                str(mount["gateway_pid"]),
                mount["state"],
                f"{counters.get('reads', 0):,}",
                decimal(counters.get("read_bytes", 0)),
            )
        out.print(table)
        for mount in about["mounts"]:
            for note in mount["notes"]:
                out.print(Text(f"{mount['mountpoint']}: {note}", "yellow"))


def _tiers(out: Console, workers: Sequence[dict[str, Any]]) -> None:
    """The directories of each worker; nothing where there are none."""
    found = [
        (worker["worker_id"][:8], tier) for worker in workers for tier in worker.get("tiers", ()) if tier["directory"]
    ]
    if not found:
        return
    table = _table("worker", "tier", "medium", "used", "quota", "blocks", "hits", "corrupt", "out of service")
    for worker, tier in found:
        table.add_row(
            worker,
            Text(printable(tier["directory"])),
            tier["medium"] or "-",
            decimal(tier["used_bytes"]),
            decimal(tier["quota_bytes"]),
            *(f"{tier[name]:,}" for name in ("blocks", "hits", "corrupt")),
            Text(tier["out_of_service"] or "-", "red" if tier["out_of_service"] else ""),
        )
    out.print(table)


def printable(text: str) -> str:
    """Text with control characters and lone surrogates written as escapes."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
