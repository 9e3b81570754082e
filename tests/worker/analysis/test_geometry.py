"""Norms, classes, neighbours and the logit lens of decoder rows."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from crosscope_worker.analysis import geometry as module
from crosscope_worker.analysis.geometry import (
    classes,
    final_norm,
    geometry,
    inner_products,
    logit_lens,
    neighbours,
    through,
)
from crosscope_worker.crosscoder import Crosscoder


def crosscoder(rows):
    rows = torch.tensor(rows)
    width = rows.shape[1] // 2
    return Crosscoder(
        torch.zeros(2 * width, len(rows)), torch.zeros(len(rows)), rows, torch.zeros(2 * width), (width, width), "l1"
    )


def test_norms_by_hand():
    shape = geometry(crosscoder([[3.0, 4.0, 0.0, 1.0], [0.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert shape.norm_base.tolist() == [5, 0, 0]
    assert shape.norm_chat.tolist() == [1, 2, 0]
    np.testing.assert_allclose(shape.rel_norm, [0.1, 1.0, np.nan], rtol=1e-6)
    np.testing.assert_allclose(shape.cosine, [0.8, np.nan, np.nan], rtol=1e-6)


def test_classes_by_hand():
    rel_norm = np.array([0.95, 0.9, 0.05, 0.5, 0.59, 0.61, np.nan, 0.99])
    active = np.array([1, 1, 1, 1, 1, 1, 1, 0])
    expected = ["chat_only", "other", "base_only", "shared", "shared", "other", "other", "dead"]
    assert classes(rel_norm, active).tolist() == expected


@pytest.mark.parametrize(("num_latents", "chunk"), [(25, 1 << 20), (25, 400), (3, 1)])
def test_neighbours_equal_brute_force(monkeypatch, num_latents, chunk):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    rows = torch.randn(num_latents, 6, generator=torch.Generator().manual_seed(0))
    rows[1] = 0
    ids, cosines = neighbours(rows, 10)
    unit = torch.nn.functional.normalize(rows, dim=1)
    everything = unit @ unit.T - 9 * torch.eye(num_latents)
    assert ids.shape == (num_latents, min(10, num_latents - 1))
    for j in range(num_latents):
        assert j not in ids[j].tolist()
        expected = everything[j].sort(descending=True).values[: ids.shape[1]]
        torch.testing.assert_close(cosines[j], expected)
        torch.testing.assert_close(everything[j][ids[j]], expected)


def llama():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.rand(16) + 0.5)
    return model


def gpt2():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    with torch.no_grad():
        model.transformer.ln_f.weight.copy_(torch.rand(16) + 0.5)
        model.transformer.ln_f.bias.copy_(torch.randn(16))
    return model


def test_an_rms_norm_multiplies_by_its_gain_in_both_conventions(tiny_pair):
    model, gemma = llama(), tiny_pair.models[1]
    for norm, gain in ((model.model.norm, model.model.norm.weight), (gemma.model.norm, 1 + gemma.model.norm.weight)):
        torch.testing.assert_close(through(norm, torch.ones(1, len(gain)))[0], gain, rtol=1e-4, atol=1e-4)


def test_a_layer_norm_centres_and_leaves_its_bias_out():
    """A row less its mean, here of variance 5/4, times the gain."""
    norm = torch.nn.LayerNorm(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        norm.bias.copy_(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    expected = torch.tensor([[-1.5, -1.0, 1.5, 6.0]]) / 1.25**0.5
    torch.testing.assert_close(through(norm, torch.tensor([[11.0, 12.0, 13.0, 14.0]])), expected, rtol=1e-4, atol=0)


def test_a_model_without_a_usual_norm_passes_rows_on():
    model = gpt2()
    del model.transformer.ln_f
    rows = torch.ones(2, 16)
    assert torch.equal(through(final_norm(model), rows), rows)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_logit_lens_equals_the_models_own_head(monkeypatch, make, chunk):
    """What a multiple of the row does to the logits of the model's own norm and head orders the tokens in the same way.

    Rows have a mean of 2 in each dimension, which a LayerNorm takes away.
    """
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    model = make()
    norm = model.model.norm if make is llama else model.transformer.ln_f
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(1)) + 2
    with torch.no_grad():
        raised = model.lm_head(norm(3 * rows)) - model.lm_head(norm(torch.zeros(1, 16)))
    torch.testing.assert_close(logit_lens(rows, model), raised.topk(8, dim=1).indices)


@pytest.mark.parametrize("chunk", [1, 16 * 5 * 3, 1 << 20])
def test_inner_products_equal_whole_float64_ones(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    rows, others = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(0))[:, :, 2:7]
    torch.testing.assert_close(inner_products(rows, others), (rows.double() * others.double()).sum(1))
    torch.testing.assert_close(inner_products(rows, others[0]), rows.double() @ others[0].double())
