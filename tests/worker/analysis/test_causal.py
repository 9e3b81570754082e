"""Causal effects of single latents, against plain hooked forwards of the whole models, one per latent and text."""

import copy
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from crosscope_proto.causal_columns import CAUSAL_COLUMNS
from crosscope_proto.roles import TEMPLATE_ROLES, TokenRole
from crosscope_proto.specs import CausalSpec, TokenPolicy
from crosscope_worker.analysis import AnalysisError, causal, whole_texts
from crosscope_worker.analysis.causal import CausalEffects, measure_causal
from crosscope_worker.analysis.causal_choice import choose_latents
from crosscope_worker.analysis.text_means import TextMeans
from crosscope_worker.analysis.whole_texts import Splicing
from crosscope_worker.data.texts import Text
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveThreshold
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.tokens import TextTokenizer, Turn
from crosscope_worker.work import silent

LAYER, WIDTH, NUM_LATENTS, SILENT = 1, 32, 6, 4
POLICY = TokenPolicy()
EFFECTS = ("ablation_gap", "transplant_gap", "ablation_moved")


@pytest.fixture(scope="module")
def texts(tokenizer: TextTokenizer) -> list[Text]:
    """Two conversations, one with an answer of more than nine tokens, and a document."""
    story = "the red fox and the old river, every morning i hope this helps, have a nice day!"
    turns = [
        [Turn("user", "what is two plus three?"), Turn("assistant", "two plus three is five.")],
        [Turn("user", "tell me a story"), Turn("assistant", story)],
    ]
    given = [*(tokenizer.conversation(each) for each in turns), tokenizer.text("the baker makes fresh bread")]
    return [Text(0, tokens.ids, tokens.roles) for tokens in given]


def crosscoder(num_latents: int = NUM_LATENTS) -> Crosscoder:
    """Random, with input scales; latent SILENT never fires."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    b_enc = 2 * normal(num_latents)
    b_enc[SILENT] = -1e4
    return Crosscoder(
        W_enc=normal(2 * WIDTH, num_latents),
        b_enc=b_enc,
        W_dec=normal(num_latents, 2 * WIDTH),
        b_dec=normal(2 * WIDTH),
        d_model=(WIDTH, WIDTH),
        variant="batch_topk",
        keep=AboveThreshold(2.0),
        input_scale=(0.5, 2.0),
    )


def table(**columns) -> pa.Table:
    return pa.table({"num_active": np.arange(1, NUM_LATENTS + 1)} | columns)


def measure(pair: Pair, texts, spec=None, dictionary=None) -> CausalEffects:
    spec = spec or CausalSpec(latents=tuple(range(NUM_LATENTS)))
    sample = Splicing(PairActivations(pair, LAYER), texts, POLICY)
    return measure_causal(dictionary or crosscoder(), sample, table(), spec, silent)


def hooked(model, ids: Tensor, delta: Tensor) -> Tensor:
    """Log-probabilities of a whole forward in which `delta: [pos, d_model]` is added behind the layer."""
    layer = model.model.layers[LAYER]

    def add(_module, _inputs, output):
        return output + delta if isinstance(output, Tensor) else (output[0] + delta, *output[1:])

    with layer.register_forward_hook(add):
        return model(input_ids=ids[None]).logits[0].double().log_softmax(-1)


def plain(pair: Pair, texts: list[Text], cc: Crosscoder) -> dict[tuple[str, str], list[list[float]]]:
    """For each (effect, group), and "gap": a list for each text of the values at its predictions, [latent] each."""
    found = defaultdict(lambda: [[] for _ in texts])
    for number, text in enumerate(texts):
        ids, roles = torch.from_numpy(text.ids), text.roles
        streams = [m(input_ids=ids[None], output_hidden_states=True).hidden_states[LAYER + 1][0] for m in pair.models]
        code = cc.encode(torch.cat(streams, 1)) * torch.from_numpy(roles != TokenRole.BOS)[:, None]
        none = torch.zeros_like(streams[0])
        base, chat = (hooked(model, ids, none) for model in pair.models)
        answer = np.flatnonzero(roles == TokenRole.ASSISTANT)
        at = {"all": answer - 1, "first9": answer[:9] - 1}
        template = np.isin(roles[:-1], [*TEMPLATE_ROLES]) & (roles[:-1] != TokenRole.BOS)
        at["template"] = np.flatnonzero(template) if len(answer) else answer
        gap = kl(chat, base)
        for group, positions in at.items():
            found["gap", group][number] = gap[positions].tolist()
        for j in range(cc.num_latents):
            rows = [cc.W_dec[j, :WIDTH] / cc.input_scale[0], cc.W_dec[j, WIDTH:] / cc.input_scale[1]]
            ablated = hooked(pair.models[1], ids, -code[:, j, None] * rows[1])
            moved = hooked(pair.models[0], ids, code[:, j, None] * (rows[1] - rows[0]))
            values = dict(
                zip(EFFECTS, (gap - kl(ablated, base), gap - kl(chat, moved), kl(chat, ablated)), strict=True)
            )
            for effect, each in values.items():
                for group, positions in at.items():
                    found[f"{effect}/{j}", group][number] = each[positions].tolist()
    return found


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def mean_and_error(values: list[list[float]]) -> tuple[float, float]:
    """The mean over all predictions, and its error by leaving the texts' residuals as they are."""
    values = [each for each in values if each]
    sums, counts = np.array([sum(each) for each in values]), np.array([len(each) for each in values])
    mean = sums.sum() / counts.sum()
    spread = ((sums - mean * counts) ** 2).sum() * len(sums) / (len(sums) - 1)
    return mean, np.sqrt(spread) / counts.sum()


def test_effects_are_those_of_a_hooked_forward_for_each_latent(tiny_pair: Pair, texts: list[Text]):
    found, expected = measure(tiny_pair, texts), plain(tiny_pair, texts, crosscoder())
    assert set(found.columns) == {column.name for column in CAUSAL_COLUMNS}
    for group in ("all", "first9", "template"):
        gap, error = mean_and_error(expected["gap", group])
        assert found.metrics[f"causal_gap_{group}"] == pytest.approx(gap, rel=1e-4)
        assert found.metrics[f"causal_gap_{group}_se"] == pytest.approx(error, rel=1e-3)
        assert found.metrics[f"causal_predictions_{group}"] == sum(map(len, expected["gap", group]))
        for effect in EFFECTS:
            for j in range(NUM_LATENTS):
                mean, error = mean_and_error(expected[f"{effect}/{j}", group])
                assert found.columns[f"{effect}_{group}"][j] == pytest.approx(mean, rel=1e-3, abs=1e-6)
                assert found.columns[f"{effect}_{group}_se"][j] == pytest.approx(error, rel=2e-3, abs=1e-6)
    assert np.abs(found.columns["ablation_gap_all"]).max() > 1e-3, "something happens at all"
    assert found.metrics["causal_texts"] == 2


def test_a_latent_that_never_fires_does_nothing_and_one_that_was_not_chosen_has_no_figure(tiny_pair: Pair, texts):
    found = measure(tiny_pair, texts, CausalSpec(latents=(0, SILENT)))
    for effect in EFFECTS:
        assert found.columns[f"{effect}_all"][SILENT] == found.columns[f"{effect}_all_se"][SILENT] == 0
        assert np.isnan(found.columns[f"{effect}_all"][1])
    assert found.columns["causal_texts"][SILENT] == found.columns["causal_equivalence_tokens"][SILENT] == 0
    assert np.isnan(found.columns["causal_equivalence"][SILENT])
    assert found.metrics["causal_latents"] == 2


def test_errors_of_two_texts_by_hand():
    """Sums 3 and 1 over 2 and 4 predictions: mean 2/3, residuals ±5/3, so the error is sqrt(2 · 50/9) / 6."""
    sums = TextMeans((2, 1, 1))
    for total, count in ((3.0, 2), (1.0, 4)):
        sums.add(np.full((1, 1, 1), total), np.array([count]), np.array([1]))
    assert sums.means()[1, 0, 0] == pytest.approx(2 / 3)
    assert sums.errors()[1, 0, 0] == pytest.approx(np.sqrt(2 * 50 / 9) / 6)
    assert np.isnan(sums.means()[0]), "what no text was added to"


def test_one_text_has_no_error(tiny_pair: Pair, texts):
    found = measure(tiny_pair, texts[:1])
    assert np.isfinite(found.columns["ablation_gap_all"]).all()
    assert np.isnan(found.columns["ablation_gap_all_se"]).all()
    assert np.isnan(found.metrics["causal_gap_all_se"])


def test_a_latent_with_equal_rows_is_equivalent_in_equal_models(tiny_pair: Pair, texts):
    base = tiny_pair.models[0]
    twins = replace(tiny_pair, models=(base, copy.deepcopy(base)))
    cc = crosscoder()
    W_dec = cc.W_dec.clone()
    W_dec[:3, WIDTH:] = 4 * W_dec[:3, :WIDTH]  # the scales of the inputs are 0.5 and 2
    W_dec[3, WIDTH:] = -4 * W_dec[3, :WIDTH]
    W_dec[5, :WIDTH] = 0
    found = measure(twins, texts, dictionary=replace(cc, W_dec=W_dec))
    equivalence, tokens = found.columns["causal_equivalence"], found.columns["causal_equivalence_tokens"]
    assert tokens[:4].min() > 0
    np.testing.assert_allclose(equivalence[:3], 1, atol=1e-5)
    assert equivalence[3] < 0.5
    assert np.isnan(equivalence[5]), "ablating nothing has no direction"
    np.testing.assert_allclose(found.columns["transplant_gap_all"][:3], 0, atol=1e-6)


@torch.no_grad()
def with_padding(pair: Pair, factor: float) -> Pair:
    """The pair whose chat model has three more ids, each `factor` times as probable as the most probable id."""
    chat = copy.deepcopy(pair.models[1])
    head = chat.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)

    def padded(_module: torch.nn.Module, _inputs: object, logits: Tensor) -> Tensor:
        more = logits.max(-1, keepdim=True).values + math.log(factor)
        return torch.cat([logits, more.expand(*logits.shape[:-1], 3)], -1)

    head.register_forward_hook(padded)
    chat.config.final_logit_softcapping = None
    return replace(pair, models=(pair.models[0], chat))


def test_ids_that_one_model_lacks_count_nowhere_and_may_not_be_probable(tiny_pair: Pair, texts):
    without = replace(tiny_pair, models=(tiny_pair.models[0], copy.deepcopy(tiny_pair.models[1])))
    without.models[1].config.final_logit_softcapping = None
    expected = measure(without, texts)
    found = measure(with_padding(tiny_pair, 1e-6), texts)
    for name, column in found.columns.items():
        np.testing.assert_allclose(column, expected.columns[name], rtol=1e-3, atol=1e-6, err_msg=name)
    says = r"of the probability to ids that the other model lacks.*analysis\.causal to null"
    with pytest.raises(AnalysisError, match=says):
        measure(with_padding(tiny_pair, 1.0), texts)


def test_sizes_of_pieces_do_not_matter(tiny_pair: Pair, texts, monkeypatch: pytest.MonkeyPatch):
    whole = measure(tiny_pair, texts)
    monkeypatch.setattr(whole_texts, "BATCH_TOKENS", 40)
    monkeypatch.setattr(causal, "BATCH_TOKENS", 40)
    monkeypatch.setattr(causal, "LOGIT_BYTES", 400 * 4 * 3)
    for name, column in measure(tiny_pair, texts).columns.items():
        np.testing.assert_allclose(column, whole.columns[name], rtol=1e-3, atol=1e-6)


def test_a_sample_that_ends_early_is_a_sample_of_fewer_texts(tiny_pair: Pair, texts):
    """And says so; conversations come in one batch, in the order of the data."""
    first = measure(tiny_pair, texts[:1])
    short = measure(tiny_pair, texts[:2], CausalSpec(latents=tuple(range(NUM_LATENTS)), latent_tokens=1))
    fires = first.columns["causal_texts"] > 0
    np.testing.assert_allclose(
        short.columns["ablation_gap_all"][fires], first.columns["ablation_gap_all"][fires], rtol=1e-4
    )
    assert short.metrics["causal_latents_short"] == (short.columns["causal_texts"] > 0).sum()


def test_the_choice_follows_the_evidence():
    latents = table(
        latent_class=["chat_only", "shared", "shared", "dead", "chat_only", "shared"],
        nu_err=[0.5, 0.1, np.nan, 0.0, -0.2, 0.2],
        nu_err_se=[0.0, 0.3, 0.0, 0.0, 0.0, 0.0],
        rel_norm=[0.9, 0.5, 0.6, 0.1, 0.8, 0.5],
    ).set_column(0, "num_active", pa.array([5, 5, 5, 0, 5, 5]))

    def chosen(**spec) -> tuple[list[int], int]:
        choice = choose_latents(latents, CausalSpec(**spec))
        return choice.latents.tolist(), choice.num_left_out

    assert chosen(num_latents=2) == ([4, 5], 2), "nu_err of latent 1 is uncertain, of 2 unknown, and 3 is dead"
    assert chosen(classes=("shared",), num_latents=1) == ([5], 1)
    assert chosen(classes=("chat_only", "shared"), num_latents=1, top="rel_norm") == ([0, 2], 3)
    assert chosen(latents=(5, 0)) == ([0, 5], 0)
    assert (
        "no living latent of class base_only has a nu_err"
        in choose_latents(latents, CausalSpec(classes=("base_only",))).reason
    )
    with pytest.raises(AnalysisError, match="names latent 6, but the dictionary has 6, 0 to 5"):
        choose_latents(latents, CausalSpec(latents=(6,)))
