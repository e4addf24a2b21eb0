r"""Stop strings: where an invented next turn begins, looked for in decoded text.

A tokenizer writes the same string with other tokens in another place, so a stop string is never looked for among token
ids. One that begins with line breaks, such as `"\nHuman:"`, is meant at the start of a line, and the completion's own
beginning is one: there it matches without its line breaks, and white space before it is passed over, since models write
a space after "Assistant:" and some tokenizers drop it when decoding.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"


def stop_position(text: str, stops: Sequence[str]) -> int | None:
    r"""Return where a completion is to be cut.

    Args:
        text: The decoded completion.
        stops: Stop strings, none of them empty; case matters.

    Returns:
        The earliest start of any of them, in characters, or None where the text holds none.

    Example:
        >>> stop_position(" Yes.\n\nHuman: And then?", ["\nHuman:"])
        6
        >>> stop_position(" Human: And then?", ["\nHuman:"])
        0
        >>> stop_position(" Ask another Human: me.", ["\nHuman:"])
    """
    starts = [_start(text, stop) for stop in stops]
    return min((start for start in starts if start >= 0), default=None)


def text_before_stop(text: str, stops: Sequence[str]) -> str:
    r"""Return what the reward and the judge see of a completion.

    Args:
        text: The decoded completion.
        stops: Stop strings, none of them empty.

    Returns:
        The text before the earliest stop string, without the white space that led to it; without a stop string, the
        text as it is.

    Example:
        >>> text_before_stop(" Yes.\n\nHuman: And then?", ["\nHuman:"])
        ' Yes.'
    """
    cut = stop_position(text, stops)
    return text if cut is None else text[:cut].rstrip()


def tokens_until_stop(
    token_ids: Sequence[int], decode: Callable[[Sequence[int]], str], stops: Sequence[str]
) -> int | None:
    """Return how many of a completion's tokens to keep.

    Args:
        token_ids: (C,) the completion's tokens.
        decode: The text of the completion's first tokens.
        stops: Stop strings, none of them empty.

    Returns:
        The least k such that the text of the first k tokens holds a stop string: the token that completes it is the
        last one kept. None where there is none, which is known after one call of `decode`; k takes O(log C) calls.
    """

    def holds_stop(count: int) -> bool:
        """Whether the first tokens, or fewer of them, hold a stop string.

        While a character is not whole, some decoders hide those before it too: then one token fewer is asked.
        """
        text = decode(token_ids[:count])
        while text.endswith(UNFINISHED) and stop_position(text, stops) is None:
            count -= 1
            text = decode(token_ids[:count])
        return stop_position(text, stops) is not None

    if not holds_stop(len(token_ids)):
        return None
    return bisect.bisect_left(range(len(token_ids)), True, key=holds_stop)


def _start(text: str, stop: str) -> int:
    """Where a stop string starts, -1 where it does not."""
    words = stop.lstrip("\n")
    starts_a_line = stop != words and words != ""
    return 0 if starts_a_line and text.lstrip().startswith(words) else text.find(stop)
