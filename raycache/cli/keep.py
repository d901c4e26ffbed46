"""``raycache load``, ``free``, ``pin``, ``unpin``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from raycache.cli import show
from raycache.cli.options import Address, AsJson, connect, print_json
from raycache.client.loading import LoadJob, LoadReport
from raycache.errors import Unavailable

_out = Console(highlight=False)
_POLL_S = 0.5

Path = Annotated[str, typer.Argument(metavar="PATH", help="raycache://name/path or a source URI.")]


def load(path: Path, address: Address = None, as_json: AsJson = False) -> None:
    """Bring a dataset, directory or file into the cache. Ctrl-C ends it; what is loaded stays."""
    _finish(connect(address).keeping.load(path), as_json)


def pin(path: Path, address: Address = None, as_json: AsJson = False) -> None:
    """Keep a dataset, directory or file from being evicted, for good, and load it."""
    _finish(connect(address).keeping.pin(path), as_json)


def unpin(path: Path, address: Address = None) -> None:
    """Take a pin back."""
    connect(address).keeping.unpin(path)
    _out.print(f"{path} is not pinned any more", markup=False)


def free(path: Path, address: Address = None, as_json: AsJson = False) -> None:
    """Drop the blocks of a dataset, directory or file from every tier of every worker; the source is not touched."""
    freed = connect(address).keeping.free(path)
    if as_json:
        print_json({"uri": path, **asdict(freed)})
        return
    _out.print(f"{path}: freed {decimal(freed.size_bytes)} in {freed.blocks:,} blocks", markup=False)
    if freed.pinned_bytes:
        _out.print(f"{decimal(freed.pinned_bytes)} stay: they are pinned", style="yellow")
    if freed.unreached:
        _out.print(f"{freed.unreached} worker(s) did not answer; free it again when they are back", style="yellow")


def _finish(job: LoadJob, as_json: bool) -> None:
    """Wait for a load, showing how far it is. One that left something out ends with exit code 0: it is read through."""
    shown: AbstractContextManager[Any] = show.changing_line(f"loading {job.report.uri}")
    with shown as update:
        try:
            while True:
                try:
                    report = job.wait(_POLL_S)
                    break
                except Unavailable:
                    if job.report.state == "failed":
                        raise
                    update(_line(job.progress()))
        except KeyboardInterrupt:
            job.cancel()
            raise
    if as_json:
        print_json(asdict(report))
        return
    _out.print(f"{_line(report)}, in {report.seconds:.1f} s", markup=False)
    if report.beyond_bytes:
        _out.print(f"no room for {decimal(report.beyond_bytes)}: they are read through", style="yellow")
    if report.failed:
        _out.print(f"{report.failed:,} files could not be fetched; reading one says why", style="yellow")


def _line(report: LoadReport) -> str:
    return f"{report.uri}: {report.files:,} files, {decimal(report.bytes)} in the cache"
