"""The one exception type for what a user can fix."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend: bad input, a missing file, settings that contradict each other.

    The message is one clear paragraph that names the file, row, field or option and says what to do.
    Command-line entry points print it and exit with status 2, without a traceback.
    """
