"""What the pages of a report share: templates that escape, figures as text, pictures."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import matplotlib
from matplotlib.figure import Figure

from llm.console import printable
from llm.statistics import Estimate

LABELS: dict[str, tuple[str, str]] = {
    "judge_win_rate": ("wins over the reference, judge", "{:z.1%}"),
    "judge_tie_rate": ("ties, judge", "{:z.1%}"),
    "judge_length_controlled_win_rate": ("wins at equal length, judge", "{:z.1%}"),
    "reward_model_win_rate": ("wins over the reference, reward", "{:z.1%}"),
    "reward_model_tie_rate": ("ties, reward", "{:z.1%}"),
    "reward_model_length_controlled_win_rate": ("wins at equal length, reward", "{:z.1%}"),
    "mean_reward": ("mean reward", "{:z.2f}"),
    "kl_to_prior": ("KL to the prior (nats a sequence)", "{:z.2f}"),
    "kl_per_token": ("KL to the prior (nats a token)", "{:z.3f}"),
    "completion_length": ("completion length (tokens)", "{:z.1f}"),
    "ended": ("completions that ended by themselves", "{:z.1%}"),
    "distinct_1": ("distinct tokens", "{:z.1%}"),
    "distinct_2": ("distinct pairs of tokens", "{:z.1%}"),
    "distinct_3": ("distinct triples of tokens", "{:z.1%}"),
    "snkl": ("SNKL (nats, known floor 0)", "{:z.3f}"),
    "ess_target": ("ESS of the target's weights", "{:z.2f}"),
    "empty_groups": ("groups without goodness", "{:z.1%}"),
}
"""Every figure's name for people, and how its number is written."""
PAIRED = {
    "judge_win_rate": ("wins, judge", "{:z.1%}"),
    "judge_tie_rate": ("ties, judge", "{:z.1%}"),
    "judge_loss_rate": ("losses, judge", "{:z.1%}"),
    "judge_length_controlled_win_rate": ("wins at equal length, judge", "{:z.1%}"),
    "reward_model_win_rate": ("wins, reward", "{:z.1%}"),
    "reward_model_tie_rate": ("ties, reward", "{:z.1%}"),
    "reward_model_loss_rate": ("losses, reward", "{:z.1%}"),
    "reward_model_length_controlled_win_rate": ("wins at equal length, reward", "{:z.1%}"),
    "mean_reward": ("mean reward, difference", "{:+z.2f}"),
    "kl_to_prior": ("KL to the prior (nats), difference", "{:+z.2f}"),
    "completion_length": ("completion length (tokens), difference", "{:+z.1f}"),
}
"""The same head to head."""
OUTCOMES = {"wins": "win", "ties": "tie", "losses": "loss"}
UNKNOWN = "–"
LINE_PRINTED = 300
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SPECIAL = re.compile(r"[\\`*_<>&|~$]|(?<=\])\(")


def template(name: str) -> jinja2.Template:
    """Load a template.

    What models and data sets wrote is escaped in HTML, and control characters are shown as escapes everywhere.

    Args:
        name: The file's; it ends in .html, .md or .txt.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
    )
    environment.filters |= {"fenced": _fenced, "one_line": _one_line, "inline": _inline}
    return environment.get_template(name)


def interval(value: Estimate | None, form: str) -> str:
    """Return an estimate with its 95 % interval, where it has one.

    Args:
        value: None where it is not known.
        form: How a number is written.
    """
    if value is None:
        return UNKNOWN
    ends = (value["low"], value["high"])
    text = "one value, no interval" if None in ends else ", ".join(form.format(end) for end in ends)
    return f"{form.format(value['estimate'])} [{text}]"


def figure_rows(
    columns: Sequence[Mapping[str, Any]], labels: Mapping[str, tuple[str, str]], is_shown: Callable[[str], bool]
) -> list[tuple[str, list[str]]]:
    """Return the figures that were measured in some column.

    Args:
        columns: Estimates by name.
        labels: The figures' names for people and forms.
        is_shown: Tells which figures to keep.

    Returns:
        (name for people, text in each column).
    """
    return [
        (label, [interval(column.get(name), form) for column in columns])
        for name, (label, form) in labels.items()
        if is_shown(name) and any(column.get(name) for column in columns)
    ]


def verdict_rows(results: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the results of judges that are language models, side by side as text.

    Args:
        results: What `judge/<name>.json` hold.

    Returns:
        (what it is, text of each result).
    """
    texts = [_verdict(result) for result in results]
    return [(name, [text[name] for text in texts]) for name in texts[0]] if texts else []


def image(figure: Figure, suffix: str) -> bytes:
    """Return a figure as an image file's bytes, the same for the same data.

    Args:
        figure: The figure.
        suffix: svg or png.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "brain"}):
        figure.savefig(buffer, format=suffix, dpi=130, metadata={"Date": None} if suffix == "svg" else {})
    return buffer.getvalue()


def inline_picture(svg: bytes) -> markupsafe.Markup:
    """Return a drawing for a page.

    Args:
        svg: What `image` gave of a figure of numbers and our own labels alone, for it is not escaped.
    """
    text = svg.decode()
    return markupsafe.Markup(text[text.index("<svg") :])


def _verdict(result: dict[str, Any]) -> dict[str, str]:
    """A result of `llm.judge` as text, by what it is."""
    rates = {name: interval(result[f"{key}_rate"], "{:.1%}") for name, key in OUTCOMES.items()}
    faults = [f"{count} {name}" for name, count in result["counts"].items() if name not in OUTCOMES.values()]
    return {
        "judge": result["judge_model"],
        "against": result["against"],
        "asked": f"{result['prompts']} prompts; prompt {result['prompt']}, order {result['order']}",
        **rates,
        "no outcome": ", ".join(faults),
        "the two orders agree": interval(result["order_agreement"], "{:.1%}"),
    }


def _visible(value: Any) -> Any:
    """A value of a template with control characters, which steer terminals and vanish from pages, as escapes."""
    if not isinstance(value, str) or not CONTROL.search(value):
        return value
    return type(value)(CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", value))


def _one_line(text: object) -> str:
    """Text on one line of a terminal; of a long one the end, which is nearest to the completion."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= LINE_PRINTED else "… " + line[-LINE_PRINTED:]


def _fenced(text: object) -> str:
    """Text as a Markdown code block that nothing in it can close."""
    return "\n".join("    " + line for line in str(text).splitlines() or [""])


def _inline(text: object) -> str:
    """Text within a line or a cell of Markdown, nothing in it being markup."""
    return SPECIAL.sub(r"\\\g<0>", " ".join(str(text).split()))
