"""How many completions go through one training pass: as many as memory has room for, by measuring small passes.

What a pass needs is a number of bytes for each group (its prompt) and each completion. They depend on architecture,
LoRA, precision, quantisation, engine and activation checkpointing, and so are measured. The forward pass (whose logits
need room of constant size) and the backward pass peak apart: the one that is higher in a small pass need not be in a
large one.
"""

from __future__ import annotations

import contextlib
import math
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from llm import sharding, shared_prefix
from llm.config import AlignConfig
from llm.console import memory_errors, say
from llm.logprob import sequence_log_probs
from llm.models import Policy
from llm.records import Completion, Pair, Prompt
from llm.rewards import AnyReward, models_of

SHARES = {"cuda": 0.85}
"""What part of a device's memory a run plans with: half of a computer's, which others use too and where the C library's
heap may hold as much again as the tensors in it."""
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
GIB = 2**30
LogProbs = Callable[[Policy, Sequence[Pair]], torch.Tensor]


class PassCost(NamedTuple):
    """Bytes that a forward or a backward pass needs at its peak.

    Attributes:
        constant: Whatever its size, such as one chunk of logits.
        per_group: For each prompt in it.
        per_completion: For each completion in it.
    """

    constant: float
    per_group: float
    per_completion: float

    def of(self, rows: int, n: int) -> float:
        """Return the bytes of a pass of some completions, n to a group."""
        return self.constant + math.ceil(rows / n) * self.per_group + rows * self.per_completion


def with_train_rows(config: AlignConfig, policy: Policy, prompts: Sequence[Prompt], reward: AnyReward) -> AlignConfig:
    """Return the settings with `train_rows` chosen, where it is 0, and say what was chosen.

    Only the device's total memory counts, not what is free of it, so that a machine always decides the same.

    Args:
        config: The settings.
        policy: The policy, with its adapter.
        prompts: The training prompts; the longest one is reckoned with.
        reward: The reward; see `pass_budget`.

    Raises:
        UserError: Not even the small pass fits.
    """
    if config.train_rows:
        return config
    longest = max(len(prompt.token_ids) for prompt in prompts)
    costs = pass_costs(policy, longest, config.max_new_tokens, config.n)
    budget = pass_budget(policy, reward)
    rows = min(fitting_rows(cost, budget, config.n, config.batch) for cost in costs)
    needed = max(cost.of(rows, config.n) for cost in costs)
    say(f"Training in passes of {rows} completions (an estimated {needed / GIB:.1f} of {budget / GIB:.1f} GiB).")
    if needed > budget:
        say("Warning: one completion may be too many. --activation-checkpointing or --quantization nf4 saves memory.")
    return replace(config, train_rows=rows)


def fitting_rows(cost: PassCost, budget: float, n: int, batch: int) -> int:
    """Return how many completions a pass may have: whole groups if one fits, else part of one, at least 1.

    Args:
        cost: What a forward or a backward pass needs.
        budget: Bytes that it may have.
        n: Completions of a group.
        batch: Groups of a gradient step.
    """
    if cost.of(n, n) <= budget:
        return min(batch, int((budget - cost.constant) // (cost.per_group + n * cost.per_completion))) * n
    return max(1, int((budget - cost.constant - cost.per_group) // cost.per_completion))


def pass_budget(policy: Policy, reward: AnyReward) -> float:
    """Return the bytes that a training pass may have: a share of the device's less weights, gradient and AdamW's state.

    Args:
        policy: The policy.
        reward: The reward; a model that it holds counts where it lies on the same device, as all do on the CPU.
    """
    here = [model for model in models_of(reward) if model.device.type == policy.device.type]
    weights = sum(sharding.bytes_held(model) for model in (policy.model, *here))
    trained = sum(parameter.nbytes for parameter in policy.parameters())
    return _total_memory(policy.device) * SHARES.get(policy.device.type, 0.5) - weights - 3 * trained


def pass_costs(policy: Policy, prompt_length: int, length: int, n: int) -> list[PassCost]:
    """Measure what a forward and what a backward pass needs, on three small ones.

    Args:
        policy: The policy; its gradient is left empty.
        prompt_length: Tokens of a prompt.
        length: Tokens of a completion.
        n: Completions of a group.

    Raises:
        UserError: There is not even memory for these.
    """
    few = few_rows(policy, length, n)
    with memory_errors("measuring what a training pass needs", "Set --train-rows, or use --activation-checkpointing."):
        peaks = [
            peak_bytes(policy, made_up_pairs(prompt_length, length, groups, rows))
            for groups, rows in ((1, few), (1, 2 * few), (2, few))
        ]
    return [cost_of(measured, few) for measured in zip(*peaks, strict=True)]


def cost_of(measured: tuple[int, ...], few: int) -> PassCost:
    """Return the cost that explains three measured passes.

    Args:
        measured: Bytes of `few` completions of one prompt, of twice as many, and of as many of two prompts.
        few: That number.
    """
    base, more_completions, more_groups = measured
    per_completion, per_group = (more_completions - base) / few, max(0, more_groups - base)
    return PassCost(max(0.0, base - per_group - few * per_completion), per_group, per_completion)


def made_up_pairs(prompt_length: int, length: int, groups: int, rows: int) -> list[Pair]:
    """Return completions, spread over groups, of given lengths; what they say does not matter.

    Args:
        prompt_length: Tokens of each prompt.
        length: Tokens of each completion.
        groups: Prompts, fewer than the model has tokens.
        rows: Completions in all, a multiple of `groups`.
    """
    prompts = [Prompt(f"made up {token}", "", (token,) * prompt_length, None) for token in range(groups)]
    completions = [Completion("made up", i, (0,) * length, "length", "") for i in range(rows // groups)]
    return [(prompt, completion) for prompt in prompts for completion in completions]


def peak_bytes(policy: Policy, pairs: list[Pair], log_probs: LogProbs = sequence_log_probs) -> tuple[int, int]:
    """Return the bytes of the tensors at the peak of a forward and of a backward pass, without those that stay.

    Args:
        policy: The policy; its gradient is left empty.
        pairs: N prompts with a completion each.
        log_probs: Computes log q_θ (N,) from these two.

    Returns:
        Bytes at the peak of the forward pass, and of the backward pass.
    """
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Allocations(policy.device) as allocations:
        total = log_probs(policy, pairs).sum()
        forward, allocations.peak = allocations.peak, allocations.now
        total.backward()
    for parameter in policy.parameters():
        parameter.grad = None
    return forward, allocations.peak


class Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that are made on a device within this context while they live."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._device = device.type
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_iter((args, kwargs)):
            self._note(tensor, made=False)  # what comes in unknown was there before
        results = func(*args, **(kwargs or {}))
        for tensor in tree_iter(results):
            self._note(tensor, made=True)
        self.peak = max(self.peak, self.now)
        return results

    def _note(self, value: object, *, made: bool) -> None:
        """Remember the storage of a tensor, if it is new and on the device, until it is freed."""
        if not isinstance(value, torch.Tensor) or value.device.type != self._device:
            return
        storage = value.untyped_storage()
        key = id(storage)
        if key not in self._known:
            size = storage.nbytes() if made else 0
            self.now += size
            self._known[key] = weakref.ref(storage, partial(self._forget, key, size))

    def _forget(self, key: int, size: int, _: object) -> None:
        """A storage was freed."""
        self.now -= size
        del self._known[key]


def few_rows(policy: Policy, length: int, n: int) -> int:
    """Return an even number of completions for a small pass, so many that chunks of logits reach full size.

    Args:
        policy: The policy.
        length: Tokens of a completion.
        n: Completions of a group.
    """
    if not policy.shares_prompts:
        return 2
    tokens = 2 * shared_prefix.LOGITS_AT_ONCE / policy.base.config.get_text_config().vocab_size
    return 2 * math.ceil(max(4, min(tokens / length, n)) / 2)


def _total_memory(device: torch.device) -> float:
    """Bytes of memory of a GPU, else of this computer or the container that it is."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = min(int(psutil.virtual_memory().total), *map(_limit, CONTAINER_LIMITS))
    return total / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of one run share it


def _limit(path: str) -> float:
    """The bytes of memory that a container may have, infinite where the file names none."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path(path).read_text())
    return math.inf
