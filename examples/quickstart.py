"""The quick start: train a speech model on files in S3, and see what a cache does to its epochs.

Everything runs on this machine: a Ray cluster, an S3 server (SeaweedFS), a corpus that espeak-ng speaks, and a TDNN
that learns to tell its languages apart. What a user of raycache writes are the four lines in ``train``.

    pip install 'raycache[demo]' && sudo apt install espeak-ng
    python examples/quickstart.py
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

# ray, raycache and matplotlib are imported where they are used: the DataLoader's workers import this file too, and
# have to start fast.
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from speech_corpus import LANGUAGES, SPEAKERS, EspeakMissing, make_corpus

if TYPE_CHECKING:
    from language_id import Epoch, Training

    from raycache.testing import ObjectStoreServer

SOURCE = "s3://speech/train"
BUCKET, PREFIX = "speech", "train"
SAMPLE_FILES = 100
console = Console()


@dataclass(frozen=True)
class Row:
    """One epoch: how it went, and what it took from S3."""

    name: str
    epoch: Epoch
    s3_mb: float
    hit_rate: float

    @property
    def files_per_s(self) -> float:
        """Files read, in the time that training and testing took."""
        return self.epoch.files / self.epoch.seconds


def main() -> int:
    """Run the demo; the exit status."""
    options = parse_arguments()
    # A kill leaves as Ctrl-C does: through every clean-up on the stack.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        run(options)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted; everything that was started has been stopped")
        return 130
    except (EspeakMissing, FileExistsError, ValueError) as error:
        console.print(f"[red]{error}", soft_wrap=True)
        return 1
    except Exception as error:
        from raycache.errors import RaycacheError

        if not isinstance(error, RaycacheError):
            raise
        console.print(f"[red]{error}", soft_wrap=True)
        return 1
    return 0


def interrupt(*_: Any) -> NoReturn:
    """End as Ctrl-C does."""
    raise KeyboardInterrupt


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a speech model through raycache, cold and warm.")
    parser.add_argument("--files-per-language", type=int, default=80, help="files of 300 KiB each (default: 80)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over all files; the first is cold (default: 3)")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-out"), help="corpus and plot go here (default: demo-out)"
    )
    options = parser.parse_args()
    if options.files_per_language < len(SPEAKERS):
        parser.error(f"--files-per-language: at least {len(SPEAKERS)}, so that each speaker has a file")
    if options.epochs < 1:
        parser.error("--epochs: at least 1")
    return options


def run(options: argparse.Namespace) -> None:
    """Corpus, S3, Ray, training, plot; whatever happens, what was started is stopped."""
    import ray

    from raycache.errors import MountError
    from raycache.testing import ObjectStoreServer

    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError(
            "FUSE is missing: cannot open /dev/fuse (in a container: --device /dev/fuse --cap-add SYS_ADMIN)"
        )
    with ExitStack() as stack:
        with progress_bar("Making speech") as advance_to:
            files = make_corpus(options.out / "corpus", options.files_per_language, advance_to)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="raycache-demo-")))
        stack.callback(leave_no_mount, scratch / "mnt")
        with console.status("Starting an S3 server"):
            server = stack.enter_context(ObjectStoreServer())
        set_environment({**server.environ, "RAYCACHE_STATE_DIR": str(scratch / "state")})
        upload(server, files)
        sample = random.Random(1).sample(files, min(SAMPLE_FILES, len(files)))
        names = [f"{file.parent.name}/{file.name}" for file in sample]
        rates = {f"{len(sample)} files straight from S3 with s3fs, no cache": rate_from_s3(names)}
        with console.status("Starting Ray"):
            # A cluster of its own, even where another one runs. On yours, a plain ray.init() is all.
            stack.callback(ray.shutdown)
            ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR)
            signal.signal(signal.SIGTERM, interrupt)  # again: Ray's own handler aborts
        rows, warm_rate = train(scratch / "mnt", options.epochs, names)
    rates["the same files through the mount, warm, page cache included"] = warm_rate
    print_rows(rows, rates)
    plot(rows, options.out / "quickstart.png")


def train(mountpoint: Path, epochs: int, sample: list[str]) -> tuple[list[Row], float]:
    """Train on the mounted bucket: a row per epoch, and files/s of reading ``sample`` afterwards."""
    from language_id import Training

    import raycache

    mountpoint.mkdir()
    # Ray is up, and AWS_* says where S3 is. This is all that a training script needs:
    with raycache.mount(SOURCE, mountpoint), contextlib.closing(Training(mountpoint, epochs)) as training:
        with console.status("Starting DataLoader workers"):
            training.warm_up()
        rows = [run_epoch(training, number, epochs) for number in range(1, epochs + 1)]
        return rows, rate(lambda name: (mountpoint / name).read_bytes(), sample)


def run_epoch(training: Training, number: int, epochs: int) -> Row:
    """One epoch, and what the cache's counters say of it."""
    import raycache

    before = raycache.status()["totals"]
    with progress_bar(f"Epoch {number} of {epochs}") as advance_to:
        done = 0

        def read(files: int) -> None:
            nonlocal done
            done += files
            advance_to(done, training.files)

        epoch = training.run_epoch(read)
    after = raycache.status()["totals"]
    misses = after["misses"] - before["misses"]
    return Row(
        name=f"{number} ({'cold' if number == 1 else 'warm'})",
        epoch=epoch,
        s3_mb=(after["ufs_bytes"] - before["ufs_bytes"]) / 1e6,
        hit_rate=1 - misses / epoch.files,
    )


def leave_no_mount(mountpoint: Path) -> None:
    """End what an interrupt left that came while the mount was being made, and that no ``with`` knows of."""
    import raycache

    with contextlib.suppress(raycache.errors.RaycacheError):  # there is none: the usual case
        raycache.unmount(mountpoint, lazy=True)


def set_environment(variables: dict[str, str]) -> None:
    """Let AWS_* and RAYCACHE_* say what the demo says and nothing else, for this process and what it starts."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "RAYCACHE_"))]:
        del os.environ[name]
    os.environ.update(variables)


def upload(server: ObjectStoreServer, files: list[Path]) -> None:
    """Put the corpus into the bucket."""
    server.create_bucket(BUCKET)
    client = server.client()

    def put(file: Path) -> None:
        client.put_object(Bucket=BUCKET, Key=f"{PREFIX}/{file.parent.name}/{file.name}", Body=file.read_bytes())

    with progress_bar("Uploading") as advance_to, ThreadPoolExecutor(4) as pool:
        for done, _ in enumerate(pool.map(put, files), 1):
            advance_to(done, len(files))


def rate_from_s3(names: list[str]) -> float:
    """Files per second of reading without a cache, with what most Python programs read S3 with."""
    import fsspec

    s3 = fsspec.filesystem("s3")
    s3.ls(SOURCE)  # connects
    return rate(lambda name: s3.cat_file(f"{SOURCE}/{name}"), names)


def rate(read: Callable[[str], bytes], names: list[str]) -> float:
    """Files per second of reading these, one after another."""
    started = time.perf_counter()
    for name in names:
        read(name)
    return len(names) / (time.perf_counter() - started)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar; the function that it gives takes the steps done and the steps in all."""
    columns = (TextColumn(f"{what:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def print_rows(rows: list[Row], rates: dict[str, float]) -> None:
    """The epochs as a table, and below it what plain reading comes to."""
    table = Table("epoch", title=f"Training on {SOURCE} through raycache", title_justify="left")
    for heading in ("seconds", "files/s", "MB from S3", "hit rate", "held-out accuracy"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.epoch.seconds:.1f}",
            f"{row.files_per_s:.0f}",
            f"{row.s3_mb:.0f}",
            f"{row.hit_rate:.0%}",
            f"{row.epoch.accuracy:.0%}",
        )
    console.print(table)
    console.print("For comparison, reading alone, one file after another (a sample, no training):")
    for what, files_per_s in rates.items():
        console.print(f"  {what}: {files_per_s:.0f} files/s", highlight=False)


def plot(rows: list[Row], path: Path) -> None:
    """Files/s, bytes from S3 and accuracy per epoch, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [row.name for row in rows]
    figure, (speed, traffic, accuracy) = pyplot.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    bars = speed.bar(names, [row.files_per_s for row in rows], color="tab:blue")
    speed.bar_label(bars, fmt="%.0f")
    speed.set_title("files per second, training included")
    bars = traffic.bar(names, [row.s3_mb for row in rows], color="tab:orange")
    traffic.bar_label(bars, fmt="%.0f")
    traffic.set_title("MB from S3")
    accuracy.plot(names, [100 * row.epoch.accuracy for row in rows], marker="o", color="tab:green")
    accuracy.axhline(100 / len(LANGUAGES), linestyle=":", color="grey", label="chance")
    accuracy.set_ylim(0, 105)
    accuracy.legend(loc="lower right")
    accuracy.set_title("held-out accuracy, %")
    for axes in (speed, traffic, accuracy):
        axes.set_xlabel("epoch")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    console.print(f"Plot: {path}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
