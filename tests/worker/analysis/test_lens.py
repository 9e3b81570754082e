"""The logit lens, against the whole model with a row in place of its last layer's output."""

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

from crosscope_worker.analysis import largest
from crosscope_worker.analysis import lens as module
from crosscope_worker.analysis.lens import Lens, LensError, find_lens
from crosscope_worker.models.pair import decoder_layers
from tests.worker.tiny_models import KINDS, VOCAB, tiny_model

REFUSED = {
    "Gemma3n": "Gemma3nForCausalLM: no module that it calls turns the output of its last layer",
    "Bert": "BertLMHeadModel: the modules before its head are no norm",
    "Roberta": "RobertaForCausalLM: no module that it calls turns the output of its last layer",
}


def raised(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """Logits of the whole model if its last layer gives these rows, minus those for zeros."""

    def put(_module: nn.Module, _inputs: object, output: object) -> object:
        return (given, *output[1:]) if isinstance(output, tuple) else given

    logits: list[Tensor] = []
    with decoder_layers(model)[-1].register_forward_hook(put):
        for x in (rows, torch.zeros_like(rows)):
            given = x[None]
            logits.append(model(input_ids=torch.arange(3, 3 + len(rows))[None], use_cache=False).logits[0])
    return logits[0] - logits[1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in REFUSED])
def test_a_lens_equals_the_models_own_head_and_norm(kind: str):
    """Rows have a mean of 2 in each dimension, which a LayerNorm removes."""
    model = tiny_model(kind)
    width = model.config.get_text_config().hidden_size
    rows = 3 * torch.randn(5, width, generator=torch.Generator().manual_seed(1)) + 2
    expected = raised(model, rows).topk(8, dim=1).indices
    assert find_lens(model).tokens(rows).tolist() == expected.tolist()


@pytest.mark.parametrize(("kind", "reason"), REFUSED.items())
def test_a_model_without_a_lens_is_refused_by_name_and_reason(kind: str, reason: str):
    with pytest.raises(LensError, match=reason):
        find_lens(tiny_model(kind))


def test_a_norm_that_is_no_module_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("Llama")
    assert isinstance(model, LlamaForCausalLM)
    del model.model.norm
    monkeypatch.setitem(model.model.__dict__, "norm", lambda x: torch.nn.functional.rms_norm(x, x.shape[-1:]))
    with pytest.raises(LensError, match="LlamaForCausalLM: no module that it calls turns the output of its last layer"):
        find_lens(model)


def test_logits_in_another_order_than_the_heads_are_refused():
    model = tiny_model("Llama")
    model.register_forward_hook(lambda _module, _inputs, output: output | {"logits": -output.logits})
    with pytest.raises(LensError, match="its logits are not in the order that its head gives them"):
        find_lens(model)


def test_running_out_of_memory_is_no_lens_error(monkeypatch: pytest.MonkeyPatch):
    model = tiny_model("Llama")

    def refuse(*_arguments: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    monkeypatch.setattr(model, "forward", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        find_lens(model)


def test_padding_of_the_head_does_not_count():
    model = tiny_model("GPT2")
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    expected = raised(model, rows)[:, : VOCAB - 20].topk(8, dim=1).indices
    assert find_lens(model, VOCAB - 20).tokens(rows).tolist() == expected.tolist()


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int):
    lens = find_lens(tiny_model("GPT2"))
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    expected = lens.tokens(rows)
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(largest, "CHUNK_BYTES", chunk)
    assert torch.equal(lens.tokens(rows), expected)


def test_half_precision_gives_the_same_tokens():
    model = tiny_model("Gemma2").to(torch.bfloat16)
    lens = find_lens(model)
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(lens.tokens(rows), find_lens(model.float()).tokens(rows))
    assert model.dtype == torch.float32, "the copy's alone was float32 before"


def test_an_rms_norm_multiplies_by_its_gain_in_both_conventions():
    llama, gemma = tiny_model("Llama").model.norm, tiny_model("Gemma2").model.norm
    for norm, gain in ((llama, llama.weight), (gemma, 1 + gemma.weight)):
        normed = Lens((norm,), nn.Identity()).normed(torch.ones(1, len(gain)))[0]
        torch.testing.assert_close(normed, gain, rtol=1e-4, atol=1e-4)


def test_a_layer_norm_centres_and_leaves_its_bias_out():
    """A row less its mean, here of variance 5/4, times the gain."""
    norm = torch.nn.LayerNorm(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        norm.bias.copy_(torch.tensor([5.0, 6.0, 7.0, 8.0]))
    expected = torch.tensor([[-1.5, -1.0, 1.5, 6.0]]) / 1.25**0.5
    normed = Lens((norm,), nn.Identity()).normed(torch.tensor([[11.0, 12.0, 13.0, 14.0]]))
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=0)
