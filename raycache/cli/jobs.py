"""``raycache submit``: a Ray job that finds its mounts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

from raycache.cli.options import Address
from raycache.config import load_settings
from raycache.errors import InvalidInput


def submit(
    entrypoint: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What the job runs.")],
    mount: Annotated[
        list[str] | None,
        typer.Option("--mount", metavar="SOURCE:DIR", help="There on each node where the job runs; repeatable."),
    ] = None,
    working_dir: Annotated[str | None, typer.Option(help="Directory that the job gets a copy of.")] = None,
    dashboard: Annotated[str | None, typer.Option(help="http://host:8265; RAY_API_SERVER_ADDRESS otherwise.")] = None,
    address: Address = None,
) -> None:
    """Run a command as a Ray job, with mounts that come and go with it. Exit code 0 when the job succeeded."""
    from raycache.actors.cluster import current
    from raycache.actors.jobs import submit as run
    from raycache.core.paths import RAYCACHE_SCHEME
    from raycache.ufs.registry import capture_access

    mounts = dict(_mount(text) for text in mount or [])
    if mounts:
        # Credentials go to the cache from here, once; the nodes that mount need none.
        files = current(load_settings(address=address)).files
        for source in mounts.values():
            if not source.startswith(f"{RAYCACHE_SCHEME}://"):
                files.attach(source, None, capture_access(source, None))
    job_id, state = run(entrypoint, mounts, dashboard, working_dir, sys.stdout.write)
    if state != "SUCCEEDED":
        Console(stderr=True, highlight=False).print(f"raycache: job {job_id} ended as {state}", markup=False)
        raise typer.Exit(1)


def _mount(text: str) -> tuple[str, str]:
    source, colon, directory = text.rpartition(":")
    if not colon or not source or not directory.startswith("/") or directory.startswith("//"):
        raise InvalidInput(f"--mount {text!r}: write SOURCE:DIR, as in s3://bucket/train:/data")
    return directory, source
