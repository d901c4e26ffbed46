"""Programs that look for errors in file systems, on a mount that is written, for as long as one likes: fio, stress-ng.

fio writes, in each of several ways, and checks every block that it reads back, also after the page cache was dropped.
stress-ng runs each of its stressors of file systems with its checks on, on the mount and on ext4: what fails on both
says nothing of the mount. The mount is of a bucket, which gets all of it in the background.

Needs ``fio`` and ``stress-ng``, and root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import report
import workload

from raycache.testing import ObjectStoreServer

BUCKET = "soak"
FIO_JOBS: dict[str, tuple[str, ...]] = {
    "sequential": ("--rw=write", "--bs=256k"),
    "random": ("--rw=randwrite", "--bsrange=512-64k"),
    "mixed": ("--rw=randrw", "--bs=4k"),
    "synced": ("--rw=randwrite", "--bs=16k", "--fsync=16", "--size=8m"),
    "direct": ("--rw=randwrite", "--bs=4k", "--direct=1"),
    "mapped": ("--rw=randwrite", "--bs=4k", "--ioengine=mmap"),
    "asynchronous": ("--rw=randwrite", "--bs=8k", "--ioengine=libaio", "--iodepth=16", "--direct=1"),
}
STRESSORS = (
    "access,chdir,chmod,chown,copy-file,dentry,dir,dirdeep,dirmany,dup,fallocate,fcntl,file-ioctl,filename,flock,fpunch,"
    "fsize,fstat,getdent,handle,hdd,io,iomix,lease,link,locka,lockf,lockofd,mknod,open,rename,symlink,sync-file,touch,"
    "utime,xattr"
)
STRESS_S = 10
PASSED, SKIPPED = "passed", "not for it"
PROGRAM_S = 300


def main() -> None:
    """Run for a while and write RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--stressors", default=STRESSORS, help="which, comma separated")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line and write nothing")
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    with tempfile.TemporaryDirectory() as scratch, mounted(Path(scratch)) as mount:
        local = Path(scratch) / "ext4"
        local.mkdir()
        found = run(mount, local, arguments.stressors.split(","), time.monotonic() + 60 * arguments.minutes)
    if arguments.json:
        print(json.dumps(found))
    else:
        report.write_section(
            "Writing: fio and stress-ng", f"python benchmarks/soak.py --minutes {arguments.minutes:g}", describe(found)
        )
    raise SystemExit(bool(found["failures"]))


@contextlib.contextmanager
def mounted(home: Path) -> Iterator[Path]:
    """A fresh cache and a mount of a new bucket."""
    import ray

    import raycache

    with ObjectStoreServer() as server:
        os.environ.update(server.environ, RAYCACHE_STATE_DIR=str(home / "state"))
        server.create_bucket(BUCKET)
        ray.init(address="local", object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
        try:
            (home / "mnt").mkdir()
            with raycache.mount(f"s3://{BUCKET}", home / "mnt", mode="w", allow_other=True):
                yield home / "mnt"
            raycache.shutdown(wait_s=0)
        finally:
            ray.shutdown()


def run(mount: Path, local: Path, stressors: list[str], until: float) -> dict[str, Any]:
    """Rounds of all of it until the time is over; what came of it."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    began = time.monotonic()
    while time.monotonic() < until:
        for name, words in FIO_JOBS.items():
            said = fio(mount, name, words)
            counts["fio jobs"] += 1
            failures += [f"fio {name}: {said}"] if said else []
        for name in stressors:
            if time.monotonic() > until:
                break
            here, said = stress(mount, name)
            if here == PASSED:
                counts["stressors"] += 1
            elif stress(local, name)[0] == PASSED:
                failures.append(f"stress-ng {name}, {here}: {said}")
            else:
                counts["stressors that ext4 does not pass either"] += 1
        counts["rounds"] += 1
        print(f"{time.monotonic() - began:.0f} s: {dict(counts)}, {len(failures)} failures", flush=True)
    return {"seconds": time.monotonic() - began, "counts": dict(counts), "failures": failures}


def fio(mount: Path, name: str, words: tuple[str, ...]) -> str:
    """Write by two processes and check; what it said if that went wrong."""
    place = mount / f"fio-{name}"
    place.mkdir(exist_ok=True)
    checks = ["--verify=crc32c", "--verify_fatal=1", "--verify_dump=0", "--do_verify=1", "--size=32m", "--numjobs=2"]
    command = ["fio", f"--name={name}", f"--directory={place}", "--group_reporting", "--end_fsync=1", *checks, *words]
    said = ended(command, mount)[1]
    if not said:
        workload.drop_page_cache()
        said = ended([*command, "--verify_only"], mount)[1]
    shutil.rmtree(place)
    return said


def stress(directory: Path, name: str) -> tuple[str, str]:
    """Two of a stressor for a while: how it ended, and what it said if not well."""
    place = directory / f"stress-{name}"
    place.mkdir(exist_ok=True)
    words = ["--verify", "--temp-path", str(place), "--timeout", f"{STRESS_S}s"]
    code, said = ended(["stress-ng", f"--{name}", "2", *words], directory)
    shutil.rmtree(place, ignore_errors=True)
    return {0: PASSED, 3: SKIPPED, 4: SKIPPED}.get(code, f"exit {code}"), said


def ended(command: list[str], directory: Path) -> tuple[int, str]:
    """How a program ended, and the end of what it said if not well."""
    try:
        done = subprocess.run(
            command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PROGRAM_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, f"has not ended after {PROGRAM_S} s"
    return done.returncode, done.stdout[-2000:] if done.returncode else ""


def describe(found: dict[str, Any]) -> str:
    """In words."""
    counts = ", ".join(f"{count:,} {what}" for what, count in found["counts"].items())
    failures = "".join(f"\n* {each.splitlines()[0]}" for each in found["failures"])
    return f"{found['seconds'] / 60:.0f} minutes: {counts}. Failures: {len(found['failures'])}.\n{failures}"


if __name__ == "__main__":
    main()
