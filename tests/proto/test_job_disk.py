"""Sizes of what jobs write, worked out by hand. tests/worker/recipes/test_disk_plan.py has a real job's folder."""

from dataclasses import replace

import pytest

from crosscope_proto.dictionaries import dictionary
from crosscope_proto.job_disk import HeldOut, Measured
from crosscope_proto.recipe import DemoPairRecipe, parse_recipe
from crosscope_proto.specs import AnalysisSpec, TokenPolicy, TrainingSpec
from crosscope_proto.training_memory import checkpoint_bytes

ANALYSIS = AnalysisSpec(
    max_tokens=1000, num_shards=2, top_examples=1, quantiles=2, examples_per_quantile=1, silent_examples=1
)
POLICY = TokenPolicy(max_length=10)
TOPK = dictionary(variant="topk", num_latents=4, k=2)


def measured(mean_text: float | None = 10.0, d_model: tuple[int, int] = (3, 5), parts: int | None = None) -> Measured:
    held_out = HeldOut.of(ANALYSIS, POLICY, 1, mean_text, None)
    return Measured(TOPK, d_model, replace(ANALYSIS, parts=parts), held_out)


def test_the_parts_of_an_analysis() -> None:
    found = measured()
    assert (found.held_out.tokens, found.held_out.texts, found.active, found.num_parts) == (1010, 101, 2, 1)
    # A latent has 12 sums a shard, the largest, repeats and texts, 11 roles, one data set and 112 bins.
    moments = 4 * (8 * (12 * 2 + 2 + 11 + 1 + 112) + 4) + 8 * 2
    assert moments == 4832
    # Three sums of squares for all tokens and for inliers; 24 bytes an active latent of a token; headers.
    one_part = moments + 3 * 2 * 8 * 8 + 24 * 2 * 1010 + 8192
    assert found.sums_bytes() == one_part
    # 2 020 entries; each of the four latents in each of the 101 texts.
    assert found.codes_bytes() == 6 * 2020 + 22 * 404
    assert found.texts_bytes() == round(13.25 * (1010 + 101) + 300 * 101)
    assert measured(parts=5).sums_bytes() == 5 * one_part - 4 * 24 * 2 * 1010


def test_texts_of_unknown_length_have_a_latent_in_each_token() -> None:
    assert measured(mean_text=None).codes_bytes() == (6 + 22) * 2020


def test_chat_only_latents_need_models_of_one_width() -> None:
    more = measured(d_model=(4, 4)).sums_bytes() - measured().sums_bytes()
    # A fifth of four latents is one; of 1 010 tokens a key, a count, a residual of four numbers, and one entry.
    assert more == 8 * 1 + 1010 * (16 + 4 * 4 + 12)


def test_a_version() -> None:
    found = measured()
    assert found.weights_bytes == 4 * (2 * 4 * 8 + 4 + 8) + 8192
    # Four examples a latent, of at most ten active tokens each.
    assert found.examples_bytes() == 16 * (12 + 6 * 10) + 40_000
    assert found.tables_bytes() == 640 * 4 + 6 * 160 + 40_000


def test_how_many_latents_are_active() -> None:
    held_out = HeldOut(10, None, 1)

    def active(**fields: object) -> float:
        return Measured(dictionary(num_latents=1000, **fields), (2, 2), ANALYSIS, held_out).active

    assert active(variant="batch_topk", k=10) == pytest.approx(11)  # by a threshold
    assert active(variant="topk", k=10, code_normalisation="decoupled") == 20  # each model selects its own
    assert active(variant="delta", k=10, num_delta=50, k_delta=10, delta_weight=1.0) == pytest.approx(22)
    assert active(variant="l1", mu=0.04) == 100  # assumed: the training decides


def test_fewer_tokens_than_a_buffer_make_a_smaller_checkpoint() -> None:
    training = TrainingSpec(buffer_tokens=100_000)
    whole = checkpoint_bytes(TOPK, training, (3, 5))
    assert whole == 3 * 304 + 8 * 4 + 4 * 8 * (100_000 + 65_536)
    assert checkpoint_bytes(TOPK, training, (3, 5), 4) - whole == 3 * 4 * 8 * 65_536  # four streams' windows
    assert checkpoint_bytes(TOPK, training, (3, 5), all_tokens=500) == 3 * 304 + 8 * 4 + 4 * 8 * 500


def test_a_demo_pair() -> None:
    recipe = parse_recipe("kind: demo-pair\nname: a\ndocuments: 10000\nconversations: 8000\n")
    assert isinstance(recipe, DemoPairRecipe)
    # As the demo's pair is: documents, conversations and probes, then a tokenizer and configurations in two folders.
    texts = 1_267_093 + 2_868_608 + 69_386 + 2 * 89_600
    assert texts <= recipe.text_bytes <= 1.2 * texts
    assert 1_378_296 <= recipe.model_bytes <= 1.2 * 1_378_296
    assert recipe.disk_bytes == recipe.text_bytes + 3 * recipe.model_bytes
