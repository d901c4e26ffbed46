"""The command: one seed with its trace, or many until one fails."""

from __future__ import annotations

import argparse
import sys
import time

from raycache.testing.simulation.run import Failure, Run, simulate


def main(arguments: list[str]) -> int:
    """Run; the exit status is 1 when a run failed."""
    parser = argparse.ArgumentParser(prog="python -m raycache.testing.simulation")
    parser.add_argument("--seed", type=int, help="run this one, and print its trace")
    parser.add_argument("--seeds", type=int, default=1000, help="run so many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args(arguments)
    write = sys.stdout.write
    if options.seed is not None:
        run = Run(options.seed, keep_trace=True)
        try:
            outcome = run.run()
        finally:
            write("\n".join(run.simulation.trace or []) + "\n")
        write(f"{outcome}\n")
        return 0
    begun, steps, reads = time.monotonic(), 0, 0
    for seed in range(options.first, options.first + options.seeds):
        try:
            outcome = simulate(seed)
        except Failure as failure:
            write(f"{failure}\n")
            return 1
        steps, reads = steps + outcome.steps, reads + outcome.figures.reads
    took_s = time.monotonic() - begun
    write(f"{options.seeds} seeds, {steps} steps, {reads} reads verified, {took_s:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
