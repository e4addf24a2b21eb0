"""What every command line of the package shares: how it speaks and how it ends."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence

from llm.errors import UserError


def say(text: str) -> None:
    """Tell the user something, on standard error."""
    print(text, file=sys.stderr, flush=True)


def entry_point(main: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 2 with one clear paragraph for what the user can mend."""
    try:
        main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        say(f"error: {error}")
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say(f"error: the disk is full ({error.filename or 'temporary files'}). Make room, then use --resume.")
        return 2
    except KeyboardInterrupt:
        say("Interrupted; go on with --resume and the run folder.")
        return 130
    return 0
