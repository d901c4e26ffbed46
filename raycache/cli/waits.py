"""``raycache explain``: why readers waited."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from raycache.cli.options import Address, AsJson, connect, print_json
from raycache.core.waits import explain as why

_out = Console(highlight=False)


def explain(
    name: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="A job, or a dataset that it reads; the last if left out.")
    ] = None,
    epoch: Annotated[int | None, typer.Option(help="Which epoch; the newest otherwise.")] = None,
    as_json: AsJson = False,
    address: Address = None,
) -> None:
    """Say which rank of a training job waited longest, and for what."""
    found = why(connect(address).keepers.waits(), name, epoch)
    if as_json:
        print_json(found.as_json())
        return
    _out.print(f"job {found.job}: {found.sentence}", markup=False, soft_wrap=True)
