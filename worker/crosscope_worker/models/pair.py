"""Two causal language models that share a tokenizer, loaded and checked; places.py finds them.

A chat model that is an adapter on the base model (adapter.py) has the base model's weights in the same memory.
Does not know texts, activations or crosscoders.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from crosscope_proto.artefacts import PairManifest
from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_worker.models.adapter import with_adapter
from crosscope_worker.models.places import (
    TOKENIZER_FILES,
    PairError,
    Place,
    adapter_place,
    model_places,
    tokenizer_place,
    tokenizer_places,
)
from crosscope_worker.work import is_out_of_memory

BLOCK_SPARSE = "flex_attention"
"""transformers' name of an attention that skips blocks of tokens that do not look at each other."""
_LISTED = 20
"""Differences of tokenizers that a message lists."""
_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
"""What transformers raises for a model that is absent, of another kind, or whose files do not fit together."""


@dataclass(frozen=True)
class Pair:
    """Both models in evaluation mode on one device, base first, and their tokenizer."""

    manifest: PairManifest
    models: tuple[PreTrainedModel, PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    long_rows: bool = False
    """Whether attention of both models skips what a token does not look at, so that a row may be long at no cost."""

    @property
    def d_model(self) -> tuple[int, int]:
        """Residual-stream width of each model."""
        base, chat = (model.config.get_text_config().hidden_size for model in self.models)
        return base, chat

    @property
    def num_layers(self) -> int:
        """Decoder layers that both models have."""
        return min(len(decoder_layers(model)) for model in self.models)

    @property
    def max_positions(self) -> int | None:
        """Tokens that both models can read at once; None where neither says."""
        configs = [model.config.get_text_config() for model in self.models]
        return min(filter(None, (getattr(config, "max_position_embeddings", None) for config in configs)), default=None)

    @property
    def num_readable(self) -> int:
        """Token ids that both models can read, from 0 on."""
        return min(map(num_embeddings, self.models))


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal language model, bottom first.

    Raises PairError for an architecture that has no such list.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    for module in (*model.get_decoder().modules(), *model.modules()):  # Some name their head the decoder.
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise PairError(f"{type(model).__name__} has no list of {num_layers} decoder layers; use a decoder-only model")


def decoder(model: PreTrainedModel) -> nn.Module:
    """The module that makes hidden states of token ids: the model that holds the decoder layers, without the head."""
    layers = decoder_layers(model)
    holders = (each for each in model.modules() if any(child is layers for child in each.children()))
    holder = next(holders, None)
    return holder if isinstance(holder, PreTrainedModel) and holder is not model else model.get_decoder()


def num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id that a tokenizer gives."""
    return max(tokenizer.get_vocab().values()) + 1


def num_embeddings(model: PreTrainedModel) -> int:
    """Ids that a model can read; its embeddings may be padded beyond the tokenizer's."""
    embeddings = model.get_input_embeddings()
    return next(each.num_embeddings for each in embeddings.modules() if isinstance(each, nn.Embedding))


def shared_layers(base: PreTrainedModel, chat: PreTrainedModel) -> int:
    """Number of lowest decoder layers that both models have in the same memory, with all weights below them."""
    own, others = decoder_layers(base), decoder_layers(chat)
    in_layers = {id(tensor) for layers in (own, others) for tensor in _tensors(layers)}
    around = [{id(each) for each in _tensors(decoder(model))} - in_layers for model in (base, chat)]
    if base is not chat and around[BASE] != around[CHAT]:
        return 0
    pairs = zip(own, others, strict=True)
    same = ([id(each) for each in _tensors(a)] == [id(each) for each in _tensors(b)] for a, b in pairs)
    return next((index for index, each in enumerate(same) if not each), len(own))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def check_layer(pair: Pair, layer: int) -> None:
    """Raises PairError unless both models have a decoder layer of this index."""
    for name, model in zip(MODEL_NAMES, pair.models, strict=True):
        num_layers = len(decoder_layers(model))
        if not 0 <= layer < num_layers:
            raise PairError(f"layer {layer}: the {name} model has {num_layers} layers, 0 to {num_layers - 1}")


def load_pair(manifest: PairManifest, device: str | torch.device = "cpu", long_rows: bool = False) -> Pair:
    """Loads both models and the tokenizer and checks that they fit together.

    Folders are never looked up on a network; anything else is a hub id. With `long_rows`, a model that can takes an
    attention that skips what a token does not look at; it is compiled when it first runs. Where `token_names` allows
    the tokenizers to differ, the pair's manifest lists the tokens that do.
    Raises PairError that names the model or file and what is wrong with it. Where memory runs out, torch's own error
    passes.
    """
    tokenizers = {place: _load_tokenizer(place, manifest.name) for place in tokenizer_places(manifest)}
    tokenizer = tokenizers[tokenizer_place(manifest)]
    manifest = replace(manifest, token_differences=tuple(_token_differences(manifest, tokenizers)))
    base, chat = _load_models(manifest, device, long_rows)
    _check_embeddings(manifest, (base, chat), tokenizer)
    is_block_sparse = all(model.config.get_text_config()._attn_implementation == BLOCK_SPARSE for model in (base, chat))  # pyright: ignore[reportPrivateUsage]
    return Pair(manifest, (base, chat), tokenizer, torch.device(device), is_block_sparse)


def expected_bytes(manifest: PairManifest) -> int:
    """Memory that both models' weights will take, by their configurations; 0 where those do not tell.

    What an adapter adds is not counted.
    """
    total = 0
    for place in set(model_places(manifest)):
        try:
            config = AutoConfig.from_pretrained(
                place.source, revision=place.revision, local_files_only=Path(place.source).is_absolute()
            )
            if getattr(config, "quantization_config", None) is not None:
                return 0
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, manifest.dtype))
        except _LOAD_ERRORS:
            return 0  # Loading says what is wrong.
        total += sum(tensor.nbytes for tensor in model.parameters())
    return total


def _load_models(
    manifest: PairManifest, device: str | torch.device, long_rows: bool
) -> tuple[PreTrainedModel, PreTrainedModel]:
    base = _load_model(manifest, BASE, device, long_rows)
    adapter = adapter_place(manifest)
    if adapter is None:
        return base, _load_model(manifest, CHAT, device, long_rows)
    places = model_places(manifest)
    under = base if places[CHAT] == places[BASE] else _load_model(manifest, CHAT, device, long_rows)
    return base, with_adapter(under, adapter, manifest)


def _load_tokenizer(place: Place, pair: str) -> PreTrainedTokenizerBase:
    source, revision = place
    _check_folder(source, "tokenizer", pair)
    local = Path(source).is_absolute()
    if local and not any((Path(source) / name).exists() for name in TOKENIZER_FILES):
        raise PairError(f"pair {pair!r}: there is no tokenizer.json in {source}; save the tokenizer there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=local)
    except Exception as error:  # tokenizers raises Exception itself for a damaged file
        if is_out_of_memory(error):
            raise
        raise PairError(f"pair {pair!r}: no tokenizer can be loaded from {place}: {_sentence(error)}") from error
    if not tokenizer.is_fast:
        raise PairError(f"pair {pair!r}: the tokenizer of {place} has no fast version, which token offsets need")
    return tokenizer


def _token_differences(manifest: PairManifest, tokenizers: dict[Place, PreTrainedTokenizerBase]) -> list[str]:
    """A sentence for every token that another tokenizer of the pair names differently.

    Raises PairError if tokens differ that are not special, or if `token_names` allows no difference.
    """
    shared = tokenizer_place(manifest)
    tokens = {id_: token for token, id_ in tokenizers[shared].get_vocab().items()}
    special = tokenizers[shared].added_tokens_decoder.keys()
    found: list[str] = []
    for place, tokenizer in tokenizers.items():
        own = {id_: token for token, id_ in tokenizer.get_vocab().items()}
        different = sorted({id_ for id_, _ in own.items() ^ tokens.items()})
        usual = special & tokenizer.added_tokens_decoder.keys() | special - own.keys()
        usual |= tokenizer.added_tokens_decoder.keys() - tokens.keys()
        if plain := [id_ for id_ in different if id_ not in usual]:
            name = tokens.get(plain[0], own.get(plain[0]))
            raise PairError(
                f"pair {manifest.name!r}: the tokenizers of {place} and {shared} have different vocabularies "
                f"({len(own)} and {len(tokens)} tokens, first different at id {plain[0]}: {name!r}); "
                "both models must read the same ids"
            )
        found += [f"id {id_}: {_named(tokens, id_)} is {_named(own, id_)} in {place}" for id_ in different]
    if found and manifest.token_names is None:
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise PairError(
            f"pair {manifest.name!r}: the tokenizers differ in special tokens ({'; '.join(found[:_LISTED])}{more}); "
            "if both models may still read the same ids, set pair.tokenizer to base or chat, whose names then count"
        )
    return found


def _named(tokens: dict[int, str], id_: int) -> str:
    return repr(tokens[id_]) if id_ in tokens else "none"


def _load_model(manifest: PairManifest, model: int, device: str | torch.device, long_rows: bool) -> PreTrainedModel:
    source, revision = model_places(manifest)[model]
    named = f"pair {manifest.name!r}: the {MODEL_NAMES[model]} model {source}"
    _check_folder(source, f"{MODEL_NAMES[model]} model", manifest.name)
    local = Path(source).is_absolute()
    if local:
        _check_weight_files(Path(source), named)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, local_files_only=local)
        # Only eager attention applies Gemma 2's soft-capping on every device.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        loaded, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            source,
            config=config,
            revision=revision,
            local_files_only=local,
            dtype=getattr(torch, manifest.dtype),
            attn_implementation="eager" if capped else None,
            output_loading_info=True,
        )
        if long_rows and loaded._supports_flex_attn:  # pyright: ignore[reportPrivateUsage]
            loaded.set_attn_implementation(BLOCK_SPARSE)
    except _LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise PairError(f"{named} is not a causal language model that can be loaded: {_sentence(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise PairError(f"{named} lacks {len(missing)} weights, the first {missing[0]!r}")
    return loaded.to(device).eval().requires_grad_(False)


def _check_folder(source: str, what: str, pair: str) -> None:
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise PairError(f"pair {pair!r}: the folder of the {what} does not exist: {source}")


def _check_weight_files(folder: Path, named: str) -> None:
    """Reads the header of each safetensors file, which states how long the file must be."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise PairError(
                f"{named}: {path.name} is damaged or cut short ({_sentence(error)}); save it again"
            ) from error


def _check_embeddings(
    manifest: PairManifest, models: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises PairError for a model that cannot read the tokenizer's ids. Padded embeddings may differ in size.

    Plain text gives no added token beyond the embeddings; PairActivations refuses one that comes.
    """
    vocabulary = tokenizer.get_vocab().values()
    needed = max((id_ for id_ in vocabulary if id_ not in tokenizer.added_tokens_decoder), default=-1) + 1
    for name, model in zip(MODEL_NAMES, models, strict=True):
        if needed > (size := num_embeddings(model)):
            raise PairError(
                f"pair {manifest.name!r}: the tokenizer gives ids up to {needed - 1}, but the {name} model has only "
                f"{size} embeddings; both models must read the same ids"
            )


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
