"""``raycache dataset``: names for sources, and what of them is kept."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from raycache.cli import show
from raycache.cli.options import Address, AsJson, connect, key_value, print_json
from raycache.core.values import Dataset
from raycache.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, help="Name sources, and choose what of them is kept.")
_out = Console(highlight=False)

Name = Annotated[str, typer.Argument(metavar="NAME")]
Refresh = Annotated[float | None, typer.Option(metavar="SECONDS", help="List it anew so often; 0 is never.")]
Eviction = Annotated[str | None, typer.Option(help="keep, sieve or lru; default: as the cache is set.")]
Quota = Annotated[str | None, typer.Option(metavar="SIZE", help="Most it may hold on all workers; default: no limit.")]
Ttl = Annotated[
    float | None, typer.Option("--ttl", metavar="SECONDS", help="Free what was not read so long; 0: never.")
]
Priority = Annotated[int | None, typer.Option(help="Datasets with a lower one make way.")]
Replicas = Annotated[int | None, typer.Option(help="Workers that hold each block.")]
WriteType = Annotated[
    str | None,
    typer.Option(metavar="TYPE", help="async (the default), through or cache: when the source gets what is written."),
]


@app.command()
def add(
    name: Name,
    source: Annotated[str, typer.Argument(metavar="SOURCE")],
    option: Annotated[list[str] | None, typer.Option("-o", help="Storage option KEY=VALUE, repeatable.")] = None,
    refresh: Refresh = None,
    eviction: Eviction = None,
    quota: Quota = None,
    ttl: Ttl = None,
    priority: Priority = None,
    replicas: Replicas = None,
    write_type: WriteType = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Name a source: its files are then raycache://NAME/path as well."""
    import raycache

    connect(address)
    options = dict(key_value(text) for text in option or [])
    made = raycache.dataset(
        name, source, options, refresh_every_s=refresh, eviction=eviction, quota=quota, ttl_s=ttl, priority=priority,
        replicas=replicas, write_type=write_type,
    )  # fmt: skip
    _show(made, as_json)


@app.command("list")
def list_all(address: Address = None, as_json: AsJson = False) -> None:
    """List the datasets."""
    show.datasets(_out, connect(address).master.datasets(), as_json)


@app.command()
def info(name: Name, address: Address = None, as_json: AsJson = False) -> None:
    """Show all about one dataset."""
    _show(connect(address).namespace.dataset(name), as_json)


@app.command("set")
def change(
    name: Name,
    refresh: Refresh = None,
    eviction: Eviction = None,
    quota: Quota = None,
    ttl: Ttl = None,
    priority: Priority = None,
    replicas: Replicas = None,
    write_type: WriteType = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Change what a dataset may keep, and when its source gets what is written; what is left out stays."""
    import raycache

    connect(address)
    if (refresh, eviction, quota, ttl, priority, replicas, write_type) == (None,) * 7:
        raise InvalidInput(
            "nothing to set; give --eviction, --quota, --ttl, --priority, --replicas, --refresh or --write-type"
        )
    made = raycache.set_dataset(
        name, refresh_every_s=refresh, eviction=eviction, quota=quota, ttl_s=ttl, priority=priority,
        replicas=replicas, write_type=write_type,
    )  # fmt: skip
    _show(made, as_json)


@app.command()
def remove(name: Name, address: Address = None) -> None:
    """Forget a dataset and free its blocks; the source is not touched. End its mounts first."""
    connect(address).keeping.remove(name)
    _out.print(f"{name} is removed; its source is as it was", markup=False)


def _show(dataset: Dataset, as_json: bool) -> None:
    if as_json:
        print_json(show.dataset_json(dataset))
    else:
        show.dataset(_out, dataset)
