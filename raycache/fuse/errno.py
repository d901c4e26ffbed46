"""The one table from exceptions to errno, for every session.

Responsible for: which number a program sees, and that each failure leaves a log line that names its cause. Not
responsible for: sending it.

Threading: safe.
"""

from __future__ import annotations

import errno
import logging

from raycache.errors import RaycacheError

_log = logging.getLogger(__name__)

_LARGEST = 511
"""The kernel rejects an answer with a larger number, and whoever asked would wait for ever."""
_NEVER = frozenset({errno.ENOSYS, errno.EINTR, errno.EAGAIN})
"""ENOSYS switches a kind of request off for the life of a mount; the other two tell a program to do what it did."""
_EXPECTED = frozenset(
    {
        errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.EINVAL, errno.ENAMETOOLONG, errno.EEXIST,
        errno.ENOTEMPTY, errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.ENXIO, errno.ERANGE, errno.EXDEV,
        errno.EMLINK,
    }
)  # fmt: skip
"""What programs provoke by themselves, thousands of times a second if they like: no log line."""


def errno_of(error: BaseException, doing: str) -> int:
    """The errno for ``error``. ``doing`` says in the log what failed, with its path: ``"read train/a.jpg"``."""
    if not isinstance(error, OSError | RaycacheError):
        _log.error("%s: %s; this is a defect in raycache", doing, type(error).__name__, exc_info=error)
        return errno.EIO
    number = error.errno
    if number is None or not 0 < number <= _LARGEST or number in _NEVER:
        number = errno.EIO
    if number not in _EXPECTED:
        _log.warning("%s: %s", doing, error)
    return number
