"""Writes files for some seconds in all sorts of ways and reads each back: any error or wrong byte ends it.

python verified_writer.py SEED SECONDS      in the directory to write in; prints {"files": how many}
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path


def write(path: Path, generator: random.Random) -> bytes | None:
    """Write one file; what it must hold, or None when it was removed while it was open."""
    data = bytearray(generator.randbytes(generator.choice([10, 5000, 200_000, 3_000_000])))
    with open(path, "wb", buffering=0) as file:
        at = 0
        while at < len(data):
            at += file.write(memoryview(data)[at : at + generator.choice([4096, 100_000, 2**20])])
        for _ in range(generator.randrange(4)):
            start = generator.randrange(len(data))
            piece = generator.randbytes(min(3000, len(data) - start))
            file.seek(start)
            file.write(piece)
            data[start : start + len(piece)] = piece
        if generator.random() < 0.3:
            os.fsync(file.fileno())
        if generator.random() < 0.3:
            size = generator.randrange(len(data))
            file.truncate(size)
            del data[size:]
        if generator.random() < 0.2:
            os.unlink(path)
            return None
    return bytes(data)


def main(seed: int, seconds: float) -> None:
    generator, directory = random.Random(seed), Path(f"writer-{seed}")
    directory.mkdir(exist_ok=True)
    files, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        path = directory / str(generator.randrange(20))
        data = write(path, generator)
        if data is not None:
            assert path.read_bytes() == data, f"{path} holds other bytes"
            if generator.random() < 0.3:
                target = directory / f"renamed-{generator.randrange(5)}"
                os.rename(path, target)
                assert target.read_bytes() == data, f"{target} holds other bytes"
        files += 1
    print(json.dumps({"files": files}))  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
