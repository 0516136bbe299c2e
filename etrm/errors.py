"""Errors that users can mend, shown in one line; all others are defects, with a traceback."""

from __future__ import annotations

import errno

# Errors of the operating system that tell of a disk or of permissions, not of a defect in the code.
ENVIRONMENT = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR),
}


class UserError(ValueError):
    """An error in what was given: its message says what was found, where, and what was expected."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that a user names, or that an earlier stage makes, is not there."""


def is_explained(error: BaseException) -> bool:
    """Return whether the message of an error tells a user enough to mend it."""
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        return True
    return isinstance(error, UserError)
