"""Tokens with an outlying norm are found from the data, left out by default, counted and reported (math §7)."""

from typing import Any

import numpy as np
import pytest
import torch

from crosscope_proto.roles import TokenRole
from crosscope_proto.specs import AnalysisSpec, TokenPolicy
from crosscope_worker.analysis import HeldOut, analyse
from crosscope_worker.data.harvest import harvest
from crosscope_worker.data.texts import Text
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.norms import NormBounds, NormFilter, measured_bounds
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.tokens import TextTokenizer
from crosscope_worker.work import silent

WIDTHS = (3, 2)


def tokens(base: list[float], chat: list[float]) -> torch.Tensor:
    """Activations with these norms."""
    x = torch.zeros(len(base), 5)
    x[:, 0], x[:, 4] = torch.tensor(base), torch.tensor(chat)
    return x


def test_each_model_has_its_own_limit():
    x = tokens([1, 1, 1, 1, 11, 1], [20, 20, 20, 20, 20, 201])
    position = np.arange(6)
    found = measured_bounds([(x[:2], position[:2]), (x[2:], position[2:])], WIDTHS, 10.0)
    assert found == NormBounds((10.0, 200.0))
    norms = NormFilter(10.0, WIDTHS, found)
    assert norms([(x, position)])[0].tolist() == [True] * 4 + [False] * 2
    assert (norms.num_tokens, norms.num_left_out) == (6, 2)
    assert norms.sentence() == (
        "33 % of the tokens (2 of 6) were left out: norm above 10 × the median (10 in the base model, 200 in the chat "
        "model); 1 at position 4, 1 at position 5."
    )


def test_every_token_at_a_position_with_an_outlying_median_is_left_out():
    """Nine texts of 20 tokens; the first token is huge in seven of them. It is left out in the two others too."""
    base = np.ones((9, 20))
    base[:7, 0] = 500
    position = np.tile(np.arange(20), 9)
    x = tokens(base.flatten().tolist(), [1.0] * 180)
    norms = NormFilter(10.0, WIDTHS)
    norms.measure([(x, position)])
    assert norms.bounds == NormBounds((10.0, 10.0), (0,))
    assert norms([(x, position)])[0].tolist() == [p != 0 for p in position]
    assert norms.sentence().startswith("5 % of the tokens (9 of 180) were left out: ")
    assert norms.sentence().endswith("; all at position 0.")
    few = NormFilter(10.0, WIDTHS)
    few.measure([(x[:140], position[:140])])  # seven texts say nothing of a position
    assert few.bounds == NormBounds((10.0, 10.0))


def test_null_keeps_everything():
    norms = NormFilter(None, WIDTHS)
    x = tokens([1, 1e6], [1, 1])
    norms.measure([(x, np.arange(2))])
    assert norms.bounds is None
    assert norms([(x, np.arange(2))])[0].all()
    assert norms.sentence() == ""


def test_the_default_drops_outliers_and_null_is_still_said():
    assert TokenPolicy().max_norm_ratio == 10.0
    assert TokenPolicy(max_norm_ratio=None).max_norm_ratio is None


class Sinks(PairActivations):
    """Tokens of some ids have 170 times their norm in both models, as attention sinks do."""

    ids = torch.tensor([299])

    def rows(self, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        x = super().rows(ids, positions).clone()
        x[torch.isin(ids, self.ids)] *= 170
        return x


def documents(num_texts: int, num_tokens: int, seed: int = 0) -> list[Text]:
    random = np.random.default_rng(seed)
    roles = np.full(num_tokens, TokenRole.TEXT, dtype=np.uint8)
    return [Text(0, random.integers(6, 290, num_tokens), roles, place=f"line {i}") for i in range(num_texts)]


def test_the_median_is_that_of_the_whole_window(tiny_pair: Pair):
    """The first forward, the longest text, consists of sinks: its own median would call nothing an outlier."""
    texts = documents(20, 10)
    texts.insert(0, Text(0, np.full(30, 299), np.full(30, TokenRole.TEXT, dtype=np.uint8), place="sinks"))
    norms = NormFilter(10.0, tiny_pair.d_model)
    found = list(harvest(texts, Sinks(tiny_pair, 1), TokenPolicy(), 30, norms))
    assert sum(len(each.x) for each in found) == 200
    assert norms.num_left_out == 30


@pytest.fixture
def dictionary(tiny_pair: Pair) -> Crosscoder:
    generator = torch.Generator().manual_seed(0)
    both = sum(tiny_pair.d_model)
    rows = torch.nn.functional.normalize(torch.randn(32, both, generator=generator), dim=1)
    text = documents(250, 20)[40].ids
    text[7] = 299
    ids = torch.from_numpy(text)[None]  # the first latent points where sinks do
    rows[0] = torch.nn.functional.normalize(PairActivations(tiny_pair, 1).rows(ids)[0, 7], dim=0)
    return Crosscoder(
        rows.T, torch.zeros(32), rows, torch.zeros(both), tiny_pair.d_model, "batch_topk", keep=AboveThreshold(1.0)
    )


def test_two_tokens_of_many_neither_move_fve_nor_lead_examples(tiny_pair: Pair, dictionary: Crosscoder):
    texts = documents(250, 20)
    for text in (texts[40], texts[150]):
        text.ids[7] = 299
    activations = Sinks(tiny_pair, 1)
    spec = AnalysisSpec(max_tokens=5000, num_shards=2, uselessness_steps=1, top_examples=2, examples_per_quantile=0)

    def analysed(policy: TokenPolicy, ids: list[int]) -> Any:
        Sinks.ids = torch.tensor(ids)
        harvests = harvest(texts, activations, policy)
        held_out = HeldOut(harvests, ["web"], TextTokenizer(tiny_pair.tokenizer))
        return analyse(dictionary, held_out, spec, silent)

    kept = analysed(TokenPolicy(max_norm_ratio=None), [299])
    default = analysed(TokenPolicy(), [299])
    without = analysed(TokenPolicy(), [])
    for figure in ("fve_base", "fve_chat"):
        assert abs(kept.metrics[figure] - without.metrics[figure]) > 0.1
        assert default.metrics[figure] == pytest.approx(without.metrics[figure], abs=1e-3)
        assert default.metrics[f"{figure}_inliers"] == pytest.approx(default.metrics[figure], abs=1e-9)
    strongest, plain = (max(each.examples["max"].to_pylist()) for each in (default, without))
    assert strongest == pytest.approx(plain, rel=0.02)
    assert max(kept.examples["max"].to_pylist()) > 50 * plain
    Sinks.ids = torch.tensor([299])
