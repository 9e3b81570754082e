"""The loaded crosscoders and model pairs. Knows the artefact folder; knows no requests or batches."""

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch
from pydantic import ValidationError

from crosscope_proto.artefacts import NAME_PATTERN, CrosscoderManifest, PairManifest, crosscoder_folder, version_folder
from crosscope_proto.specs import TokenPolicy
from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.dictionary.load import load_crosscoder
from crosscope_worker.dictionary.version import read_manifest
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.fingerprints import changed_parts
from crosscope_worker.models.norms import NormBounds
from crosscope_worker.models.pair import Pair, load_pair
from crosscope_worker.models.places import PairError, find_pair
from crosscope_worker.serve.encoding import Encoder
from crosscope_worker.serve.errors import UnknownCrosscoder
from crosscope_worker.tokenizer.tokens import TemplateSettings, TextTokenizer

_VERSION_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_PAIR_HASHES = ("tokenizer", "base", "chat", "adapter")
_WARM_UP_LENGTHS = (1, 8, 64)

log = logging.getLogger(__name__)

PairKey = tuple[PairManifest, tuple[str, ...]]


@dataclass(frozen=True)
class LoadedPair:
    """A pair and its tokenizer without a recipe's settings, shared by all crosscoders that were trained on it."""

    pair: Pair
    tokenizer: TextTokenizer


@dataclass(frozen=True, eq=False)
class LoadedCrosscoder:
    """A version of a crosscoder, ready to encode."""

    name: str
    version_id: str
    pair: LoadedPair
    tokenizer: TextTokenizer
    """The tokenizer, with the chat template's settings of the training."""
    encoder: Encoder
    policy: TokenPolicy
    """The policy by which the training left tokens out."""

    @property
    def max_positions(self) -> int | None:
        """Number of tokens that both models can read at once; None if neither has a limit."""
        return self.pair.pair.max_positions


class Models:
    """Loads crosscoders on request and keeps those that were used last."""

    def __init__(self, home: Path, device: str, max_crosscoders: int, device_executor: Executor) -> None:
        """Models warm up on `device_executor`, on which they will run."""
        self._home = home
        self._device = device
        self._max_crosscoders = max_crosscoders
        self._device_executor = device_executor
        self._num_threads = torch.get_num_threads()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._loaded: OrderedDict[tuple[str, str], LoadedCrosscoder] = OrderedDict()
        self._loading: dict[tuple[str, str], asyncio.Task[LoadedCrosscoder]] = {}
        self._pairs: WeakValueDictionary[PairKey, LoadedPair] = WeakValueDictionary()

    async def get(self, name: str, version_id: str) -> LoadedCrosscoder:
        """A version of a crosscoder, loaded if necessary; loads run one at a time, off the event loop.

        Raises UnknownCrosscoder, CrosscoderError or PairError.
        """
        key = name, version_id
        if (loaded := self._loaded.get(key)) is not None:
            self._loaded.move_to_end(key)
            return loaded
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(self._load(key))
            task.add_done_callback(self._end_of_load(key))
        # A caller that gives up does not stop the load that others wait for.
        return await asyncio.shield(task)

    def close(self) -> None:
        """Starts no more loads; a running load continues."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    async def _load(self, key: tuple[str, str]) -> LoadedCrosscoder:
        loop = asyncio.get_running_loop()
        loaded = await loop.run_in_executor(self._loader, self._read, *key)
        await loop.run_in_executor(self._device_executor, _warm_up, loaded.encoder)
        self._loaded[key] = loaded
        while len(self._loaded) > self._max_crosscoders:
            (name, version_id), _ = self._loaded.popitem(last=False)
            log.info("dropped a crosscoder", extra={"crosscoder": name, "version": version_id})
        return loaded

    def _end_of_load(self, key: tuple[str, str]) -> Callable[[asyncio.Task[LoadedCrosscoder]], None]:
        def forget(task: asyncio.Task[LoadedCrosscoder]) -> None:
            del self._loading[key]
            if not task.cancelled() and (error := task.exception()):
                why = {"crosscoder": key[0], "version": key[1], "error": str(error)}
                log.warning("cannot load a crosscoder", extra=why)

        return forget

    def _read(self, name: str, version_id: str) -> LoadedCrosscoder:
        started = time.perf_counter()
        folder = _version_folder(self._home, name, version_id)
        manifest = read_manifest(folder)
        manifest = replace(manifest, pair=find_pair(manifest.pair, self._home))
        crosscoder = load_crosscoder(folder, self._device, tell=log.info)
        pair = self._pair(manifest)
        if pair.pair.d_model != crosscoder.d_model:
            raise PairError(
                f"crosscoder {name!r} reads widths {crosscoder.d_model}, its pair {manifest.pair.name!r} has "
                f"{pair.pair.d_model}; the models have changed since, so train it again"
            )
        policy = _policy(manifest)
        limits = manifest.norm_limits
        bounds = None if limits is None else NormBounds(limits, manifest.norm_positions)
        encoder = Encoder(crosscoder, PairActivations(pair.pair, manifest.layer), self._num_threads, bounds)
        seconds = round(time.perf_counter() - started, 3)
        log.info("loaded a crosscoder", extra={"crosscoder": name, "version": version_id, "seconds": seconds})
        settings = TemplateSettings.of_recipe(manifest.recipe, manifest.chat_template_date)
        return LoadedCrosscoder(name, version_id, pair, pair.tokenizer.with_settings(settings), encoder, policy)

    def _pair(self, manifest: CrosscoderManifest) -> LoadedPair:
        """The pair of a crosscoder, shared with others that were trained on the same files."""
        key = manifest.pair, tuple(manifest.hashes.get(name, "") for name in _PAIR_HASHES)
        pair = self._pairs.get(key)
        if pair is None:
            loaded = load_pair(manifest.pair, self._device)
            _check_unchanged(manifest)
            pair = self._pairs[key] = LoadedPair(loaded, TextTokenizer(loaded.tokenizer))
        return pair


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
        raise UnknownCrosscoder(f"there is no crosscoder {name[:100]!r} in {home}")
    if re.fullmatch(_VERSION_PATTERN, version_id):
        folder = Path(version_folder(home, name, version_id))
        if folder.is_dir():
            return folder
    raise UnknownCrosscoder(f"crosscoder {name!r} has no version {version_id[:100]!r}; it may have been replaced")


def _check_unchanged(manifest: CrosscoderManifest) -> None:
    """Raises PairError if a model or the tokenizer is not the one that the crosscoder was trained on."""
    expected = {name: manifest.hashes[name] for name in _PAIR_HASHES if name in manifest.hashes}
    for name in changed_parts(manifest.pair, expected):
        raise PairError(
            f"the {name} of crosscoder {manifest.name!r}, {getattr(manifest.pair, name)}, has changed since it was "
            "trained; train it again or restore the files"
        )


def _warm_up(encoder: Encoder) -> None:
    """Runs the models once, so that torch chooses its kernels before the first caller waits."""
    encoder.check()
    for length in _WARM_UP_LENGTHS:
        encoder([np.zeros(length, dtype=np.int64)])
