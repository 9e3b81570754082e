from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from crosscope_worker.models.pair import decoder_layers
from crosscope_worker.models.places import PairError
from crosscope_worker.models.upper_half import UpperHalf
from tests.worker.tiny_models import deep_gemma, products_of_few_tokens_split

VOCAB, LAYERS, POS = 61, 3, 24
SIZES = {"vocab_size": VOCAB, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "hidden_size": 16}
WIDE = SIZES | {"intermediate_size": 24}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**WIDE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**WIDE, num_key_value_heads=1)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**WIDE)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=LAYERS, n_head=2, bos_token_id=0)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=LAYERS, n_head=2)),
    "cohere, which scales its logits": lambda: CohereForCausalLM(CohereConfig(**WIDE, logit_scale=0.5)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**WIDE, num_key_value_heads=1, num_local_experts=2)),
}


@pytest.fixture(params=["gemma2", *MODELS])
def model(request: pytest.FixtureRequest, make_gemma) -> PreTrainedModel:
    torch.manual_seed(0)
    made = make_gemma(VOCAB) if request.param == "gemma2" else MODELS[request.param]()
    return made.eval().requires_grad_(False)


def replaced(model: PreTrainedModel, layer: int, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Logits of the whole model, every layer computed, with the layer's output replaced."""

    def put(_module: nn.Module, _inputs: object, output: object) -> object:
        return (x, *output[1:]) if isinstance(output, tuple) else x

    with decoder_layers(model)[layer].register_forward_hook(put):
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("layer", [0, LAYERS - 1])
def test_the_upper_half_equals_the_whole_model_with_the_output_replaced(model: PreTrainedModel, layer: int):
    ids = torch.randint(VOCAB, (3, POS))
    x = torch.randn(3, POS, 32 if model.config.model_type == "gemma2" else 16)
    upper = UpperHalf(model, layer)
    assert upper.vocabulary == VOCAB
    expected = replaced(model, layer, ids, x).flatten(0, 1)
    hidden = upper.hidden(ids, x).flatten(0, 1)
    pieces = torch.cat([upper.logits(piece) for piece in hidden.split(7)])
    torch.testing.assert_close(pieces, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [0, LAYERS - 2])
@pytest.mark.parametrize("start", [0, 10])
def test_changed_ends_of_a_text_are_read_as_in_whole_runs(model: PreTrainedModel, layer: int, start: int):
    """Behind ten tokens or none; rows that are changed from there on. Gemma's window of 8 tokens ends before them."""
    ids, x = torch.randint(VOCAB, (1, POS)), torch.randn(1, POS, 32 if model.config.model_type == "gemma2" else 16)
    upper = UpperHalf(model, layer)
    cache = upper.text_cache()
    assert cache is not None
    upper.hidden(ids, x, cache)
    changed = x.repeat(3, 1, 1)
    changed[:, start:] = torch.randn(3, POS - start, x.shape[2])
    expected = replaced(model, layer, ids.expand(3, -1), changed)
    ends = ids[:, start:].expand(3, -1), changed[:, start:]
    for behind in (0, 1, 5, POS - start - 1):
        hidden = upper.last_hidden(*ends, behind, cache.before(start))
        logits = upper.logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])
        torch.testing.assert_close(logits, expected[:, start + behind :], rtol=1e-5, atol=1e-5)


def test_a_deep_model_whose_rounding_depends_on_the_batch_reads_ends_too():
    with products_of_few_tokens_split(13):
        assert UpperHalf(deep_gemma(), 2).text_cache() is not None


def test_the_top_layer_runs_whole_for_the_last_tokens_alone(make_gemma):
    model = make_gemma(VOCAB).eval()
    upper = UpperHalf(model, 1)
    cache = upper.text_cache()
    assert cache is not None
    ids, x = torch.randint(VOCAB, (1, POS)), torch.randn(1, POS, 32)
    upper.hidden(ids, x, cache)
    ran: list[tuple[int, ...]] = []
    for layer in decoder_layers(model):
        layer.mlp.register_forward_hook(lambda _module, _inputs, output: ran.append(tuple(output.shape[:2])))
    upper.last_hidden(ids[:, 10:].expand(2, -1), x[:, 10:].expand(2, -1, -1), 11, cache.before(10))
    assert ran == [(2, POS - 10), (2, POS - 21)], "layer 2, and layer 3"


def test_nothing_below_the_layer_runs_and_the_model_is_left_as_it_was(make_gemma):
    model = make_gemma(VOCAB).eval()
    ids = torch.randint(VOCAB, (2, POS))
    before = model(input_ids=ids).logits
    upper = UpperHalf(model, 1)
    ran: list[int] = []
    for index, layer in enumerate(decoder_layers(model)):
        layer.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    upper.logits(upper.hidden(ids, torch.randn(2, POS, 32))[0])
    assert ran == [2, 3]
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=0)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_half_precision_stays_the_models_own(make_gemma):
    model = make_gemma(VOCAB).to(torch.bfloat16).eval()
    upper = UpperHalf(model, 1)
    hidden = upper.hidden(torch.randint(VOCAB, (1, POS)), torch.randn(1, POS, 32))
    assert hidden.dtype == torch.bfloat16
    assert upper.logits(hidden[0]).dtype == torch.float32


@pytest.mark.parametrize(("forgiving", "reason"), [(True, "its logits differ by"), (False, "pop from empty list")])
def test_a_model_that_needs_more_than_the_layers_output_is_refused(make_gemma, forgiving: bool, reason: str):
    notes: list[torch.Tensor] = []
    model = make_gemma(VOCAB).eval()
    layers = decoder_layers(model)
    run = layers[1].forward

    def leave(hidden_states: torch.Tensor, **kwargs: object) -> torch.Tensor:
        notes.append(hidden_states)
        return run(hidden_states, **kwargs)

    def take(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output if forgiving and not notes else output + 3 * notes.pop()

    layers[1].forward = leave
    layers[3].register_forward_hook(take)
    with pytest.raises(PairError, match=rf"Gemma2ForCausalLM .* layer 1 on: {reason}"):
        UpperHalf(model, 1)
    assert layers[1].forward is leave
