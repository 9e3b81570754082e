"""Two causal language models that share a tokenizer: found, loaded and checked.

Does not know what is done with them: no text, no layer's activations, no crosscoder.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple, cast

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from crosscope_proto.artefacts import PAIR_MANIFEST, SCHEMA_VERSION, PairManifest, pair_folder
from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_proto.specs import PairSpec
from crosscope_worker.work import is_out_of_memory

BLOCK_SPARSE = "flex_attention"
"""transformers' name of an attention that skips blocks of tokens that do not look at each other."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MODEL_FILES = ("config.json", "*.safetensors")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
"""What transformers raises for a model that is absent, of another kind, or whose files do not fit together."""


class PairError(ValueError):
    """Two models that cannot be loaded or compared; the sentence says which and why."""


class _Place(NamedTuple):
    """Where a model or tokenizer lies: a folder, or a hub id and its revision."""

    source: str
    revision: str | None

    def __str__(self) -> str:
        return self.source if self.revision is None else f"{self.source} at revision {self.revision}"


@dataclass(frozen=True)
class Pair:
    """Both models in evaluation mode on one device, base first, and their tokenizer."""

    manifest: PairManifest
    models: tuple[PreTrainedModel, PreTrainedModel]
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    long_rows: bool = False
    """Attention of both models skips what a token does not look at, so that a row may be long at no cost."""

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


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal language model, bottom first.

    Raises PairError for an architecture that has no such list.
    """
    num_layers = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise PairError(f"{type(model).__name__} has no list of {num_layers} decoder layers; use a decoder-only model")


def check_layer(pair: Pair, layer: int) -> None:
    """Raises PairError unless both models have a decoder layer of this index."""
    for name, model in zip(MODEL_NAMES, pair.models, strict=True):
        num_layers = len(decoder_layers(model))
        if not 0 <= layer < num_layers:
            raise PairError(f"layer {layer}: the {name} model has {num_layers} layers, 0 to {num_layers - 1}")


def resolve_pair(spec: PairSpec, home: Path) -> PairManifest:
    """The manifest of a pair, with absolute folders or hub ids. Loads and writes nothing.

    A spec with only a name is read from `<home>/pairs/<name>/pair.json`. A relative folder of a spec is looked up in
    the home folder. Raises PairError if the pair or a folder does not exist.
    """
    if spec.base is None or spec.chat is None:
        return _read_pair_manifest(Path(pair_folder(home, spec.name)))
    chat = _resolve_source(spec.chat, home, spec.name)
    return PairManifest(
        name=spec.name,
        base=_resolve_source(spec.base, home, spec.name),
        chat=chat,
        tokenizer=_resolve_source(spec.tokenizer, home, spec.name) if spec.tokenizer else chat,
        dtype=spec.dtype,
        revision_base=spec.revision_base,
        revision_chat=spec.revision_chat,
    )


def find_pair(manifest: PairManifest, home: Path) -> PairManifest:
    """The same pair where it lies now: as the manifest says, or in `home` if that was moved since it was written."""
    sources = [Path(source) for source in (manifest.base, manifest.chat, manifest.tokenizer)]
    if all(source.is_dir() for source in sources if source.is_absolute()):
        return manifest
    try:
        return resolve_pair(PairSpec(name=manifest.name), home)
    except PairError:
        return manifest  # Loading it says which folder is missing.


def write_pair_manifest(home: Path, manifest: PairManifest) -> Path:
    """Writes `<home>/pairs/<name>/pair.json` in one step and returns its path."""
    path = Path(pair_folder(home, manifest.name)) / PAIR_MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", dir=path.parent, prefix=f".{PAIR_MANIFEST}.", delete=False, encoding="utf-8") as file:
        written = Path(file.name)
        try:
            json.dump(asdict(manifest), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
            written.chmod(0o644)
            written.replace(path)
        except BaseException:
            written.unlink(missing_ok=True)
            raise
    return path


def load_pair(manifest: PairManifest, device: str | torch.device = "cpu", long_rows: bool = False) -> Pair:
    """Loads both models and the tokenizer and checks that they fit together.

    Folders are never looked up on a network; anything else is a hub id. With `long_rows`, models that can take an
    attention that skips what a token does not look at, and is compiled when it first runs.
    Raises PairError that names the model or file and what is wrong with it; where memory runs out, torch's own error.
    """
    tokenizers = {place: _load_tokenizer(place, manifest.name) for place in _tokenizer_places(manifest)}
    tokenizer = tokenizers[_tokenizer_place(manifest)]
    _check_same_vocabulary(manifest, tokenizers)
    base = _load_model(manifest, BASE, device, long_rows)
    chat = _load_model(manifest, CHAT, device, long_rows)
    _check_embeddings(manifest, (base, chat), tokenizer)
    is_block_sparse = all(model.config.get_text_config()._attn_implementation == BLOCK_SPARSE for model in (base, chat))  # pyright: ignore[reportPrivateUsage]
    return Pair(manifest, (base, chat), tokenizer, torch.device(device), is_block_sparse)


def pair_hashes(manifest: PairManifest) -> dict[str, str]:
    """Content hashes "tokenizer", "base" and "chat".

    SHA-256 over a folder's tokenizer or configuration and weight files; for a hub id "commit:" and the commit of its
    revision in the hub's cache, which is what was loaded last, or "None" where the cache does not say it.
    """
    base, chat = _model_places(manifest)
    return {
        "tokenizer": _hash_place(_tokenizer_place(manifest), _TOKENIZER_FILES),
        "base": _hash_place(base, _MODEL_FILES),
        "chat": _hash_place(chat, _MODEL_FILES),
    }


def _hash_place(place: _Place, patterns: tuple[str, ...]) -> str:
    if Path(place.source).is_absolute():
        return _hash_files(Path(place.source), patterns)
    return f"commit:{_cached_commit(place, (name for name in patterns if '*' not in name))}"


def _cached_commit(place: _Place, names: Iterable[str]) -> str | None:
    """The commit at which the hub's cache holds one of these files, as `snapshots/<commit>/<name>`."""
    paths = (try_to_load_from_cache(place.source, name, revision=place.revision) for name in names)
    return next((Path(path).parent.name for path in paths if isinstance(path, str)), None)


def _hash_files(folder: Path, patterns: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _read_pair_manifest(folder: Path) -> PairManifest:
    path = folder / PAIR_MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = sorted(entry.parent.name for entry in folder.parent.glob(f"*/{PAIR_MANIFEST}"))
        raise PairError(
            f"no pair {folder.name!r} below {folder.parent} (there: {', '.join(known) or 'none'}); "
            "make it first, or give base and chat"
        ) from error
    except (OSError, ValueError) as error:
        raise PairError(f"{path} cannot be read: {error}") from error
    known_keys = {key.name for key in fields(PairManifest)}
    needed = {key.name for key in fields(PairManifest) if key.default is MISSING}
    if not isinstance(document, dict) or not needed <= document.keys() <= known_keys:
        raise PairError(f"{path} is no pair manifest: it needs {sorted(needed)} and may hold {sorted(known_keys)}")
    manifest = PairManifest(**document)
    if manifest.schema_version > SCHEMA_VERSION:
        raise PairError(f"{path} has schema {manifest.schema_version}, newer than {SCHEMA_VERSION}: update crosscope")
    sources = {key: _resolve_source(document[key], folder, manifest.name) for key in ("base", "chat", "tokenizer")}
    return replace(manifest, **sources)


def _resolve_source(source: str, folder: Path, pair: str) -> str:
    """An absolute folder, or a hub id as it stands."""
    path = folder / Path(source).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if Path(source).expanduser().is_absolute() or not _HUB_ID.fullmatch(source) or source.startswith("."):
        raise PairError(f"pair {pair!r}: there is no folder {path}; give a hub id or the folder of a saved model")
    return source


def _model_places(manifest: PairManifest) -> tuple[_Place, _Place]:
    """Where the models lie, base first. A folder has no revisions."""
    base, chat = (
        _Place(source, None if Path(source).is_absolute() else revision)
        for source, revision in ((manifest.base, manifest.revision_base), (manifest.chat, manifest.revision_chat))
    )
    return base, chat


def _tokenizer_place(manifest: PairManifest) -> _Place:
    """Where the pair's tokenizer lies: with the model of that name, the chat model if both have it, or by itself."""
    base, chat = _model_places(manifest)
    own = _Place(manifest.tokenizer, None)
    return next((model for model in (chat, base) if model.source == manifest.tokenizer), own)


def _tokenizer_places(manifest: PairManifest) -> list[_Place]:
    """Where tokenizers lie that must agree: the pair's, and each model's own if it has one, without repeats."""
    own = (
        place
        for place in _model_places(manifest)
        if not Path(place.source).is_absolute() or (Path(place.source) / "tokenizer_config.json").exists()
    )
    return list(dict.fromkeys((_tokenizer_place(manifest), *own)))


def _load_tokenizer(place: _Place, pair: str) -> PreTrainedTokenizerBase:
    source, revision = place
    _check_folder(source, "tokenizer", pair)
    local = Path(source).is_absolute()
    if local and not any((Path(source) / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        raise PairError(f"pair {pair!r}: there is no tokenizer.json in {source}; save the tokenizer there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=local)
    except Exception as error:  # tokenizers raises Exception itself for a damaged file
        raise PairError(f"pair {pair!r}: no tokenizer can be loaded from {place}: {_sentence(error)}") from error
    if not tokenizer.is_fast:
        raise PairError(f"pair {pair!r}: the tokenizer of {place} has no fast version, which token offsets need")
    return tokenizer


def _check_same_vocabulary(manifest: PairManifest, tokenizers: dict[_Place, PreTrainedTokenizerBase]) -> None:
    shared = _tokenizer_place(manifest)
    expected = tokenizers[shared].get_vocab()
    for place, tokenizer in tokenizers.items():
        vocabulary = tokenizer.get_vocab()
        if vocabulary == expected:
            continue
        different = min(vocabulary.items() ^ expected.items(), key=lambda item: (item[1], item[0]))
        raise PairError(
            f"pair {manifest.name!r}: the tokenizers of {place} and {shared} have different vocabularies "
            f"({len(vocabulary)} and {len(expected)} tokens, first different at id {different[1]}: {different[0]!r}); "
            "both models must read the same ids"
        )


def _load_model(manifest: PairManifest, model: int, device: str | torch.device, long_rows: bool) -> PreTrainedModel:
    source, revision = _model_places(manifest)[model]
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
    sizes = [cast("nn.Embedding", model.get_input_embeddings()).num_embeddings for model in models]
    if sizes[BASE] != sizes[CHAT]:
        raise PairError(
            f"pair {manifest.name!r}: vocabulary sizes differ, base {sizes[BASE]} and chat {sizes[CHAT]}; "
            "both models must read the same ids"
        )
    if len(tokenizer) > sizes[BASE]:
        raise PairError(
            f"pair {manifest.name!r}: the tokenizer has {len(tokenizer)} tokens, the models only {sizes[BASE]}"
        )


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
