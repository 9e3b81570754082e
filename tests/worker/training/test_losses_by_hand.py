"""Every training loss with its numbers worked out by hand; gradients are in test_objective.py.

One token unless said otherwise, widths (2, 2), biases zero. Two latents read the token with 2 and 1 and have the rows
(1, 0 | 2, 0), of norms 1 and 2, and (0, 1 | 0, 0), of norms 1 and 0.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from crosscope_proto.dictionaries import dictionary
from crosscope_proto.specs import TrainingSpec
from crosscope_worker.dictionary.keep import ALL_POSITIVE, AboveThreshold
from crosscope_worker.dictionary.streams import BOTH, DIFFERENCE
from crosscope_worker.training.objective import Step, compute_step
from crosscope_worker.training.start import input_scales
from crosscope_worker.training.trainer import Trainer

X = torch.tensor([[2.0, 1.0, 7.0, 4.0]])
"""Reconstructed as (2, 1 | 4, 0) with both latents: the errors are (0, 0) and (3, 4)."""
ROWS = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
ENCODER = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])


def trainer(spec: dict | None = None, d_model: tuple[int, int] = (2, 2), **training) -> Trainer:
    """A trainer of two latents that read and write as above, unless the spec says otherwise."""
    options = {"variant": "batch_topk", "num_latents": 2} | (spec or {"k": 1})
    return Trainer(dictionary(**options), TrainingSpec(**{"warmup_steps": 0} | training), d_model)


@torch.no_grad()
def set_weights(one: Trainer, encoder: Tensor = ENCODER, rows: Tensor = ROWS) -> None:
    one.weights.encoder.copy_(encoder)
    one.weights.decoder.copy_(rows)


@torch.no_grad()
def step(spec: dict, x: Tensor = X, rows: Tensor = ROWS, encoder: Tensor = ENCODER) -> Step:
    """The result of one step that changes no weight."""
    one = trainer({"num_latents": len(rows)} | spec, (x.shape[1] // 2,) * 2)
    set_weights(one, encoder, rows)
    return one.step(x, lr=0.0)


@pytest.mark.parametrize(
    ("normalisation", "penalty"),
    [
        ("crosscoder", 2 * 3 + 1 * 1),
        ("sae", 2 * math.sqrt(5) + 1),
        ("mixed", 2 * (math.sqrt(5) + 0.3) + 1 * (1 + 0.1)),
        ("none", 2 + 1),
    ],
)
def test_l1(normalisation: str, penalty: float):
    """Errors of norm 0 and 5 over two models, and mu times the scaled activations."""
    found = step({"variant": "l1", "mu": 0.1, "code_normalisation": normalisation})
    assert found.loss == pytest.approx((0 + 5) / 2 + 0.1 * penalty)
    assert found.squared_error == (0.0, 25.0)
    assert found.num_active == 2


def test_the_mean_is_over_tokens_and_models():
    """A second token, of which only (0, 0 | 0, 2) is left: norms 0, 5, 0 and 2; the code is 2 and 1 in one of two."""
    x = torch.cat([X, torch.tensor([[0.0, 0.0, 0.0, 2.0]])])
    assert step({"variant": "l1", "mu": 0.1}, x).loss == pytest.approx((5 + 2) / 4 + 0.1 * 7 / 2)


def test_the_squared_norm():
    assert step({"variant": "l1", "mu": 0.1, "squared": True}).loss == pytest.approx(25 / 2 + 0.1 * 7)


def test_the_penalty_of_designated_shared_latents():
    """Rows (1, 0 | 1, 0), shared and penalised by a fifth, and (0, 1 | 0, 0): errors (0, 0) and (5, 4)."""
    rows = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    found = step({"variant": "designated_shared", "mu": 0.1, "num_shared": 1, "shared_penalty": 0.2}, rows=rows)
    assert found.loss == pytest.approx(math.sqrt(41) / 2 + 0.1 * (0.2 * 2 * 2 + 1))


@torch.no_grad()
def test_a_threshold_for_each_latent():
    """Scaled, the latents have 6 and 1. Above 2 lies the first alone: the errors are (0, 1) and (3, 4), one is active.

    Only 1 lies within 1.25 of 2. As the threshold passes it, the second latent jumps to 2 along (0, 1 | 0, 0), where
    the loss falls by 1 / 2 for each unit, and 0.1 more is paid: 2 / 2.5 · (2 / 2 - 0.1) by the logarithm.
    """
    spec = {"variant": "jumprelu", "mu": 0.1, "initial_threshold": 2.0, "bandwidth": 2.5}
    one = trainer(spec, max_grad_norm=None)
    set_weights(one)
    found = one.step(X, lr=0.0)
    assert found.loss == pytest.approx((1 + 5) / 2 + 0.1)
    assert found.num_active == 1
    assert found.extra["log_threshold"].tolist() == pytest.approx([0.0, 0.72])


def test_the_largest_scaled_activations_of_the_whole_batch_are_kept():
    """Scaled, the tokens have 2 · 3, 9 · 1 and 4 · 3, 5 · 1. Of four, k = 1 keeps 12 and 9, one in each token; of the
    raw values 9 and 5 would be the largest, and per token those would be 9 and 4."""
    x = torch.tensor([[2.0, 9.0, 0.0, 0.0], [4.0, 5.0, 8.0, 0.0]])
    found = step({"variant": "batch_topk", "k": 1}, x)
    assert found.smallest_kept == (9.0,)
    # Left: (2, 0 | 0, 0) and (0, 5 | 0, 0).
    assert found.squared_error == (29.0, 0.0)
    assert found.loss == pytest.approx((2 + 5) / 4)


def test_one_token_may_take_the_entries_of_another():
    """Scaled 30 and 20 against 3 and 2: both entries go to the first token."""
    x = torch.tensor([[10.0, 20.0, 20.0, 0.0], [1.0, 2.0, 2.0, 0.0]])
    found = step({"variant": "batch_topk", "k": 1}, x)
    assert found.squared_error == (5.0, 4.0)
    assert found.smallest_kept == (20.0,)


@torch.no_grad()
def test_the_auxiliary_loss():
    """The live latent leaves (0, 0 | 0, 2) and (0, 0 | 0, -2): variance 4 + 4, summed over the batch.

    Of the dead ones d_model // 2 = 1 is taken for each token, the larger one scaled: latent 1, which reads 2 at the
    first token and writes half of it, not latent 2 with 4 and a row of a tenth. At the second token neither fires. So
    (0, 0 | 0, 1) and (0, 0 | 0, -2) are left, 5 of 8. The bias has no part in it.
    """
    x = torch.tensor([[4.0, 0.0, 9.0, 2.0], [6.0, 0.0, 13.0, -2.0]])
    rows = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.5], [0.0, 0.0, 0.0, 0.1]])
    encoder = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 2.0]])
    for aux_weight in (0.0, 1 / 32, 2.0):
        one = trainer({"num_latents": 3, "k": 1}, dead_after_tokens=9, aux_weight=aux_weight)
        set_weights(one, encoder, rows)
        one.weights.b_dec.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
        one.since_fired.copy_(torch.tensor([8, 9, 10]))
        found = one.step(x, lr=0.0)
        assert found.smallest_kept == (12.0,)
        assert found.loss == pytest.approx((2 + 2) / 4 + aux_weight * 5 / 8)


SILENT = torch.tensor([[-3.0, -1.0, -4.0, -5.0]])
"""No latent fires. Squared norms 10 and 41, inner product 17, and (-1, -4) between the models, of squared norm 17."""


@pytest.mark.parametrize("cross_term", [0.0, -0.5, -1.0])
def test_the_cross_term(cross_term: float):
    found = step({"variant": "l1", "mu": 0.1, "squared": True, "cross_term": cross_term}, SILENT)
    assert found.num_active == 0
    assert found.loss == pytest.approx((10 + 41 + 2 * cross_term * 17) / 2)
    if cross_term == -1:
        assert found.loss == pytest.approx(17 / 2), "only the difference is left"


def test_the_weight_of_the_difference():
    spec = {"variant": "delta", "k": 1, "num_delta": 1, "k_delta": 1, "delta_weight": 0.7}
    assert step(spec, SILENT).loss == pytest.approx((10**0.5 + 41**0.5) / 2 + 0.7 * 17**0.5)
    assert step(spec | {"squared": True}, SILENT).loss == pytest.approx(51 / 2 + 0.7 * 17)


def test_delta_latents_do_not_compete_with_the_others():
    """Scaled 2 · 3, 3 · 3 and 4 · 3: the first has a budget of its own, the last beats the second."""
    rows = ROWS[:1].repeat(3, 1)
    encoder = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.5, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]])
    spec = {"variant": "delta", "k": 1, "num_delta": 1, "k_delta": 1, "delta_weight": 1.0}
    found = step(spec, torch.tensor([[2.0, 0.0, 7.0, 4.0]]), rows, encoder)
    assert found.smallest_kept == (6.0, 12.0)
    assert found.fired.tolist() == [True, False, True]
    # 2 + 4 = 6 along (1, 0 | 2, 0): (-4, 0 | -5, 4) is left.
    assert found.squared_error == (16.0, 41.0)


@torch.no_grad()
def test_nested_prefixes_by_hand():
    """Prefix 1 leaves (0, 1 | 3, 4) and prefix 2 (0, 0 | 3, 4). The first latent is in both, the second in one."""
    one = trainer({"variant": "matryoshka", "k": 2, "prefixes": [1, 2]})
    set_weights(one)
    found = compute_step(one.weights, X, one.variant)
    assert found.loss == pytest.approx((1 + 5) / 2 + (0 + 5) / 2)
    assert found.squared_error == (0.0, 25.0)
    assert found.num_active == 2
    second = torch.tensor([0.0, 0.0, -0.3, -0.4])
    both = torch.tensor([0.0, -0.5, -0.3, -0.4]) + second
    torch.testing.assert_close(found.gradients.b_dec, both)
    torch.testing.assert_close(found.gradients.decoder, torch.stack([2 * both, 1 * second]))
    # Along the rows (1, 0 | 2, 0) and (0, 1 | 0, 0): 2 · -0.6, and 0.
    torch.testing.assert_close(found.gradients.b_enc, torch.tensor([-1.2, 0.0]))
    torch.testing.assert_close(found.gradients.encoder, torch.stack([-1.2 * X[0], 0 * X[0]]))


def test_a_decoupled_code_by_hand():
    """Rows (3 | 1) and (1 | 4), both latents read 1: base keeps the first, chat the second."""
    rows, encoder = torch.tensor([[3.0, 1.0], [1.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    spec = {"variant": "batch_topk", "k": 1, "code_normalisation": "decoupled"}
    found = step(spec, torch.tensor([[1.0, 5.0]]), rows, encoder)
    assert found.smallest_kept == (3.0, 4.0)
    assert found.squared_error == (4.0, 1.0)
    assert found.loss == pytest.approx((2 + 1) / 2)
    assert found.num_active == 1


@torch.no_grad()
def test_the_threshold_is_a_mean_until_it_is_a_moving_average():
    """One token that reads 1, 2 and 6 with a row of norm 3: kept at 3, 6 and 18."""
    one = trainer(batch_size=1)
    set_weights(one)
    found = []
    for reading in (1.0, 2.0, 6.0):
        one.step(torch.tensor([[reading, 0.0, 0.0, 0.0]]), lr=0.0)
        found.append(one.counters.thresholds[0])
    assert found == pytest.approx([3, 4.5, 9])
    one.counters.thresholds, one.counters.threshold_updates = [9.0], 5000
    one.step(torch.tensor([[3.0, 0.0, 0.0, 0.0]]), lr=0.0)
    assert one.counters.thresholds == pytest.approx([0.999 * 9 + 0.001 * 9])
    one.step(torch.tensor([[103.0, 0.0, 0.0, 0.0]]), lr=0.0)
    (threshold,) = one.running_thresholds()
    assert threshold == pytest.approx(9 + 0.001 * 300)
    assert one.crosscoder().keep == AboveThreshold(threshold)


@torch.no_grad()
@pytest.mark.parametrize("schedule", [{"warmup_steps": 2}, {"sparsity_warmup_steps": 2, "k_start": 1}])
def test_the_threshold_begins_after_both_warm_ups(schedule: dict):
    one = trainer(batch_size=1, **schedule)
    set_weights(one)
    for reading in (100.0, 50.0, 1.0, 3.0):
        one.step(torch.tensor([[reading, 0.0, 0.0, 0.0]]), lr=0.0)
    assert one.counters.thresholds == pytest.approx([(3 + 9) / 2])


@torch.no_grad()
def test_a_latent_is_dead_after_so_many_tokens_without_firing():
    """Latent 1 fires in the second batch of two tokens only: 2, 0, 2, 4 and 6 tokens ago.

    (0, 0 | 0, ±1) is left throughout, of norm 1 and variance 2, summed. A dead latent that does not read leaves it
    whole: an auxiliary loss of 1.
    """
    one = trainer(dead_after_tokens=4, aux_weight=2.0)
    set_weights(one)
    first = torch.tensor([[1.0, 0.0, 2.0, 1.0], [1.0, 0.0, 2.0, -1.0]])
    second = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, -1.0]])
    seen, losses = [], []
    for x in (first, second, first, first, first):
        losses.append(one.step(x, lr=0.0).loss)
        seen.append(one.since_fired.tolist())
    assert seen == [[0, 2], [2, 0], [0, 2], [0, 4], [0, 6]]
    assert losses == pytest.approx([0.5] * 4 + [0.5 + 2.0])


@torch.no_grad()
def test_the_start():
    """Random directions of norm 0.4, the same for both models where widths agree; the encoder is the decoder."""
    for d_model in ((3, 3), (3, 5)):
        encoder, b_enc, decoder, b_dec = trainer({"num_latents": 50, "k": 1}, d_model).weights
        assert torch.equal(encoder, decoder)
        assert not b_enc.any()
        assert not b_dec.any()
        for half in decoder.split(d_model, dim=1):
            torch.testing.assert_close(half.norm(dim=1), torch.full((50,), 0.4))
        if d_model == (3, 3):
            assert torch.equal(decoder[:, :3], decoder[:, 3:])
        assert decoder[:, :3].mean(0).abs().max() < 0.15, "in all directions"


def test_input_scales_by_hand():
    """Squared norms 25 and 0 of base, 4 and 12 of chat, mean 12.5 and 8; of the difference 9 + 16 + 4 and 12: 20.5."""
    tokens = torch.tensor([[3.0, 4.0, 0.0, 2.0], [0.0, 0.0, 2.0, 8**0.5]])
    assert input_scales(BOTH, [tokens], (2, 2)) == pytest.approx(((2 / 12.5) ** 0.5, (2 / 8) ** 0.5))
    both = (2 / ((9 + 4 + 12) / 2)) ** 0.5
    assert input_scales(DIFFERENCE, [tokens[:1], tokens[1:]], (2, 2)) == pytest.approx((both, both))


@torch.no_grad()
def test_a_dictionary_of_differences_by_hand():
    """Base (1, 2) and chat (4, 6), scaled by 2: the input is (6, 8), which the stored encoder sees with both signs."""
    one = trainer({"variant": "diff_sae", "k": 1})
    one.counters.input_scale = (2.0, 2.0)
    tokens = torch.tensor([[1.0, 2.0, 4.0, 6.0]])
    assert one.inputs(tokens).tolist() == [[6.0, 8.0]]
    one.weights.encoder.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.5]]))
    one.weights.decoder.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    one.weights.b_dec.copy_(torch.tensor([0.0, 3.0]))
    crosscoder = replace(one.crosscoder(), keep=ALL_POSITIVE)
    assert crosscoder.encode(tokens).tolist() == [[6.0, 4.0]]
    assert crosscoder.decode(crosscoder.encode(tokens)).tolist() == [[0.0, 0.0, 3.0, 3.5]]
