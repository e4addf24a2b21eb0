"""The paper's central claim where it matters: how noisy each method's gradient of a language model's adapter is."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from llm.checkpoint import load_best_adapter
from llm.config import AlignConfig
from llm.errors import UserError
from llm.experiments.cells import Cell, CellStore, run_cells
from llm.experiments.studies import arm
from llm.experiments.tables import as_csv, claims_lines
from llm.experiments.verdicts import REPEATS, Interval
from llm.logprob import group_pairs, score, sequence_log_probs
from llm.models import Policy, load_policy
from llm.prompts import load_prompts
from llm.proposal import state_digest
from llm.records import Completion, Prompt, ScoredGroup
from llm.rewards import AnyReward, configured_reward, on_device, rewards_of
from llm.rollout import sample_groups
from llm.run_folder import versions
from llm.store import ShardFolder, write_json, write_text
from llm.streams import stream, text_fingerprint
from llm.train import group_coefficients, make_objective

MEASURED = ("brain", "snis", "dpg", "gdcpp", "rloo")
"""The methods as they train; GDC's coefficients are DPG's."""
WITH_Z = {"dpg, Z known": "dpg", "gdcpp, Z known": "gdcpp"}
"""Those two as if Z were known: with that of half of all groups of the prompt instead of half of the group."""
ROWS = (*MEASURED, *WITH_Z)
SAME_TARGET = ("snis", "dpg", "gdcpp", *WITH_Z)
"""Those that estimate the gradient that brain does, −∇KL(π‖q_θ), though at another length: brain's is shortened by
self-normalising, that of dpg and gdcpp lengthened by 1/Ẑ."""
RANK_TOLERANCE = 1e-9
"""What is left out of coefficients, as a share of each method's."""
LABELS = {"dpg": "dpg, gdc"}
FIGURES = ("variance", "median_variance", "signal_to_noise", "cosine", "cosine_of_a_group")
DRAWN = ("variance", "signal_to_noise", "cosine", "cosine_of_a_group")
NOTES = """\
The gradient is that of one group of n completions of a prompt, Σᵢ cᵢ ∇ log q_θ(yᵢ|x), over all LoRA parameters.

- Variance: tr Cov over groups, mean over prompts; median variance: of a typical prompt.
- Signal to noise: ‖mean‖² over the variance, without the noise in ‖mean‖², so that it can come out below 0. It does not
  depend on a method's scale. Its inverse is the variance at a mean of length 1, and the number of groups whose mean is
  half noise.
  What is wrong with a mean counts as signal too. A short mean has a small variance: compare methods by signal to noise
  and by the last column, not by the variance alone.
- Cosine: of a method's mean with the gradient to the posterior, all prompts in one vector. That gradient is not known.
  Its stand-in is the self-normalised estimate from half of a prompt's completions, which is biased too, though R/2
  times less than a group's. Mean and stand-in are from different halves, and the noise of both is taken out, so that it
  can come out above 1; a dash where a length is not told from 0.
- Cosine of a group: of a single group's gradient with the same stand-in, their mean inner product over the root of the
  product of their mean squared lengths. Variance and bias both lower it, and a method's scale does not matter.
- Fresh: completions of the policy itself; stale: of the prior. All methods see the same ones.
- dpg and gdcpp divide by Ẑ from the other half of the group, as in training; with "Z known" by one from half of all
  groups, which is the stand-in's as well, so that their cosine is a little high. Their weights have heavy tails: where
  one group makes up most of a variance, its interval is too narrow.
- gdc has dpg's coefficients: its line is dpg's, fresh where its gate took the policy as the proposal, stale where it
  kept the prior.
- rloo descends the reverse divergence KL(q_θ‖π), another gradient; on stale completions it is clipped as in training.

Intervals are 95 %: a bootstrap over prompts, the same for all methods of a setting; the policies are of one run.
Nothing is corrected for the number of claims."""
"""What the page says below its tables."""


@dataclass(frozen=True)
class Size:
    """How much is sampled: `groups` groups, an even number, of each of `prompts` training prompts."""

    prompts: int = 32
    groups: int = 16


QUICK = Size(prompts=4, groups=4)
"""The size of `--quick`."""


@dataclass(frozen=True)
class Point:
    """A policy on the way.

    Attributes:
        name: Its name in the table.
        step: Gradient steps behind it.
        state: Its adapter.
    """

    name: str
    step: int
    state: dict[str, torch.Tensor]


class Source(NamedTuple):
    """What rollouts are made with: the policy, the reward, the prompts and the settings."""

    policy: Policy
    reward: AnyReward
    prompts: Sequence[Prompt]
    config: AlignConfig


class Findings(NamedTuple):
    """What the study found: a row for each setting and method, and the verdicts on brain."""

    rows: list[dict[str, Any]]
    claims: list[dict[str, Any]]


def run_variance(base: AlignConfig, folder: Path, world: str, size: Size, *, processes: int) -> Findings:
    """Measure the gradient's noise at the start, after one phase and at the end of a BRAIn run, or go on with it.

    The policies are those that runs hand out, the best by validation: where that is step 0, it is the prior.

    The runs are cells, which other experiments may have finished. Each finished setting is kept in `folder/variance`.

    Args:
        base: The experiment's settings.
        folder: Of cells.csv and the runs.
        world: Fingerprint of model, prompts, reward and judge.
        size: How much is sampled.
        processes: Runs at one time.

    Raises:
        UserError: There are too few prompts, or a finished run's adapter is gone.
    """
    cells = [Cell(replace(arm("brain").config(base), e=phases), world) for phases in sorted({1, base.e})]
    store = CellStore(folder / "cells.csv")
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    run_cells(cells, store, folder / "runs", base, processes=processes)
    if base.threads:
        torch.set_num_threads(base.threads)
    source = load_source(cells[-1].config, size)
    points = [Point("at the start", 0, source.policy.adapter_state())]
    for cell in cells:
        name = f"best of {cell.config.e} of {base.e} phases"
        points.append(Point(name, store.rows[cell.key].best_step, _adapter(folder, cell, source.policy)))
    measured = [Cell(arm(name).config(base), world).key for name in MEASURED]
    states = [state_digest(point.state) for point in points]
    key = text_fingerprint([measured, states, asdict(size), versions()["brain-align"]])[:16]
    return measure_points(source, points, base, size, ShardFolder(folder / "variance" / key))


def load_source(config: AlignConfig, size: Size) -> Source:
    """Load the policy and the reward, and draw the training prompts of the study."""
    policy = load_policy(config)
    train = load_prompts(config, policy.tokenizer, policy.prompt_context).train
    if len(train) < size.prompts:
        raise UserError(
            f"--prompts {config.prompts}: {len(train)} training prompts, and variance needs {size.prompts}."
        )
    chosen = stream(config.seed, "variance", "prompts").choice(len(train), size.prompts, replace=False)
    prompts = sorted((train[i] for i in chosen), key=lambda prompt: (len(prompt.token_ids), prompt.prompt_id))
    return Source(policy, configured_reward(config), prompts, config)


def _adapter(folder: Path, cell: Cell, policy: Policy) -> dict[str, torch.Tensor]:
    """The adapter that a finished run gave: its best by validation."""
    run = folder / "runs" / cell.key
    if not (run / "adapter" / "adapter_model.safetensors").is_file():
        raise UserError(f"{run}: its adapter is gone. Remove {cell.key} from {folder / 'cells.csv'} to run it again.")
    load_best_adapter(run, policy)
    return policy.adapter_state()


def measure_points(
    source: Source, points: Sequence[Point], base: AlignConfig, size: Size, shards: ShardFolder
) -> Findings:
    """Measure every point with its own and the first one's completions; settings in the shards are read.

    Args:
        source: What makes rollouts.
        points: The policies; the first one is the prior.
        base: The settings of all methods.
        size: How much is sampled.
        shards: Where finished settings are kept.
    """
    collected = functools.cache(lambda number: collect_groups(source, points[number], size.groups))
    found = Findings([], [])
    for number, (here, there) in enumerate(_settings(len(points))):
        point, rollouts = points[here], "fresh" if here == there else "stale"
        label = f"{point.name}, {rollouts}"
        make = functools.partial(_measured, source, point, functools.partial(collected, there), base, label)
        moments = _by_method(shards.once(f"setting-{number}", make))
        named = {"policy": point.name, "step": point.step, "rollouts": rollouts}
        found.rows.extend(named | {"method": name} | figures_of(moments[name]) for name in ROWS)
        found.claims.extend(_in_setting(label, claim) for claim in verdicts(moments))
    return found


def _in_setting(label: str, claim: dict[str, Any]) -> dict[str, Any]:
    """A claim as a table of claims has it: with its setting, and its figures as text."""
    return {**claim, "claim": f"{label}: {claim['claim']}", "paper": "–", "shown": _cell(claim, "")}


def _settings(count: int) -> list[tuple[int, int]]:
    """The numbers of policy and proposal: each policy with itself, then with the first one, the prior."""
    return [(0, 0)] + [(number, proposal) for number in range(1, count) for proposal in (number, 0)]


def _measured(
    source: Source, point: Point, collect: Callable[[], list[list[ScoredGroup]]], base: AlignConfig, label: str
) -> list[dict[str, Any]]:
    """A row for each prompt and method of one setting."""
    groups = collect()
    source.policy.load_adapter_state(point.state)
    rows = []
    for members in tqdm(groups, desc=label, unit="prompt", leave=False):
        named = {"prompt_id": members[0].prompt.prompt_id}
        moments = prompt_moments(source.policy, members, base).tolist()
        rows += [
            named | {"method": name} | dict(zip(Moments._fields, values, strict=True))
            for name, values in zip(ROWS, moments, strict=True)
        ]
    return rows


def collect_groups(source: Source, proposal: Point, count: int) -> list[list[ScoredGroup]]:
    """Sample and score groups from a proposal, under the same draws whatever the proposal.

    Args:
        source: What makes rollouts.
        proposal: The proposal; the policy has its adapter afterwards.
        count: Groups of each prompt, R.

    Returns:
        R groups of each prompt, with what Algorithm 1 caches.
    """
    policy, reward, prompts, config = source
    policy.load_adapter_state(proposal.state)
    drawn = [_sampled(source, number) for number in range(count)]
    pairs = [(p, c) for index, p in enumerate(prompts) for part in drawn for c in part[index]]
    log_proposal = score(policy, pairs, config.sample_rows, temperature=config.sampling_temperature)
    with policy.as_prior():
        log_prior = score(policy, pairs, config.sample_rows)
    with on_device(reward):
        rewards = rewards_of(reward, [(prompt, completion.text) for prompt, completion in pairs])
    cached = np.array([log_prior, log_proposal, rewards]).reshape(3, len(prompts), count, config.n)
    return [
        [ScoredGroup(prompt, tuple(drawn[r][index]), *cached[:, index, r]) for r in range(count)]
        for index, prompt in enumerate(prompts)
    ]


def _sampled(source: Source, number: int) -> list[list[Completion]]:
    """One group of completions of every prompt, in batches as a run makes them."""
    config, found = source.config, []
    block = max(1, config.sample_rows // config.n)
    for start in range(0, len(source.prompts), block):
        found += sample_groups(
            source.policy,
            source.prompts[start : start + block],
            config.n,
            draw=(config.seed, "variance", number),
            max_new_tokens=config.max_new_tokens,
            temperature=config.sampling_temperature,
            stop=config.stop,
        )
    return found


class Moments(NamedTuple):
    """What one prompt tells of a method; all are unbiased where groups are independent.

    Attributes:
        variance: tr Cov of the gradient of a group.
        signal: Squared length of its mean.
        aligned: Inner product of its mean with the pooled estimate's.
        target: Squared length of the pooled estimate's mean.
    """

    variance: Any
    signal: Any
    aligned: Any
    target: Any


def prompt_moments(policy: Policy, groups: Sequence[ScoredGroup], base: AlignConfig) -> torch.Tensor:
    """Return the moments (M, 4) of every method's gradient over the groups of one prompt.

    Args:
        policy: The policy q_θ.
        groups: R groups of G completions, R even.
        base: The settings of all methods.
    """
    count = len(groups)
    table = coefficient_table(policy, groups, base)
    size = sum(parameter.numel() for parameter in policy.parameters())
    sums, squares = torch.zeros(2, len(table), size, dtype=torch.float64), torch.zeros(len(table), dtype=torch.float64)
    for number, group in enumerate(groups):
        gradients = group_gradients(policy, group, table[:, number], rows=base.train_rows)
        sums[2 * number // count] += gradients
        squares += gradients.square().sum(-1)
    return moments_of(sums, squares, count)


def coefficient_table(policy: Policy, groups: Sequence[ScoredGroup], base: AlignConfig) -> torch.Tensor:
    """Return the coefficients (M+1, R, G) of every method, and last those of the pooled estimate of each half.

    The pooled one is brain on all completions of a half of the groups: a sum over these, where the others' are means.
    """
    count = len(groups)
    pairs = [pair for group in groups for pair in group_pairs(group)]
    log_policy = torch.tensor(score(policy, pairs, base.sample_rows), dtype=torch.float64)

    def found(method: str, parts: int) -> torch.Tensor:
        step = count // parts
        merged = [_merged(groups[start : start + step]) for start in range(0, count, step)]
        return group_coefficients(merged, log_policy, make_objective(arm(method).config(base)))[0]

    rows = [found(name, count) for name in MEASURED]
    rows += [count * found(name, 1) for name in WITH_Z.values()]
    return torch.stack([*rows, found("brain", 2)]).view(len(ROWS) + 1, count, -1)


def _merged(groups: Sequence[ScoredGroup]) -> ScoredGroup:
    """Groups of one prompt as one group."""
    completions = tuple(completion for group in groups for completion in group.completions)
    log_prior, log_proposal, reward = (
        np.concatenate([getattr(group, name) for group in groups]) for name in ("log_prior", "log_proposal", "reward")
    )
    return ScoredGroup(groups[0].prompt, completions, log_prior, log_proposal, reward)


def group_gradients(policy: Policy, group: ScoredGroup, coefficients: torch.Tensor, *, rows: int = 0) -> torch.Tensor:
    """Return Σᵢ cᵢ ∇ log q_θ(yᵢ|x) for several choices of c, from as many backward passes as these have rank.

    Args:
        policy: The policy q_θ.
        group: G completions of one prompt.
        coefficients: (M, G) float64.
        rows: Completions in one pass; all of them where 0.

    Returns:
        (M, D) float64, over all of the policy's parameters.
    """
    pairs, parameters = group_pairs(group), policy.parameters()
    weights, basis = _factored(coefficients)
    found = torch.zeros(len(basis), sum(p.numel() for p in parameters), dtype=torch.float64)
    for start in range(0, len(pairs), rows or len(pairs)):
        part = slice(start, start + (rows or len(pairs)))
        log_policy = sequence_log_probs(policy, pairs[part])
        for row, direction in zip(found, basis[:, part].to(log_policy.device), strict=True):
            gradient = torch.autograd.grad((direction * log_policy).sum(), parameters, retain_graph=True)
            row += torch.cat([values.flatten() for values in gradient]).double().cpu()
    return weights @ found


def _factored(coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (M, K) and orthonormal rows (K, G) whose product are coefficients (M, G) of rank K."""
    length = coefficients.norm(dim=-1, keepdim=True)
    left, sizes, right = torch.linalg.svd(coefficients / length.clamp(min=1e-300), full_matrices=False)
    kept = sizes > RANK_TOLERANCE
    return length * left[:, kept] * sizes[kept], right[kept]


def moments_of(sums: torch.Tensor, squares: torch.Tensor, count: int) -> torch.Tensor:
    """Return the moments (M, 4) of M methods in the order of `Moments`.

    Args:
        sums: (2, M+1, D) sums of the gradients over the first and the second half of the groups; last the pooled one's.
        squares: (M+1,) sums of their squared lengths over all groups.
        count: Groups, R.
    """
    total = sums.sum(0)[:-1]
    length = total.square().sum(-1)
    variance = (squares[:-1] - length / count) / (count - 1)
    signal = length / count**2 - variance / count
    aligned = (sums[:, :-1] * sums[:, -1:].flip(0)).sum((0, 2)) / count
    target = (sums[0, -1] * sums[1, -1]).sum().expand_as(aligned)
    return torch.stack([variance, signal, aligned, target], -1)


def _by_method(rows: Sequence[Mapping[str, Any]]) -> dict[str, Moments]:
    """The moments of each method, (P,) each, prompts in one order."""
    chosen = {name: [row for row in rows if row["method"] == name] for name in ROWS}
    return {
        name: Moments(*(np.array([row[field] for row in part]) for field in Moments._fields))
        for name, part in chosen.items()
    }


def variance(moments: Moments) -> Any:
    """Mean of tr Cov over prompts, the last axis."""
    return moments.variance.mean(-1)


def median_variance(moments: Moments) -> Any:
    """Median of tr Cov over prompts, the last axis."""
    return np.median(moments.variance, -1)


def signal_to_noise(moments: Moments) -> Any:
    """‖mean‖² over tr Cov, a ratio of means over prompts."""
    return moments.signal.mean(-1) / moments.variance.mean(-1)


def cosine(moments: Moments) -> Any:
    """The cosine of the mean with the pooled estimate's, all prompts in one vector; NaN where a length is not seen."""
    signal, target = moments.signal.mean(-1), moments.target.mean(-1)
    return moments.aligned.mean(-1) / np.sqrt(np.where((signal > 0) & (target > 0), signal * target, np.nan))


def cosine_of_a_group(moments: Moments) -> Any:
    """The same of a single group's gradient, whose mean squared length is the variance and that of the mean."""
    length = moments.signal.mean(-1) + moments.variance.mean(-1)
    return moments.aligned.mean(-1) / np.sqrt(length * moments.target.mean(-1))


STATISTICS = (variance, median_variance, signal_to_noise, cosine, cosine_of_a_group)


def figures_of(moments: Moments) -> dict[str, float | None]:
    """Return a method's figures, each with its interval; None where there is none."""
    found: dict[str, float | None] = {}
    for name, statistic in zip(FIGURES, STATISTICS, strict=True):
        interval = bootstrap(lambda *values, f=statistic: f(Moments(*values)), moments)
        found |= {f"{name}_{key}": value for key, value in _values(interval).items()}
    return found


def verdicts(moments: Mapping[str, Moments]) -> list[dict[str, Any]]:
    """Return whether brain's variance is below the others', as a share of theirs, and two claims apart from length."""

    def saved(*values: Any) -> Any:
        return 1 - variance(Moments(*values[:4])) / variance(Moments(*values[4:]))

    def gained(*values: Any) -> Any:
        return cosine_of_a_group(Moments(*values[:4])) - cosine_of_a_group(Moments(*values[4:]))

    def clearer(*values: Any) -> Any:
        return signal_to_noise(Moments(*values[:4])) - signal_to_noise(Moments(*values[4:]))

    asked = [(name, "variance is below", saved) for name in SAME_TARGET]
    asked += [(name, "signal to noise is above", clearer) for name in SAME_TARGET]
    asked += [(name, "cosine of a group is above", gained) for name in SAME_TARGET]
    found = []
    for name, words, statistic in asked:
        interval = bootstrap(statistic, (*moments["brain"], *moments[name]))
        text = f"brain's {words} that of {LABELS.get(name, name)}"
        found.append({"claim": text, **_values(interval), "verdict": interval.verdict()})
    return found


def bootstrap(statistic: Callable[..., Any], values: Sequence[np.ndarray]) -> Interval:
    """Return a statistic of arrays (P,) over the same prompts with its 95 % interval, prompts resampled together.

    Args:
        statistic: Takes the arrays, with resamples before their last axis.
        values: The arrays.
    """
    prompts = len(values[0])
    draws = np.random.default_rng(0).integers(prompts, size=(REPEATS, prompts))
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = statistic(*(value[draws] for value in values))
        estimate = float(statistic(*values))
    low, high = np.quantile(np.where(np.isfinite(resampled), resampled, np.nan), [0.025, 0.975])
    return Interval(estimate, float(low), float(high))


def _values(interval: Interval) -> dict[str, float | None]:
    """An interval as JSON can hold it: None for what is not known."""
    return {key: value if math.isfinite(value) else None for key, value in interval._asdict().items()}


def write(
    folder: Path,
    name: str,
    found: Findings,
    size: Size,
    base: AlignConfig,
    stamp: Mapping[str, Any],
    command: str,
) -> None:
    """Write NAME.md, NAME.csv, NAME.json and NAME.png.

    Args:
        folder: Where they go.
        name: The experiment's name.
        found: What was found.
        size: How much was sampled.
        base: The experiment's settings.
        stamp: World, settings and version, which each file carries.
        command: The command that makes it again.
    """
    sizes = asdict(size) | {"completions": base.n}
    content = {"stamp": stamp, "command": command, "size": sizes, "rows": found.rows, "claims": found.claims}
    write_json(folder / f"{name}.json", content)
    write_text(folder / f"{name}.csv", as_csv(found.rows, stamp))
    write_text(folder / f"{name}.md", _as_markdown(found, sizes, stamp, command))
    _draw(folder / f"{name}.png", found.rows, stamp)


def _as_markdown(found: Findings, sizes: Mapping[str, int], stamp: Mapping[str, Any], command: str) -> str:
    """The page of the study."""
    lines = ["# How noisy is each method's gradient?", "", f"`{command}`", ""]
    lines += ["{prompts} training prompts, R = {groups} groups of {completions} completions of each.".format(**sizes)]
    lines += ["", "| policy | step | completions | method | " + " | ".join(map(_words, FIGURES)) + " |"]
    lines += ["|---" * (4 + len(FIGURES)) + "|"]
    lines += [_line(row) for row in found.rows]
    lines += ["", *claims_lines(found.claims)]
    return "\n".join([*lines, "", NOTES, "", ", ".join(f"{key} `{value}`" for key, value in stamp.items()) + ".", ""])


def _line(row: Mapping[str, Any]) -> str:
    """One line of the table."""
    cells = [row["policy"], row["step"], row["rollouts"], LABELS.get(row["method"], row["method"])]
    return f"| {' | '.join(map(str, cells))} | {' | '.join(_cell(row, f'{name}_') for name in FIGURES)} |"


def _cell(row: Mapping[str, Any], prefix: str) -> str:
    """An estimate with its interval, a dash for what is not known."""
    values = [row[prefix + key] for key in Interval._fields]
    estimate, low, high = ("–" if value is None else f"{value:.3g}" for value in values)
    return f"{estimate} [{low}, {high}]"


def _draw(path: Path, rows: Sequence[Mapping[str, Any]], stamp: Mapping[str, Any]) -> None:
    """Each figure of all methods with its intervals, over the settings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    settings = list(dict.fromkeys(_setting(row) for row in rows))
    panels = figure.subplots(1, len(DRAWN), sharey=True)
    for axes, name in zip(panels, DRAWN, strict=True):
        for method, marker, shift in zip(ROWS, "os^Dv<>", np.linspace(0.3, -0.3, len(ROWS)), strict=True):
            own = [row for row in rows if row["method"] == method]
            places = [shift - settings.index(_setting(row)) for row in own]
            middle, low, high = (np.array([row[f"{name}_{key}"] for row in own], float) for key in Interval._fields)
            spread = np.clip([middle - low, high - middle], 0, None)
            label = LABELS.get(method, method)
            axes.errorbar(middle, places, xerr=spread, fmt=marker, capsize=2, ms=4, label=label)
        axes.set_xlabel(_words(name))
        axes.set_yticks([-place for place in range(len(settings))], settings)
        if name == "variance":
            axes.set_xscale("log")
        if "cosine" in name:
            axes.set_xlim(-0.5, 1.5)  # what lies beyond is in the table
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(ROWS), frameon=False, fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Comment": " ".join(f"{k}={v}" for k, v in stamp.items())})


def _words(name: str) -> str:
    """A figure's name as a heading."""
    return name.replace("_", " ")


def _setting(row: Mapping[str, Any]) -> str:
    """A setting's name in the figure."""
    return f"{row['policy']}, {row['rollouts']}"
