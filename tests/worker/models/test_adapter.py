"""A chat model that is a LoRA adapter: loaded, measured against merged weights, trained on, published and served."""

import asyncio
import builtins
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2ForCausalLM

from crosscope_proto.artefacts import PAIR_MANIFEST
from crosscope_proto.manifest import manifest_text
from crosscope_proto.recipe import CrosscoderRecipe, RecipeError, parse_recipe, recipe_dict
from crosscope_proto.specs import AdapterSpec, PairSpec
from crosscope_worker.analysis.lens import find_lens
from crosscope_worker.dictionary.version import read_manifest
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.fingerprints import changed_parts, pair_hashes
from crosscope_worker.models.pair import Pair, decoder_layers, load_pair, shared_layers
from crosscope_worker.models.places import PairError, resolve_pair
from crosscope_worker.models.upper_half import UpperHalf
from crosscope_worker.recipes.train import make_crosscoder
from crosscope_worker.serve.loading import LoadedCrosscoder
from crosscope_worker.serve.models import Models
from crosscope_worker.work import Workspace, silent
from tests.worker.elsewhere import HERE, THERE, elsewhere
from tests.worker.tiny_models import tiny_model

pytestmark = [  # Of what PEFT does inside.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning"),
]
IDS = torch.tensor([[2, 7, 8, 9, 300, 41, 20, 6]])
LENGTHS = torch.tensor([8])
UPPER = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [2, 3]}
"""Adapts the upper two of four layers."""


@pytest.fixture
def home(tiny_pair_folder: Path, tmp_path: Path) -> Path:
    """The tiny pair's base model, with its tokenizer, as `base`."""
    shutil.copytree(tiny_pair_folder / "base", tmp_path / "base")
    return tmp_path


def save_adapter(home: Path, **config: Any) -> PeftModel:
    """Writes a random adapter on the base model as `adapter`; returns base and adapter as PEFT itself runs them."""
    torch.manual_seed(1)
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(home / "base"), LoraConfig(**UPPER | config))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens_delta")):
                parameter += 0.1 * torch.randn_like(parameter)
    made.save_pretrained(str(home / "adapter"))
    return made.eval()


def adapted(home: Path, spec: dict[str, Any] | None = None, **pair: Any) -> Pair:
    chat = AdapterSpec(adapter="adapter", **spec or {})
    return load_pair(resolve_pair(PairSpec(name="lora", base="base", chat=chat, **pair), home))


@pytest.mark.parametrize(("words", "lie"), [(f"{HERE},{THERE}", {THERE}), (f"{HERE}+{THERE}", {HERE, THERE})])
def test_both_models_lie_where_the_chat_model_is_to(words: str, lie: set[str], home: Path) -> None:
    save_adapter(home)
    expected = PairActivations(adapted(home), 3)(IDS, LENGTHS)
    with elsewhere():
        pair = load_pair(adapted(home).manifest, words)
        assert [{str(each.device) for each in model.parameters()} for model in pair.models] == [lie, lie]
        torch.testing.assert_close(PairActivations(pair, 3)(IDS, LENGTHS).cpu(), expected, rtol=0, atol=0)


def states(model: Any, layer: int) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, output_hidden_states=True).hidden_states[layer + 1]


KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "of upper layers": ({}, 2),
    "rsLoRA of every layer": ({"layers_to_transform": None, "use_rslora": True}, 0),
    "DoRA": ({"use_dora": True}, 2),
    "with a head of its own": ({"modules_to_save": ["lm_head"]}, 2),
    "with embeddings of its own": ({"modules_to_save": ["embed_tokens"]}, 0),
    "of the embeddings": ({"target_modules": ["embed_tokens"], "layers_to_transform": None}, 0),
    "of single tokens": ({"trainable_token_indices": {"embed_tokens": [7, 300]}}, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_those_of_merged_weights(home: Path, kind: str) -> None:
    """The head is that of the adapter as PEFT runs it; its merging adds what embeddings learn to a tied head too."""
    config, num_shared = KINDS[kind]
    merged = save_adapter(home, **config).merge_and_unload()
    own_head = save_adapter(home, **config).get_base_model()
    plain = AutoModelForCausalLM.from_pretrained(home / "base")
    rows = torch.randn(20, 32)
    for pair in (adapted(home), adapted(home, {"merged": True})):
        base, chat = pair.models
        assert shared_layers(base, chat) == num_shared
        for layer in range(3):
            x = PairActivations(pair, layer)(IDS, LENGTHS)
            torch.testing.assert_close(x[..., :32], states(plain, layer), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(x[..., 32:], states(merged, layer), atol=1e-5, rtol=1e-5)
            assert torch.equal(x[..., :32], x[..., 32:]) == (layer < num_shared)
        PairActivations(pair, 2).check()
        for model, own in ((base, plain), (chat, own_head)):
            upper = UpperHalf(model, 1)
            assert upper.vocabulary == 400
            hidden = upper.hidden(IDS, states(own, 1))
            with torch.no_grad():
                torch.testing.assert_close(upper.logits(hidden[0]), own(input_ids=IDS).logits[0], atol=1e-5, rtol=1e-4)
        assert torch.equal(find_lens(chat).tokens(rows), find_lens(own_head).tokens(rows)), "the head's adapter counts"


@pytest.mark.parametrize("merged", [False, True])
def test_the_models_share_their_memory(home: Path, merged: bool) -> None:
    save_adapter(home)
    base, chat = adapted(home, {"merged": merged}).models
    own = {parameter.data_ptr() for parameter in base.parameters()}
    apart = [name for name, parameter in chat.named_parameters() if parameter.data_ptr() not in own]
    wanted = r"q_proj|down_proj" if merged else "lora_"
    assert len(apart) == (4 if merged else 8)
    assert all(any(part in name for part in wanted.split("|")) for name in apart)
    assert not any(parameter.requires_grad for parameter in (*base.parameters(), *chat.parameters()))


def test_layers_below_the_adapter_run_once(home: Path) -> None:
    save_adapter(home)
    pair = adapted(home)
    activations = PairActivations(pair, 3)
    activations.rows(IDS)
    ran: list[tuple[int, int]] = []
    for model, each in enumerate(pair.models):
        for index, layer in enumerate(decoder_layers(each)):
            layer.mlp.register_forward_hook(lambda *_, at=(model, index): ran.append(at))
    activations.rows(IDS)
    assert ran == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    ran.clear()
    PairActivations(pair, 1).rows(IDS)
    ran.clear()
    activations = PairActivations(pair, 1)
    assert activations.rows(IDS).shape == (1, 8, 64)
    assert (1, 0) not in ran[-2:]


def test_embeddings_that_come_with_an_adapter_are_the_chat_models_alone(home: Path) -> None:
    """PEFT loads them into the model under the adapter, which shares its parameters with the base model."""
    made = save_adapter(home)
    with torch.no_grad():
        made.get_input_embeddings().weight += 1.0
    made.save_pretrained(str(home / "adapter"), save_embedding_layers=True)
    pair = adapted(home)
    plain = AutoModelForCausalLM.from_pretrained(home / "base")
    x = PairActivations(pair, 2)(IDS, LENGTHS)
    torch.testing.assert_close(x[..., :32], states(plain, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x[..., 32:], states(made, 2), atol=1e-5, rtol=1e-5)
    assert shared_layers(*pair.models) == 0


def test_an_adapter_may_lie_on_another_model_than_the_base(
    home: Path, make_gemma: Callable[..., Gemma2ForCausalLM]
) -> None:
    save_adapter(home)
    torch.manual_seed(5)
    shutil.copytree(home / "base", home / "other")
    make_gemma(400).save_pretrained(home / "other")
    pair = adapted(home, {"base": "other"})
    assert pair.manifest.chat == str(home / "other")
    assert shared_layers(*pair.models) == 0
    other = AutoModelForCausalLM.from_pretrained(home / "other")
    torch.testing.assert_close(PairActivations(pair, 1)(IDS, LENGTHS)[..., 32:], states(other, 1))


def test_an_adapter_for_another_model_is_refused(home: Path, make_gemma: Callable[..., Gemma2ForCausalLM]) -> None:
    save_adapter(home)
    for model, reason in (
        (make_gemma(400, hidden_size=48), "does not fit Gemma2ForCausalLM .*size mismatch"),
        (tiny_model("GPT2", vocab_size=400), r"does not fit GPT2LMHeadModel .*Target modules .* not found"),
        (shallow(home / "base"), r"has 4 weights for which the model has no place, the first .*layers\.3"),
    ):
        model.save_pretrained(home / "base")
        with pytest.raises(PairError, match=rf"'lora': the adapter .*/adapter {reason}.* pair\.chat\.base"):
            adapted(home)


def shallow(folder: Path) -> Gemma2ForCausalLM:
    """The base model without its last layer."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    del model.model.layers[3]
    model.config.num_hidden_layers = 3
    model.config.layer_types = model.config.layer_types[:3]
    return model


def test_an_adapter_of_another_hub_model_is_refused_unless_someone_says_so(home: Path) -> None:
    save_adapter(home)
    path = home / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "org/other-it"}))
    chat = AdapterSpec(adapter="adapter")
    manifest = resolve_pair(PairSpec(name="lora", base=str(home / "base"), chat=chat), home)
    assert load_pair(manifest).num_layers == 4, "a folder may hold any model"
    from crosscope_worker.models.adapter import with_adapter
    from crosscope_worker.models.places import adapter_place

    place = adapter_place(manifest)
    assert place is not None
    model = AutoModelForCausalLM.from_pretrained(home / "base")
    at_hub = replace(manifest, chat="org/other")
    with pytest.raises(PairError, match=r"was made for org/other-it, and the pair's base is org/other; set pair.chat"):
        with_adapter(model, place, at_hub)
    with_adapter(model, place, replace(at_hub, adapter_base_given=True))


def test_what_is_no_lora_adapter_is_refused(home: Path) -> None:
    with pytest.raises(PairError, match=r"there is no folder .*/gone; give a hub id or the folder of a saved adapter"):
        resolve_pair(PairSpec(name="lora", base="base", chat=AdapterSpec(adapter=f"{home}/gone")), home)
    save_adapter(home)
    weights, config = home / "adapter" / "adapter_model.safetensors", home / "adapter" / "adapter_config.json"
    whole = weights.read_bytes()
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.3" not in name}, weights)
    with pytest.raises(PairError, match=r"lacks 4 weights, the first '.*layers\.3"):
        adapted(home)
    weights.write_bytes(whole[:-100])
    with pytest.raises(PairError, match=r"the adapter .* (damaged or cut short|does not fit)"):
        adapted(home)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(PairError, match=r"there is no adapter_model\.safetensors; save it with save_pretrained"):
        adapted(home)
    shutil.rmtree(home / "adapter")
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(tiny_model("Llama"), prefix).save_pretrained(str(home / "adapter"))
    with pytest.raises(PairError, match="is of type PREFIX_TUNING; only LoRA adapters"):
        adapted(home)
    config.write_text("[")
    with pytest.raises(PairError, match=r"adapter_config\.json cannot be read"):
        adapted(home)


def test_without_peft_the_way_to_install_it_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_adapter(home)
    plain = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return plain(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PairError, match=r"needs PEFT; install it with: pip install './worker\[peft\]'"):
        adapted(home)


def test_running_out_of_memory_is_no_fault_of_the_adapter(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_adapter(home)

    def refuse(*_arguments: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")

    monkeypatch.setattr("crosscope_worker.models.adapter._twin", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        adapted(home)


def test_half_precision(home: Path) -> None:
    save_adapter(home)
    pair = adapted(home, dtype="bfloat16")
    assert {model.dtype for model in pair.models} == {torch.bfloat16}
    PairActivations(pair, 3).check()
    assert PairActivations(pair, 3).shares_rows


def test_hashes_and_places_follow_the_adapter(home: Path) -> None:
    save_adapter(home)
    manifest = adapted(home).manifest
    assert (manifest.base, manifest.chat) == (str(home / "base"), str(home / "base"))
    assert manifest.chat_model == f"{home}/base + {home}/adapter"
    assert manifest.tokenizer == manifest.chat, "the adapter's folder has no tokenizer"
    hashes = pair_hashes(manifest)
    assert hashes["base"] == hashes["chat"] != hashes["adapter"]
    weights = home / "adapter" / "adapter_model.safetensors"
    tensors = {name: tensor + 1 for name, tensor in load_file(weights).items()}
    save_file(tensors, weights)
    assert changed_parts(manifest, hashes) == ["adapter"]
    path = home / "pairs" / "lora" / PAIR_MANIFEST
    path.parent.mkdir(parents=True)
    path.write_text(manifest_text(manifest))
    assert resolve_pair(PairSpec(name="lora"), home) == manifest
    path.write_text(path.read_text().replace(f'"{home}/adapter"', '"../../adapter"'))
    assert resolve_pair(PairSpec(name="lora"), home) == manifest
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(home / "base" / name, home / "adapter" / name)
    assert adapted(home).manifest.tokenizer == str(home / "adapter")
    with pytest.raises(PairError, match=r"/adapter is a folder and has no revisions; drop chat\.revision"):
        adapted(home, {"revision": "main"})


RECIPE = """
kind: crosscoder
name: lora
pair: {name: lora, base: base, chat: {adapter: adapter}}
layer: 2
data: [{name: web, source: text, path: web.txt}]
crosscoder: {variant: batch_topk, num_latents: 16, k: 2}
tokens: {held_out_every: 4}
training: {batch_size: 64, buffer_tokens: 256, max_steps: 4}
analysis: {spliced_tokens: 64, num_shards: 2}
"""


def test_a_job_publishes_a_pair_that_is_served(home: Path) -> None:
    save_adapter(home)
    (home / "web.txt").write_text("the baker in the village makes fresh bread every morning\n" * 40)
    (home / "job").mkdir()
    recipe = parse_recipe(RECIPE)
    assert isinstance(recipe, CrosscoderRecipe)
    assert parse_recipe(json.dumps(recipe_dict(recipe))) == recipe
    made = make_crosscoder(recipe, Workspace(home, home / "job", lambda: None), silent)
    published = read_manifest(home / "crosscoders" / "lora" / "versions" / made.version_id)
    assert published.pair.adapter == str(home / "adapter")
    assert published.hashes["adapter"] == pair_hashes(published.pair)["adapter"]
    assert {"ce_recovered_chat", "kl_spliced_base"} <= published.metrics.keys()
    assert not published.unavailable

    with ThreadPoolExecutor(1) as device:
        models = Models(home, "cpu", 1 << 30, device)

        async def load() -> LoadedCrosscoder:
            async with models.using("lora", made.version_id) as found:
                return found

        loaded = asyncio.run(load())
        (code,) = loaded.encoder([np.array([2, 7, 8])])
        models.close()
    assert len(code.row_starts) == 4
    base, chat = loaded.pair.pair.models
    assert shared_layers(base, chat) == 2


@pytest.mark.parametrize(
    ("chat", "field", "message"),
    [
        ("{adapter: a, rank: 4}", "pair.chat.rank", "no such key"),
        ("{base: a}", "pair.chat.adapter", "must be given"),
        ("{adapter: ''}", "pair.chat.adapter", "at least 1 character"),
        ("7", "pair.chat", "valid string"),
    ],
)
def test_a_wrong_adapter_in_a_recipe_is_named(chat: str, field: str, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        parse_recipe(RECIPE.replace("{adapter: adapter}", chat))
    assert [name for name, _ in refused.value.violations] == [field]
    assert message in refused.value.violations[0][1]


def test_a_revision_of_the_shared_base_is_the_bases() -> None:
    with pytest.raises(RecipeError, match="revision_chat is the revision of the adapter's base, which is the pair's"):
        parse_recipe(RECIPE.replace("adapter}}", "adapter}, revision_chat: main}"))
