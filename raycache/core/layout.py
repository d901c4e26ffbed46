"""Layout: how the files of a directory become blocks. Pure, and a function of the manifest alone.

Think of the files of a directory, in row order, as one long stream. ``ends[r]`` is where row ``r`` starts in it and
``ends[r + 1]`` where it stops. ``cuts`` are the stream positions at which one block stops and the next begins.

* A file that fits into a block is never cut: block boundaries between small files fall on file boundaries.
* A file larger than a block starts a block of its own and is cut every ``block_bytes``; its tail is the last block.
* A block spans at most BLOCK_FILES rows.
* Appending rows only appends cuts: the blocks that existed keep their number and their bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


BLOCK_FILES = 4096
"""Most rows that one block spans: a plan of it stays small where files are tiny."""


def extend_cuts(
    ends: NDArray[np.uint64], first_row: int, cuts: NDArray[np.uint64], block_bytes: int
) -> NDArray[np.uint64]:
    """Cuts of the whole stream, given the cuts of the rows before ``first_row``.

    ``ends``: uint64[rows + 1], bytes. ``cuts``: uint64[blocks + 1], bytes, starting with 0 and ending with
    ``ends[first_row]``. The first new row always begins a new block, so that no old block grows.
    """
    rows = len(ends) - 1
    found = [int(cut) for cut in cuts] or [0]
    row = first_row
    while row < rows:
        start = int(ends[row])
        # The last row that still ends within one block of `start`; empty files ride along for free.
        # A plain int would make numpy convert all of `ends` to float64, at each block.
        fits = int(np.searchsorted(ends, np.uint64(start + block_bytes), side="right")) - 1
        fits = min(fits, row + BLOCK_FILES)
        if fits > row:
            # `fits` rows end inside; a large file that comes next must begin at a cut, and it does: at ends[fits].
            stop, row = int(ends[fits]), fits
            if stop > start:
                found.append(stop)
            continue
        stop = int(ends[row + 1])
        found.extend(range(start + block_bytes, stop, block_bytes))
        found.append(stop)
        row += 1
    return np.asarray(found, dtype=np.uint64)
