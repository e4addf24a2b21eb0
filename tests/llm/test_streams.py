"""Every draw derives from its name and from nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from llm.streams import stream, text_fingerprint, torch_seed

ALPHA = 1e-3  # of each statistical test below; the seeds are fixed, so each passes always or never
KEY = st.lists(st.integers(0, 10) | st.text(st.characters(codec="ascii"), max_size=3), max_size=4)


def first(*name: int | str) -> float:
    return float(stream(0, "rollout", *name).random())


def test_the_same_name_gives_the_same_draws_whatever_was_drawn_before() -> None:
    expected = stream(7, "rollout", 1, "train-3", 2).random(5)
    np.random.default_rng(0).random(10)
    other = stream(7, "rollout", 1, "train-3", 1)
    other.random(1000)
    assert np.array_equal(stream(7, "rollout", 1, "train-3", 2).random(5), expected)
    generator = stream(7, "rollout", 1, "train-3", 2)
    assert np.array_equal([generator.random() for _ in range(5)], expected)


@given(a=KEY, b=KEY)
def test_two_names_give_the_same_draws_exactly_where_they_are_the_same(a: list[int | str], b: list[int | str]) -> None:
    same = np.array_equal(stream(0, "x", *a).random(4), stream(0, "x", *b).random(4))
    assert same == (a == b)


def test_names_that_read_alike_are_different() -> None:
    names = [("1",), (1,), (1, 1), (11,), ("1", "1"), ("11",), ("1,1",), ("", "1"), ("1", ""), ()]
    assert len({first(*name) for name in names}) == len(names)
    assert stream(1, "a").random() != stream(0, "a").random() != stream(0, "b").random()


def test_no_two_of_ten_thousand_names_share_a_draw() -> None:
    draws = [first(i, f"train-{j}", k) for i in range(10) for j in range(100) for k in range(10)]
    assert len(set(draws)) == 10_000


def test_first_draws_of_neighbouring_names_are_uniform() -> None:
    draws = np.array([first(0, f"train-{i}", 0) for i in range(10_000)])
    counts, _ = np.histogram(draws, bins=50, range=(0, 1))
    assert scipy.stats.chisquare(counts).pvalue > ALPHA


def test_draws_of_neighbouring_names_are_independent() -> None:
    draws = np.array([first(0, f"train-{i}", 0) for i in range(10_000)])
    pairs, _, _ = np.histogram2d(draws[:-1:2], draws[1::2], bins=10, range=[[0, 1], [0, 1]])
    assert scipy.stats.chi2_contingency(pairs).pvalue > ALPHA


def test_draws_are_the_same_in_another_process() -> None:
    code = "from llm.streams import stream, torch_seed; print(stream(3, 'split', 'é').random(), torch_seed(3, 'lora'))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(stream(3, "split", "é").random()), str(torch_seed(3, "lora"))]


def test_draws_are_those_of_every_version() -> None:
    """The definition, written out: Philox keyed by the first 128 bits of the name's sha256."""
    import hashlib

    digest = hashlib.sha256(b'[5, "rollout", 2, "train-1", 0]').digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")]
    expected = np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64))).random(3)
    assert np.array_equal(stream(5, "rollout", 2, "train-1", 0).random(3), expected)


def test_torch_seeds_fit_in_63_bits_and_differ_by_name() -> None:
    seeds = [torch_seed(0, "lora", i) for i in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_fingerprint_changes_with_its_value() -> None:
    values = [[1, 2], [12], ["1", 2], [[1], 2], None, 0, False, "", [1.0, 2], {"a": 1}]
    assert len({text_fingerprint(value) for value in values}) == len(values)
    assert text_fingerprint((1, "é")) == text_fingerprint([1, "é"])
