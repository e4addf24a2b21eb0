"""What every command line of the package shares: how it speaks and how it ends."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable, Sequence

from llm.errors import UserError


def say(text: str) -> None:
    """Tell the user something, on standard error."""
    print(text, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return text for a terminal: control characters, which a model may write, as escapes; line breaks stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def entry_point(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Run a command line, with what can go wrong told in one clear paragraph and no traceback.

    Args:
        main: The command, called with the arguments.
        arguments: The command line; the program's own unless given.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 for an interruption.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a narrow terminal encoding must not end a run
    try:
        main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        say(f"error: {' '.join(str(error).split())}")
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say(f"error: the disk is full ({error.filename or 'temporary files'}). Make room; a run goes on by --resume.")
        return 2
    except KeyboardInterrupt:
        say("Interrupted; a run goes on by --resume and its folder.")
        return 130
    return 0
