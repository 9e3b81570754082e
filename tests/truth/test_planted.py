"""The generator: activations hold exactly the planted latents, and the seed decides all of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.truth.planted import BLOCK_TOKENS, TEXT_TOKENS, Kind, PlantedSource, PlantedSpec, plant

SPEC = PlantedSpec(d_model=16, num_shared=9, num_rotated=8, num_weak=7, num_base_only=4, num_chat_only=3)


def test_rows_of_each_kind():
    planted = plant(SPEC, seed=3)
    base, chat = planted.rows.double().split(16, dim=1)
    expected = {  # norm of the base row, of the chat row, cosine
        Kind.SHARED: (1.0, 1.0, 1.0),
        Kind.ROTATED: (1.0, 1.0, 0.5),
        Kind.WEAK: (0.25, 1.0, 1.0),
        Kind.BASE_ONLY: (1.0, 0.0, 0.0),
        Kind.CHAT_ONLY: (0.0, 1.0, 0.0),
    }
    for kind, (norm_base, norm_chat, cosine) in expected.items():
        chosen = torch.from_numpy(planted.kind == kind)
        assert torch.allclose(base[chosen].norm(dim=1), torch.tensor(norm_base).double(), atol=1e-6)
        assert torch.allclose(chat[chosen].norm(dim=1), torch.tensor(norm_chat).double(), atol=1e-6)
        found = torch.cosine_similarity(base[chosen], chat[chosen], dim=1)
        assert torch.allclose(found, torch.tensor(cosine).double(), atol=1e-6)
    assert [int((planted.kind == kind).sum()) for kind in expected] == [9, 8, 7, 4, 3]


def test_the_reference_has_256_latents_and_about_eight_and_a_half_active():
    planted = plant(PlantedSpec(), seed=0)
    code, x = planted.draw(20_000, torch.Generator().manual_seed(0))
    assert planted.rows.shape == (256, 128)
    assert x.shape == (20_000, 128)
    assert len(code.values) / 20_000 == pytest.approx(8.5, abs=0.4)


def test_traits_follow_their_place_within_a_kind():
    planted = plant(SPEC, seed=0)
    assert planted.rare.nonzero().squeeze(1).tolist() == [3, 12, 20, 27]
    assert (planted.partner >= 0).nonzero().squeeze(1).tolist() == [6, 15, 23]
    assert planted.partner[[6, 15, 23]].tolist() == [0, 1, 2]


def test_frequencies_strengths_and_partners():
    spec = replace(SPEC, frequency=(0.1, 0.1), follows=0.5, rare_factor=0.1, strength=(2.0, 3.0))
    planted = plant(spec, seed=1)
    code, _ = planted.draw(100_000, torch.Generator().manual_seed(0))
    code = code.dense(len(planted.rows))
    active = code > 0
    share = active.double().mean(dim=0)
    assert share[0] == pytest.approx(0.1, abs=0.005)
    assert share[3] == pytest.approx(0.01, abs=0.002)
    # By itself 0.1, else half of the 0.1 in which its partner fires.
    assert share[6] == pytest.approx(0.1 + 0.9 * 0.1 * 0.5, abs=0.005)
    assert active[active[:, 0], 6].double().mean() == pytest.approx(0.1 + 0.9 * 0.5, abs=0.02)
    assert float(code[active].min()) >= 2.0
    assert float(code[active].max()) <= 3.0


def test_activations_are_rows_times_codes_plus_independent_noise():
    planted = plant(replace(SPEC, noise=0.1), seed=0)
    code, x = planted.draw(50_000, torch.Generator().manual_seed(0))
    noise = (x - code.dense(len(planted.rows)) @ planted.rows).double()
    assert float(noise.std()) == pytest.approx(0.1, rel=0.01)
    base, chat = noise.split(16, dim=1)
    assert abs(float((base * chat).mean())) < 1e-3 * 0.1


def test_a_seed_decides_everything_and_streams_differ():
    first, again, other = plant(SPEC, 0), plant(SPEC, 0), plant(SPEC, 1)
    assert torch.equal(first.rows, again.rows)
    assert not torch.equal(first.rows, other.rows)
    training = [list(PlantedSource(each, 2 * BLOCK_TOKENS).blocks()) for each in (first, again)]
    assert all(torch.equal(a, b) for a, b in zip(*training, strict=True))
    held_out = next(iter(first.held_out(1))).x
    assert not torch.equal(training[0][0], training[0][1])
    assert not torch.equal(training[0][0], held_out)


def test_the_source_continues_from_its_state():
    planted = plant(SPEC, 0)
    whole = list(PlantedSource(planted, 2 * BLOCK_TOKENS + 1).blocks())
    assert len(whole) == 3
    source = PlantedSource(planted, 2 * BLOCK_TOKENS + 1)
    next(source.blocks())
    assert source.fraction() == pytest.approx(1 / 3)
    resumed = PlantedSource(planted, 2 * BLOCK_TOKENS + 1)
    resumed.restore(source.state())
    assert all(torch.equal(a, b) for a, b in zip(resumed.blocks(), whole[1:], strict=True))


def test_held_out_tokens_lie_in_whole_texts():
    (harvest,) = plant(SPEC, 0).held_out(BLOCK_TOKENS)
    assert len(harvest.x) == len(harvest.text) == len(harvest.role) == len(harvest.dataset) == BLOCK_TOKENS
    assert np.bincount(harvest.text.numpy()).tolist() == [TEXT_TOKENS] * len(harvest.texts)
    assert harvest.position[: TEXT_TOKENS + 1].tolist() == [*range(TEXT_TOKENS), 0]


def test_without_shared_latents_nothing_can_be_followed():
    with pytest.raises(ValueError, match="num_shared is 0"):
        PlantedSpec(num_shared=0)
