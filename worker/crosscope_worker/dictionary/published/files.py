"""Finds the weights and the configurations of a published crosscoder and reads them; knows no family's keys.

Nothing in a file is ever executed: safetensors, JSON, plain YAML, and `torch.load(weights_only=True)`.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from crosscope_proto.artefacts import MANIFEST
from crosscope_worker.dictionary.crosscoder import CrosscoderError
from crosscope_worker.dictionary.published.configs import Config, Said, read_configs, said
from crosscope_worker.dictionary.published.containers import SUFFIXES, read_tensors

_FOLDER_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "sae_weights.safetensors",
    "params.safetensors",
    "model_final.pt",
    "ae.pt",
    "cc_weights.pt",
    "model.pt",
    "sae_weights.pt",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of a folder's weights; the first that is there is read. If none is, the folder's only file of weights is."""
_NO_WEIGHTS = ("optimizer", "scheduler", "rng_state", "training_args", "sparsity")
"""Beginnings of the names of files that lie beside weights and hold none."""
_STATISTICS = ("activation_", "target_rms", "dataset_average_activation_norm.")
"""Beginnings of the names of tensors that describe the inputs. Where they are NaN, there is no normaliser."""


@dataclass(frozen=True)
class Files:
    """The tensors and configurations of a published crosscoder."""

    weights: Path
    """File of the tensors, or the index of several."""
    tensors: dict[str, Tensor]
    """By name, without the prefixes that wrappers put before each."""
    configs: dict[str, Config]
    """JSON and YAML objects beside the weights, by file name; `{stem}_cfg.json` is under cfg.json."""
    notes: list[str] = field(default_factory=list)
    """What reading assumes or leaves out; a sentence each."""
    swap: bool = False
    """Whether model 0 of the file is the chat model, as the caller says."""
    read: set[str] = field(default_factory=set)
    """Names of the tensors that `tensor` has given."""

    def error(self, message: str) -> CrosscoderError:
        """An error that names the file."""
        return CrosscoderError(f"{self.weights}: {message}")

    def note(self, sentence: str) -> None:
        """Notes what is assumed or left out, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def said(self, *keys: str) -> list[Said]:
        """What any configuration says under any of `keys`; null says nothing."""
        return said(self.configs, keys)

    def word(self, *keys: str) -> object:
        """The one value that the configurations have for `keys`; None where none says one.

        Raises CrosscoderError if they contradict each other.
        """
        found = self.said(*keys)
        if other := [each for each in found if each.value != found[0].value]:
            raise self.error(f"{found[0]} and {other[0]} contradict each other")
        return found[0].value if found else None

    def check_sizes(self, **sizes: int) -> None:
        """Raises CrosscoderError if a configuration says another size than the tensors have."""
        for key, found in sizes.items():
            for each in self.said(key):
                if each.value != found:
                    raise self.error(f"{each.file} says {key} {each.value}, the tensors {found}")

    def check_tensors(self, known: set[str]) -> None:
        """Raises CrosscoderError for a tensor that the family does not know."""
        if unknown := sorted(self.tensors.keys() - known):
            raise self.error(f"unknown tensors {', '.join(unknown[:12])}; known are {', '.join(sorted(known))}")

    def tensor(self, name: str, *shapes: tuple[int, ...]) -> Tensor:
        """A tensor as float32, on the CPU, of one of the shapes.

        Raises CrosscoderError when it is missing, of another shape, or not finite.
        """
        self.read.add(name)
        if name not in self.tensors:
            raise self.error(f"there is no tensor {name}; it holds {', '.join(sorted(self.tensors))}")
        found = self.tensors[name].to(torch.float32)
        if shapes and tuple(found.shape) not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise self.error(f"{name} has shape {tuple(found.shape)}, but the other tensors ask for {wanted}")
        if not torch.isfinite(found).all():
            raise self.error(f"{name} holds values that are not finite")
        return found

    def check_unread(self) -> None:
        """Raises CrosscoderError if a tensor that nobody asked for holds values that are not finite.

        Statistics of inputs may hold such values: NaN where they are off, and whatever lay in memory if never set.
        """
        for name in sorted(self.tensors.keys() - self.read):
            if not name.startswith(_STATISTICS) and self.tensors[name].is_floating_point():
                self.tensor(name)


def read_files(path: Path, swap: bool = False) -> Files:
    """The content of a weights file, or of the one in a folder, and of the configurations beside it."""
    weights = _weights(path)
    tensors, notes = read_tensors(weights)
    return Files(weights, tensors, read_configs(weights), notes, swap)


def _weights(path: Path) -> Path:
    if not path.exists():
        raise CrosscoderError(f"{path} is missing")
    if path.is_file():
        if path.suffix in SUFFIXES or path.name.endswith(".index.json"):
            return path
        raise CrosscoderError(f"{path} is neither a folder nor a file of {', '.join(SUFFIXES)}")
    for name in _FOLDER_WEIGHTS:
        if (path / name).is_file():
            return path / name
    files = (each for each in path.iterdir() if each.suffix in SUFFIXES and each.is_file())
    found = sorted(each for each in files if not each.name.startswith(_NO_WEIGHTS))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(each.name for each in found)
        raise CrosscoderError(f"{path} holds several files of weights ({names}); name the one to load")
    raise CrosscoderError(f"{path / MANIFEST} is missing, and no file of {', '.join(SUFFIXES)} is in its place")
