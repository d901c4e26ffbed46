"""A reader in a process of its own: random files, every byte verified, some held open and mapped all the while.

    python verified_reader.py ROOT SUMS.json SEED

Prints a JSON line when told to end (its standard input is closed): reads, failures, longest pause in seconds.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import select
import sys
import time

say = sys.stdout.write


def main() -> None:
    root, sums_file, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with open(sums_file, encoding="utf-8") as file:
        sums: dict[str, str] = json.load(file)
    rng = random.Random(seed)
    names = sorted(sums)
    held = {name: open(os.path.join(root, name), "rb", buffering=0) for name in rng.sample(names, 3)}  # noqa: SIM115
    mapped = {name: mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for name, file in held.items()}
    reads, failures, longest = 0, [], 0.0
    say("reading\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], 0)[0]:
        name, how = rng.choice(names), rng.random()
        began = time.monotonic()
        try:
            if how < 0.2:
                name = rng.choice(sorted(held))
                held[name].seek(0)
                data: bytes | mmap.mmap = held[name].read()
            elif how < 0.4:
                name = rng.choice(sorted(mapped))
                data = mapped[name]
            else:
                with open(os.path.join(root, name), "rb", buffering=0) as file:
                    data = file.read()
            if hashlib.sha256(data).hexdigest() != sums[name]:
                failures.append(f"{name}: other bytes")
        except OSError as error:
            failures.append(f"{name}: {error}")
        longest = max(longest, time.monotonic() - began)
        reads += 1
    say(json.dumps({"reads": reads, "failures": failures[:20], "longest_s": longest}))


if __name__ == "__main__":
    main()
