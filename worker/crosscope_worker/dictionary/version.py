"""A crosscoder's version folder: its manifest and its weights, read back and checked."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crosscope_proto.artefacts import MANIFEST, WEIGHTS, CrosscoderManifest
from crosscope_proto.manifest import ManifestError, parse_manifest
from crosscope_worker.dictionary.crosscoder import TENSORS, Crosscoder, CrosscoderError
from crosscope_worker.dictionary.keep import StoredKeep
from crosscope_worker.dictionary.streams import STREAMS
from crosscope_worker.disk import sha256

_OPTIONAL = ("input_mean", "latent_thresholds", "model_thresholds")
_SLOW_BYTES = 1 << 30
"""A file of this size or larger is announced before it is read for its hash."""


def load_version(
    folder: Path, device: torch.device | str = "cpu", tell: Callable[[str], None] | None = None
) -> Crosscoder:
    """The crosscoder of a version folder. `tell` hears of steps that take long.

    Raises CrosscoderError that names what is missing, cut short, damaged or not finite.
    """
    manifest = read_manifest(folder)
    weights = folder / WEIGHTS
    check_hash(weights, manifest.hashes.get(WEIGHTS), tell)
    tensors = read_safetensors(weights, device)
    if missing := [name for name in TENSORS if name not in tensors]:
        raise CrosscoderError(f"{weights} has no tensor {missing[0]}; it holds {', '.join(sorted(tensors))}")
    for name in (*TENSORS, *_OPTIONAL):
        if name in tensors and not bool(torch.isfinite(tensors[name]).all()):
            raise CrosscoderError(f"{weights} is damaged: {name} holds values that are not finite; make it again")
    thresholds = {name: tensors.get(name) for name in _OPTIONAL if name != "input_mean"}
    return Crosscoder(
        W_enc=tensors["W_enc"].T.contiguous().T,
        b_enc=tensors["b_enc"],
        W_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        d_model=manifest.d_model,
        variant=manifest.variant,
        code_normalisation=manifest.code_normalisation,
        streams=STREAMS[manifest.reads],
        keep=StoredKeep(manifest.threshold, manifest.token_k, **thresholds).rule(),
        input_scale=manifest.input_scale,
        input_mean=tensors.get("input_mean"),
        notes=manifest.notes,
    )


def read_safetensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Every tensor of a safetensors file.

    Raises CrosscoderError when it is missing or cannot be read.
    """
    try:
        return load_file(path, device=str(device))
    except FileNotFoundError as error:
        raise CrosscoderError(f"{path} is missing") from error
    except (SafetensorError, OSError) as error:
        raise CrosscoderError(f"{path} cannot be read as safetensors (cut short?): {error}") from error


def check_hash(path: Path, expected: str | None, tell: Callable[[str], None] | None = None) -> None:
    """Raises CrosscoderError if a file's SHA-256 is not `expected`; None, where the manifest has no hash, passes.

    The file is read piece by piece. `tell` hears of a file that takes more than a moment.
    """
    if expected is None or not path.is_file():
        return
    if tell is not None and (size := path.stat().st_size) >= _SLOW_BYTES:
        tell(f"checking the {size / 1e9:.1f} GB of {path.name} against their hash")
    if (found := sha256(path)) != expected:
        raise CrosscoderError(
            f"{path} is damaged or was changed: its SHA-256 is {found[:12]}…, and its manifest says {expected[:12]}…; "
            "restore the file, or make the version again"
        )


def read_manifest(folder: Path) -> CrosscoderManifest:
    """The manifest of a version folder, from crosscoder.json.

    Raises CrosscoderError when it is missing, not JSON, of a newer schema, or when a field is not what it must be.
    """
    path = folder / MANIFEST
    try:
        return parse_manifest(path.read_bytes())
    except FileNotFoundError as error:
        raise CrosscoderError(f"{path} is missing: is {folder} a crosscoder's version folder?") from error
    except ManifestError as error:
        raise CrosscoderError(f"{path}: {error}") from error
