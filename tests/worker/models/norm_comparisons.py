"""Norms by Triton's kernel against those of transformers; test_fused_norms.py runs this file in processes of their own.

With TRITON_INTERPRET=1, set before Triton is imported, its interpreter takes the kernel on the CPU; without it a GPU
does.
"""

import logging
import os

import pytest
import torch
from torch import nn

from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.fused_norms import FORMS, FusedNorms, _form
from crosscope_worker.models.pair import decoder_layers
from crosscope_worker.models.probes import standardised_error
from tests.worker.effects.subjects import make_pair
from tests.worker.tiny_models import tiny_model

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
ROUNDED = 0.15 if DEVICE == "cpu" else 0.05
"""For bfloat16, in which the interpreter cuts instead of rounding."""
KINDS = {"Gemma2": 4, "Llama": 2, "Qwen3": 4}
"""Norms of a layer."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_found_and_give_what_transformers_gives(kind: str, dtype: torch.dtype) -> None:
    model = tiny_model(kind).to(DEVICE, dtype)
    ids = torch.arange(3, 51, device=DEVICE).view(2, 24)
    norms = FusedNorms((model,), 1)
    assert len(norms) == 2 * KINDS[kind]
    with torch.inference_mode():
        expected = model(ids, output_hidden_states=True).hidden_states[2]
        with norms.standing_in():
            found = model(ids, output_hidden_states=True).hidden_states[2]
        again = model(ids, output_hidden_states=True).hidden_states[2]
    assert torch.equal(again, expected)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert standardised_error(found, expected) < (1e-5 if dtype == torch.float32 else ROUNDED)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_form_is_known_by_what_a_norm_computes(dtype: torch.dtype) -> None:
    forms = {}
    for kind in KINDS:
        layer = decoder_layers(tiny_model(kind).to(DEVICE, dtype))[0]
        norm = next(each for each in layer.modules() if type(each).__name__.endswith("RMSNorm"))
        forms[kind] = _form(norm, norm.weight)
    assert forms["Gemma2"] == FORMS[0]
    assert forms["Llama"] == forms["Qwen3"] == FORMS[1]


class OddRMSNorm(nn.Module):
    """Divides by the mean of the sizes instead of the root of the mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(16, device=DEVICE)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.abs().mean(-1, keepdim=True) + self.eps) * self.weight


def test_a_norm_of_another_kind_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("Llama").to(DEVICE)
    decoder_layers(model)[0].input_layernorm = OddRMSNorm()
    with caplog.at_level(logging.WARNING):
        assert len(FusedNorms((model,), 1)) == 3
    assert not caplog.records


@pytest.mark.parametrize("width", [1, 16, 17, 2304])
def test_rows_of_any_width_and_layout(width: int) -> None:
    """By the formula, in float64; rows that are not contiguous too."""
    from crosscope_worker.models.rms_norm_triton import rms_norm

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, width, 5, generator=draw).to(DEVICE).transpose(1, 2)
    weight = torch.randn(width, generator=draw).to(DEVICE)
    found = rms_norm(x, weight, 0.5, 1.0, False)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 0.5).sqrt() * (1 + weight.double())
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-6)
    assert rms_norm(x[:0], weight, 0.5, 1.0, False).shape == (0, 5, width)


def test_both_models_of_a_pair_give_the_same_activations_with_fused_norms() -> None:
    pair = make_pair("Gemma2")
    for model in pair.models:
        model.to(DEVICE)
    object.__setattr__(pair, "device", torch.device(DEVICE))
    activations, ids = PairActivations(pair, 1), torch.arange(3, 51).view(2, 24)
    expected = activations.rows(ids)
    with FusedNorms(pair.models, 1).standing_in():
        found = activations.rows(ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
