"""Files of which the kernel is to keep no page, so that whoever serves them is asked.

Of given files only: tests run side by side, and of the whole machine's pages some are what another test relies on.
"""

from __future__ import annotations

import os
from pathlib import Path


def drop_pages(*roots: Path) -> None:
    """Have the kernel forget what it holds of a file, or of all files below a directory; what is gone is skipped."""
    for root in roots:
        for path in [root] if root.is_file() else root.rglob("*"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            except OSError:
                continue  # gone meanwhile, a link, or its server was killed: then there is nothing to forget
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
