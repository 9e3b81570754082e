"""Activations on disk, named by everything that decides their bytes.

    <home>/activations/<key>/
        key.json                    what the key is a hash of, for people
        shard-000000.safetensors …  each a block of the source and the source's state after it
        complete.json               written last: how many shards there are
        .partial-…/                 a file that is being written

A file appears whole, by one rename, or not at all. Trainings of one key write the same bytes, so several may fill a
cache at once, or read what others write, without locks. Does not run models and does not know what a state means.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crosscope_proto.artefacts import PairManifest
from crosscope_proto.recipe import CrosscoderRecipe, recipe_dict
from crosscope_worker.data.harvest import WINDOW_FORWARDS
from crosscope_worker.data.part import WHOLE, Part
from crosscope_worker.disk import PARTIAL, is_no_room, sha256, whole
from crosscope_worker.models.activations import PairActivations
from crosscope_worker.models.fingerprints import UNKNOWN, WEIGHTS, weight_files
from crosscope_worker.ticks import Tick, idle_tick

ACTIVATIONS = "activations"
KEY = "key.json"
COMPLETE = "complete.json"
FORMAT = 3
"""Part of every key. Raise it when the same texts give other blocks, or when the layout of shards changes."""
GRACE_S = 3600.0
"""A half-written file of a dead attempt is removed after this long."""
_TOKENIZER = "tokenizer.json"
_SOFTWARE = ("crosscope-worker", "torch", "transformers")
_DAMAGED = (OSError, SafetensorError, ValueError, KeyError, TypeError)
"""Errors of reading a file that is cut short or damaged, or that holds something else."""

State = dict[str, Any]
"""Where a source stands, as plain JSON values."""


class CacheError(ValueError):
    """Activations that cannot be cached, since nothing tells whether a later training would get the same."""


class CacheFull(OSError):
    """A shard that found no room; the message names the folder, the bytes needed and the bytes free."""


@dataclass(frozen=True, eq=False)
class Shard:
    """One block of a source."""

    x: Tensor
    """[token, both] float32"""
    state: State
    """The source's state after it."""


def cache_key(
    recipe: CrosscoderRecipe,
    activations: PairActivations,
    files: Sequence[Sequence[Path]],
    hashes: dict[str, str],
    tokens_per_forward: int,
    tick: Tick = idle_tick,
) -> dict[str, Any]:
    """Everything that decides the activations of a recipe's training texts, as plain JSON values.

    files: those of each data set. hashes: `pair_hashes` of the pair. Reads every data file once; `tick` hears of the
    bytes. Raises CacheError if nothing tells whether data or models are still the same.
    """
    _check_known(recipe, activations.pair.manifest, hashes)
    document = recipe_dict(recipe)
    return {
        "format": FORMAT,
        "pair": hashes,
        "layer": activations.layer,
        "dtype": activations.pair.manifest.dtype,
        "device": activations.pair.device.type,
        "rows": _rows(activations, tokens_per_forward),
        "data": document["data"],
        "data_sha256": [[sha256(path, tick) for path in paths] for paths in files],
        "tokens": document["tokens"],
        "split": "train",
        "tokens_per_forward": tokens_per_forward,
        "window_forwards": WINDOW_FORWARDS,
        "software": {package: ".".join(version(package).split(".")[:2]) for package in _SOFTWARE},
    }


def of_part(key: dict[str, Any], part: Part) -> dict[str, Any]:
    """The key of a part of the texts; that of the whole is the key itself."""
    return key if part == WHOLE else key | {"part": [part.index, part.of]}


def _rows(activations: PairActivations, tokens_per_forward: int) -> dict[str, Any]:
    long = activations.packs_rows(tokens_per_forward) and tokens_per_forward
    rows: dict[str, Any] = {"shared": activations.shares_rows, "long": long}
    limits = activations.long_text_limits
    return rows | {"long_text_limits": list(limits)} if limits else rows


def _check_known(recipe: CrosscoderRecipe, pair: PairManifest, hashes: dict[str, str]) -> None:
    """Raises CacheError unless hashes of files and commits cover everything that is read."""
    for spec in recipe.data:
        if spec.source == "hub":
            raise CacheError(
                f"training.cache: data set {spec.name!r} ({spec.path}) comes from the hub and may change there; "
                "save it to files and name those, or set training.cache: false"
            )
    for name, content in hashes.items():
        if content == UNKNOWN:
            raise CacheError(
                f"training.cache: the commit of the {name} ({recipe.pair.name}) is not known; "
                "use a folder of a saved model, or set training.cache: false"
            )
    for source in filter(None, (pair.base, pair.chat, pair.adapter)):
        if Path(source).is_absolute() and not weight_files(Path(source)):
            raise CacheError(
                f"training.cache: there is no weight file in {source} that is hashed ({', '.join(WEIGHTS)}); "
                "save it with save_pretrained, or set training.cache: false"
            )
    if Path(pair.tokenizer).is_absolute() and not (Path(pair.tokenizer) / _TOKENIZER).exists():
        raise CacheError(
            f"training.cache: there is no {_TOKENIZER} in {pair.tokenizer}, and other files may not be all of it; "
            "save it with save_pretrained, or set training.cache: false"
        )


class ActivationCache:
    """The shards of one key below a home folder."""

    def __init__(
        self,
        home: Path,
        key: dict[str, Any],
        width: int,
        device: torch.device | str = "cpu",
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`width`: of the rows of a block. Shards are read onto `device`; `tell` hears of shards that are made again.

        Touches no disk.
        """
        self._key, self._home = key, home
        self._width, self._device, self._tell = width, device, tell
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.folder = home / ACTIVATIONS / name

    def read(self, index: int) -> Shard | None:
        """A shard, or None if it has to be made. Tells of a shard that was made before and is missing or damaged."""
        path = self.folder / _shard_name(index)
        try:
            return self._load(path)
        except FileNotFoundError:
            if index < (self.num_shards() or 0):
                self._tell(f"{path} is missing and is made again")
        except _DAMAGED as error:
            self._tell(f"{path} is damaged or cut short and is made again ({' '.join(str(error).split())})")
        return None

    def _load(self, path: Path) -> Shard:
        with safe_open(path, framework="pt", device=str(self._device)) as file:
            content = json.loads(file.metadata()["shard"])
            x = file.get_tensor("x")
        expected = (content["num_tokens"], self._width)
        if x.shape != expected or x.dtype != torch.float32:
            raise ValueError(f"it holds {x.dtype} of shape {tuple(x.shape)}, not torch.float32 of shape {expected}")
        return Shard(x, dict(content["state"]))

    def write(self, index: int, shard: Shard) -> None:
        """Writes a shard; replaces one that is there.

        Raises CacheFull or another OSError, and leaves the old shard as it was.
        """
        # One field, since the library writes several in a new order each time.
        metadata = {"shard": json.dumps({"num_tokens": len(shard.x), "state": shard.state}, sort_keys=True)}
        tensors = {"x": shard.x.cpu().contiguous()}
        self._remember_key()
        self._put(_shard_name(index), shard.x.nbytes, lambda path: save_file(tensors, path, metadata))

    def num_shards(self) -> int | None:
        """Number of shards of an epoch; None if no training has reached the end of one."""
        try:
            return int(json.loads((self.folder / COMPLETE).read_text(encoding="utf-8"))["num_shards"])
        except _DAMAGED:
            return None  # The next training that reaches the end writes it again.

    def finish(self, num_shards: int) -> None:
        """Records that every shard has been written. Raises CacheFull or another OSError."""
        if self.num_shards() != num_shards:
            self._remember_key()
            self._put_json(COMPLETE, {"num_shards": num_shards})

    def _remember_key(self) -> None:
        if (self.folder / KEY).exists():
            return
        self._put_json(KEY, self._key)

    def remove_partial(self, now: float) -> list[str]:
        """Removes half-written files older than GRACE_S at `now` (seconds since 1970); returns their names."""
        removed: list[str] = []
        for path in self.folder.glob(f"{PARTIAL}*"):
            with contextlib.suppress(FileNotFoundError):  # another training has just ended or removed it
                if now - path.stat().st_mtime > GRACE_S:
                    shutil.rmtree(path)
                    removed.append(path.name)
        return removed

    def _put_json(self, name: str, content: dict[str, Any]) -> None:
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        self._put(name, len(text), lambda path: path.write_text(text, encoding="utf-8"))

    def _put(self, name: str, size_bytes: int, save: Callable[[Path], object]) -> None:
        """Writes a file whole; `save` is given the path to write to."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole(self.folder / name) as partial:
                save(partial)
        except (OSError, SafetensorError) as error:
            if is_no_room(error):
                raise CacheFull(
                    f"no room for activations in {self.folder}: {size_bytes} bytes are needed for {name}, "
                    f"{shutil.disk_usage(self._home).free} are free ({error}); free space, or set "
                    "training.cache: false in the recipe"
                ) from error
            if isinstance(error, SafetensorError):
                raise OSError(f"{self.folder / name} cannot be written: {error}") from error
            raise


def _shard_name(index: int) -> str:
    return f"shard-{index:06d}.safetensors"
