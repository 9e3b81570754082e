"""Latent scaling: against a loop over latents in float64, planted truth, and a brute-force jackknife."""

import dataclasses
import time

import numpy as np
import pytest
import torch

from crosscope_proto.roles import MODEL_NAMES
from crosscope_proto.scaling_columns import SCALING_DIRECTIONS, beta_column
from crosscope_worker.analysis.block import TokenFacts, encode_block
from crosscope_worker.analysis.moments import Moments, ShardSums
from crosscope_worker.analysis.scaling import directions, estimates, jackknife
from crosscope_worker.dictionary.crosscoder import Crosscoder
from crosscope_worker.dictionary.keep import AboveModelThresholds


def measure(world):
    moments = Moments(world.crosscoder, world.spec.num_shards, len(world.datasets))
    for block in world.blocks():
        moments.add(block)
    rows = directions(world.crosscoder)
    return jackknife(moments.shard_sums(), lambda sums: estimates(sums, rows))


def naive(crosscoder, code, x, error, j):
    """Every coefficient of one latent by least squares on whole targets, as published: a pass per target."""
    f = code[:, j]
    rows = [crosscoder.decoder(model)[j].double().numpy() for model in (0, 1)]
    b_dec = crosscoder.b_dec.double().numpy()
    result = {}
    for prefix, direction in SCALING_DIRECTIONS.items():
        along = MODEL_NAMES.index(direction)
        v = rows[along]
        for model, name in enumerate(MODEL_NAMES):
            piece = crosscoder.model_slice(model)
            targets = {
                "act": x[:, piece],
                "act_no_bias": x[:, piece] - b_dec[piece],
                "rec": x[:, piece] - error[:, piece],
                "err": error[:, piece] + np.outer(f, rows[model]),
            }
            for target, y in targets.items():
                denominator = (f @ f) * (v @ v)
                value = np.einsum("i,id,d->", f, y, v) / denominator if denominator > 0 else np.nan
                result[beta_column(prefix, target, name)] = value
        other = MODEL_NAMES[1 - along]
        for target in ("err", "rec"):
            own = result[beta_column(prefix, target, direction)]
            if abs(own) > 0.01:  # else the ratio amplifies rounding beyond any tolerance
                result[f"{prefix}nu_{target}"] = result[beta_column(prefix, target, other)] / own
    return result


@pytest.mark.parametrize(("num_latents", "d_model", "seed"), [(13, (5, 5), 0), (64, (17, 17), 1), (7, (1, 1), 2)])
def test_all_coefficients_equal_a_pass_per_target(make_world, num_latents, d_model, seed):
    world = make_world(num_latents=num_latents, d_model=d_model, seed=seed)
    value, _ = measure(world)
    code, x, error, _ = world.all()
    for j in range(num_latents):
        for name, expected in naive(world.crosscoder, code, x, error, j).items():
            assert value[name][j] == pytest.approx(expected, rel=2e-4, abs=1e-5, nan_ok=True), (name, j)


def test_a_decoupled_code_gives_each_model_back_its_own_entries(make_world):
    world = make_world(threshold=None)
    cc = world.crosscoder
    thresholds = torch.stack([torch.full((13,), 0.3), torch.full((13,), 0.8)])
    world.crosscoder = dataclasses.replace(cc, code_normalisation="decoupled", keep=AboveModelThresholds(thresholds))
    value, _ = measure(world)
    code, _, error, _ = world.all()
    kept = [world._kept(torch.from_numpy(code), model).numpy() for model in (0, 1)]
    assert (kept[0] != kept[1]).any()
    for j in (1, 2, 3, 4):
        f, v = code[:, j], cc.decoder(1)[j].double().numpy()
        for model, name in enumerate(MODEL_NAMES):
            own = np.outer(f * kept[model][:, j], cc.decoder(model)[j].double().numpy())
            y = error[:, cc.model_slice(model)] + own
            expected = np.einsum("i,id,d->", f, y, v) / ((f @ f) * (v @ v))
            assert value[beta_column("", "err", name)][j] == pytest.approx(expected, rel=2e-4, abs=1e-5), (name, j)


def test_standard_errors_equal_a_brute_force_jackknife(make_world):
    world = make_world(num_texts=60)
    _, errors = measure(world)
    code, x, error, shard = world.all()
    shards = np.unique(shard)
    assert len(shards) == 4
    for j in (0, 4, 10):
        left_out = [naive(world.crosscoder, *(a[shard != s] for a in (code, x, error)), j) for s in shards]
        for name in left_out[0]:
            values = np.array([each[name] for each in left_out])
            expected = np.sqrt(3 / 4 * ((values - values.mean()) ** 2).sum())
            assert errors[name][j] == pytest.approx(expected, rel=2e-3, abs=1e-5, nan_ok=True), (name, j)
        frequency = np.array([(code[shard != s, j] > 0).mean() for s in shards])
        expected = np.sqrt(3 / 4 * ((frequency - frequency.mean()) ** 2).sum())
        assert errors["frequency"][j] == pytest.approx(expected, rel=1e-6)


def one_latent_sums(code_by_shard):
    """Sums of one latent; the inner product is 1 at every entry."""
    count = np.array([[len(each)] for each in code_by_shard], float)
    code = np.array([[sum(each)] for each in code_by_shard], float)
    squared = np.array([[sum(f * f for f in each)] for each in code_by_shard], float)
    products = np.broadcast_to(code[:, None, None, :], (len(code), 2, 2, 1)).copy()
    return ShardSums(
        np.full(len(code), 10.0), count, code, code, squared, np.stack([squared, squared], 1), products, 0.5 * products
    )


def one_latent(norm=1.0):
    rows = torch.tensor([[0.0, norm, norm, 0.0]])
    return Crosscoder(torch.zeros(4, 1), torch.zeros(1), rows, torch.zeros(4), (2, 2), "l1")


def test_by_hand():
    """P = 1+2+3 = 6, C = 1+4+9 = 14, v = (1, 0), D^base = (0, 1), P - R = 3."""
    rows = directions(one_latent())
    value, _ = jackknife(one_latent_sums([[1.0, 2.0], [3.0]]), lambda sums: estimates(sums, rows))
    assert value["beta_act_base"][0] == pytest.approx(6 / 14)
    assert value["beta_rec_chat"][0] == pytest.approx(3 / 14)
    assert value["beta_err_base"][0] == pytest.approx(3 / 14)
    assert value["beta_err_chat"][0] == pytest.approx(3 / 14 + 1)
    assert value["nu_err"][0] == pytest.approx((3 / 14) / (3 / 14 + 1))
    assert value["frequency"][0] == pytest.approx(3 / 20)
    assert value["mean"][0] == pytest.approx(2.0)


def test_active_on_one_shard_only_has_a_value_but_no_error():
    rows = directions(one_latent())
    value, errors = jackknife(one_latent_sums([[1.0, 2.0], [], []]), lambda sums: estimates(sums, rows))
    assert np.isfinite(value["beta_act_chat"][0])
    assert np.isnan(errors["beta_act_chat"][0])
    assert np.isfinite(errors["frequency"][0])


def test_a_single_shard_has_no_errors():
    rows = directions(one_latent())
    value, errors = jackknife(one_latent_sums([[1.0, 2.0]]), lambda sums: estimates(sums, rows))
    assert np.isfinite(value["nu_rec"][0])
    assert all(np.isnan(array[0]) for array in errors.values())


def test_a_zero_direction_has_no_coefficients():
    rows = directions(one_latent(norm=0.0))
    value, _ = jackknife(one_latent_sums([[1.0], [2.0]]), lambda sums: estimates(sums, rows))
    assert np.isnan(value["beta_act_base"][0])
    assert np.isnan(value["nu_err"][0])


def planted(base_strength, crosscoder_rows, scale=(1.0, 1.0)):
    """4 000 tokens of two orthogonal directions, latent 0 present in base at `base_strength`; a given crosscoder."""
    generator = torch.Generator().manual_seed(3)
    truth = torch.rand(4000, 2, generator=generator) * (torch.rand(4000, 2, generator=generator) < 0.3) * 5
    base_rows = torch.tensor([[base_strength, 0.0, 0.0], [0.0, 1.0, 0.0]])
    chat_rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    x = torch.cat([truth @ base_rows / scale[0], truth @ chat_rows / scale[1]], dim=1)
    encoder = torch.zeros(6, crosscoder_rows.shape[0])
    encoder[3, 0] = 1.0
    encoder[4, 1] = 1.0
    if crosscoder_rows.shape[0] > 2:
        encoder[0, 2] = 1 / base_strength
    bias = torch.zeros(crosscoder_rows.shape[0])
    crosscoder = Crosscoder(encoder, bias, crosscoder_rows, torch.zeros(6), (3, 3), "l1", input_scale=scale)
    moments = Moments(crosscoder, 4, 1)
    index = torch.arange(1000)
    for shard in range(4):
        piece = x[shard * 1000 : (shard + 1) * 1000]
        zeros = torch.zeros(1000, dtype=torch.int64)
        facts = TokenFacts(index, zeros, zeros, zeros, zeros + shard, zeros > 0, zeros)
        moments.add(encode_block(crosscoder, piece, facts))
    rows = directions(crosscoder)
    return jackknife(moments.shard_sums(), lambda sums: estimates(sums, rows))


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.25, 4.0)])
def test_complete_shrinkage_shows_in_nu_err(scale):
    """Base has the direction at 0.3; the crosscoder gave its base row none of it, and no other latent carries it."""
    rows = torch.tensor([[0, 0, 0, 1.0, 0, 0], [0, 1.0, 0, 0, 1.0, 0]])
    value, errors = planted(0.3, rows, scale)
    assert value["nu_err"][0] == pytest.approx(0.3, abs=1e-5)
    assert value["nu_rec"][0] == pytest.approx(0.0, abs=1e-5)
    assert value["nu_err"][1] == pytest.approx(1.0, abs=1e-5)
    assert errors["nu_err"][0] < 1e-5


def test_latent_decoupling_shows_in_nu_rec():
    """Another latent carries the direction in base: nothing is left in the error, all of it in the reconstruction."""
    rows = torch.tensor([[0, 0, 0, 1.0, 0, 0], [0, 1.0, 0, 0, 1.0, 0], [0.8, 0, 0, 0, 0, 0]])
    value, _ = planted(0.8, rows)
    assert value["nu_err"][0] == pytest.approx(0.0, abs=1e-5)
    assert value["nu_rec"][0] == pytest.approx(0.8, abs=1e-5)


def test_speed_of_all_targets_in_both_directions():
    """At most 20 µs per latent and 1 000 tokens (the published way: 3 372 per target); loose against a busy machine."""
    generator = torch.Generator().manual_seed(0)
    width, num_latents, k, num_tokens = 256, 8192, 32, 1024
    rows = torch.randn(num_latents, 2 * width, generator=generator)
    crosscoder = Crosscoder(
        torch.zeros(2 * width, num_latents),
        torch.zeros(num_latents),
        rows,
        torch.zeros(2 * width),
        (width, width),
        "l1",
    )
    x = torch.randn(num_tokens, 2 * width, generator=generator)
    zeros = torch.zeros(num_tokens, dtype=torch.int64)
    silent_block = encode_block(
        crosscoder, x, TokenFacts(torch.arange(num_tokens), zeros, zeros, zeros, zeros, zeros > 0, zeros)
    )
    assert len(silent_block.latents) == 0
    latents = torch.randint(num_latents, (num_tokens * k,), generator=generator).sort().values
    tokens = torch.randint(num_tokens, (num_tokens * k,), generator=generator)
    values = torch.rand(num_tokens * k, generator=generator)
    block = type(silent_block)(
        x,
        x,
        zeros,
        zeros,
        zeros,
        zeros,
        zeros,
        zeros > 0,
        zeros,
        tokens,
        latents,
        values,
        values,
        torch.ones(2, num_tokens * k, dtype=torch.bool),
    )
    moments = Moments(crosscoder, 20, 1)
    moments.add(block)
    took: list[float] = []
    for _ in range(6):
        begin = time.perf_counter()
        moments.add(block)
        took.append(time.perf_counter() - begin)
    elapsed = min(took)  # Other processes only add.
    assert elapsed * 1e6 / (num_latents * num_tokens / 1000) < 20


def test_every_target_in_both_directions_by_hand():
    """Rows (0, 1) and (2, 1), bias (1, 0) and (3, 5); two shards, the code 1, 2 and 3.

    F = 6, C = 14. Along chat: ‖v‖² = 5, <D^base, v> = 1, <b^base, v> = 2, <b^chat, v> = 11. Along base: ‖v‖² = 1,
    <D^chat, v> = 1, <b^base, v> = 0, <b^chat, v> = 5. P is 6 and P - R is 3 throughout.
    """
    rows, bias = torch.tensor([[0.0, 1.0, 2.0, 1.0]]), torch.tensor([1.0, 0.0, 3.0, 5.0])
    crosscoder = Crosscoder(torch.zeros(4, 1), torch.zeros(1), rows, bias, (2, 2), "l1")
    sums = one_latent_sums([[1.0, 2.0], [3.0]])
    value, errors = jackknife(sums, lambda each: estimates(each, directions(crosscoder)))
    expected = {
        "beta_act_base": 6 / 70,
        "beta_act_chat": 6 / 70,
        "beta_act_no_bias_base": (6 - 6 * 2) / 70,
        "beta_act_no_bias_chat": (6 - 6 * 11) / 70,
        "beta_rec_base": 3 / 70,
        "beta_rec_chat": 3 / 70,
        "beta_err_base": 3 / 70 + 1 / 5,
        "beta_err_chat": 3 / 70 + 1,
        "nu_err": (3 / 70 + 1 / 5) / (3 / 70 + 1),
        "nu_rec": 1.0,
        "mirror_beta_act_base": 6 / 14,
        "mirror_beta_act_no_bias_base": 6 / 14,
        "mirror_beta_act_no_bias_chat": (6 - 6 * 5) / 14,
        "mirror_beta_err_base": 3 / 14 + 1,
        "mirror_beta_err_chat": 3 / 14 + 1,
        "mirror_nu_err": 1.0,
    }
    assert {name: value[name][0] for name in expected} == pytest.approx(expected)
    # Without either shard mirror_beta_act_base is 3 / 9 and 3 / 5; of two, the standard error is half of what they
    # differ by.
    assert errors["mirror_beta_act_base"][0] == pytest.approx((3 / 5 - 3 / 9) / 2)


def test_the_share_that_a_model_keeps_by_hand():
    """Base keeps the latent on the tokens of 1 and 2 only: 5 of C = 14; `<D^base, v> / ‖v‖²` is 1/5."""
    rows = torch.tensor([[0.0, 1.0, 2.0, 1.0]])
    crosscoder = Crosscoder(torch.zeros(4, 1), torch.zeros(1), rows, torch.zeros(4), (2, 2), "l1")
    sums = one_latent_sums([[1.0, 2.0], [3.0]])
    kept = sums.code_kept.copy()
    kept[1, 0] = 0
    value, _ = jackknife(
        dataclasses.replace(sums, code_kept=kept), lambda each: estimates(each, directions(crosscoder))
    )
    assert value["beta_err_base"][0] == pytest.approx(3 / 70 + 1 / 5 * 5 / 14)
    assert value["beta_err_chat"][0] == pytest.approx(3 / 70 + 1)
