"""Errors that users can mend, shown in one line; all others are defects, with a traceback."""

from __future__ import annotations

import errno

# Errors of the operating system that tell of a disk or of permissions, not of a defect in the code.
ENVIRONMENT = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}


class UserError(ValueError):
    """Input that a user can mend; the message names the place, the value and the expectation."""


class MissingFileError(UserError, FileNotFoundError):
    """A file that a user names, or that an earlier stage makes, is not there."""


def is_explained(error: BaseException) -> bool:
    """Return whether the message of an error tells a user enough to mend it."""
    if isinstance(error, OSError) and error.errno in ENVIRONMENT:
        return True
    return isinstance(error, UserError)
