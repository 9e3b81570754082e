"""analyse: every column, on a small random world, against dense float64 loops."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crosscope_proto.column import arrow_schema
from crosscope_proto.columns import BEHAVIOUR_COLUMNS, EXAMPLE_COLUMNS, LATENT_COLUMNS, SEQUENCE_COLUMNS
from crosscope_proto.roles import NUM_ROLES, TokenRole
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.analysis import AnalysisError, HeldOut, analyse, intake, store
from crosscope_worker.analysis import run as analysis_run
from crosscope_worker.analysis.latents import GROUPS, latent_table
from crosscope_worker.data.harvest import HarvestError, harvest
from crosscope_worker.data.texts import Text
from crosscope_worker.dictionary.streams import DIFFERENCE
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.work import Cancelled, silent


def run(world, tokenizer, pair=None, progress=silent):
    held_out = HeldOut(world.harvests, world.datasets, tokenizer, pair)
    return analyse(world.crosscoder, held_out, world.spec, progress)


def test_tables_have_every_column_and_row(make_world, tokenizer):
    world = make_world()
    analysis = run(world, tokenizer)
    assert analysis.latents.schema == arrow_schema(LATENT_COLUMNS)
    assert analysis.sequences.schema == arrow_schema(SEQUENCE_COLUMNS)
    assert analysis.examples.schema == arrow_schema(EXAMPLE_COLUMNS)
    assert analysis.behaviours.schema == arrow_schema(BEHAVIOUR_COLUMNS)
    assert analysis.latents["id"].to_pylist() == list(range(13))
    assert analysis.sequences["id"].to_pylist() == list(range(analysis.sequences.num_rows))
    assert analysis.num_tokens == sum(len(harvest.x) for harvest in world.harvests)
    assert {"fve_base", "fve_chat", "l0", "dead_share", "num_living"} <= analysis.metrics.keys()
    assert analysis.metrics["num_living"] == 11
    assert analysis.metrics["dead_share"] == pytest.approx(2 / 13)
    assert sum(analysis.class_counts.values()) == 13
    assert analysis.class_counts["dead"] == 2


def test_every_column_is_computed_exactly_once(make_world, tokenizer, monkeypatch):
    kept = []
    monkeypatch.setattr(analysis_run, "latent_table", lambda found: kept.append(found) or latent_table(found))
    run(make_world(), tokenizer)
    [found] = kept
    computed = [name for group in GROUPS for name in group(found)]
    assert sorted(computed) == sorted(column.name for column in LATENT_COLUMNS)


def test_a_dictionary_of_differences(make_world, tokenizer):
    world = make_world(threshold=None)
    cc = world.crosscoder
    reads, writes = cc.W_enc[5:] / 2, cc.W_dec.clone()
    writes[:, :5] = 0
    b_dec = torch.cat([torch.zeros(5), cc.b_dec[5:]])
    parts = {"W_enc": torch.cat([-reads, reads]), "W_dec": writes, "b_dec": b_dec, "input_scale": (1.0, 1.0)}
    world.crosscoder = dataclasses.replace(cc, streams=DIFFERENCE, **parts)
    analysis = run(world, tokenizer)
    x = torch.cat([harvest.x for harvest in world.harvests]).double()
    base, chat = x[:, :5], x[:, 5:]
    code = torch.relu((chat - base) @ reads.double() + cc.b_enc.double())
    error = chat - base - code @ writes[:, 5:].double() - b_dec[5:].double()
    spread = (chat - base - (chat - base).mean(0)).square().sum()
    assert analysis.metrics["fve_difference"] == pytest.approx(float(1 - error.square().sum() / spread), rel=1e-4)
    assert "fve_base" not in analysis.metrics
    table = analysis.latents.to_pydict()
    for j in range(13):
        assert np.isnan(table["rel_norm"][j])
        assert np.isnan(table["beta_err_chat"][j])
        if not (code[:, j] > 0).any():
            assert table["latent_class"][j] == "dead"
            continue
        along = [float(code[:, j] @ (part @ writes[j, 5:].double())) for part in (base, chat)]
        assert table["beta_act_base"][j] / table["beta_act_chat"][j] == pytest.approx(along[0] / along[1], rel=1e-3)
        assert table["latent_class"][j] == ("chat_only" if abs(along[0] / along[1]) < 0.3 else "other")
    assert set(table["latent_class"]) == {"chat_only", "other", "dead"}


def test_statistics_equal_a_loop(make_world, tokenizer):
    world = make_world()
    latents = run(world, tokenizer).latents
    code, _, _, _ = world.all()
    norms = world.crosscoder.code_norms().double().numpy()
    roles = np.concatenate([block.role.numpy() for block in world.blocks()])
    texts = np.concatenate([block.text.numpy() for block in world.blocks()])
    sets = np.concatenate([block.dataset.numpy() for block in world.blocks()])
    table = latents.to_pydict()
    for j in range(world.crosscoder.num_latents):
        scaled = code[:, j] * norms[j]
        active = scaled > 0
        assert table["num_active"][j] == active.sum()
        assert table["num_texts"][j] == len(set(texts[active].tolist()))
        assert table["frequency"][j] == pytest.approx(active.mean(), rel=1e-6)
        assert table["max"][j] == pytest.approx(scaled.max(), rel=1e-5)
        assert sum(table["histogram"][j]) == active.sum()
        if not active.any():
            assert np.isnan(table["mean"][j])
            assert np.isnan(table["template_share"][j])
            continue
        assert table["mean"][j] == pytest.approx(scaled[active].mean(), rel=1e-5)
        shares = [scaled[roles == role].sum() / scaled.sum() for role in range(NUM_ROLES)]
        np.testing.assert_allclose(table["role_shares"][j], shares, rtol=1e-5)
        assert table["template_share"][j] == pytest.approx(shares[2] + shares[3] + shares[4], rel=1e-5)
        both = [scaled[sets == each].sum() / scaled.sum() for each in (0, 1)]
        np.testing.assert_allclose(table["dataset_shares"][j], both, rtol=1e-5)


def test_histogram_counts_fall_between_their_edges(make_world, tokenizer):
    world = make_world()
    analysis = run(world, tokenizer)
    code, *_ = world.all()
    scaled = code * world.crosscoder.code_norms().double().numpy()
    edges = np.array(analysis.histogram_edges)
    assert np.all(np.diff(np.log(edges)) > 0)
    for j in range(13):
        expected, _ = np.histogram(scaled[:, j][scaled[:, j] > 0], edges)
        assert analysis.latents["histogram"][j].as_py() == expected.tolist()


def test_quality(make_world, tokenizer):
    world = make_world()
    metrics = run(world, tokenizer).metrics
    code, x, error, _ = world.all()
    assert metrics["l0"] == pytest.approx((code > 0).sum(axis=1).mean())
    for name, piece in (("base", slice(0, 5)), ("chat", slice(5, 10))):
        fve = 1 - (error[:, piece] ** 2).sum() / ((x[:, piece] - x[:, piece].mean(axis=0)) ** 2).sum()
        assert metrics[f"fve_{name}"] == pytest.approx(fve, rel=1e-5)
        assert metrics[f"fve_{name}_inliers"] == pytest.approx(fve, rel=1e-5)


def test_outlier_tokens_leave_the_inlier_figures_alone(make_world, tokenizer):
    world = make_world()
    before = run(world, tokenizer).metrics
    world.harvests[-1].x[-1] *= 1e4
    after = run(world, tokenizer).metrics
    assert after["outlier_share"] > 0
    assert after["fve_base_inliers"] == pytest.approx(before["fve_base_inliers"], abs=0.05)
    assert abs(after["fve_base"] - before["fve_base"]) > 0.1


def test_data_sets_get_even_shares_of_whole_texts(make_world, tokenizer):
    world = make_world(num_texts=60, max_tokens=100, num_shards=2)
    seen = world.blocks()
    counts = np.bincount(np.concatenate([block.dataset.numpy() for block in seen]))
    assert all(50 <= count < 50 + 14 for count in counts)
    assert {shard for block in seen for shard in block.shard.tolist()} == {0, 1}
    owners = [set(block.text.tolist()) for block in seen]
    assert sum(map(len, owners)) == len(set.union(*owners))
    assert run(world, tokenizer).num_tokens == counts.sum()


def test_models_of_different_width_leave_cross_model_columns_undefined(make_world, tokenizer):
    table = run(make_world(d_model=(4, 7)), tokenizer).latents.to_pydict()
    for name in ("cosine", "beta_act_base", "mirror_beta_act_chat", "nu_err", "base_uselessness_single"):
        assert np.isnan(table[name]).all(), name
    assert np.isfinite(table["beta_act_chat"][:10]).any()
    assert np.isfinite(table["mirror_beta_err_base"][:10]).any()


def test_an_analysis_without_tokens_is_refused(make_world, tokenizer):
    world = make_world()
    world.harvests.clear()
    with pytest.raises(AnalysisError, match="no held-out token"):
        run(world, tokenizer)


def test_an_activation_that_is_not_finite_is_refused_by_the_harvest(make_world, tokenizer, tiny_pair):
    """The harvest names the activation before the analysis sees a block of it."""

    class Broken(PairActivations):
        def rows(self, ids, positions=None):
            return super().rows(ids, positions) * torch.where(ids == 5, torch.nan, 1.0)[..., None]

    world = make_world(d_model=(32, 32))
    texts = [Text(0, np.array([2, 3, 4, 5]), np.full(4, TokenRole.USER, np.uint8), place="a.txt, line 7")]
    world.harvests = harvest(texts, Broken(tiny_pair, 1), TokenPolicy())
    with pytest.raises(HarvestError, match=r"^a\.txt, line 7, token 3: the base model's activation is not finite"):
        run(world, tokenizer)


def test_a_silent_crosscoder_is_all_dead(make_world, tokenizer):
    analysis = run(make_world(threshold=1e9), tokenizer)
    assert analysis.metrics["num_living"] == 0
    assert analysis.metrics["l0"] == 0
    assert analysis.examples.num_rows == analysis.sequences.num_rows == 0
    assert np.isnan(analysis.latents["nu_err"].to_numpy()).all()


def test_a_full_disk_ends_the_analysis(make_world, tokenizer, monkeypatch):
    """Entries are written while the next block is encoded; those of the last block too are waited for."""
    monkeypatch.setattr(store.tempfile, "TemporaryFile", lambda: open("/dev/full", "wb", buffering=0))  # noqa: PTH123, SIM115
    for num_texts in (1, 31):
        with pytest.raises(AnalysisError, match=r"no room for .* more bytes of codes"):
            run(make_world(num_texts=num_texts), tokenizer)


def test_blocks_are_larger_on_a_gpu_as_far_as_memory_allows():
    def block_tokens(device, num_latents):
        return intake.block_tokens(SimpleNamespace(device=torch.device(device), num_latents=num_latents))

    assert block_tokens("cpu", 73_728) == 1024
    assert block_tokens("cuda", 73_728) == (3 << 30) // (12 * 73_728) == 3640
    assert block_tokens("cuda", 4096) == 8192
    assert block_tokens("cuda", 1 << 20) == 1024


def test_cancelling_passes_through(make_world, tokenizer):
    def cancel(*_args, **_kwargs):
        raise Cancelled

    with pytest.raises(Cancelled):
        run(make_world(), tokenizer, progress=cancel)


def test_tokens_through_both_unembeddings(make_world, tokenizer, tiny_pair):
    analysis = run(make_world(d_model=(32, 32)), tokenizer, tiny_pair)
    tokens = analysis.latents["logit_tokens_chat"].to_pylist()
    assert all(len(each) == 8 for each in tokens)
    assert analysis.latents["logit_tokens_base"].to_pylist()[-1] == []
