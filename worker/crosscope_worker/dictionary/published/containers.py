"""Reads tensors by name from what people save them in: one file, several files with an index, or a checkpoint.

Only the weights of a checkpoint are read; a note says what else it holds. A pickle is opened by
`torch.load(weights_only=True)` alone.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.dictionary.published.configs import read_config
from crosscope_worker.dictionary.version import read_safetensors

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_INDEX = ".index.json"
_WEIGHTS_OF = ("sae", "model", "state_dict", "model_state_dict")
"""Names under which a checkpoint may keep its weights."""
_COMPILED = "_orig_mod."
_PARALLEL = "module."
_MAX_PARTS = 1024


def read_tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file, or of the files that an index names, and sentences about what was left out.

    Drops the prefixes that torch.compile (`_orig_mod.`) and data parallelism (`module.`) put before names. Raises
    CrosscoderError for a file that is missing, cut short, not an index, or holds no tensors by name.
    """
    tensors, notes = _read_index(path) if path.name.endswith(_INDEX) else _read_file(path)
    tensors = {name.replace(_COMPILED, ""): tensor for name, tensor in tensors.items()}
    if tensors and all(name.startswith(_PARALLEL) for name in tensors):
        tensors = {name.removeprefix(_PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors, notes


def _read_file(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    return (read_safetensors(path), []) if path.suffix == ".safetensors" else _read_torch(path)


def _read_index(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    files = read_config(path).get("weight_map")
    if not isinstance(files, Mapping) or not files or not all(isinstance(each, str) for each in files.values()):
        raise CrosscoderError(f"{path} has no weight_map of names and files: it is no index of weights")
    files = cast("Mapping[str, str]", files)
    parts = sorted(set(files.values()))
    if len(parts) > _MAX_PARTS:
        raise CrosscoderError(f"{path} names {len(parts)} files; {_MAX_PARTS} are allowed")
    tensors: dict[str, Tensor] = {}
    notes: list[str] = []
    for part in parts:
        file = path.parent / part
        if file.parent != path.parent or file.suffix not in SUFFIXES:
            raise CrosscoderError(f"{path} names {part!r}, which is no file of weights beside it")
        if not file.is_file():
            raise CrosscoderError(f"{file} is missing, though {path.name} says that it holds weights")
        found, more = _read_file(file)
        tensors |= found
        notes += more
    if missing := sorted(files.keys() - tensors.keys()):
        raise CrosscoderError(f"{path} names the tensor {missing[0]}, which none of its {len(parts)} files holds")
    return tensors, notes


def _read_torch(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    try:
        with warnings.catch_warnings():
            # torch warns of pickle protocols other than its own; the restricted reader reads such a file or refuses it.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CrosscoderError(
            f"{path} is cut short, or its pickle holds more than tensors and plain values; it was not opened, "
            "since loading it could run code"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise CrosscoderError(f"{path} cannot be read as a torch file (cut short?): {error}") from error
    if not isinstance(document, Mapping):
        raise CrosscoderError(f"{path} holds a {type(document).__name__}, not tensors by name")
    return _weights_of(path, cast("Mapping[Any, Any]", document))


def _weights_of(path: Path, document: Mapping[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """A bare dictionary of tensors, or the one that a checkpoint keeps under a name of _WEIGHTS_OF."""
    strange = [str(name) for name, value in document.items() if not isinstance(value, Tensor)]
    if not strange:
        return {str(name): value for name, value in document.items()}, []
    inside = [name for name in _WEIGHTS_OF if _holds_tensors(document.get(name))]
    if len(inside) > 1:
        raise CrosscoderError(f"{path} holds weights under {' and '.join(inside)}; save the one to load by itself")
    if not inside:
        raise CrosscoderError(
            f"{path} holds {', '.join(strange[:5])} beside or instead of tensors: an unknown layout; save the "
            "dictionary's state_dict() alone"
        )
    rest = sorted(str(name) for name in document if name != inside[0])
    left = [f"{path.name} is a checkpoint: {', '.join(rest[:8])} beside its weights were not read."] if rest else []
    return {str(name): value for name, value in document[inside[0]].items()}, left


def _holds_tensors(value: object) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(each, Tensor) for each in cast("Mapping[Any, Any]", value).values())
