"""A finished cell's row, for tests of what is made of rows."""

from __future__ import annotations

from llm.experiments.cells import Row

ROW = Row(
    cell="k",
    world="w",
    method="brain",
    seed=0,
    learning_rate=1e-3,
    settings="{}",
    best_step=4,
    validation_win_rate=0.5,
    validation_objective=1.0,
    judge="WLTW",
    reward_model="WWLL",
    grades="1 2 3 4",
    rewards="1 2 3 4",
    log_ratios="0 0 0 1",
    kl_to_prior=0.1,
    completion_length=5.0,
    completions=48,
    backward_completions=96,
    seconds=1.5,
    prompts="p",
    version="0",
)
