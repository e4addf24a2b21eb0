"""Folders of finished runs, as far as the reports read them, and texts that try to be more than text."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from llm.figures import change, figures
from llm.records import Completion, EvalRecord, Prompt
from llm.store import ShardFolder, write_json, write_text

NASTY = {
    "script": "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">",
    "closing tags": "</td></tr></table></pre></div></section></title></style><script>document.title = 'taken'</script>",
    "attributes": '"\'><svg onload="document.title = \'taken\'"><b a="',
    "template": "{{ 7 * 7 }} {% for x in y %} {# gone #} ${x}",
    "entities": "&lt;b&gt; &amp; &#60;i&#62;",
    "fences": "```\n# heading\n~~~\n````\n</details>",
    "markdown": "# heading\n- item\n| a | b |\n|---|---|\n![x](http://example.org/x.png)\n<b>bold</b>",
    "line breaks": "one\rtwo\r\nthree\u2028eight\u2029nine",
    "broken UTF-8": b"caf\xe9 \xf0\x9f\x98 \xff end".decode(errors="replace"),
    "long line": "x" * 10_000,
    "long words": "word " * 2_000,
    "blank lines": "\n\n\n  \n# heading\n\n",
    "empty": "",
    "not ASCII": "naïve 😀 العربية \u202e reversed",
}
STEP = {"snkl": 0.3, "ess_target": 3.0, "ess_policy": 5.0, "grad_norm": 0.5, "gradient_signal": 0.2}
VALIDATION = {"reward_model_win_rate": 0.4, "mean_reward": -0.5, "kl_to_prior": 0.0, "completion_length": 9.5}


def records(texts: list[str], *, reward: float = 0.0, judge: bool = True) -> list[EvalRecord]:
    """An evaluation in which every text is a prompt, its completion and its reference."""
    return [
        EvalRecord(
            Prompt(f"test-{i}", text, (3, 4), None),
            Completion(f"test-{i}", 0, (5, 6, 2), "stop", text),
            text,
            reward + i,
            1.0,
            0.5 * i if judge else None,
            0.5 if judge else None,
            -2.0 + reward,
            -2.0,
        )
        for i, text in enumerate(texts)
    ]


def events(steps: int = 8) -> list[dict[str, Any]]:
    """What a run logs."""
    made: list[dict[str, Any]] = [{"event": "evaluation", "step": 0}, {"event": "validation", "step": 0, **VALIDATION}]
    made.append({"event": "phase", "step": 0, "distinct_completions": 0.9})
    made += [{"event": "step", "step": i + 1, **STEP} for i in range(steps)]
    return [*made, {"event": "validation", "step": steps, **VALIDATION}]


def make_run(
    folder: Path,
    texts: list[str],
    *,
    logged: list[dict[str, Any]] | None = None,
    judge: bool = True,
    reward: float = 1.5,
    config: str = "model: <script>alert(2)</script>\nreward: '{{ 1 }}'\n",
    **identity: str,
) -> Path:
    """A finished run.

    Args:
        folder: Where.
        texts: Of the held-out prompts and completions.
        logged: The events.
        judge: Whether there are grades.
        reward: By how much the rewards rose.
        config: Its settings as YAML.
        identity: Parts of its identity that differ from other runs'.
    """
    before, after = records(texts, judge=judge), records(texts, reward=reward, judge=judge)
    for name, one in (("before", before), ("after", after)):
        ShardFolder(folder / "eval").write(name, [record.as_row() for record in one])
    summary = {
        "before": figures(before),
        "after": figures(after),
        "change": change(before, after),
        "best": {"step": 8, "win_rate": 0.5, "mean_reward": 1.0},
        "seconds": 12.3,
        "versions": {"python": "3", "torch": "<b>2</b>"},
        "counts": {"train_prompts": 7},
    }
    write_json(folder / "summary.json", summary)
    write_json(folder / "identity.json", {"model": "m", "prompts": "p", "reward": "r"} | identity)
    write_text(folder / "config.yaml", config)
    logged = events() if logged is None else logged
    write_text(folder / "metrics.jsonl", "".join(json.dumps(event) + "\n" for event in logged))
    return folder


def add_alarm(folder: Path, text: str) -> None:
    """Let a run have given an alarm."""
    line = json.dumps({"event": "alarm", "step": 5, "name": "noise", "text": text})
    write_text(folder / "metrics.jsonl", (folder / "metrics.jsonl").read_text() + line + "\n")


def add_evaluation(folder: Path, name: str, texts: list[str], *, prompts: str | None = None) -> None:
    """Let `llm.evaluate` have evaluated a run."""
    counts = {"prompts": len(texts), "completions": len(texts)}
    result = {"checkpoint": "best", "step": 8, "prompts": prompts, "counts": counts}
    write_json(folder / "eval" / f"{name}.json", result | {"figures": figures(records(texts)), "identity": "x"})


def add_verdicts(folder: Path, judge: str, against: str = "references") -> None:
    """Let `llm.judge` have judged a run."""
    rate = {"estimate": 0.5, "low": 0.2, "high": 0.8, "n": 4}
    result = {"judge_model": judge, "against": against, "prompt": "dialogue", "order": "both", "prompts": 5}
    rates = {f"{name}_rate": rate for name in ("win", "tie", "loss")} | {"order_agreement": None}
    counts = {"win": 2, "tie": 1, "loss": 1, "unanswered": 1, "cut": 0, "unparsed": 0}
    write_json(folder / "judge" / "judge.json", result | rates | {"counts": counts})


class Page(HTMLParser):
    """The elements and attributes of a page, and what stands in its cells, texts and preformatted blocks."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: dict[str, int] = {}
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.open: list[tuple[str, bool]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        is_cell = tag in ("td", "pre") or ("class", "text") in attrs
        if is_cell:
            self.cells.append("")
        if tag not in self.VOID:
            self.open.append((tag, is_cell))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] = self.elements.get(tag, 0) + 1
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1][1]:
            self.cells[-1] += data


def normal(text: str) -> str:
    """Text as an HTML page gives it back: its line breaks are all alike."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
