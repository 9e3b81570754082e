"""Pairs of which only the lower layers are in memory, against whole ones: bit for bit, of many classes."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from crosscope_proto.artefacts import PAIR_MANIFEST, PairManifest
from crosscope_proto.specs import AdapterSpec, PairSpec
from crosscope_worker.models import partial
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.pair import Pair, decoder_layers, expected_bytes, load_pair
from crosscope_worker.models.partial import CannotCut, NotLoaded
from crosscope_worker.models.places import PairError, resolve_pair
from tests.worker.conftest import gemma_tokenizer
from tests.worker.models.test_adapter import KINDS as ADAPTERS
from tests.worker.models.test_adapter import pytestmark as of_peft
from tests.worker.models.test_adapter import save_adapter
from tests.worker.tiny_models import KINDS, tiny_model

pytestmark = of_peft
IDS = torch.tensor([[2, 7, 8, 9, 30, 41, 20, 6]])
LAYER = 1
NAMES = ("Llama", "Gemma2", "Gemma3, with images", "Qwen3", "GPTNeoX", "GPT2")


def write_pair(folder: Path, base: PreTrainedModel, **how: Any) -> PairManifest:
    """The pair of a model and the same with weights moved a little, in files."""
    tokenizer = gemma_tokenizer()
    for name in ("base", "chat"):
        base.save_pretrained(folder / name, **how)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for parameter in base.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    manifest = PairManifest(
        name="p", base=str(folder / "base"), chat=str(folder / "chat"), tokenizer=str(folder / "base")
    )
    (folder / PAIR_MANIFEST).write_text(json.dumps(asdict(manifest)))
    return manifest


def tensors(pair: Pair) -> dict[int, Tensor]:
    """All weights and buffers of both models, by their place in memory."""
    found = (each for model in pair.models for each in (*model.parameters(), *model.buffers()))
    return {each.data_ptr(): each for each in found if each.numel()}


def size(pair: Pair) -> int:
    return sum(each.nbytes for each in tensors(pair).values())


def x(pair: Pair, layer: int = LAYER) -> Tensor:
    return PairActivations(pair, layer).rows(IDS)


@torch.inference_mode()
def logits(pair: Pair) -> list[Tensor]:
    return [model(input_ids=IDS, use_cache=False).logits for model in pair.models]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def check_parts(manifest: PairManifest, layer: int = LAYER) -> tuple[Pair, Pair, Pair]:
    """Loads a pair whole, up to a layer, and whole from there, and compares all that they compute."""
    whole, lower = load_pair(manifest), load_pair(manifest, upto=layer)
    assert whole.is_whole
    assert not lower.is_whole
    PairActivations(lower, layer).check()
    assert torch.equal(x(lower, layer), x(whole, layer))
    with pytest.raises(NotLoaded, match="ask for the whole model"):
        logits(lower)
    again = load_pair(manifest, given=lower)
    assert again.is_whole
    assert tensors(lower).keys() & tensors(again).keys() >= {
        each.data_ptr() for model in lower.models for each in model.parameters()
    }, "no weight is in memory twice"
    assert size(again) == size(whole)
    assert_same(logits(again), logits(whole))
    assert torch.equal(x(lower, layer), x(whole, layer)), "the lower part stays usable"
    return whole, lower, again


@pytest.mark.parametrize("kind", [*NAMES, "Qwen2"])
def test_a_part_computes_bit_for_bit_what_the_whole_computes(tmp_path: Path, kind: str) -> None:
    if kind == "Qwen2":
        config = transformers.Qwen2Config(**KINDS["Qwen3"][1] | {"vocab_size": 400})
        model: PreTrainedModel = transformers.Qwen2ForCausalLM(config)
    else:
        changed = {"text_config": KINDS[kind][1]["text_config"] | {"vocab_size": 400}} if "images" in kind else {}
        model = tiny_model(kind, **changed or {"vocab_size": 400})
    manifest = write_pair(tmp_path, model)
    _, lower, _ = check_parts(manifest)
    assert expected_bytes(manifest, LAYER).total() == sum(each.nbytes for m in lower.models for each in m.parameters())


@pytest.mark.parametrize(("dtype", "shard"), [("bfloat16", "60KB"), ("float16", "5GB")])
def test_half_precision_and_shards(tiny_pair: Pair, tmp_path: Path, dtype: str, shard: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_pair.manifest.base)
    manifest = replace(write_pair(tmp_path, model, max_shard_size=shard), dtype=dtype)
    assert (len(list((tmp_path / "base").glob("*.safetensors"))) > 2) == (shard == "60KB")
    whole, lower, again = check_parts(manifest, 2)
    assert {each.dtype for each in again.models[0].parameters()} == {getattr(torch, dtype)}
    assert 0.7 < size(lower) / size(whole) < 0.9


def test_what_is_absent_and_how_much_that_saves(tmp_path: Path) -> None:
    """Llama of three layers, whose head is apart: 400 x 16 embeddings and as many in the head."""
    manifest = write_pair(tmp_path, tiny_model("Llama", vocab_size=400))
    lower = load_pair(manifest, upto=0)
    assert partial.absent_names(lower.models[0]) == ["model.layers.1", "model.layers.2", "lm_head"]
    layer = 4 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16)
    assert sum(each.nbytes for each in lower.models[1].parameters()) == 4 * (400 * 16 + 16) + layer
    assert load_pair(manifest, upto=1, given=lower).num_layers == 3
    deeper = load_pair(manifest, upto=1, given=lower)
    assert torch.equal(x(deeper, 1), x(load_pair(manifest), 1))
    assert partial.absent_names(deeper.models[0]) == ["model.layers.2", "lm_head"]


def test_the_last_layer_of_a_model_with_tied_embeddings_needs_it_whole(tiny_pair: Pair) -> None:
    assert load_pair(tiny_pair.manifest, upto=3).is_whole
    assert not load_pair(tiny_pair.manifest, upto=2).is_whole


@pytest.mark.parametrize(
    ("kind", "layer", "is_merged"),
    [
        ("of upper layers", 1, False),
        ("of upper layers", 2, True),
        ("rsLoRA of every layer", 1, True),
        ("DoRA", 2, False),
        ("with a head of its own", 1, False),
        ("with embeddings of its own", 2, False),
        ("of the embeddings", 1, True),
        ("of single tokens", 1, False),
    ],
)
def test_adapters(tiny_pair_folder: Path, tmp_path: Path, kind: str, layer: int, is_merged: bool) -> None:
    """Layer 1 lies below all that the adapters of the upper layers change."""
    (tmp_path / "base").symlink_to(tiny_pair_folder / "base")
    save_adapter(tmp_path, **ADAPTERS[kind][0])
    spec = PairSpec(name="lora", base="base", chat=AdapterSpec(adapter="adapter", merged=is_merged))
    check_parts(resolve_pair(spec, tmp_path), layer)


def test_a_weight_that_is_tied_to_another_part_stops_the_cut() -> None:
    config = AutoConfig.for_model("llama", **KINDS["Llama"][1])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.all_tied_weights_keys = {"model.layers.2.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight"}
    with pytest.raises(CannotCut, match=r"layers\.2\.mlp\.up_proj\.weight is tied to model\.layers\.0"):
        partial.cut(model, partial.above(model, decoder_layers(model), 1))
    assert not partial.is_partial(model)


def test_a_quantised_model_is_loaded_whole(
    tiny_pair: Pair, tmp_path: Path, make_gemma: Callable[..., PreTrainedModel], caplog: pytest.LogCaptureFixture
) -> None:
    manifest = write_pair(tmp_path, make_gemma(400))
    config = tmp_path / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "none"}}))
    with caplog.at_level("INFO"):
        pair = load_pair(manifest, upto=1)
    assert [partial.is_partial(model) for model in pair.models] == [False, True]
    assert torch.equal(x(pair), x(load_pair(manifest)))
    assert not expected_bytes(manifest, 1)
    assert "base is loaded whole: its weights are quantised" in caplog.text


def test_a_stream_that_is_changed_between_layers_is_refused_of_a_part_too(tiny_pair: Pair) -> None:
    lower = load_pair(tiny_pair.manifest, upto=1)
    model = lower.models[1]
    model.get_decoder().layers[2].register_forward_pre_hook(  # pyright: ignore[reportIndexIssue, reportCallIssue]
        lambda _module, inputs: (inputs[0].flip(-1), *inputs[1:])
    )
    with pytest.raises(PairError, match="the chat model, Gemma2ForCausalLM, does not hand the output of layer 1 on"):
        PairActivations(lower, 1).check()
