"""Tables and lines that the commands print."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from raycache.core.values import Dataset, ListingJob, Stat


def datasets(out: Console, found: Sequence[Dataset], as_json: bool) -> None:
    """All datasets."""
    if as_json:
        out.print_json(json.dumps([dataset_json(dataset) for dataset in found]))
        return
    if not found:
        out.print("no datasets yet; `raycache mount SOURCE DIR` makes one")
        return
    table = _table("dataset", "source", "refreshed every")
    for dataset in found:
        table.add_row(dataset.name, dataset.source, _interval(dataset.refresh_every_s))
    out.print(table)


def dataset_json(dataset: Dataset) -> dict[str, Any]:
    """A dataset as JSON has it."""
    return {**asdict(dataset), "retention": dataset.retention.as_json()}


def dataset(out: Console, found: Dataset) -> None:
    """Everything about one dataset."""
    kept = found.retention
    lines = {
        "dataset": found.name,
        "source": found.source,
        "attached": _time(found.attached_ns),
        "refreshed": f"every {_interval(found.refresh_every_s)}" if found.refresh_every_s else "when asked",
        "eviction": kept.eviction or "as the cache's setting",
        "quota": "none" if kept.quota_bytes is None else decimal(kept.quota_bytes),
        "ttl": f"{kept.ttl_s:g} s" if kept.ttl_s else "none",
        "priority": str(kept.priority),
        "replicas": str(kept.replicas),
        "written": found.write_type,
        "pinned": ", ".join(printable("/" + pin) for pin in kept.pins) or "-",
    }
    for name, value in lines.items():
        out.print(Text(f"{name:>9}  {value}"), soft_wrap=True)


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


def _warnings(out: Console, about: dict[str, Any]) -> None:
    if hedged := about["totals"].get("hedged"):
        out.print(Text(f"{hedged:,} read(s) went to a second worker because the first was slow", "yellow"))
    if about["rebuilt"]:
        out.print(Text(f"{about['rebuilt']} damaged listing(s) made anew since the master started", "yellow"))


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
    _nodes(out, about["workers"], about["drained"])
    _tiers(out, about["workers"])
    _warnings(out, about)
    if about["backup"]["to"]:
        out.print(_backup(about["backup"]), soft_wrap=True)
    if about["datasets"]:
        _datasets(out, about["datasets"])
    if about["mounts"]:
        _mounts(out, about["mounts"])


def _datasets(out: Console, found: Sequence[dict[str, Any]]) -> None:
    """What there is of each dataset, and what is wrong with it."""
    table = _table(
        "dataset", "source", "directories listed", "cached", "hit rate", "pinned", "quota", "refreshed every"
    )
    for dataset in found:
        listed = f"{dataset['directories_listed']:,} of {dataset['directories']:,}"
        table.add_row(
            dataset["name"],
            dataset["source"],
            listed,
            _cached(dataset),
            "-" if dataset["hit_rate"] is None else f"{dataset['hit_rate']:.1%}",
            decimal(dataset["pinned_bytes"]) if dataset["retention"]["pins"] else "-",
            _quota(dataset["retention"]),
            _interval(dataset["refresh_every_s"]),
        )
    out.print(table)
    _listings(out, found)
    for dataset in found:
        if dataset["over_quota_bytes"]:
            over = f"{decimal(dataset['over_quota_bytes'])} over its quota, of which nothing may go or is going"
            out.print(Text(f"{dataset['name']}: {over}", "yellow"))
    _behind(out, found)
    for dataset in found:
        if dataset["refresh_error"]:
            failed = f"{dataset['refresh_failures']:,} times, last: {dataset['refresh_error']}"
            out.print(Text(f"{dataset['name']}: refreshing failed {failed}", "yellow"))


def _behind(out: Console, datasets: Sequence[dict[str, Any]]) -> None:
    """What sources have not got yet, and why."""
    found = [(dataset, dataset["behind"]) for dataset in datasets if dataset["behind"]["oldest_ns"]]
    if not found:
        return
    table = _table("not persisted", "write type", "files", "bytes", "other changes", "since", "failing", "conflicts")
    for dataset, behind in found:
        table.add_row(
            dataset["name"],
            dataset["write_type"],
            f"{behind['files']:,}",
            decimal(behind["size_bytes"]),
            f"{behind['others']:,}",
            _time(behind["oldest_ns"]),
            *(Text(f"{behind[name]:,}", "red" if behind[name] else "") for name in ("failing", "conflicts")),
        )
    out.print(table)
    for dataset, behind in found:
        for trouble in behind["troubles"]:
            what = "conflict" if trouble["conflict"] else f"{trouble['kind']} failed {trouble['tries']:,} time(s)"
            line = f"{dataset['name']}/{trouble['path']}: {what}: {trouble['error']}"
            out.print(Text(printable(line), "yellow"), soft_wrap=True)


def _mounts(out: Console, found: Sequence[dict[str, Any]]) -> None:
    """The mounts of this node."""
    table = _table("mount", "source", "snapshot", "session", "gateway", "state", "reads", "read")
    for mount in found:
        counters = mount["counters"]
        table.add_row(
            mount["mountpoint"],
            mount["source"],
            "-" if mount["snapshot"] is None else str(mount["snapshot"]),
            mount["session"],
            str(mount["gateway_pid"]),
            mount["state"],
            f"{counters.get('reads', 0):,}",
            decimal(counters.get("read_bytes", 0)),
        )
    out.print(table)
    for mount in found:
        for note in mount["notes"]:
            out.print(Text(f"{mount['mountpoint']}: {note}", "yellow"))


def _listings(out: Console, datasets: Sequence[dict[str, Any]]) -> None:
    """Recursive listings that run or failed."""
    for dataset in datasets:
        for job in dataset["listings"]:
            if job["state"] in ("running", "failed"):
                where = printable(f"{dataset['name']}/{job['path']}")
                line = f"listing of {where}: {job['state']}, {job['files']:,} files so far {job['error']}"
                out.print(Text(line, "red" if job["state"] == "failed" else "yellow"), soft_wrap=True)


@contextmanager
def progress(what: str) -> Iterator[Callable[[ListingJob], None]]:
    """Something to show a job with while it runs; silent where standard error is no terminal.

    An interrupt that was swallowed on its way, as happens to one that arrives in a callback of Ray, is raised again the
    next time that there is progress to show.
    """
    interrupted = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with _shown_on(Console(stderr=True, highlight=False), what) as show:

            def update(job: ListingJob) -> None:
                if interrupted.is_set():
                    raise KeyboardInterrupt
                show(f"{what}: {job.files:,} files, {job.directories:,} directories")

            yield update
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _shown_on(err: Console, what: str) -> Iterator[Callable[[str], None]]:
    """A line that changes, on a terminal; else nothing."""
    if not err.is_terminal:
        yield lambda _: None
        return
    with err.status(Text(printable(what))) as status:
        yield lambda line: status.update(Text(printable(line)))


def changing_line(what: str) -> AbstractContextManager[Callable[[str], None]]:
    """Something to tell of progress with, silent where standard error is no terminal."""
    return _shown_on(Console(stderr=True, highlight=False), what)


def finished_listing(uri: str, job: ListingJob) -> dict[str, Any]:
    """What a recursive refresh prints as JSON."""
    return {
        "uri": uri,
        "files": job.files,
        "directories": job.directories,
        "changed": job.changed,
        "seconds": (job.updated_ns - job.started_ns) / 1e9,
    }


def _cached(dataset: dict[str, Any]) -> str:
    """Bytes in the cache with their share of what is listed, and where they lie."""
    where = ", ".join(f"{decimal(size)} {medium}" for medium, size in dataset["tiers"].items() if size)
    share = "" if dataset["cached_fraction"] is None else f" ({dataset['cached_fraction']:.0%})"
    return f"{decimal(dataset['cached_bytes'])}{share}" + (f": {where}" if where else "")


def _quota(retention: dict[str, Any]) -> str:
    quota = "-" if retention["quota_bytes"] is None else decimal(retention["quota_bytes"])
    return quota + (f", ttl {retention['ttl_s']:g} s" if retention["ttl_s"] else "")


def _backup(about: dict[str, Any]) -> Text:
    if about["error"]:
        return Text(f"backup to {about['to']} failed {about['failed']} time(s): {about['error']}", "red")
    when = f"last at {_time(int(about['last_s'] * 1e9))}" if about["last_s"] else "none yet"
    return Text(f"backup to {about['to']}: {when}")


def _nodes(out: Console, workers: Sequence[dict[str, Any]], drained: Sequence[str]) -> None:
    """Where the workers are, and what passes between them."""
    table = _table("worker", "node", "capacity", "state", "blocks from peers", "from peers", "failed", "blocks given")
    for worker in workers:
        counters = worker.get("counters", {})
        table.add_row(
            worker["worker_id"][:8],
            worker["node_id"][:8],
            decimal(worker["capacity_bytes"]),
            Text(_leaving(worker), "yellow") if worker["draining"] else "serves",
            f"{counters.get('peer_blocks', 0):,}",
            decimal(counters.get("peer_bytes", 0)),
            f"{counters.get('peer_failures', 0):,}",
            f"{counters.get('given_blocks', 0):,}",
        )
    if len(workers) + len(drained) > 1:
        out.print(table)
    for node_id in drained:
        out.print(Text(f"node {node_id[:8]} is drained: it has no worker and can be taken away", "yellow"))


def _leaving(worker: dict[str, Any]) -> str:
    left = worker["written_bytes"]
    return f"draining; {decimal(left)} of what was written are not in a source yet" if left else "draining"


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


def _interval(every_s: float) -> str:
    return f"{every_s:g} s" if every_s else "-"


def _time(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
