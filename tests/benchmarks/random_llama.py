"""What the adapter's benchmarks share: random Llamas with LoRA, the phases of a run, times, FLOPs, the matrix peak."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from brain_core import bradley_terry_log_goodness
from llm.config import AlignConfig
from llm.logprob import score
from llm.models import Policy, load_policy
from llm.records import Completion, Pair, Prompt, ScoredGroup
from llm.rollout import sample_groups
from llm.train import Objective, accumulate_gradient

SIZES = {
    "s": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1024, "vocab_size": 32000},
    "m": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1376, "vocab_size": 8000},
}
CONTEXT = 4096
MATRICES = ((1024, 1024, 1024), (2048, 2048, 2048), (2048, 512, 1376), (2048, 384, 1024), (2048, 512, 8000))
"""Sizes of the products among which the fastest is the peak: square, and such as a layer and a head have."""


class Shape(NamedTuple):
    """One prompt group: tokens of the prompt, tokens of each completion, completions."""

    prompt: int
    completion: int
    n: int

    @property
    def tokens(self) -> int:
        """Tokens of the group, the prompt once."""
        return self.prompt + self.n * self.completion


SHAPES = {"tldr": Shape(512, 48, 32), "hh": Shape(200, 128, 8)}


def save_llama(size: str, folder: Path) -> None:
    """Save a random Llama whose end token lies outside its vocabulary, so that no completion ends early."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    settings = SIZES[size]
    end, heads = settings["vocab_size"], settings["hidden_size"] // 64
    config = LlamaConfig(
        num_attention_heads=heads, max_position_embeddings=CONTEXT, bos_token_id=None, eos_token_id=None, **settings
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({str(i): i for i in range(end)} | {"<end>": end}, unk_token="<end>"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>").save_pretrained(folder)


def saved_policy(folder: Path, engine: str = "shared-prefix") -> Policy:
    """Load a saved Llama with LoRA of rank 8 on q and v, its B not zero."""
    policy = load_policy(AlignConfig(model=str(folder), lora_targets="q_proj,v_proj", device="cpu", engine=engine))
    torch.manual_seed(1)
    state = policy.adapter_state()
    policy.load_adapter_state({name: 0.02 * torch.randn_like(tensor) for name, tensor in state.items()})
    return policy


def random_prompts(policy: Policy, count: int, width: int) -> list[Prompt]:
    """Prompts of random tokens; a token's text is its number."""
    draws = np.random.default_rng(2).integers(policy.base.config.vocab_size, size=(count, width)).tolist()
    return [Prompt(str(i), " ".join(map(str, ids)), tuple(ids), None) for i, ids in enumerate(draws)]


def reward(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """A cheap reward: count the different words."""
    return [float(len(set(completion.split()))) for completion in completions]


class Phases:
    """A run's phases on one group, with the calls that a run makes; only rollouts are of several groups at once."""

    def __init__(self, policy: Policy, shape: Shape, groups: int = 1) -> None:
        self.policy, self.shape = policy, shape
        self.prompts = random_prompts(policy, groups, shape.prompt)
        self.completions = self.rollout()[0]
        self.pairs: list[Pair] = [(self.prompts[0], completion) for completion in self.completions]
        self.group = self.scoring()
        for parameter in self.policy.parameters():  # the plan has the gradient among what stays, as a run has
            parameter.grad = torch.zeros_like(parameter)

    def rollout(self) -> list[list[Completion]]:
        """Sample a group of every prompt."""
        return sample_groups(
            self.policy, self.prompts, self.shape.n, draw=(0, "rollout", 0), max_new_tokens=self.shape.completion
        )

    def scoring(self) -> ScoredGroup:
        """Score the first prompt's group; log q' is the sampler's own, as it is in a float32 run."""
        with self.policy.as_prior():
            log_prior = score(self.policy, self.pairs, len(self.pairs))
        log_proposal = [completion.sampler_log_prob for completion in self.completions]
        rewards = reward([self.prompts[0].text], [completion.text for completion in self.completions])
        return ScoredGroup(self.prompts[0], tuple(self.completions), *map(np.array, (log_prior, log_proposal, rewards)))

    def training(self) -> None:
        """Forward and backward over the group."""
        self.policy.model.zero_grad(set_to_none=False)
        accumulate_gradient(self.policy, [self.group], Objective(AlignConfig(), bradley_terry_log_goodness), 1.0)


def seconds(run: Callable[[], object]) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def interleaved(runs: Mapping[Any, Callable[[], object]], turns: int) -> dict[Any, list[float]]:
    """Seconds of each run in every turn; all runs take turns, and a first turn that warms up does not count."""
    table = [[seconds(run) for run in runs.values()] for _ in range(turns + 1)][1:]
    return {name: list(column) for name, column in zip(runs, zip(*table, strict=True), strict=True)}


def medians(times: Mapping[Any, list[float]]) -> dict[Any, float]:
    """The median of each run's times."""
    return {name: statistics.median(values) for name, values in times.items()}


class MatrixPeak:
    """The rate of the fastest float32 matrix product, measured once a call."""

    def __init__(self) -> None:
        self.factors = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in MATRICES]
        self.rates: list[float] = []

    def __call__(self) -> None:
        """Measure every size three times and keep the best rate, in FLOP/s."""
        rates = [
            2 * a.numel() * b.shape[1] / min(seconds(lambda a=a, b=b: torch.mm(a, b)) for _ in range(3))
            for a, b in self.factors
        ]
        self.rates.append(max(rates))


def useful_flops(policy: Policy, shape: Shape) -> dict[str, float]:
    """FLOPs of the matrix products that one group needs: forward by the prior and the policy, and training.

    Forward: 2 for each parameter of the linear layers and LoRA and each token (the last of a completion predicts
    nothing and is none), 4 · width for each query with each key it may see, and the head once for each place that
    predicts. Backward with frozen weights: linear layers once more, for the gradient by their input (not q, k and v of
    the first layer, whose input is not trained); LoRA twice more; attention twice, but for the first layer's keys; the
    head once more. Products that an implementation repeats to save memory do not count.
    """
    prompt, length, n = shape
    tokens, places = prompt + n * (length - 1), n * (length - 1) + 1
    seen = prompt * (prompt + 1) / 2 + n * (length - 1) * (prompt + length / 2)
    config, sizes = policy.base.config, _linear_sizes(policy)
    linear, lora, first = (2 * tokens * sizes[kind] for kind in ("linear", "lora", "first"))
    product = 2 * seen * config.hidden_size
    head = 2 * places * config.hidden_size * config.vocab_size
    prior = linear + 2 * config.num_hidden_layers * product + head
    backward = linear - first + 2 * lora + (4 * config.num_hidden_layers - 1) * product + head
    return {"prior": prior, "policy": prior + lora, "training": prior + lora + backward}


def _linear_sizes(policy: Policy) -> dict[str, int]:
    """Parameters of the layers' linear modules, of LoRA, and of what the first layer applies to its input."""
    sizes = {"linear": 0, "lora": 0, "first": 0}
    for name, module in policy.base.base_model.named_modules():
        if isinstance(module, torch.nn.Linear):
            sizes["lora" if "lora_" in name else "linear"] += module.weight.numel()
            if name.startswith("layers.0.self_attn.") and "lora_" not in name and "o_proj" not in name:
                sizes["first"] += module.weight.numel()
    return sizes
