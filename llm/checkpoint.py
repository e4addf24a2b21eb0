"""Checkpoints to resume from, and the best adapter as a normal peft folder."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from llm.controls import control_texts
from llm.errors import UserError
from llm.methods import METHODS
from llm.models import CONTROL, VALUE_HEAD, Policy
from llm.sft_adapter import POLICY
from llm.store import disk_errors, read_json, write_json, write_text, write_whole

KEPT = 2


@dataclass(frozen=True)
class TrainerState:
    """Where a run stands.

    Attributes:
        step: Gradient steps done.
        best: The best validation so far: {"step", "win_rate", "mean_reward"}.
        metrics_bytes: Size of `metrics.jsonl` at this point.
    """

    step: int
    best: dict[str, float]
    metrics_bytes: int


def save_checkpoint(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, state: TrainerState) -> None:
    """Write `checkpoints/step-…` whole or not at all, point `checkpoints/last` at it, and remove older ones.

    A run goes on from the newest step; the link `last` is for people and other programs.
    """
    root = folder / "checkpoints"
    name = f"step-{state.step:06d}"
    partial = root / f".{name}.partial"
    with disk_errors(root / name):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    adapter = safetensors.torch.save(policy.adapter_state())
    contents = {"adapter.safetensors": adapter, "optimizer.pt": _packed(optimizer)}
    for file, content in contents.items():
        write_whole(partial / file, content)
    checksums = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    write_json(partial / "state.json", asdict(state) | {"checksums": checksums})
    with disk_errors(root / name):
        _put_aside(root / name)
        os.replace(partial, root / name)
        _point(root / "last", name)
    for old in sorted(root.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> TrainerState | None:
    """Restore the newest checkpoint, or return None where there is none yet.

    Raises:
        UserError: A file of the checkpoint is damaged.
    """
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    if not checkpoints:
        return None
    last = checkpoints[-1]
    stored = read_json(last / "state.json")
    for file, checksum in stored.pop("checksums").items():
        content = (last / file).read_bytes() if (last / file).is_file() else b""
        if hashlib.sha256(content).hexdigest() != checksum:
            raise UserError(
                f"{last / file}: damaged or missing. Remove this step's folder to go on from the one before it, or "
                "start a new run."
            )
    policy.load_adapter_state(safetensors.torch.load_file(last / "adapter.safetensors"))
    optimizer.load_state_dict(torch.load(last / "optimizer.pt", map_location="cpu", weights_only=True))
    return TrainerState(**stored)


def save_adapter(folder: Path, policy: Policy, card: str) -> None:
    """Write the policy's `adapter/`, a normal peft folder with a model card; each file appears whole or not at all."""
    target = folder / "adapter"
    with tempfile.TemporaryDirectory() as scratch:
        policy.model.save_pretrained(scratch, selected_adapters=[POLICY], save_embedding_layers=False)
        for part, tensors in policy.parts().items():
            state = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            safetensors.torch.save_file(state, Path(scratch) / f"{part}.safetensors")
        write_text(Path(scratch) / "README.md", card)
        for file in sorted(Path(scratch).iterdir()):
            write_whole(target / file.name, file.read_bytes())


def load_best_adapter(folder: Path, policy: Policy) -> None:
    """Put the adapter of `adapter/` in place, with the policy's parts beside it."""
    state = safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")
    for part in (VALUE_HEAD, CONTROL):
        if (path := folder / "adapter" / f"{part}.safetensors").is_file():
            state |= {f"{part}.{name}": tensor for name, tensor in safetensors.torch.load_file(path).items()}
    policy.load_adapter_state(state)


def _packed(optimizer: torch.optim.Optimizer) -> bytes:
    """The optimiser's state as bytes that `torch.load(weights_only=True)` reads."""
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    return buffer.getvalue()


def _put_aside(folder: Path) -> None:
    """Remove a folder in such a way that no part of it is ever there under its name."""
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        shutil.rmtree(aside)


def _point(link: Path, name: str) -> None:
    """Make a symbolic link, or move it, in one step."""
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, link)


def model_card(config: Any, state: dict[str, float]) -> str:
    """Return the adapter's model card."""
    return f"""---
base_model: {config.model}
library_name: peft
tags: [{config.method}, lora]
---

# LoRA adapter aligned with {"BRAIn" if config.method == "brain" else config.method}

Base model: `{config.model}`. {_sft_line(config)}Reward: `{config.reward}`.
Goodness: `{config.goodness}`, temperature {config.temperature}.
Chosen at step {state["step"]} of {config.e * config.k} by the validation win rate over the references
({state["win_rate"]:.1%}, judged by the reward model).

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({config.model!r}, dtype="{config.dtype}")
{_loading_lines(config)}
```

{_control_line(config, state)}{_method_line(config)} Settings: `config.yaml` of the run.
"""


def _method_line(config: Any) -> str:
    """The method and its source."""
    if config.method == "brain":
        return "Method: BRAIn, Bayesian reward-conditioned amortized inference (arXiv 2402.02479)."
    return f"Method: `{config.method}` ({METHODS[config.method].source}), in BRAIn's toolkit (arXiv 2402.02479)."


def _control_line(config: Any, state: dict[str, float]) -> str:
    """What Quark's policy wants to read before a prompt; until training has begun it is the prior, which wants none."""
    if config.method != "quark" or state["step"] == 0:
        return ""
    return (
        f"Put the tokens of the text {control_texts(config)[-1]!r} before every prompt, behind the "
        "beginning-of-sequence token if the prompt has one: it asks for the best completions. Tokenise it apart from "
        "the prompt and without special tokens; `control.safetensors` holds the ids.\n\n"
    )


def _sft_line(config: Any) -> str:
    """What made the base the SFT model, and whether this adapter can do without it."""
    if not config.sft_adapter:
        return ""
    relation = {"copy": "this one replaces it", "stack": "this one is used with it", "merge": "merged into the base"}
    return f"SFT adapter: `{config.sft_adapter}` ({relation[config.sft_mode]}). "


def _loading_lines(config: Any) -> str:
    """The lines of Python that make a base the aligned model."""
    here = '"PATH/TO/THIS/FOLDER"'
    alone = f"model = PeftModel.from_pretrained(model, {here})"
    if not config.sft_adapter or config.sft_mode == "copy":
        return alone
    if config.sft_mode == "merge":
        return f"model = PeftModel.from_pretrained(model, {config.sft_adapter!r}).merge_and_unload()\n{alone}"
    return (
        f'model = PeftModel.from_pretrained(model, {config.sft_adapter!r}, adapter_name="sft")\n'
        f'model.load_adapter({here}, adapter_name="policy")\n'
        'model.base_model.set_adapter(["sft", "policy"])'
    )
