"""The exception tree, grouped by what the caller should do.

    RaycacheError
    ├── InvalidInput        ValueError          correct the argument and call again
    ├── NotFound            FileNotFoundError   the path is not there
    ├── IsADirectory        IsADirectoryError   read a file, not this directory
    ├── NotADirectory       NotADirectoryError  list a directory, not this file
    ├── AccessDenied        PermissionError     give other credentials
    ├── ReadOnly            PermissionError     this path cannot be written
    ├── Exists              FileExistsError     choose another name, or remove what is there
    ├── NotEmpty            OSError (ENOTEMPTY) remove what is in the directory first
    ├── Refused             OSError (EPERM ...) what POSIX does not allow; its errno says which
    ├── NoSpace             OSError (ENOSPC)    free or persist what was written, or raise the quota
    ├── Changed             OSError (ESTALE)    the source changed under a listing: refresh, then read again
    ├── MountError          OSError             a mount could not be made or ended
    └── Unavailable         OSError             try again later, something is away
        ├── SourceUnavailable                   the under file system
        ├── WorkerLost                          one worker; another one may answer
        └── ClusterUnavailable                  Ray, or the master

Every message says what happened, to which path, and what to do. Classes have no ``__init__`` of their own: they
cross process borders by pickle, and a class with a different signature does not come back (a test pickles each).
"""

from __future__ import annotations

import errno


class RaycacheError(Exception):
    """Base of everything raycache raises on purpose."""

    errno: int | None = errno.EIO
    retryable = False


class InvalidInput(RaycacheError, ValueError):
    """An argument, URI, name or setting that cannot be meant."""

    errno = errno.EINVAL


class NotFound(RaycacheError, FileNotFoundError):
    """No such file, directory, bucket or dataset."""

    errno = errno.ENOENT


class IsADirectory(RaycacheError, IsADirectoryError):
    """A file was asked for and a directory found."""

    errno = errno.EISDIR


class NotADirectory(RaycacheError, NotADirectoryError):
    """A directory was asked for and a file found."""

    errno = errno.ENOTDIR


class AccessDenied(RaycacheError, PermissionError):
    """The under file system refused the credentials, or Ray the token."""

    errno = errno.EACCES


class ReadOnly(RaycacheError, PermissionError):
    """A write to something that can only be read."""

    errno = errno.EROFS


class Exists(RaycacheError, FileExistsError):
    """Something has this name already."""

    errno = errno.EEXIST


class NotEmpty(RaycacheError, OSError):
    """A directory that still holds something."""

    errno = errno.ENOTEMPTY


class Refused(RaycacheError, OSError):
    """What a file system does not allow: ``Refused.because(errno.EXDEV, message)``."""

    errno = errno.EPERM

    @staticmethod
    def because(number: int, message: str) -> Refused:
        """With an errno of its own, which survives pickling."""
        error = Refused(message)
        error.errno = number
        return error


class NoSpace(RaycacheError, OSError):
    """No room for new bytes."""

    errno = errno.ENOSPC


class Changed(RaycacheError, OSError):
    """The file is not the one that was listed: old bytes are gone, new ones belong to another version."""

    errno = errno.ESTALE


class MountError(RaycacheError, OSError):
    """A mount point that cannot be used, or a gateway that did not come up."""

    errno = errno.EINVAL


class Unavailable(RaycacheError, OSError):
    """Something did not answer before its deadline."""

    errno = errno.EIO
    retryable = True


class SourceUnavailable(Unavailable):
    """The under file system did not answer, after retries."""


class WorkerLost(Unavailable):
    """The worker that was asked died or does not answer."""


class ClusterUnavailable(Unavailable):
    """Ray or the master cannot be reached."""
