import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2ForCausalLM

from crosscope_proto.artefacts import PAIR_MANIFEST, PairManifest
from crosscope_proto.manifest import manifest_text
from crosscope_proto.specs import PairSpec
from crosscope_worker.analysis.lens import find_lenses
from crosscope_worker.disk import sha256
from crosscope_worker.jobs.entry import sentence
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.fingerprints import changed_parts, pair_hashes
from crosscope_worker.models.pair import Pair, load_pair, num_embeddings, num_ids
from crosscope_worker.models.places import PairError, resolve_pair


@pytest.fixture
def folder(tiny_pair_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pair's folder, to be broken."""
    return Path(shutil.copytree(tiny_pair_folder, tmp_path / "pairs" / "tiny"))


def manifest_of(folder: Path) -> PairManifest:
    return resolve_pair(PairSpec(name="tiny"), folder.parent.parent)


def test_a_pair_by_name_gets_absolute_folders(tiny_pair_folder: Path, tiny_pair: Pair) -> None:
    manifest = manifest_of(tiny_pair_folder)
    assert manifest.base == str(tiny_pair_folder / "base")
    assert manifest.chat == manifest.tokenizer == str(tiny_pair_folder / "chat")
    assert tiny_pair.d_model == (32, 32)
    assert tiny_pair.num_layers == 4
    assert tiny_pair.max_positions == 256


def test_models_of_a_spec_are_hub_ids_or_folders(folder: Path) -> None:
    home = folder.parent.parent
    spec = PairSpec(name="new", base="google/gemma-2-2b", chat=str(folder / "chat"), revision_base="main")
    manifest = resolve_pair(spec, home)
    assert (manifest.base, manifest.chat) == ("google/gemma-2-2b", str(folder / "chat"))
    assert manifest.tokenizer == manifest.chat
    assert manifest.revision_base == "main"
    relative = resolve_pair(PairSpec(name="new", base="pairs/tiny/base", chat="pairs/tiny/chat"), home)
    assert relative.base == str(folder / "base")


def test_a_written_manifest_reads_back(tmp_path: Path, tiny_pair: Pair) -> None:
    folder = tmp_path / "pairs" / "tiny"
    folder.mkdir(parents=True)
    (folder / PAIR_MANIFEST).write_text(manifest_text(tiny_pair.manifest))
    assert manifest_of(folder) == tiny_pair.manifest


def test_models_do_not_train(tiny_pair: Pair) -> None:
    for model in tiny_pair.models:
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert model.config._attn_implementation == "eager"  # pyright: ignore[reportPrivateUsage]


def test_half_precision(tiny_pair: Pair) -> None:
    pair = load_pair(replace(tiny_pair.manifest, dtype="bfloat16"))
    assert {parameter.dtype for model in pair.models for parameter in model.parameters()} == {torch.bfloat16}


def test_hashes_follow_content(folder: Path) -> None:
    manifest = manifest_of(folder)
    before = pair_hashes(manifest)
    assert before == pair_hashes(manifest)
    assert before["base"] != before["chat"]
    weights = folder / "chat" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] += 1
    save_file(tensors, weights, {"format": "pt"})
    after = pair_hashes(manifest)
    assert [name for name in before if before[name] != after[name]] == ["chat"]


def test_a_pair_that_does_not_exist(folder: Path) -> None:
    home = folder.parent.parent
    with pytest.raises(PairError, match=r"no pair 'gone' below .*pairs \(there: tiny\); make it first"):
        resolve_pair(PairSpec(name="gone"), home)
    with pytest.raises(PairError, match=r"'x': there is no folder /gone/base"):
        resolve_pair(PairSpec(name="x", base="/gone/base", chat="a/b"), home)
    with pytest.raises(PairError, match=r"there is no folder .*a/b/c"):
        resolve_pair(PairSpec(name="x", base="a/b/c", chat="a/b"), home)
    shutil.rmtree(folder / "base")
    with pytest.raises(PairError, match="the folder of the base model does not exist"):
        load_pair(replace(manifest_of_files(folder), base=str(folder / "base")))


def manifest_of_files(folder: Path) -> PairManifest:
    return PairManifest(name="tiny", base="", chat=str(folder / "chat"), tokenizer=str(folder / "chat"))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", r"pair\.json: is not JSON"),
        ('{"name": "tiny"}', "base: is missing; chat: is missing; tokenizer: is missing"),
        ("[]", "is not a manifest: it must be a JSON object"),
        (
            '{"name": "t", "base": "base", "chat": "chat", "tokenizer": "chat", "dytpe": 1}',
            "'dytpe' is not a field of a pair",
        ),
        (
            '{"name": "t", "base": "base", "chat": 3, "tokenizer": "chat"}',
            "chat: Input should be a valid string, but is 3",
        ),
        (
            '{"schema_version": 9, "later": 1}',
            "has schema version 9, but this program knows up to 1; update",
        ),
        ('{"schema_version": true}', "schema_version: must be a number from 1 to 1, but is True"),
    ],
)
def test_a_broken_manifest(folder: Path, document: str, message: str) -> None:
    (folder / PAIR_MANIFEST).write_text(document)
    with pytest.raises(PairError, match=message):
        manifest_of(folder)


def test_a_cut_weight_file_is_named(folder: Path) -> None:
    weights = folder / "chat" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(PairError, match=r"the chat model .*: model\.safetensors is damaged or cut short"):
        load_pair(manifest_of(folder))


def test_a_missing_weight_is_named(folder: Path) -> None:
    weights = folder / "base" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(PairError, match=r"base model .* lacks 1 weights, the first 'model\.layers\.1\.mlp"):
        load_pair(manifest_of(folder))


def test_something_else_than_a_causal_model(folder: Path) -> None:
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(PairError, match=r"base model .* is not a causal language model that can be loaded"):
        load_pair(manifest_of(folder))


def test_a_model_too_large_for_the_machine_says_so(folder: Path) -> None:
    """Weights of 2 to the power of 60 bytes, which transformers makes before it says that they are missing."""
    path, weights = folder / "base" / "config.json", folder / "base" / "model.safetensors"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 1 << 53}))
    tensors = {name: tensor for name, tensor in load_file(weights).items() if ".mlp." not in name}
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(RuntimeError, match="can't allocate memory") as refused:
        load_pair(manifest_of(folder))
    assert sentence(refused.value, folder).startswith("Out of memory: ")


@pytest.mark.parametrize("method", ["from_pretrained", "to"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_running_out_of_memory_is_no_fault_of_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str, error: RuntimeError
) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(Gemma2ForCausalLM, method, refuse)
    with pytest.raises(type(error)) as refused:
        load_pair(manifest_of(folder))
    assert refused.value is error


def test_embeddings_may_be_padded_to_different_sizes(
    folder: Path, make_gemma: Callable[..., Gemma2ForCausalLM]
) -> None:
    make_gemma(448).save_pretrained(folder / "chat")
    pair = load_pair(manifest_of(folder))
    assert [num_embeddings(model) for model in pair.models] == [400, 448]
    assert num_ids(pair.tokenizer) == 400
    assert PairActivations(pair, 1)(torch.tensor([[2, 399]]), torch.tensor([2])).shape == (1, 2, 64)
    with pytest.raises(PairError, match="token id 400 has no embedding in the base model, which has 400"):
        PairActivations(pair, 1)(torch.tensor([[2, 400]]), torch.tensor([2]))
    _, chat = find_lenses(pair)[0]
    assert chat is not None
    assert chat.tokens(torch.randn(3, 32), count=448).shape == (3, 400), "padding has no token to show"


def test_ids_beyond_the_embeddings_are_refused(folder: Path, make_gemma: Callable[..., Gemma2ForCausalLM]) -> None:
    make_gemma(390).save_pretrained(folder / "chat")
    with pytest.raises(PairError, match="gives ids up to 399, but the chat model has only 390 embeddings"):
        load_pair(manifest_of(folder))


def test_an_added_token_without_an_embedding_is_no_hindrance(folder: Path) -> None:
    """As in Gemma 3 1B, whose tokenizer has one for images."""
    for model in ("base", "chat"):
        rename_tokens(folder / model / "tokenizer.json", {}, {"<image>": 400})
    assert load_pair(manifest_of(folder)).num_layers == 4


def rename_tokens(tokenizer: Path, names: dict[str, str], more: dict[str, int] | None = None) -> None:
    document = json.loads(tokenizer.read_text())
    vocabulary = document["model"]["vocab"]
    for old, new in names.items():
        if old in vocabulary:
            vocabulary[new] = vocabulary.pop(old)
    for token in document["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    like = document["added_tokens"][-1]
    document["added_tokens"] += [like | {"content": name, "id": id_} for name, id_ in (more or {}).items()]
    tokenizer.write_text(json.dumps(document))


def test_names_of_special_tokens_may_differ_if_someone_says_so(folder: Path) -> None:
    """R1-Distill gives Qwen's control tokens other names; and a base model may lack one."""
    names = {"<start_of_turn>": "<|im_start|>", "<end_of_turn>": "<|im_end|>"}
    rename_tokens(folder / "base" / "tokenizer.json", names)
    rename_tokens(folder / "chat" / "tokenizer.json", {}, {"<think>": 400})
    spec = {"name": "new", "base": str(folder / "base"), "chat": str(folder / "chat")}
    differences = r"id 4: '<start_of_turn>' is '<\|im_start\|>' in .*/base; id 5: .*; id 400: '<think>' is none in"
    with pytest.raises(PairError, match=rf"{differences}.*set pair\.tokenizer to base or chat"):
        load_pair(resolve_pair(PairSpec(**spec), folder))
    for word, name in (("base", "<|im_start|>"), ("chat", "<start_of_turn>")):
        pair = load_pair(resolve_pair(PairSpec(**spec, tokenizer=word), folder))
        assert pair.tokenizer.convert_ids_to_tokens(4) == name
        assert [each.split(":")[0] for each in pair.manifest.token_differences] == ["id 4", "id 5", "id 400"]
        assert load_pair(PairManifest(**json.loads(json.dumps(asdict(pair.manifest))))).manifest == pair.manifest
        hash(pair.manifest)
    swap_tokens(folder / "base" / "tokenizer.json")
    with pytest.raises(PairError, match=r"different vocabularies \(400 and 401 tokens, first different at id \d+"):
        load_pair(resolve_pair(PairSpec(**spec, tokenizer="chat"), folder))


def test_tokenizers_with_different_tokens(folder: Path) -> None:
    swap_tokens(folder / "base" / "tokenizer.json")
    with pytest.raises(PairError, match=r"different vocabularies \(400 and 400 tokens, first different at id \d+"):
        load_pair(manifest_of(folder))
    (folder / "base" / "tokenizer_config.json").unlink()
    assert load_pair(manifest_of(folder)).num_layers == 4, "a model without a tokenizer of its own reads the pair's"


def swap_tokens(tokenizer: Path) -> None:
    document = json.loads(tokenizer.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["!"], vocabulary["."] = vocabulary["."], vocabulary["!"]
    tokenizer.write_text(json.dumps(document))


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    (folder / "base" / "tokenizer.json").write_text("{")
    with pytest.raises(PairError, match=r"'tiny': no tokenizer can be loaded from .*base"):
        load_pair(manifest_of(folder))
    for path in folder.glob("chat/*token*"):
        path.unlink()
    with pytest.raises(PairError, match=r"'tiny': there is no tokenizer\.json in .*chat"):
        load_pair(manifest_of(folder))


@pytest.mark.parametrize("model", ["base", "chat"])
def test_a_folder_has_no_revisions(folder: Path, model: str) -> None:
    places = {"base": "some/base", "chat": "some/chat", model: str(folder / model), f"revision_{model}": "main"}
    with pytest.raises(PairError, match=rf"'new': .*/{model} is a folder and has no revisions; drop revision_{model}"):
        resolve_pair(PairSpec(name="new", **places), folder)


def test_a_spec_decides_tokenizer_and_dtype(folder: Path) -> None:
    home = folder.parent.parent
    named = {"name": "new", "base": str(folder / "base"), "chat": str(folder / "chat")}
    plain = resolve_pair(PairSpec(**named), home)
    assert (plain.tokenizer, plain.dtype) == (str(folder / "chat"), "float32")
    assert plain.revision_base is plain.revision_chat is None
    assert load_pair(plain).models[0].dtype == torch.float32
    manifest = resolve_pair(PairSpec(**named, tokenizer="pairs/tiny/base", dtype="float16"), home)
    assert manifest.tokenizer == str(folder / "base")
    for path in folder.glob("chat/*token*"):
        path.unlink()
    pair = load_pair(manifest)
    assert {model.dtype for model in pair.models} == {torch.float16}
    assert pair.tokenizer.name_or_path == str(folder / "base")


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub's cache without a network: the base model as revision "one" of org/tiny, the chat model as "two"."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = cache / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    for model, (revision, commit) in (("base", ("one", "1" * 40)), ("chat", ("two", "2" * 40))):
        shutil.copytree(folder / model, repository / "snapshots" / commit)
        (repository / "refs" / revision).write_text(commit)
    (repository / "refs" / "main").write_text("2" * 40)
    return "org/tiny"


def embeddings(path: Path) -> torch.Tensor:
    return load_file(path / "model.safetensors")["model.embed_tokens.weight"]


@pytest.mark.parametrize("revisions", [("one", "two"), ("two", "one"), (None, "one")])
def test_models_are_loaded_at_their_revisions(hub: str, folder: Path, revisions: tuple[str | None, str]) -> None:
    spec = PairSpec(name="x", base=hub, chat=hub, revision_base=revisions[0], revision_chat=revisions[1])
    pair = load_pair(resolve_pair(spec, folder.parent))
    for model, revision in zip(pair.models, revisions, strict=True):
        expected = embeddings(folder / ("base" if revision == "one" else "chat"))
        torch.testing.assert_close(model.get_input_embeddings().weight.detach(), expected)


@pytest.mark.parametrize("revisions", [("one", "two"), ("two", "one")])
def test_hashes_follow_the_revision_of_each_model(hub: str, folder: Path, revisions: tuple[str, str]) -> None:
    spec = PairSpec(name="x", base=hub, chat=hub, revision_base=revisions[0], revision_chat=revisions[1])
    hashes = pair_hashes(resolve_pair(spec, folder.parent))
    commits = {"one": f"commit:{'1' * 40}", "two": f"commit:{'2' * 40}"}
    assert hashes["chat"] == commits[revisions[1]]
    assert hashes["base"] == commits[revisions[0]]
    assert hashes["tokenizer"] == hashes["chat"]


def test_a_hash_says_only_what_the_cache_knows(hub: str, folder: Path) -> None:
    spec = PairSpec(name="x", base=hub, chat=hub, tokenizer="org/gone", revision_chat="three")
    hashes = pair_hashes(resolve_pair(spec, folder.parent))
    assert hashes == {"tokenizer": "commit:None", "base": f"commit:{'2' * 40}", "chat": "commit:None"}


def test_a_tokenizer_alone_has_a_commit(hub: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "hub" / "models--org--tiny" / "snapshots" / ("2" * 40) / "tokenizer.json").unlink()
    spec = PairSpec(name="x", base=str(folder / "base"), chat=str(folder / "chat"), tokenizer=hub)
    assert pair_hashes(resolve_pair(spec, folder.parent))["tokenizer"] == f"commit:{'2' * 40}"


def test_tokenizers_of_two_revisions_must_agree(hub: str, folder: Path, tmp_path: Path) -> None:
    swap_tokens(tmp_path / "hub" / "models--org--tiny" / "snapshots" / ("1" * 40) / "tokenizer.json")
    spec = PairSpec(name="x", base=hub, chat=hub, revision_base="one", revision_chat="two")
    with pytest.raises(PairError, match="of org/tiny at revision one and org/tiny at revision two have different voc"):
        load_pair(resolve_pair(spec, folder.parent))


def saved_as_bin(folder: Path) -> None:
    """The same weights as older transformers saved them."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_every_weight_file_counts(folder: Path) -> None:
    """Both models have one configuration, so that only their weights tell them apart."""
    shutil.copy(folder / "base" / "config.json", folder / "chat" / "config.json")
    saved_as_bin(folder / "base")
    saved_as_bin(folder / "chat")
    manifest = manifest_of(folder)
    before = pair_hashes(manifest)
    assert before["base"] != before["chat"]
    for name in ("model.gguf", "pytorch_model-00002-of-00002.bin", "model.safetensors.index.json", "consolidated.pth"):
        (folder / "chat" / name).write_bytes(b"weights")
        after = pair_hashes(manifest)
        assert [part for part in before if before[part] != after[part]] == ["chat"], name
        before = after
    (folder / "chat" / "optimizer.pt").touch()
    assert pair_hashes(manifest) == before, "what a trainer leaves beside the weights is no part of the model"


@pytest.mark.parametrize(
    "name",
    ["tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "additional_chat_templates/tools.jinja"],
)
def test_every_tokenizer_file_counts(folder: Path, name: str) -> None:
    manifest = manifest_of(folder)
    before = pair_hashes(manifest)
    (folder / "chat" / name).parent.mkdir(exist_ok=True)
    (folder / "chat" / name).write_text("{}")
    after = pair_hashes(manifest)
    assert [part for part in before if before[part] != after[part]] == ["tokenizer"]


def test_hashes_of_versions_published_earlier_are_compared_as_they_were_made(folder: Path) -> None:
    """They covered config.json and safetensors files, and four of the tokenizer's."""
    saved_as_bin(folder / "chat")
    (folder / "chat" / "added_tokens.json").write_text("{}")
    manifest = manifest_of(folder)
    earlier = {
        "chat": hashlib.sha256(f"config.json\0{sha256(folder / 'chat' / 'config.json')}\n".encode()).hexdigest(),
        "tokenizer": hashlib.sha256(
            "".join(
                f"{name}\0{sha256(folder / 'chat' / name)}\n"
                for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json")
            ).encode()
        ).hexdigest(),
    }
    now = pair_hashes(manifest)
    assert changed_parts(manifest, earlier | {"base": now["base"]}) == []
    assert changed_parts(manifest, now) == []
    (folder / "chat" / "pytorch_model.bin").write_bytes(b"other weights")
    assert changed_parts(manifest, now) == ["chat"]
    assert changed_parts(manifest, earlier) == [], "which is all that the earlier hash says"
    (folder / "chat" / "config.json").write_text("{}")
    assert changed_parts(manifest, earlier) == ["chat"]
