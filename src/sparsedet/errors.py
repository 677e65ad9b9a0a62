"""`InputError`: your input is wrong, not this program; and warnings of renamed things.

The command line turns an InputError into one line on stderr and exit code 1, a UsageError into 2.
"""

from __future__ import annotations

import warnings


class InputError(ValueError):
    """A file or argument that cannot be used; the message names it and says what to do."""


class UsageError(InputError):
    """An argument that is wrong by itself, whatever the files hold: out of range, unknown."""


def warn_renamed(old: object, new: object) -> None:
    """Warn that a name of release 0.1 is deprecated; it works for one release more."""
    warnings.warn(f"{old!s} is now {new!s}", DeprecationWarning, stacklevel=3)
