"""Reads crosscoders and pairs from the artefact folder, ready to be asked. Blocking; knows no limits of memory."""

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import get_args
from weakref import WeakSet

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError
from torch import Tensor

from crosscope_proto.artefacts import (
    LATENTS,
    NAME_PATTERN,
    PAIR_MANIFEST,
    WEIGHTS,
    CrosscoderManifest,
    PairManifest,
    crosscoder_folder,
    pair_folder,
    version_folder,
)
from crosscope_proto.specs import Float32, PairSpec, TokenPolicy
from crosscope_store.shelf import ALONE, Shelf
from crosscope_worker.dictionary.crosscoder import Crosscoder, CrosscoderError
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.dictionary.version import read_manifest
from crosscope_worker.effects.subject import Reading, Subject
from crosscope_worker.models.fingerprints import changed_parts, pair_hashes
from crosscope_worker.models.norms import NormBounds
from crosscope_worker.models.pair import Pair, expected_bytes, load_pair
from crosscope_worker.models.placement import Placement
from crosscope_worker.models.places import PairError, find_pair, resolve_pair
from crosscope_worker.precision import float32_on
from crosscope_worker.serve.encoding import Encoder
from crosscope_worker.serve.errors import UnknownName
from crosscope_worker.tokenizer.tokens import TemplateSettings, TextTokenizer

_VERSION_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_PAIR_HASHES = ("tokenizer", "base", "chat", "adapter")
_WARM_UP_LENGTHS = (1, 8, 64)

log = logging.getLogger(__name__)

Storages = dict[tuple[torch.device, int], int]
PairKey = tuple[PairManifest, tuple[str, ...]]
"""Where a pair lies and what its files hold."""


@dataclass(frozen=True, eq=False)
class LoadedPair:
    """A pair and its tokenizer without a recipe's settings, shared by all crosscoders that were trained on it."""

    key: PairKey
    pair: Pair
    tokenizer: TextTokenizer
    upto: int | None
    """The highest decoder layer that is in memory; None: the models are whole."""

    @cached_property
    def subject(self) -> Subject:
        """The pair alone."""
        return Subject(self.pair)

    @property
    def is_whole(self) -> bool:
        """Whether all layers and heads are in memory."""
        return self.upto is None

    def reaches(self, layer: int | None) -> bool:
        """Whether the models can be run up to a layer; None: whole."""
        return self.upto is None or (layer is not None and layer <= self.upto)

    @cached_property
    def storages(self) -> "Storages":
        """Bytes of all memory that both models' weights take, by its device and address."""
        return _storages(tensor for model in self.pair.models for tensor in (*model.parameters(), *model.buffers()))

    @property
    def size_bytes(self) -> int:
        """Memory of both models' weights; what they share counts once."""
        return sum(self.storages.values())

    @property
    def bytes_by_device(self) -> Counter[torch.device]:
        """The same of each device."""
        return by_device(self.storages)


@dataclass(frozen=True, eq=False)
class LoadedCrosscoder:
    """A version of a crosscoder, ready to be asked."""

    name: str
    version_id: str
    pair: LoadedPair
    tokenizer: TextTokenizer
    """The tokenizer, with the chat template's settings of the training."""
    subject: Subject
    reading: Reading
    """The subject's."""
    encoder: Encoder

    @property
    def is_whole(self) -> bool:
        """Whether the models can be asked for more than codes."""
        return self.pair.is_whole

    @property
    def size_bytes(self) -> int:
        """Memory of the crosscoder and of what its encoder keeps; its pair is apart."""
        return self._weights_bytes + self.encoder.size_bytes

    @cached_property
    def _weights_bytes(self) -> int:
        values = (*vars(self.reading.crosscoder).values(), *vars(self.reading.crosscoder.keep).values())
        return storage_bytes(value for value in values if isinstance(value, Tensor))


Loaded = LoadedCrosscoder | LoadedPair


@dataclass(frozen=True)
class Plan:
    """What a load would take."""

    own_bytes: int
    """The crosscoder's, on the pair's own device; 0 for a pair."""
    pair_bytes: Counter[torch.device]
    """The pair's, as much of it as is asked for; none where nobody knows before it is loaded."""
    pair: LoadedPair | None
    """The pair, or the part of it that is loaded already."""
    upto: int | None
    """The layer up to which the pair is asked for; None: whole."""


class Loader:
    """Reads from one home folder onto the devices of one placement. For one thread."""

    def __init__(
        self, home: Path, device: str | Placement, float32: Float32 | None = None, shelf: Shelf = ALONE
    ) -> None:
        """`float32`: how crosscoders' products are made; None: as each recipe says."""
        self._home, self._shelf = home, shelf
        self._placement = Placement.of(device)
        self._device = self._placement.home
        self._float32: Float32 | None = float32
        self._num_threads = torch.get_num_threads()
        self._pairs: WeakSet[LoadedPair] = WeakSet()
        self._uncut: set[PairKey] = set()
        """Pairs that are loaded whole, whatever is asked."""

    def plan(self, name: str, version_id: str | None, whole: bool) -> Plan:
        """What a crosscoder's version, or the pair of this name, takes. Raises as `load`."""
        if version_id is None:
            manifest = self._named_pair(name)
            key, layer, own_bytes = _pair_key(manifest, pair_hashes(manifest)), None, 0
        else:
            folder, crosscoder = self._manifest(name, version_id)
            weights = folder / WEIGHTS
            own_bytes = weights.stat().st_size if weights.is_file() else 0
            manifest = crosscoder.pair
            key = _pair_key(manifest, crosscoder.hashes)
            layer = self._layer(key, None if whole else crosscoder.layer)
        pair = self._found(key)
        if pair is not None and pair.reaches(layer):
            return Plan(own_bytes, pair.bytes_by_device, pair, layer)
        return Plan(own_bytes, expected_bytes(manifest, layer, self._placement), pair, layer)

    def load(self, name: str, version_id: str | None, whole: bool, given: Loaded | None = None) -> Loaded:
        """A crosscoder's version; without a version, the pair of this name.

        A crosscoder comes with the layers of its pair that its codes need, or with the `whole` pair; `given` is the
        same crosscoder with less of its pair, and stays usable. Raises UnknownName, CrosscoderError or PairError.
        """
        if version_id is None:
            manifest = self._named_pair(name)
            return self._pair(manifest, pair_hashes(manifest), None)
        assert not isinstance(given, LoadedPair)
        return self._crosscoder(name, version_id, whole, given)

    def keep_whole(self, pair: LoadedPair) -> None:
        """Lets `plan` and `load` know that a part of this pair is of no use; its weights are read again."""
        self._uncut.add(pair.key)
        self._pairs.discard(pair)

    def _layer(self, key: PairKey, layer: int | None) -> int | None:
        return None if key in self._uncut else layer

    def _found(self, key: PairKey) -> LoadedPair | None:
        """The pair, as much of it as is in memory."""
        depths = [(math.inf if each.upto is None else each.upto, each) for each in self._pairs if each.key == key]
        return max(depths, key=lambda depth: depth[0])[1] if depths else None

    def _crosscoder(self, name: str, version_id: str, whole: bool, given: LoadedCrosscoder | None) -> LoadedCrosscoder:
        started = time.perf_counter()
        folder, manifest = self._manifest(name, version_id)
        crosscoder = given.reading.crosscoder if given else load_crosscoder(folder, self._device, tell=log.info)
        pair = self._pair(manifest.pair, manifest.hashes, None if whole else manifest.layer, of=name)
        if pair.pair.d_model != crosscoder.d_model:
            raise PairError(
                f"crosscoder {name!r} reads widths {crosscoder.d_model}, its pair {manifest.pair.name!r} has "
                f"{pair.pair.d_model}; the models have changed since, so train it again"
            )
        float32 = self._float32 or _asked(manifest)
        reading = given.reading if given else _reading(folder, manifest, crosscoder, float32_on(self._device, float32))
        subject = Subject(pair.pair, reading)
        encoder = Encoder(subject, self._num_threads)
        seconds = round(time.perf_counter() - started, 3)
        told = {"crosscoder": name, "version": version_id, "layers": _layers(pair), "seconds": seconds}
        log.info("loaded a crosscoder", extra=told | {"pair_bytes": pair.size_bytes})
        settings = TemplateSettings.of_recipe(manifest.recipe, manifest.chat_template_date)
        tokenizer = pair.tokenizer.with_settings(settings)
        return LoadedCrosscoder(name, version_id, pair, tokenizer, subject, reading, encoder)

    def _manifest(self, name: str, version_id: str) -> tuple[Path, CrosscoderManifest]:
        try:
            folder = _version_folder(self._home, name, version_id)
        except UnknownName:
            self._shelf.refresh()
            folder = _version_folder(self._home, name, version_id)
        manifest = read_manifest(folder)
        for file in (WEIGHTS, LATENTS):
            self._shelf.need(folder / file)
        self._shelf.need_all(Path(pair_folder(self._home, manifest.pair.name)))
        return folder, replace(manifest, pair=find_pair(manifest.pair, self._home))

    def _named_pair(self, name: str) -> PairManifest:
        self._shelf.need_all(pair_json(self._home, name).parent)
        return resolve_pair(PairSpec(name=name), self._home)

    def _pair(
        self, manifest: PairManifest, hashes: Mapping[str, str], layer: int | None, of: str | None = None
    ) -> LoadedPair:
        """The pair up to a layer, or further if more is there; None: whole. `of`: the crosscoder that asks for it.

        It is shared with all that were trained on the same files.
        """
        key = _pair_key(manifest, hashes)
        layer, found = self._layer(key, layer), self._found(key)
        if found is not None and found.reaches(layer):
            return found
        loaded = load_pair(manifest, self._placement, upto=layer, given=found.pair if found else None)
        if of is not None:
            _check_unchanged(manifest, hashes, of)
        tokenizer = found.tokenizer if found else TextTokenizer(loaded.tokenizer)
        pair = LoadedPair(key, loaded, tokenizer, None if loaded.is_whole else layer)
        self._pairs.add(pair)
        return pair


def warm_up(loaded: Loaded) -> None:
    """Runs the models of a crosscoder once, so that torch chooses its kernels before the first caller waits.

    Raises PairError if a model's activations are not those that the crosscoder reads.
    """
    if isinstance(loaded, LoadedCrosscoder):
        loaded.encoder.check()
        for length in _WARM_UP_LENGTHS:
            loaded.encoder([np.zeros(length, dtype=np.int64)])


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory that tensors take; what several share counts once."""
    return sum(_storages(tensors).values())


def by_device(storages: Storages) -> Counter[torch.device]:
    """Bytes of each device."""
    total: Counter[torch.device] = Counter()
    for (device, _), num_bytes in storages.items():
        total[device] += num_bytes
    return total


def _storages(tensors: Iterable[Tensor]) -> Storages:
    storages = ((each.device, each.untyped_storage()) for each in tensors)
    return {(device, storage.data_ptr()): storage.nbytes() for device, storage in storages}


def _layers(pair: LoadedPair) -> str:
    return "all" if pair.upto is None else f"0 to {pair.upto}"


def pair_json(home: Path, name: str) -> Path:
    """The manifest's file of a pair below the home. Raises UnknownName."""
    path = Path(pair_folder(home, name)) / PAIR_MANIFEST
    if re.fullmatch(NAME_PATTERN, name) and path.is_file():
        return path
    there = sorted(each.parent.name for each in (home / "pairs").glob(f"*/{PAIR_MANIFEST}"))
    raise UnknownName(f"there is no pair {name[:100]!r} in {home}; there: {', '.join(there) or 'none'}")


def _pair_key(manifest: PairManifest, hashes: Mapping[str, str]) -> PairKey:
    return replace(manifest, token_differences=()), tuple(hashes.get(name, "") for name in _PAIR_HASHES)


def _asked(manifest: CrosscoderManifest) -> Float32 | None:
    """How the recipe wants float32 products to be made; None: it does not say."""
    asked = manifest.recipe.get("float32")
    return next((each for each in get_args(Float32) if each == asked), None)


def _reading(folder: Path, manifest: CrosscoderManifest, crosscoder: Crosscoder, float32: Float32) -> Reading:
    limits = manifest.norm_limits
    bounds = None if limits is None else NormBounds(limits, manifest.norm_positions)
    return Reading(manifest.layer, crosscoder, _maxima(folder, crosscoder), _policy(manifest), bounds, float32)


def _maxima(folder: Path, crosscoder: Crosscoder) -> Tensor:
    """[latent] float32 on the CPU: every latent's largest scaled activation in the analysis; NaN without an analysis.

    Raises CrosscoderError if the table cannot be read or belongs to another crosscoder.
    """
    path, num_latents = folder / LATENTS, crosscoder.num_latents
    if not path.is_file():
        return torch.full((num_latents,), torch.nan)
    try:
        maxima = pq.read_table(path, columns=["max"]).column("max").to_numpy().astype(np.float32)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise CrosscoderError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if len(maxima) != num_latents:
        raise CrosscoderError(f"{path} has {len(maxima)} rows, but the crosscoder {num_latents} latents")
    return torch.from_numpy(maxima)


def _policy(manifest: CrosscoderManifest) -> TokenPolicy:
    """The token policy of a crosscoder's recipe; without one, a policy that keeps every token.

    Raises CrosscoderError for a policy that cannot be read.
    """
    tokens = manifest.recipe.get("tokens")
    if not isinstance(tokens, dict):
        return TokenPolicy(skip_bos=False, max_norm_ratio=None)
    known = {field.name for field in fields(TokenPolicy)}
    try:
        return TokenPolicy(**{key: tokens[key] for key in tokens if key in known})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in ("tokens", *first["loc"]))
        raise CrosscoderError(f"the recipe of crosscoder {manifest.name!r} holds {field}: {first['msg']}") from error


def _version_folder(home: Path, name: str, version_id: str) -> Path:
    if not re.fullmatch(NAME_PATTERN, name) or not Path(crosscoder_folder(home, name)).is_dir():
        raise UnknownName(f"there is no crosscoder {name[:100]!r} in {home}")
    if re.fullmatch(_VERSION_PATTERN, version_id):
        folder = Path(version_folder(home, name, version_id))
        if folder.is_dir():
            return folder
    raise UnknownName(f"crosscoder {name!r} has no version {version_id[:100]!r}; it may have been replaced")


def _check_unchanged(manifest: PairManifest, hashes: Mapping[str, str], crosscoder: str) -> None:
    """Raises PairError if a model or the tokenizer is not the one that the crosscoder was trained on."""
    expected = {name: hashes[name] for name in _PAIR_HASHES if name in hashes}
    for name in changed_parts(manifest, expected):
        raise PairError(
            f"the {name} of crosscoder {crosscoder!r}, {getattr(manifest, name)}, has changed since it was "
            "trained; train it again or restore the files"
        )
