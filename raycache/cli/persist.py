"""``raycache persist``; and what is said of what sources have not got yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal

from raycache.cli import show
from raycache.cli.options import Address, AsJson, connect, print_json
from raycache.core.persisting import Behind
from raycache.errors import InvalidInput

_out = Console(highlight=False)


def persist(
    path: Annotated[str, typer.Argument(metavar="PATH", help="raycache://name/path or a source URI.")],
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Wait no longer; what is left goes on by itself.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Where the source was changed by others: put what was written over it.")
    ] = False,
    discard: Annotated[
        bool, typer.Option("--discard", help="Where the source was changed by others: lose what was written here.")
    ] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Bring what was written of a dataset, directory or file to its source now, and wait for it. Ctrl-C ends the
    waiting alone."""
    if overwrite and discard:
        raise InvalidInput("--overwrite keeps what was written here, --discard what the source has: give one of them")
    persisting = connect(address).persisting
    began = time.monotonic()
    decided = persisting.overwrite(path) if overwrite else persisting.discard(path) if discard else 0
    with progress(f"persisting {path}") as update:
        first: Behind = persisting.persist(path, timeout, update)
    seconds = time.monotonic() - began
    if as_json:
        about = {"files": first.files, "size_bytes": first.size_bytes, "others": first.others, "decided": decided}
        print_json({"uri": path, **about, "seconds": seconds})
        return
    if overwrite or discard:
        _out.print(f"{decided:,} conflict(s) {'overwritten' if overwrite else 'discarded'}", markup=False)
    _out.print(
        f"{path}: the source has it all; {first.files:,} files ({decimal(first.size_bytes)}) and {first.others:,} "
        f"other changes were behind, in {seconds:.1f} s",
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def progress(what: str) -> Iterator[Callable[[Behind], None]]:
    """Something to show with how much is behind still."""
    with show.changing_line(what) as update:
        yield lambda found: update(f"{what}: {found} to go")


def say_left(left: Mapping[str, Behind]) -> None:
    """What a cache that ends has not brought to its sources."""
    for name, found in left.items():
        _out.print(
            f"{name}: its source has not got {found}; it stays on the disks of the workers, and goes there when the "
            "cache runs again",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def left_json(left: Mapping[str, Behind]) -> dict[str, Any]:
    """The same as JSON has it."""
    return {name: found.as_json() for name, found in left.items()}
