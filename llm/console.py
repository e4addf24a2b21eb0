"""What every command line of the package shares: how it speaks and how it ends."""

from __future__ import annotations

import contextlib
import errno
import io
import sys
from collections.abc import Callable, Iterator, Sequence

from llm.errors import UserError

CPU_ALLOCATOR = "DefaultCPUAllocator: "
"""What torch's message begins with, after a place in its source, where the computer's memory is full."""

MORE_ROOM = "Lower --sample-rows (llm.reward_model: --batch), or choose a narrower --dtype or --quantization nf4."


def say(text: str) -> None:
    """Tell the user something, on standard error."""
    print(text, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Return text for a terminal: control characters, which a model may write, as escapes; line breaks stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def memory_errors(doing: str, remedy: str) -> Iterator[None]:
    """Tell what was being done, and what helps, where memory runs out.

    Args:
        doing: What is done within this context.
        remedy: A sentence with the setting to change.

    Raises:
        UserError: There was not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        message = ". ".join(str(error).rpartition(CPU_ALLOCATOR)[2].split(". ")[:2]).rstrip(".") or "MemoryError"
        raise UserError(f"Out of memory while {doing} ({message}). {remedy}") from error


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a GPU or, which torch tells by a RuntimeError, on the CPU."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return on_gpu or isinstance(error, MemoryError) or CPU_ALLOCATOR in str(error)


def entry_point(
    main: Callable[[Sequence[str]], None],
    arguments: Sequence[str] | None = None,
    go_on: str = "A run goes on by --resume and its folder.",
) -> int:
    """Run a command line, with what can go wrong told in one clear paragraph and no traceback.

    Args:
        main: The command, called with the arguments.
        arguments: The command line; the program's own unless given.
        go_on: A sentence that says how, after an interruption or a full disk.

    Returns:
        The exit status: 0, 2 for what the user can mend, 130 for an interruption.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a narrow terminal encoding must not end a run
    try:
        with memory_errors("loading, sampling or scoring", MORE_ROOM):
            main(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        say(f"error: {' '.join(str(error).split())}")
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say(f"error: the disk is full ({error.filename or 'temporary files'}). Make room. {go_on}")
        return 2
    except KeyboardInterrupt:
        say(f"Interrupted. {go_on}")
        return 130
    return 0
