"""Base uselessness and its solver: against brute force, numeric minimisation and planted truth."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_worker.analysis import HeldOut, analyse, uselessness
from crosscope_worker.analysis.nnls import nnls
from crosscope_worker.analysis.uselessness import ChatOnlySums, correlations
from crosscope_worker.work import silent


def brute_force(gram, target):
    """The best solution of all 2^n supports."""
    n = len(target)
    best, best_value = np.zeros(n), 0.0
    for support in itertools.product([False, True], repeat=n):
        free = np.flatnonzero(support)
        if len(free) == 0:
            continue
        s = np.zeros(n)
        s[free] = np.linalg.lstsq(gram[np.ix_(free, free)], target[free], rcond=None)[0]
        if np.all(s >= 0) and (value := s @ gram @ s - 2 * target @ s) < best_value - 1e-15:
            best, best_value = s, value
    return best


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 8), st.integers(0, 10_000))
def test_nnls_finds_the_best_support(n, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((n + 3, n)) * 10.0 ** rng.uniform(-2, 2, n)
    gram, target = matrix.T @ matrix, matrix.T @ rng.standard_normal(n + 3)
    np.testing.assert_allclose(nnls(gram, target), brute_force(gram, target), rtol=1e-5, atol=1e-12)


def test_nnls_by_hand():
    """Unconstrained (2, -1) is not allowed; with s_1 = 0 the first column alone gives 3/2."""
    gram = np.array([[2.0, 1.0], [1.0, 2.0]])
    np.testing.assert_allclose(nnls(gram, np.array([3.0, 0.0])), [1.5, 0.0], atol=1e-9)


def test_nnls_of_equal_columns_shares_evenly_and_a_zero_column_gets_nothing():
    gram = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(nnls(gram, np.array([1.0, 1.0, 0.0])), [0.5, 0.5, 0.0], atol=1e-6)


def test_nnls_meets_its_optimality_conditions_at_size():
    rng = np.random.default_rng(0)
    matrix = np.abs(rng.standard_normal((900, 300)))
    gram, target = matrix.T @ matrix, matrix.T @ rng.standard_normal(900)
    s = nnls(gram, target)
    gradient = gram @ s - target
    scale = np.abs(target).max()
    assert np.all(s >= 0)
    assert np.all(np.abs(gradient[s > 0]) < 1e-6 * scale)
    assert np.all(gradient[s == 0] > -1e-6 * scale)
    assert 0 < (s > 0).sum() < 300


def run(world, tokenizer):
    analysis = analyse(world.crosscoder, HeldOut(world.harvests, world.datasets, tokenizer), world.spec, silent)
    return analysis.latents.to_pydict(), analysis.uselessness


def chat_only(world):
    base, chat = (world.crosscoder.decoder(model).norm(dim=1) for model in (0, 1))
    return 0.5 * ((chat - base) / torch.maximum(chat, base) + 1) > 0.9


def residuals(world, members):
    """r_i [token, d_base] for a set, and codes, float64."""
    code, x, _, _ = world.all()
    width = world.crosscoder.d_model[0]
    rows = world.crosscoder.decoder(0).double().numpy().copy()
    rows[members] = 0
    return x[:, :width] - world.crosscoder.b_dec.double().numpy()[:width] - code @ rows, code


def test_single_is_the_minimiser_of_the_squared_error(make_world, tokenizer):
    world = make_world(seed=5)
    table, _ = run(world, tokenizer)
    chat = world.crosscoder.decoder(1).double().numpy()
    finite = 0
    for j in range(13):
        r, code = residuals(world, [j])
        if not code[:, j].any():
            assert np.isnan(table["base_uselessness_single"][j])
            continue
        grid = np.linspace(0, 3, 3001)
        losses = [((r - s * np.outer(code[:, j], chat[j])) ** 2).sum() for s in grid]
        best = grid[int(np.argmin(losses))]
        score = table["base_uselessness_single"][j]
        assert np.exp(-score) == pytest.approx(best, abs=1.1e-3), j
        finite += best > 0
    assert finite >= 3


def test_least_squares_is_the_joint_minimiser(make_world, tokenizer):
    world = make_world(num_latents=22, seed=7)
    table, facts = run(world, tokenizer)
    members = chat_only(world).nonzero().squeeze(1).numpy()
    r, code = residuals(world, members)
    living = [j for j in members if code[:, j].any()]
    assert facts["set_size"] == len(members) > facts["living_set_size"] == len(living) >= 5
    chat = world.crosscoder.decoder(1).double().numpy()
    design = np.stack([np.outer(code[:, j], chat[j]).ravel() for j in living], axis=1)
    expected = brute_force(design.T @ design, design.T @ r.ravel())
    scores = np.array(table["base_uselessness_ls"])
    np.testing.assert_allclose(np.exp(-scores[living]), np.maximum(expected, 1e-5), rtol=1e-3, atol=2e-5)
    outside = np.setdiff1d(np.arange(22), living)
    assert np.isnan(scores[outside]).all()
    assert np.isnan(np.array(table["base_uselessness"])[outside]).all()


def planted(make_world, strengths, **spec):
    """A world whose base residual holds latent j's chat direction at a known strength, and nothing else."""
    world = make_world(num_latents=6, d_model=(8, 8), seed=2, threshold=None, input_scale=(1.0, 1.0), **spec)
    rows = torch.zeros(6, 16)
    rows[torch.arange(6), 8 + torch.arange(6)] = 1.0
    world.crosscoder = replace(
        world.crosscoder, W_dec=rows, b_dec=torch.zeros(16), b_enc=torch.zeros(6), W_enc=rows.T.clone()
    )
    for harvest in world.harvests:
        code = torch.relu(harvest.x[:, 8:14])
        harvest.x[:] = 0
        harvest.x[:, 8:14] = code
        harvest.x[:, :6] = code * torch.tensor(strengths)
    return world


def test_trained_and_solved_scalars_find_planted_strengths(make_world, tokenizer):
    strengths = [1.0, 0.7, 0.5, 0.3, 0.1, 0.02]
    world = planted(make_world, strengths, uselessness_steps=5000)
    table, facts = run(world, tokenizer)
    np.testing.assert_allclose(np.exp(-np.array(table["base_uselessness_ls"])), strengths, rtol=1e-5)
    np.testing.assert_allclose(np.exp(-np.array(table["base_uselessness"])), strengths, rtol=0.05, atol=0.01)
    np.testing.assert_allclose(np.exp(-np.array(table["base_uselessness_single"])), strengths, rtol=1e-5)
    assert facts["spearman_trained_ls"] > 0.9
    assert facts["pearson_trained_ls"] > 0.9


def noisy(make_world, strengths, **spec):
    """`planted`, with noise in base at a right angle to every latent. The best scalars are the strengths still."""
    world = planted(make_world, strengths, **spec)
    draw = torch.Generator().manual_seed(0)
    for harvest in world.harvests:
        harvest.x[:, 6:8] = torch.randn(len(harvest.x), 2, generator=draw)
    return world


@pytest.mark.parametrize("start", [0.0, -10.0])
def test_training_ends_where_it_converges_whatever_its_start(make_world, tokenizer, start):
    """What base lacks reaches the floor of 11.51, far above 4, and what is half useful has ln 2."""
    settings_ = {"uselessness_start": start, "uselessness_steps": 5000, "uselessness_lr": 0.03}
    world = noisy(make_world, [1.0, 0.5, 0.5, 0.1, 0.0, 0.0], **settings_)
    table, facts = run(world, tokenizer)
    expected = [0.0, np.log(2), np.log(2), np.log(10), -np.log(1e-5), -np.log(1e-5)]
    np.testing.assert_allclose(table["base_uselessness"], expected, atol=0.05)
    assert facts["not_converged"] == 0
    assert facts["steps"] < 5000


def test_what_has_not_converged_is_counted_and_said(make_world, tokenizer):
    """200 steps of 0.01 take a score to 2 at most: past ln 2, but far from what base lacks."""
    world = noisy(make_world, [1.0, 0.5, 0.5, 0.7, 0.0, 0.0], uselessness_steps=200)
    analysis = analyse(world.crosscoder, HeldOut(world.harvests, world.datasets, tokenizer), world.spec, silent)
    assert (analysis.uselessness["not_converged"], analysis.uselessness["steps"]) == (2, 200)
    (said,) = analysis.warnings
    assert said.startswith("2 of 6 trained scores of base uselessness have not converged after 200 steps")


def test_slopes_are_those_of_the_distances(make_world):
    """Against autograd, in float64."""
    world = make_world(num_texts=40)
    sums = ChatOnlySums(world.crosscoder, chat_only(world))
    for block in world.blocks():
        sums.add(block)
    sample = sums.sample()
    sample = replace(sample, residual=sample.residual.double(), values=sample.values.double())
    rows = world.crosscoder.decoder(1)[sums.members].double()
    scalars = torch.linspace(0.1, 1.4, len(rows), dtype=torch.float64, requires_grad=True)
    token = torch.repeat_interleave(sample.num_entries)
    parts = (scalars[sample.members] * sample.values)[:, None] * rows[sample.members]
    distances = (sample.residual - torch.zeros_like(sample.residual).index_add(0, token, parts)).norm(dim=1).sum()
    (slopes,) = torch.autograd.grad(distances, scalars)
    torch.testing.assert_close(uselessness.pulls(sample, rows, scalars.detach())[0], -slopes)


def test_still_moving_by_hand():
    """One token, f = 2, v = (1, 0), r = (1, 0.5): the step ends at s = 1/2, from wherever it is."""
    token = torch.tensor([[1.0, 0.5]]), torch.tensor([1]), torch.tensor([0]), torch.tensor([2.0])
    sample = uselessness._Sample(torch.zeros(1), *token)
    for scalar, moving in ((0.5, False), (0.51, False), (0.53, True), (1.0, True), (1e-5, True)):
        scalars = torch.tensor([scalar], dtype=torch.float64)
        found = uselessness.still_moving(sample, torch.tensor([[1.0, 0.0]]), scalars, 1e-5)
        assert found.tolist() == [moving], scalar
    opposed = replace(sample, residual=-sample.residual)
    at_floor = uselessness.still_moving(opposed, torch.tensor([[1.0, 0.0]]), torch.tensor([1e-5]).double(), 1e-5)
    assert not at_floor.item(), "no scalar below the floor is asked for"


def test_start_steps_rate_and_floor_are_used_and_recorded(make_world, tokenizer):
    strengths = [1.0, 0.7, 0.5, 0.3, 0.1, 0.0]
    settings_ = {"uselessness_steps": 1, "uselessness_lr": 1e-6, "uselessness_start": -10.0, "uselessness_floor": 2e-5}
    table, facts = run(planted(make_world, strengths, **settings_), tokenizer)
    np.testing.assert_allclose(table["base_uselessness"], 10.0, atol=1e-4)
    assert table["base_uselessness_ls"][5] == pytest.approx(-np.log(2e-5), rel=1e-6)
    assert (facts["steps"], facts["lr"], facts["start"], facts["floor"]) == (1, 1e-6, -10, 2e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_a_latent_that_fires_in_no_training_step_has_no_trained_score(make_world, tokenizer, monkeypatch, steps):
    """Steps of one token each, on which one latent in five fires."""
    monkeypatch.setattr(uselessness, "BATCH_TOKENS", 1)
    world = planted(make_world, [0.5] * 6, uselessness_steps=steps)
    draw = torch.Generator().manual_seed(0)
    for harvest in world.harvests:
        fires = torch.rand(len(harvest.x), 6, generator=draw) < 0.2
        harvest.x[:, :6] *= fires
        harvest.x[:, 8:14] *= fires
    fires = world.all()[0] > 0
    fires = fires[fires.any(axis=1)]
    met = fires[torch.randperm(len(fires), generator=torch.Generator().manual_seed(0))[:steps].numpy()].any(axis=0)
    assert 0 < met.sum() < 6
    table, _ = run(world, tokenizer)
    np.testing.assert_array_equal(np.isfinite(table["base_uselessness"]), met)
    assert np.isfinite(table["base_uselessness_ls"]).all()


def test_without_chat_only_latents_the_joint_scores_are_undefined(make_world, tokenizer):
    world = make_world()
    rows = world.crosscoder.W_dec.clone()
    rows[:, 5:] = rows[:, :5] + 0.01
    world.crosscoder = replace(world.crosscoder, W_dec=rows)
    table, facts = run(world, tokenizer)
    assert facts["living_set_size"] == 0
    assert np.isnan(table["base_uselessness"]).all()
    assert np.isnan(table["base_uselessness_ls"]).all()
    assert np.isfinite(table["base_uselessness_single"]).any()
    assert {"base_uselessness_ls"} < {column.name for column in LATENT_COLUMNS}


def test_the_sample_is_bounded_and_holds_true_residuals(make_world, monkeypatch):
    monkeypatch.setattr(uselessness, "RESERVOIR_BYTES", 0)
    monkeypatch.setattr(uselessness, "BATCH_TOKENS", 20)
    world = make_world(num_texts=40)
    members = chat_only(world)
    sums = ChatOnlySums(world.crosscoder, members)
    for block in world.blocks():
        sums.add(block)
    sample = sums.sample()
    assert len(sample.keys) == 20
    assert int(sample.num_entries.sum()) == len(sample.members) == len(sample.values)
    r, code = residuals(world, members.numpy())
    codes = code[:, sums.members.numpy()]
    at = 0
    for residual, count in zip(sample.residual.numpy(), sample.num_entries.tolist(), strict=True):
        token = int(np.argmin(np.abs(r - residual).sum(axis=1)))
        np.testing.assert_allclose(r[token], residual, atol=1e-5)
        own = np.zeros(codes.shape[1])
        own[sample.members[at : at + count].numpy()] = sample.values[at : at + count].numpy()
        np.testing.assert_allclose(own, codes[token], atol=1e-5)
        at += count


def test_correlations_by_hand():
    found = correlations(np.array([1.0, 2.0, 3.0, 3.0]), np.array([1.0, 8.0, 27.0, 27.0]))
    assert found["spearman_trained_ls"] == pytest.approx(1.0)
    # Deviations (-1.25, -.25, .75, .75) and (-14.75, -7.75, 11.25, 11.25).
    assert found["pearson_trained_ls"] == pytest.approx(37.25 / (2.75 * 530.75) ** 0.5)
    assert np.isnan([*correlations(np.array([1.0, 1.0]), np.array([1.0, 2.0])).values()]).all()
