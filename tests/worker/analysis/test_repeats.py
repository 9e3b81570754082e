"""Repeated texts: windows, first shards, examples that stand for several, errors over distinct texts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscope_proto.specs import AnalysisSpec
from crosscope_worker.analysis import HeldOut, analyse
from crosscope_worker.analysis.repeats import WINDOW, FirstShards, WindowHashes
from crosscope_worker.data.harvest import Harvest
from crosscope_worker.data.texts import Text
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.work import silent

TEXTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3 * WINDOW), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.booleans())
def test_equal_windows_have_equal_hashes_and_different_ones_do_not(texts, is_around):
    """Compared with the windows themselves: the tokens, and the number of tokens before the middle one."""
    hashes = WindowHashes([np.array(ids) for ids in texts])
    seen: dict[object, int] = {}
    for number, ids in enumerate(texts):
        places = np.arange(len(ids))
        found = (hashes.around if is_around else hashes.before)(np.full(len(ids), number), places)
        for place, value in zip(places.tolist(), found.tolist(), strict=True):
            last = place + (WINDOW if is_around else 0) + 1
            window = min(place, WINDOW), tuple(ids[max(0, place - WINDOW) : last])
            assert seen.setdefault(window, value) == value
    assert len(set(seen.values())) == len(seen)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=20), max_size=12))
def test_a_window_belongs_to_the_shard_in_which_it_first_appeared(blocks):
    first_shards, first = FirstShards(), {}
    for number, windows in enumerate(blocks):
        shards, again = first_shards(np.array(windows, np.uint64), number % 3)
        for window, shard, is_again in zip(windows, shards.tolist(), again.tolist(), strict=True):
            assert is_again == (window in first)
            assert shard == first.setdefault(window, number % 3)


def harvest_of(rows: list[list[int]], strength: dict[int, float]) -> Harvest:
    """Texts of one data set; the first value of base is what `strength` says of a token's id, else 0."""
    texts = [Text(0, np.array(ids), np.ones(len(ids), np.uint8)) for ids in rows]
    ids = np.concatenate([text.ids for text in texts])
    x = np.zeros((len(ids), 4), np.float32)
    x[:, 0] = [strength.get(token, 0.0) for token in ids.tolist()]
    lengths = torch.tensor([len(row) for row in rows])
    return Harvest(
        texts=texts,
        x=torch.from_numpy(x),
        text=torch.arange(len(rows)).repeat_interleave(lengths),
        position=torch.cat([torch.arange(len(row)) for row in rows]),
        role=torch.ones(len(ids), dtype=torch.uint8),
        dataset=torch.zeros(len(ids), dtype=torch.uint8),
    )


def reader() -> Crosscoder:
    """Latent 0 reads the first value of base and writes it to both models; latent 1 never fires."""
    encoder = torch.zeros(4, 2)
    encoder[0, 0] = 1.0
    rows = torch.tensor([[1.0, 0, 1.0, 0], [0, 1.0, 0, 0]])
    return Crosscoder(encoder, torch.zeros(2), rows, torch.zeros(4), (2, 2), "l1", code_normalisation="none")


def run(harvests: list[Harvest], tokenizer, num_shards: int = 5):
    spec = AnalysisSpec(num_shards=num_shards, top_examples=20, examples_per_quantile=2, max_tokens=100_000)
    return analyse(reader(), HeldOut(harvests, ("chats",), tokenizer), spec, silent)


SYSTEM_PROMPT = [*range(100, 120), 7, *range(120, 140)]
"""Token 7 fires the latent; on each side of it stand more tokens than a window has."""


def test_examples_are_distinct_around_the_peak_and_count_the_texts_that_they_stand_for(tokenizer):
    """Thirty texts with one system prompt and different ends, two of other words: three examples instead of twenty."""
    ends = [np.arange(20) + 200 + 20 * number for number in range(32)]
    rows = [[*(SYSTEM_PROMPT if number < 30 else [8]), *end.tolist()] for number, end in enumerate(ends)]
    analysis = run([harvest_of(rows, {7: 3.0, 8: 2.0})], tokenizer)
    examples = analysis.examples.to_pylist()
    top = [(row["max"], row["repeats"]) for row in examples if row["group"] == "top"]
    assert top == [(3.0, 29), (2.0, 0), (2.0, 0)]
    assert sorted(row["max"] for row in examples if row["group"] == "quantile") == [2.0, 2.0, 3.0]
    latents = analysis.latents.to_pydict()
    # The token 8 at the start of the second of its texts repeats that of the first.
    assert latents["repeat_share"][0] == pytest.approx(30 / 32)
    assert np.isnan(latents["repeat_share"][1])
    assert latents["num_texts"] == [2, 0]
    num_tokens = sum(map(len, rows))
    assert analysis.metrics["repeat_share"] == pytest.approx((29 * len(SYSTEM_PROMPT) + 1) / num_tokens)


def test_a_latent_that_fires_in_one_distinct_text_has_no_standard_error(tokenizer):
    """It fires on the same prompt in each of 200 texts: that is one observation, not two hundred."""
    rng = np.random.default_rng(1)
    rows = [[*SYSTEM_PROMPT, *rng.integers(200, 300, 30).tolist()] for _ in range(200)]
    latents = run([harvest_of(rows, {7: 3.0})], tokenizer).latents.to_pydict()
    assert latents["mean"][0] == pytest.approx(3.0)
    assert np.isnan(latents["mean_se"][0])
    assert np.isnan(latents["beta_act_base_se"][0])


def test_errors_are_those_of_distinct_texts(tokenizer):
    """Forty prompts with strengths of their own, each in 25 texts: the mean is as uncertain as that of forty values."""
    rng = np.random.default_rng(2)
    strengths = dict(zip(range(400, 440), rng.uniform(1, 5, 40).tolist(), strict=True))
    prompts = {token: rng.integers(0, 90, 20).tolist() for token in strengths}
    order = rng.permutation(np.repeat(list(strengths), 25)).tolist()
    rows = [[*prompts[token], token, *rng.integers(200, 300, 12).tolist()] for token in order]
    latents = run([harvest_of(rows, strengths)], tokenizer, num_shards=20).latents.to_pydict()
    values = np.array(list(strengths.values()))
    honest = values.std(ddof=1) / len(values) ** 0.5
    assert latents["mean"][0] == pytest.approx(values.mean(), rel=1e-5)
    assert 0.6 * honest < latents["mean_se"][0] < 1.6 * honest


def test_values_beyond_half_precision_are_kept_as_they_are(tokenizer):
    """65 504 is the largest float16; a massive activation may be ten times that."""
    analysis = run([harvest_of([[1, 2, 3, 7], [4, 5, 8]], {7: 700_000.0, 8: 65_600.0})], tokenizer)
    values = {row["max"]: row["values"] for row in analysis.examples.to_pylist()}
    assert values == {700_000.0: [700_000.0], 65_600.0: [65_600.0]}
