"""The one scorer."""

from __future__ import annotations

import pytest
import torch

from llm.errors import UserError
from llm.logprob import score, sequence_log_probs, token_batch, token_log_probs
from llm.models import Policy
from llm.records import Completion, Prompt


def pair(policy: Policy, prompt: str, completion: str, *, ended: bool = True) -> tuple[Prompt, Completion]:
    ids = tuple(policy.tokenizer(completion)["input_ids"]) + ((2,) if ended else ())
    prompt_ids = tuple(policy.tokenizer(prompt)["input_ids"])
    return Prompt("p", prompt, prompt_ids, None), Completion("p", 0, ids, "stop", completion)


def plain_log_prob(policy: Policy, prompt: Prompt, completion: Completion, temperature: float = 1.0) -> float:
    """log q(y|x) from one unpadded row and float64 log-softmax."""
    ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[0].double() / temperature
    start = len(prompt.token_ids)
    return sum(float(torch.log_softmax(logits[place - 1], -1)[ids[0, place]]) for place in range(start, ids.shape[1]))


CASES = [("abc", "xy"), ("a", "hello"), ("some longer text", "q"), ("zz", "the end of it")]


def test_scores_equal_those_of_unpadded_rows_whatever_shares_the_batch(policy: Policy) -> None:
    pairs = [pair(policy, *case) for case in CASES]
    expected = [plain_log_prob(policy, *p) for p in pairs]
    for rows in (1, 2, 4):
        assert score(policy, pairs, rows) == pytest.approx(expected, abs=2e-5)


def test_the_end_token_is_part_of_the_completion(policy: Policy) -> None:
    with_end, without = (score(policy, [pair(policy, "abc", "xy", ended=e)], 1)[0] for e in (True, False))
    assert with_end < without - 0.01


def test_sampling_temperature_divides_the_logits(policy: Policy) -> None:
    case = pair(policy, "abc", "hello")
    assert score(policy, [case], 1, temperature=2.0)[0] == pytest.approx(plain_log_prob(policy, *case, 2.0), abs=2e-5)


def test_the_prior_differs_from_a_moved_policy_and_returns_after_it(policy: Policy) -> None:
    pairs = [pair(policy, *case) for case in CASES]
    before = score(policy, pairs, 4)
    with policy.as_prior():
        prior = score(policy, pairs, 4)
    assert max(abs(a - b) for a, b in zip(before, prior, strict=True)) > 0.1
    assert score(policy, pairs, 4) == before


def test_token_log_probs_are_zero_at_padding_and_sum_to_the_sequence(policy: Policy) -> None:
    pairs = [pair(policy, *case) for case in CASES]
    batch = token_batch(pairs, policy.device)
    tokens = token_log_probs(policy, batch)
    assert tokens.dtype == torch.float32
    assert torch.all(tokens[batch.completion_mask == 0] == 0)
    assert torch.allclose(tokens.double().sum(-1), sequence_log_probs(policy, pairs))


def test_sequence_log_probs_are_float64(policy: Policy) -> None:
    assert sequence_log_probs(policy, [pair(policy, *CASES[0])]).dtype == torch.float64


def test_a_model_that_gives_nan_is_refused(policy: Policy) -> None:
    for parameter in policy.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        score(policy, [pair(policy, *CASES[0])], 1)
