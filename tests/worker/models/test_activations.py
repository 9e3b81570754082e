from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

from crosscope_proto.artefacts import PairManifest
from crosscope_worker.data.packing import pack
from crosscope_worker.models import probes
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair, decoder_layers
from crosscope_worker.models.places import PairError
from tests.worker.tiny_models import KINDS, tiny_model

VOCAB = 61
MakeGemma = Callable[..., Gemma2ForCausalLM]
Make = Callable[[], PreTrainedModel]
POS = 24
"""Longer than Gemma's sliding window of 8."""


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0))


def gpt_neox() -> PreTrainedModel:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
        )
    )


@pytest.fixture(params=["gemma2", "llama", "gpt2", "gpt_neox"])
def make(request: pytest.FixtureRequest, make_gemma: MakeGemma) -> Make:
    makers: dict[str, Make] = {"gemma2": lambda: make_gemma(VOCAB), "llama": llama, "gpt2": gpt2, "gpt_neox": gpt_neox}
    return makers[request.param]


def pair_of(base: PreTrainedModel, chat: PreTrainedModel, tiny_pair: Pair) -> Pair:
    manifest = PairManifest(name="random", base="base", chat="chat", tokenizer="chat")
    return Pair(manifest, (base.eval(), chat.eval()), tiny_pair.tokenizer, torch.device("cpu"))


def hidden_states(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True).hidden_states


def test_equals_transformers_hidden_states(make: Make, tiny_pair: Pair) -> None:
    torch.manual_seed(0)
    pair = pair_of(make(), make(), tiny_pair)
    ids = torch.randint(VOCAB, (3, POS))
    expected = [hidden_states(model, ids) for model in pair.models]
    for layer in range(pair.num_layers - 1):
        x = PairActivations(pair, layer)(ids, torch.tensor([POS] * 3))
        assert torch.equal(x, torch.cat([states[layer + 1] for states in expected], dim=-1))


def test_the_last_layer_is_read_before_the_final_norm(tiny_pair: Pair) -> None:
    torch.manual_seed(0)
    pair = pair_of(llama(), llama(), tiny_pair)
    ids = torch.randint(VOCAB, (2, POS))
    x = PairActivations(pair, 2)(ids, torch.tensor([POS] * 2))
    for model, own in zip(pair.models, x.split(16, dim=-1), strict=True):
        assert not torch.allclose(own, hidden_states(model, ids)[-1])
        norm = cast("nn.Module", model.get_decoder().norm)
        torch.testing.assert_close(norm(own), hidden_states(model, ids)[-1])


def test_nothing_above_the_layer_runs(tiny_pair: Pair) -> None:
    ran: list[str] = []
    model = tiny_pair.models[0]
    before = [len(module._forward_hooks) for module in model.modules()]  # pyright: ignore[reportPrivateUsage]
    hooks = [
        module.register_forward_hook(lambda *_args, name=name: ran.append(name))
        for name, module in model.named_modules()
    ]
    PairActivations(tiny_pair, 1)(torch.tensor([[2, 7, 8]]), torch.tensor([3]))
    for hook in hooks:
        hook.remove()
    assert any(name.startswith("model.layers.1.") for name in ran)
    assert not any(name.startswith(("model.layers.2", "model.layers.3", "model.norm", "lm_head")) for name in ran)
    assert [len(module._forward_hooks) for module in model.modules()] == before  # pyright: ignore[reportPrivateUsage]


def test_batch_mates_change_nothing(make: Make, tiny_pair: Pair) -> None:
    torch.manual_seed(0)
    pair = pair_of(make(), make(), tiny_pair)
    activations = PairActivations(pair, 1)
    texts = [torch.randint(VOCAB, (length,)) for length in (1, 5, 17, POS)]
    batch = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    lengths = torch.tensor([len(text) for text in texts])
    together = activations(batch, lengths)
    for row, text in enumerate(texts):
        alone = activations(text[None], lengths[row : row + 1])[0]
        torch.testing.assert_close(together[row, : len(text)], alone, atol=1e-5, rtol=1e-5)
        assert not together[row, len(text) :].any()


def test_models_of_different_width_stand_side_by_side(make_gemma: MakeGemma, tiny_pair: Pair) -> None:
    torch.manual_seed(0)
    narrow = make_gemma(len(tiny_pair.tokenizer), hidden_size=16)
    pair = pair_of(narrow, tiny_pair.models[1], tiny_pair)
    ids = torch.tensor([[2, 7, 8, 9]])
    x = PairActivations(pair, 2)(ids, torch.tensor([4]))
    assert pair.d_model == (16, 32)
    assert x.shape == (1, 4, 48)
    assert torch.equal(x[..., 16:], PairActivations(tiny_pair, 2)(ids, torch.tensor([4]))[..., 32:])


def test_half_precision_models_give_float32(tiny_pair: Pair) -> None:
    torch.manual_seed(0)
    pair = pair_of(llama().bfloat16(), llama().bfloat16(), tiny_pair)
    assert PairActivations(pair, 0)(torch.tensor([[1, 2]]), torch.tensor([2])).dtype == torch.float32


@pytest.mark.parametrize("layer", [-1, 4, 100])
def test_a_layer_that_does_not_exist(tiny_pair: Pair, layer: int) -> None:
    with pytest.raises(PairError, match=f"layer {layer}: the base model has 4 layers, 0 to 3"):
        PairActivations(tiny_pair, layer)


def shared_row(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat(texts)[None], torch.cat([torch.arange(len(text)) for text in texts])[None]


def test_texts_that_share_a_row_do_not_see_each_other(make: Make, tiny_pair: Pair) -> None:
    torch.manual_seed(0)
    pair = pair_of(make(), make(), tiny_pair)
    activations = PairActivations(pair, 1)
    texts = [torch.randint(VOCAB, (length,)) for length in (1, 5, 17, POS)]
    alone = torch.cat([activations(text[None], torch.tensor([len(text)]))[0] for text in texts])
    assert activations.shares_rows
    together = activations.rows(*shared_row(texts))[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_one_massive_dimension_hides_no_other(tiny_pair: Pair) -> None:
    """The next text's first tokens change by a fifteenth of their spread, which 2 % of a constant 100 would hide."""
    model = tiny_model("Lfm2")
    embeddings = model.get_input_embeddings().weight
    embeddings[:, 0] = 100.0
    activations = PairActivations(pair_of(model, tiny_model("Llama"), tiny_pair), 0)
    ids = torch.arange(20, 32)[None]
    alone = torch.cat([activations.rows(half) for half in ids.split(6, dim=1)], dim=1)
    together = activations.rows(*shared_row([*ids[0].split(6)]))
    change = (together - alone)[0, 6:, 1:16].norm(dim=-1) / alone[0, 6:, 1:16].std()
    assert change.max() > 0.05
    assert (together - alone).abs().max() < 0.02 * alone.abs().max()
    assert not activations.shares_rows


def test_rounding_in_half_precision_is_no_difference(tiny_pair: Pair) -> None:
    """Kernels sum in another order where a row is longer: here, products of more than six rows in two halves."""
    torch.manual_seed(0)
    model = tiny_model("Gemma2", num_hidden_layers=12).bfloat16()
    for layer in decoder_layers(model):
        layer.mlp.register_forward_pre_hook(_sum_in_halves)
    activations = PairActivations(pair_of(model, model, tiny_pair), 11)
    texts = [torch.randint(VOCAB, (6,)) for _ in range(2)]
    alone = torch.cat([activations.rows(text[None]) for text in texts], dim=1)
    together = activations.rows(*shared_row(texts))
    assert (together - alone).abs().max() > 0.02 * alone.abs().max()
    assert activations.shares_rows
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any("forward" in layer.__dict__ for layer in decoder_layers(model))


def _sum_in_halves(mlp: nn.Module, given: tuple[Tensor, ...]) -> None:
    def forward(x: Tensor) -> Tensor:
        weight = down.weight
        if x.shape[1] <= 6:
            return torch.nn.functional.linear(x, weight)
        halves = zip(x.split(12, dim=-1), weight.split(12, dim=-1), strict=True)
        return torch.stack([torch.nn.functional.linear(*half) for half in halves]).sum(0)

    down = mlp.down_proj
    down.forward = forward


def test_only_a_model_that_takes_no_positions_cannot_share(tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not PairActivations(pair_of(tiny_model("MPT"), tiny_model("Llama"), tiny_pair), 1).shares_rows
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("a device failed"), ValueError("odd")):

        def refuse(*_arguments: object, error: Exception = error, **_options: object) -> None:
            raise error

        model = tiny_model("Llama")
        monkeypatch.setattr(decoder_layers(model)[1], "forward", refuse)
        with pytest.raises(type(error)) as refused:
            _ = PairActivations(pair_of(model, model, tiny_pair), 1).shares_rows
        assert refused.value is error


@pytest.mark.parametrize("kind", ["Phi3, LongRoPE", "Llama, dynamic RoPE", "one that says no limit"])
def test_no_text_depends_on_a_longer_one(kind: str, tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """LongRoPE rotates all positions of a forward by other angles if one text is longer than 32 tokens."""
    if kind not in KINDS:
        monkeypatch.setattr(probes, "long_text_limits", lambda _model: ())
        kind = "Phi3, LongRoPE"
    model = tiny_model(kind)
    activations = PairActivations(pair_of(model, tiny_model("Llama"), tiny_pair), 1)
    lengths = [10, 40, 32, 33, 10, 128, 1]
    texts = [torch.randint(3, VOCAB, (length,)) for length in lengths]
    alone = [activations.rows(text[None])[0] for text in texts]
    batch = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    for x, expected in zip(activations(batch, torch.tensor(lengths)), alone, strict=True):
        torch.testing.assert_close(x[: len(expected)], expected, atol=1e-5, rtol=1e-5)
        assert not x[len(expected) :].any()
    how = activations.shares_rows, False, activations.regimes(lengths)
    for forward in pack(lengths, 1000, *how):
        x = activations.rows(*forward.fill([texts[index].numpy() for index in forward.texts]))
        for text, row, start in zip(forward.texts, forward.rows, forward.starts, strict=True):
            own = x[row, start : start + lengths[text]]
            torch.testing.assert_close(own, alone[text], atol=1e-5, rtol=1e-5)


def test_an_id_without_an_embedding_is_named(tiny_pair: Pair) -> None:
    activations = PairActivations(pair_of(tiny_model("Llama"), tiny_model("Llama", vocab_size=50), tiny_pair), 1)
    with pytest.raises(PairError, match="token id 55 has no embedding in the chat model, which has 50"):
        activations(torch.tensor([[3, 55]]), torch.tensor([2]))


def test_a_model_whose_state_runs_on_from_text_to_text_has_rows_to_itself(tiny_pair: Pair) -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=3, state_size=4)
    activations = PairActivations(pair_of(MambaForCausalLM(config), llama(), tiny_pair), 1)
    assert not activations.shares_rows
