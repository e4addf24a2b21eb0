"""Every method trains on the embedded default, whose world is the user's own, prepared once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm.align import main
from llm.console import entry_point
from llm.methods import METHODS
from llm.tiny.prepare import prepare

SIZES = ["--e=3", "--m=32", "--n=8", "--k=12", "--batch=8", "--validation-count=64", "--test-count=192"]
SIZES += ["--validate-every=12", "--checkpoint-every=36", "--tracker=none"]
OWN = {
    "dpo": ["--n=2", "--batch=32"],
    "ipo": ["--dpo-beta=0.3"],
    "ppo": ["--learning-rate=0.003"],
    "quark": ["--k=48", "--n=8", "--learning-rate=0.002", "--quark-prefix={}", "--quantiles"],
}
"""Settings that some methods need at this size."""
WORDS = [" Saturday", " Karen", " laptop", " umbrella", " Tokyo"]
"""Quark's controls: words that the small model knows, as it does not know single letters."""


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_raises_the_reward_on_the_embedded_default(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [f"--method={method}", *SIZES, *OWN.get(method, [])]
    if method == "dpo":
        options.append(f"--rollouts={_pairs(tmp_path)}")
    words = WORDS if method == "quark" else []
    assert entry_point(main, [*options, *words, "--out=run"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["change"]["mean_reward"]["low"] > 0, summary["change"]


def _pairs(folder: Path) -> Path:
    """The small world's preferences as groups of two."""
    world = Path(prepare()["prompts"]).parent
    path = folder / "pairs.jsonl"
    with open(world / "preferences.jsonl") as preferences, open(path, "w") as pairs:
        for _, line in zip(range(96), preferences, strict=False):
            row = json.loads(line)
            group = {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]], "scores": [1.0, 0.0]}
            pairs.write(json.dumps(group) + "\n")
    return path
