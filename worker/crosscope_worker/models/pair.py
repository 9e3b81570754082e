"""Two causal language models that share a tokenizer, loaded and checked; places.py finds them.

A chat model that is an adapter on the base model (adapter.py) has the base model's weights in the same memory. Models
may be loaded up to one decoder layer only (partial.py), and the rest later.
Does not know texts, activations or crosscoders.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from crosscope_proto.artefacts import PairManifest
from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_worker.models import partial
from crosscope_worker.models.adapter import with_adapter
from crosscope_worker.models.pair_tokenizer import load_tokenizer, sentence, token_differences
from crosscope_worker.models.placement import Placement, division, put
from crosscope_worker.models.places import (
    PairError,
    adapter_place,
    check_folder,
    model_places,
    tokenizer_place,
    tokenizer_places,
)
from crosscope_worker.work import is_out_of_memory

_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
"""What transformers raises for a model that is absent, of another kind, or whose files do not fit together."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Both models in evaluation mode, base first, and their tokenizer."""

    manifest: PairManifest
    models: tuple[PreTrainedModel, PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    """Where callers' tensors are, and results come together: the chat model's first device (placement)."""
    long_rows: bool = False
    """Whether it may be tried to read both models in long rows of many texts (packed_rows)."""

    @property
    def is_whole(self) -> bool:
        """Whether all of both models is in memory."""
        return not any(map(partial.is_partial, self.models))

    @property
    def is_together(self) -> bool:
        """Whether all of both models lies on the pair's device."""
        return all(tensor.device == self.device for model in self.models for tensor in _tensors(model))

    @property
    def d_model(self) -> tuple[int, int]:
        """Residual-stream width of each model."""
        base, chat = (model.config.get_text_config().hidden_size for model in self.models)
        return base, chat

    @property
    def num_layers(self) -> int:
        """Decoder layers that both models have."""
        return min(len(decoder_layers(model)) for model in self.models)

    @cached_property
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


def load_pair(
    manifest: PairManifest,
    device: str | torch.device | Placement = "cpu",
    long_rows: bool = False,
    upto: int | None = None,
    given: Pair | None = None,
) -> Pair:
    """Loads both models and the tokenizer and checks that they fit together.

    `device` says where the models lie, in Placement's words; models that share weights lie where the chat model is to.
    Folders are never looked up on a network; anything else is a hub id. `long_rows` is the pair's. Where `token_names`
    allows the tokenizers to differ, the pair's manifest lists the tokens that do.
    With `upto`, what the output of that decoder layer does not need is not loaded, of a model that can be cut.
    `given` is the same pair with less of it in memory: its weights are taken and not read again, and it stays usable.
    Raises PlacementError, and PairError that names the model or file and what is wrong with it. Where memory runs out,
    torch's own error passes.
    """
    tokenizers = {place: load_tokenizer(place, manifest.name) for place in tokenizer_places(manifest)}
    tokenizer = tokenizers[tokenizer_place(manifest)]
    manifest = replace(manifest, token_differences=tuple(token_differences(manifest, tokenizers)))
    placement = _placement(manifest, device)
    base, chat = _load_models(manifest, _How(placement, upto), given)
    _check_embeddings(manifest, (base, chat), tokenizer)
    return Pair(manifest, (base, chat), tokenizer, placement.home, long_rows)


def _placement(manifest: PairManifest, device: str | torch.device | Placement) -> Placement:
    placement = Placement.of(device)
    base, chat = model_places(manifest)
    shares = adapter_place(manifest) is not None and base == chat
    return placement.together if shares else placement


def expected_bytes(
    manifest: PairManifest, upto: int | None = None, device: str | torch.device | Placement = "cpu"
) -> Counter[torch.device]:
    """Memory that both models' weights will take on each device, by their configurations; none if those do not tell.

    `upto` and `device` as for `load_pair`. What an adapter adds is not counted.
    """
    total: Counter[torch.device] = Counter()
    placement = _placement(manifest, device)
    for place, devices in dict(zip(model_places(manifest), (placement.base, placement.chat), strict=True)).items():
        try:
            config = AutoConfig.from_pretrained(
                place.source, revision=place.revision, local_files_only=Path(place.source).is_absolute()
            )
            if getattr(config, "quantization_config", None) is not None:
                return Counter()
            model = _without_weights(config, dtype=getattr(torch, manifest.dtype))
            layers = decoder_layers(model)
            places = _places(model, [*layers], devices)
        except (*_LOAD_ERRORS, PairError):
            return Counter()  # Loading says what is wrong.
        if upto is not None:
            with suppress(partial.CannotCut, PairError):
                partial.cut(model, partial.above(model, layers, upto))
        in_layers = Counter[torch.device]()
        for layer, device in zip(decoder_layers(model), places, strict=True):
            in_layers[device] += _num_bytes(layer)
        total += in_layers
        total[devices[0]] += _num_bytes(model) - in_layers.total()
    return total


def _num_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.parameters())


def _places(model: PreTrainedModel, layers: Sequence[nn.Module], devices: Sequence[torch.device]) -> list[torch.device]:
    """The device of each layer of a whole model, which may be one without weights."""
    sizes = [_num_bytes(layer) for layer in layers]
    return division(sizes, _num_bytes(model) - sum(sizes), devices)


@dataclass(frozen=True)
class _How:
    """How both models are loaded; see load_pair."""

    placement: Placement
    upto: int | None

    def put(self, model: int, loaded: PreTrainedModel, config: PreTrainedConfig) -> None:
        """Moves a model to its devices. Of a part, each layer goes where it lies in the whole model."""
        devices, home = (self.placement.base, self.placement.chat)[model], self.placement.home
        if all(device == home for device in devices):
            loaded.to(home)  # pyright: ignore[reportArgumentType]
            return
        layers, first = [*decoder_layers(loaded)], devices[0]
        places = [first] * len(layers)
        if len(devices) > 1:
            whole = _without_weights(config)
            places = _places(whole, [*decoder_layers(whole)], devices)
        put(loaded, decoder(loaded), layers, places, first, home)


def _load_models(manifest: PairManifest, how: _How, given: Pair | None) -> tuple[PreTrainedModel, PreTrainedModel]:
    known = (None, None) if given is None else given.models
    base = _load_model(manifest, BASE, how, known[BASE])
    adapter = adapter_place(manifest)
    if adapter is None:
        return base, _load_model(manifest, CHAT, how, known[CHAT])
    places = model_places(manifest)
    # Below an adapter the names are others, so what is known of a model of its own there is read again.
    under = base if places[CHAT] == places[BASE] else _load_model(manifest, CHAT, how, None)
    chat = with_adapter(under, adapter, manifest)
    if given is not None:
        partial.adopt(chat, given.models[CHAT])
    return base, chat


def _without_weights(config: PreTrainedConfig, **settings: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **settings)


def _load_model(manifest: PairManifest, model: int, how: _How, given: PreTrainedModel | None) -> PreTrainedModel:
    source, revision = model_places(manifest)[model]
    named = f"pair {manifest.name!r}: the {MODEL_NAMES[model]} model {source}"
    if given is not None and not partial.is_partial(given):
        return given
    check_folder(source, f"{MODEL_NAMES[model]} model", manifest.name)
    local = Path(source).is_absolute()
    if local:
        _check_weight_files(Path(source), named)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, local_files_only=local)
        # Only eager attention applies Gemma 2's soft-capping on every device.
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
        settings = {
            "config": config,
            "revision": revision,
            "local_files_only": local,
            "dtype": getattr(torch, manifest.dtype),
            "attn_implementation": "eager" if capped else None,
        }
        loaded, report = _from_pretrained(source, named, how.upto, given, settings)
    except _LOAD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        raise PairError(f"{named} is not a causal language model that can be loaded: {sentence(error)}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise PairError(f"{named} lacks {len(missing)} weights, the first {missing[0]!r}")
    how.put(model, loaded, config)
    loaded = loaded.eval().requires_grad_(False)
    if given is not None:
        partial.adopt(loaded, given)
    return loaded


def _from_pretrained(
    source: str, named: str, upto: int | None, given: PreTrainedModel | None, settings: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model with transformers' report; without what `given` has, and without what layer `upto` does not need."""
    if upto is None and given is None:
        return AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **settings)  # pyright: ignore[reportReturnType]

    def change(model: PreTrainedModel) -> None:
        partial.cut(model, [] if upto is None else partial.above(model, decoder_layers(model), upto), given)

    try:
        if getattr(settings["config"], "quantization_config", None) is not None:
            raise partial.CannotCut("its weights are quantised")
        return partial.from_pretrained(type(_without_weights(settings["config"])), change, source, **settings)
    except (
        partial.CannotCut,
        PairError,
        AttributeError,
    ) as error:  # AttributeError: a class looks into what is absent.
        log.info("%s is loaded whole: %s", named, sentence(error))
    return _from_pretrained(source, named, None, None, settings)


def _check_weight_files(folder: Path, named: str) -> None:
    """Reads the header of each safetensors file, which states how long the file must be."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise PairError(
                f"{named}: {path.name} is damaged or cut short ({sentence(error)}); save it again"
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
