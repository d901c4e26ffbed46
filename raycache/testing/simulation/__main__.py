"""The command: one seed with its trace, or many until one fails or somebody interrupts.

SIGINT and SIGTERM end it after the seed that runs, with the sum of what was done; a second one ends it at once. That
holds for a run in the background too, for which shells have SIGINT ignored.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from dataclasses import dataclass, field

from raycache.testing.simulation.run import Failure, Run, simulate

PROGRESS_S = 30.0
"""How often it says how far it is."""


def main(arguments: list[str]) -> int:
    """Run; the exit status is 1 when a run failed, 128 and the signal's number when one ended it."""
    parser = argparse.ArgumentParser(prog="python -m raycache.testing.simulation")
    parser.add_argument("--seed", type=int, help="run this one, and print its trace")
    parser.add_argument("--seeds", type=int, default=1000, help="run so many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep-going", action="store_true", help="go on after a run that failed")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _one(options.seed)
    return _many(range(options.first, options.first + options.seeds), options.keep_going)


def _one(seed: int) -> int:
    run = Run(seed, keep_trace=True)
    try:
        outcome = run.run()
    finally:
        _say("\n".join(run.simulation.trace or []))
    _say(str(outcome))
    return 0


@dataclass
class _Tally:
    """What was run so far."""

    seeds: int = 0
    steps: int = 0
    reads: int = 0
    failed: list[int] = field(default_factory=list)
    begun_s: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        took_s = time.monotonic() - self.begun_s
        failed = f"{len(self.failed)} failed {self.failed}" if self.failed else "none failed"
        return f"{self.seeds} seeds, {failed}, {self.steps} steps, {self.reads} reads verified, {took_s:.0f} s"


def _many(seeds: range, keep_going: bool) -> int:
    logging.getLogger("raycache").setLevel(logging.CRITICAL)  # what is warned of is what the seeds are for
    tally, signals = _Tally(), _Signals()
    _say(f"seeds {seeds.start} to {seeds.stop - 1}")
    said = tally.begun_s
    for seed in seeds:
        if signals.caught or (tally.failed and not keep_going):
            break
        try:
            outcome = simulate(seed)
        except Failure as failure:
            tally.failed.append(seed)
            _say(str(failure))
        else:
            tally.steps, tally.reads = tally.steps + outcome.steps, tally.reads + outcome.figures.reads
        tally.seeds += 1
        if time.monotonic() - said >= PROGRESS_S:
            said = time.monotonic()
            _say(f"... up to {seed}: {tally}")
    _say(f"{f'stopped before {seeds.start + tally.seeds}: ' if signals.caught else ''}{tally}")
    return 128 + signals.caught if signals.caught else int(bool(tally.failed))


class _Signals:
    """Notes the first signal that asks the run to end."""

    def __init__(self) -> None:
        self.caught = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.caught = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
