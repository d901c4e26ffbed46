"""The commands of ``raycache``. Bad input ends in one line on standard error: exit code 2 when the command itself was
wrong, 1 when it could not be done."""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from raycache.cli import change, datasets, jobs, keep, persist, show, upkeep, waits
from raycache.cli.options import Address, AsJson, key_value, print_json
from raycache.config import Settings, load_settings
from raycache.errors import ClusterUnavailable, InvalidInput, RaycacheError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A distributed cache for training data, made of Ray actors.",
)
_out = Console(highlight=False)
for _command in (keep.load, keep.free, keep.pin, keep.unpin, upkeep.fsck, upkeep.backup, upkeep.restore, jobs.submit):
    app.command()(_command)
for _change in (change.cp, change.mv, change.rm, change.mkdir):
    app.command()(_change)
app.command()(waits.explain)
app.command()(persist.persist)
app.add_typer(datasets.app, name="dataset")


def main() -> None:
    """Run the command line."""
    try:
        app()
    except InvalidInput as error:
        _fail(error, 2)
    except RaycacheError as error:
        _fail(error, 1)
    except BrokenPipeError:
        sys.stderr.close()  # `raycache cat ... | head`: the reader has what it wanted
        raise SystemExit(1) from None


def _fail(error: Exception, code: int) -> None:
    Console(stderr=True, highlight=False).print(f"raycache: {error}", markup=False, soft_wrap=True)
    raise SystemExit(code)


def _settings(address: str | None, **overrides: Any) -> Settings:
    return load_settings(address=address, **overrides)


def _files(address: str | None) -> Any:
    from raycache.actors.cluster import current

    return current(_settings(address), start=False).files


@app.command()
def start(
    address: Address = None,
    mem: Annotated[str | None, typer.Option(help="Memory per node for blocks: a size, or a share as in 40%.")] = None,
    tier: Annotated[
        list[str] | None, typer.Option(metavar="DIR:SIZE", help="Directory for blocks on each node, repeatable.")
    ] = None,
    eviction: Annotated[str | None, typer.Option(help="keep (the default), sieve or lru.")] = None,
    new_ray: Annotated[bool, typer.Option("--new-ray", help="Start a Ray cluster even if there is one here.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the cache on a Ray cluster; where there is none on this machine, start that too."""
    from raycache.actors.cluster import current
    from raycache.actors.local import start_local_ray
    from raycache.actors.transport import find_address

    settings = _settings(address, mem=mem, tiers=tier or None, eviction=eviction)
    started = new_ray
    if not new_ray:
        try:
            find_address(settings)
        except ClusterUnavailable:
            started = True
    if started:
        Console(stderr=True).print("starting a Ray cluster of one node on this machine")
        settings = settings.model_copy(update={"address": start_local_ray(settings)})
    cluster = current(settings)
    about = {"address": cluster.address, "workers": len(cluster.pool.workers()), "started_ray": started}
    if as_json:
        print_json(about)
    else:
        _out.print(f"cache ready on {about['address']} with {about['workers']} worker(s)")


@app.command()
def stop(
    wait: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="For what sources have not got yet; default: stop_wait_s, which is 60."),
    ] = None,
    address: Address = None,
) -> None:
    """End the cache: unmount this node's mounts, wait for what sources have not got yet, end the cache's actors, and
    the Ray that `raycache start` started."""
    from raycache.actors.cluster import current
    from raycache.actors.local import stop_local_ray
    from raycache.fuse.mount import unmount_all

    settings = _settings(address)
    for mountpoint in unmount_all(settings):
        _out.print(f"unmounted {mountpoint}", markup=False)
    try:
        cluster = current(settings, start=False)
        with persist.progress("waiting for sources") as update:
            left = cluster.finish(wait, update)
        cluster.stop()
        _out.print("ended the cache")
        persist.say_left(left)
    except ClusterUnavailable as error:
        _out.print(f"no cache to end: {error}", markup=False)
    if ended := stop_local_ray(settings):
        _out.print(f"ended the Ray cluster at {ended}")


@app.command()
def mount(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="What to show: s3://bucket/prefix, a directory, raycache://name ...")
    ] = "",
    directory: Annotated[str, typer.Argument(metavar="DIR", help="An empty directory.")] = "",
    name: Annotated[str | None, typer.Option(help="Name of the dataset; made from the source otherwise.")] = None,
    option: Annotated[list[str] | None, typer.Option("-o", help="Storage option KEY=VALUE, repeatable.")] = None,
    allow_other: Annotated[bool, typer.Option(help="Let other users in.")] = False,
    mode: Annotated[str, typer.Option(help="r, or w for a mount that can be written.")] = "r",
    session: Annotated[str, typer.Option(help="kernel (the default on Linux 5.4 and newer) or pyfuse3.")] = "auto",
    snapshot: Annotated[bool, typer.Option("--snapshot", help="Show everything as it is now, for ever.")] = False,
    at: Annotated[
        int | None, typer.Option(metavar="CHANGE", help="The same, as it was at the snapshot of this number.")
    ] = None,
    refresh: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="List the dataset anew so often; 0 is never.")
    ] = None,
    reuse: Annotated[
        bool, typer.Option("--reuse", help="Be content with a mount of the same source that is there already.")
    ] = False,
    upgrade: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Nothing new: swap the gateway of this mount for the code installed now."),
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Show a source in a directory, through the cache."""
    from raycache.fuse import mount as mounts

    if upgrade is not None:
        if source:
            raise InvalidInput(
                f"--upgrade {upgrade} swaps the gateway of a mount that is there; give no source with it"
            )
        _upgrade(upgrade, as_json)
        return
    if not source or not directory:
        raise InvalidInput("give SOURCE and DIR, as in: raycache mount s3://bucket/train /mnt/train")
    settings = _settings(address)
    if not reuse:
        mounts.check_free(directory, settings)
    made = mounts.mount(
        source,
        directory,
        name=name,
        options=dict(key_value(text) for text in option or []),
        allow_other=allow_other,
        session=session,
        snapshot=snapshot if at is None else at,
        refresh_every_s=refresh,
        mode=mode,
        settings=settings,
    )
    if as_json:
        fields = ("mountpoint", "source", "gateway_pid", "snapshot", "mode", "made")
        print_json({field: getattr(made, field) for field in fields})
    else:
        when = "" if made.snapshot is None else f", as of change {made.snapshot}"
        _out.print(f"{made.source} is at {made.mountpoint}{when}", markup=False)


def _upgrade(directory: str, as_json: bool) -> None:
    from raycache.fuse.mount import upgrade

    pid = upgrade(directory)
    if as_json:
        print_json({"mountpoint": directory, "gateway_pid": pid})
    else:
        _out.print(f"{directory} is served by process {pid} now", markup=False)


@app.command()
def umount(
    directory: Annotated[str, typer.Argument(metavar="DIR")],
    lazy: Annotated[
        bool, typer.Option("--lazy", "-l", help="Take it out of sight now; open files may finish.")
    ] = False,
) -> None:
    """End a mount."""
    from raycache.fuse.mount import unmount

    unmount(directory, lazy=lazy)


@app.command()
def ls(
    uri: Annotated[str, typer.Argument(help="raycache://name/path or a source URI; none lists the datasets.")] = "",
    long: Annotated[bool, typer.Option("--long", "-l", help="With size and time.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """List a directory, or the datasets."""
    from raycache.actors.cluster import current

    if not uri:
        show.datasets(_out, current(_settings(address), start=False).master.datasets(), as_json)
        return
    files = _files(address)
    about = files.stat(uri)
    entries = files.scandir(uri) if about.is_dir else [about]
    if as_json:
        print_json([asdict(entry) for entry in entries])
    else:
        show.entries(_out, entries, long)


@app.command()
def cat(uris: Annotated[list[str], typer.Argument(metavar="URI...")], address: Address = None) -> None:
    """Write files to standard output."""
    files = _files(address)
    for uri in uris:
        with files.open(uri) as file:
            shutil.copyfileobj(file, sys.stdout.buffer, 2**20)
    sys.stdout.buffer.flush()


@app.command()
def stat(uri: str, address: Address = None, as_json: AsJson = False) -> None:
    """Show what is known of a file or directory."""
    about = _files(address).stat(uri)
    if as_json:
        print_json(asdict(about))
    else:
        show.stat(_out, uri, about)


@app.command()
def refresh(
    uri: str,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="With all that is below it.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """List a directory anew from its source; mounts of it follow within seconds."""
    if recursive:
        from raycache.actors.cluster import current

        cluster = current(_settings(address), start=False)
        with show.progress(f"listing {uri}") as progress:
            job = cluster.refresh_tree(uri, progress)
        about = show.finished_listing(uri, job)
        if as_json:
            print_json(about)
        else:
            _out.print(
                f"{uri}: {job.files:,} files in {job.directories:,} directories, {job.changed:,} of them changed, "
                f"in {about['seconds']:.1f} s",
                markup=False,
            )
        return
    version = _files(address).refresh(uri)
    if as_json:
        print_json({"uri": uri, "version": version})
    else:
        _out.print(f"{uri} is at version {version}", markup=False)


@app.command()
def drain(
    node: Annotated[str, typer.Argument(help="Id or name of a Ray node, or id of its worker, as `status` shows them.")],
    undo: Annotated[bool, typer.Option("--undo", help="Give the node its worker back.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Have a node's worker move what it holds to the others, and leave; `status` shows how far it is."""
    from raycache.actors.cluster import current

    node_id = current(_settings(address), start=False).master.drain(node, undo)
    if as_json:
        print_json({"node_id": node_id, "undo": undo})
    else:
        _out.print(f"node {node_id} {'is in service again' if undo else 'is draining'}", markup=False)


@app.command()
def status(address: Address = None, as_json: AsJson = False) -> None:
    """Show master, workers, datasets and this node's mounts."""
    from raycache.actors.cluster import current
    from raycache.fuse.mount import list_mounts

    settings = _settings(address)
    about = {**current(settings, start=False).status(), "mounts": list_mounts(settings)}
    if as_json:
        print_json(about)
    else:
        show.status(_out, about)
