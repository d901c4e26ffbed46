"""The commands that look after the catalog: ``fsck``, ``backup``, ``restore``.

They work on the file in the state directory, with or without a running master, and so on Ray's head node. What changes
the catalog takes its lock, which the master has while it runs.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal

from raycache.cli import show
from raycache.config import Settings, load_settings
from raycache.core import paths

if TYPE_CHECKING:
    from raycache.meta.check import Report
    from raycache.ufs.base import UnderFileSystem

_out = Console(highlight=False, soft_wrap=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def fsck(
    mend: Annotated[
        bool,
        typer.Option("--repair", help="Set aside what is damaged, so that it is listed anew. Needs the cache stopped."),
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Trust checksums; do not look at every entry.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check the catalog: exit code 0 when it is sound or was repaired, 1 when there are problems."""
    from raycache.meta.check import check, repair
    from raycache.meta.lock import CatalogLock

    settings = load_settings()
    if mend:
        with CatalogLock.take(settings.catalog_file):
            report = repair(settings.catalog_file, deep=not quick)
    else:
        report = check(settings.catalog_file, deep=not quick)
    if as_json:
        typer.echo(json.dumps({**asdict(report), "problems": [_plain(problem) for problem in report.problems]}))
    else:
        _show(report, settings, mend)
    if report.problems:
        raise typer.Exit(1)


def backup(
    destination: Annotated[str, typer.Argument(metavar="DEST", help="A directory, or a URI such as s3://bucket/dir.")],
    as_json: AsJson = False,
) -> None:
    """Back the catalog up, while the cache runs or not; the newest three backups are kept."""
    from raycache.meta.backup import back_up

    settings = load_settings()
    made = back_up(settings.catalog_file, settings.namespace, _open(destination, settings), datetime.now(timezone.utc))
    if as_json:
        typer.echo(json.dumps({"uri": made.uri, "size_bytes": made.size_bytes, **asdict(made.head)}))
    else:
        _out.print(f"{made.uri} ({decimal(made.size_bytes)})", markup=False)


def restore(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A backup, or where backups are: the newest.")],
    force: Annotated[bool, typer.Option("--force", help="Set aside the catalog that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup in the place of the catalog. The cache must be stopped, and mounts be made again afterwards."""
    from raycache.meta.backup import SUFFIX
    from raycache.meta.backup import restore as put_back
    from raycache.meta.lock import CatalogLock

    settings = load_settings()
    place, name = source, None
    if source.endswith(SUFFIX):
        place, name = paths.split(paths.parse_uri(source).uri)
    ufs = _open(place, settings)
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with CatalogLock.take(settings.catalog_file):
        found = put_back(ufs, name, settings.namespace, settings.catalog_file, force=force)
    if as_json:
        typer.echo(json.dumps({"uri": found.uri, "catalog": str(settings.catalog_file), **asdict(found.head)}))
    else:
        _out.print(f"{settings.catalog_file} is as it was at {found.head.created}: {found.uri}", markup=False)


def _open(place: str, settings: Settings) -> UnderFileSystem:
    from raycache.ufs.base import Limits
    from raycache.ufs.registry import capture_access, open_ufs

    limits = Limits(settings.connect_timeout_s, settings.request_timeout_s)
    return open_ufs(place, capture_access(place, None), limits)


def _plain(problem: object) -> dict[str, object]:
    about = asdict(problem)  # type: ignore[call-overload]
    return {name: about[name] for name in ("kind", "where", "what")}


def _show(report: Report, settings: Settings, mended: bool) -> None:
    for line in report.repaired:
        _out.print(f"repaired  {show.printable(line)}", markup=False)
    for problem in report.problems:
        _out.print(f"{problem.kind:<9} {show.printable(problem.where)}: {show.printable(problem.what)}", markup=False)
    counted = f"{report.datasets} dataset(s), {report.directories} directories, {report.files:,} files listed"
    _out.print(f"{report.path}: {counted}, {len(report.problems)} problem(s)", markup=False)
    broken = any(problem.kind == "file" for problem in report.problems)
    if (broken or any("empty catalog" in line for line in report.repaired)) and settings.backup_to:
        _out.print(f"there are backups: `raycache restore --force {settings.backup_to}`", markup=False)
    if report.problems and not mended:
        _out.print("`raycache stop`, then `raycache fsck --repair`; see docs/operations.md", markup=False)
