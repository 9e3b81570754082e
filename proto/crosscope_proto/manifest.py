"""Reads crosscoder.json, pair.json and look.json strictly, and writes them: text in, text out.

Each field must have its type and lie within its range; otherwise a sentence names the field. Server and worker read and
write manifests only through this module. Knows nothing about where a manifest lies.

Schema versions from 1 up to this program's SCHEMA_VERSION are read. A manifest that names none has version 1.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from functools import cache
from typing import TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from crosscope_proto.artefacts import NAME_PATTERN, SCHEMA_VERSION, CrosscoderManifest, PairManifest
from crosscope_proto.dictionaries import Normalisation, Reads
from crosscope_proto.looks import LookManifest
from crosscope_proto.specs import Float32

MAX_BYTES = 1_048_576
"""Limit of a manifest's size. Every list of crosscoders holds the whole manifests."""
_UINT32, _UINT64 = 2**32 - 1, 2**64 - 1
_LARGEST_FLOAT32 = 3.4028234663852886e38
_LAST_SECOND = 253_402_300_799
"""The end of the year 9999, in seconds since 1970."""
_RANGES: dict[str, tuple[int, int]] = {
    "layer": (0, _UINT32),
    "num_latents": (1, _UINT32),
    "training_tokens": (0, _UINT64),
    "skipped_texts": (0, _UINT64),
    "analysis_tokens": (0, _UINT64),
    "analysis_shards": (0, _UINT32),
    "created_at": (0, _LAST_SECOND),
}
_NORMALISATIONS = get_args(Normalisation)
_READS = get_args(Reads)
_FLOAT32 = ("", *get_args(Float32))
_READ_BY_VARIANT = {"diff_sae": "difference", "base_sae": "base", "chat_sae": "chat"}
"""What a crosscoder reads if its manifest does not say so, by variant; all other variants read both models."""
_MAX_SHOWN = 3

_Manifest = TypeVar("_Manifest", CrosscoderManifest, PairManifest, LookManifest)


class ManifestError(ValueError):
    """A manifest that cannot be used. The message names the wrong fields, what they hold and what they may hold."""


def parse_manifest(data: bytes) -> CrosscoderManifest:
    """The manifest in the bytes of crosscoder.json; unknown fields are left out. Raises ManifestError.

    `version_id` may be empty: a crosscoder that was trained but not published has none.
    """
    _document(data)
    manifest = _validated(CrosscoderManifest, data)
    if not manifest.reads:
        manifest = replace(manifest, reads=_READ_BY_VARIANT.get(manifest.variant, "both"))
    if wrong := list(_out_of_range(manifest)):
        raise ManifestError(_shown(wrong))
    return manifest


def parse_pair_manifest(data: bytes) -> PairManifest:
    """The manifest in the bytes of pair.json; relative folders stay relative. Raises ManifestError.

    People write this file too, so an unknown field is an error.
    """
    known = [field.name for field in fields(PairManifest)]
    if unknown := [name for name in _document(data) if name not in known]:
        raise ManifestError(f"{_value(unknown[0])} is not a field of a pair; the fields are {', '.join(known)}")
    return _validated(PairManifest, data)


def parse_look_manifest(data: bytes) -> LookManifest:
    """The manifest in the bytes of look.json; unknown fields are left out. Raises ManifestError."""
    _document(data)
    manifest = _validated(LookManifest, data)
    wrong = [layer for layer in (*manifest.layers, manifest.recommended_layer) if not _is_layer(layer, manifest)]
    if wrong:
        raise ManifestError(f"layers: must be 0 to {manifest.num_layers - 1}, but one is {_value(wrong[0])}")
    if not re.fullmatch(NAME_PATTERN, manifest.name):
        raise ManifestError(f"name: must look like {NAME_PATTERN}, but is {_value(manifest.name)}")
    low, high = _RANGES["created_at"]
    if not low <= manifest.created_at <= high:
        raise ManifestError(f"created_at: must be {low} to {high}, but is {_value(manifest.created_at)}")
    counts = manifest.num_tokens, manifest.num_texts, manifest.num_folded, manifest.sweep_tokens, manifest.sweep_texts
    if not all(0 <= count <= _UINT32 for count in (*counts, manifest.num_layers)):
        raise ManifestError(f"counts: must be numbers from 0 to {_UINT32}, but are {_value(counts)}")
    return manifest


def _is_layer(layer: int | None, manifest: LookManifest) -> bool:
    return layer is None or 0 <= layer < manifest.num_layers


def manifest_text(manifest: CrosscoderManifest | PairManifest | LookManifest) -> str:
    """The text of crosscoder.json, pair.json or look.json: JSON with sorted fields.

    Equal manifests have equal bytes.
    """
    return json.dumps(asdict(manifest), indent=2, sort_keys=True) + "\n"


def _document(data: bytes) -> dict[str, object]:
    """The JSON object in `data`. Raises ManifestError, also for a schema version that this program does not know.

    The version is checked before the fields, because a later version may give them another meaning.
    """
    if len(data) > MAX_BYTES:
        raise ManifestError(f"has {len(data)} bytes, but may have at most {MAX_BYTES}")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"is not JSON: {str(error)[:200]}") from error
    if not isinstance(document, dict):
        raise ManifestError("is not a manifest: it must be a JSON object")
    version = document.get("schema_version", 1)
    if type(version) is not int or version < 1:
        raise ManifestError(f"schema_version: must be a number from 1 to {SCHEMA_VERSION}, but is {_value(version)}")
    if version > SCHEMA_VERSION:
        raise ManifestError(
            f"has schema version {version}, but this program knows up to {SCHEMA_VERSION}; update the program"
        )
    return document


def _validated(kind: type[_Manifest], data: bytes) -> _Manifest:
    try:
        return _adapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        raise ManifestError(_shown([_sentence(detail) for detail in error.errors(include_url=False)])) from error


@cache
def _adapter(kind: type[_Manifest]) -> TypeAdapter[_Manifest]:
    return TypeAdapter(kind)


def _sentence(detail: object) -> str:
    assert isinstance(detail, dict)
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] in ("missing", "json_invalid"):
        return f"{path}: is missing" if path else str(detail["msg"])
    return f"{path}: {detail['msg']}, but is {_value(detail['input'])}"


def _out_of_range(manifest: CrosscoderManifest) -> Iterator[str]:
    """A sentence for each field whose value has the right type but is out of range."""
    for name, (low, high) in _RANGES.items():
        value = getattr(manifest, name)
        if not low <= value <= high:
            yield f"{name}: must be {low} to {high}, but is {_value(value)}"
    for name, allows_empty in (("name", False), ("version_id", True)):
        value = getattr(manifest, name)
        if not re.fullmatch(NAME_PATTERN, value) and not (allows_empty and not value):
            yield f"{name}: must look like {NAME_PATTERN}, but is {_value(value)}"
    if not all(0 < width <= _UINT32 for width in manifest.d_model):
        yield f"d_model: must be two numbers from 1 to {_UINT32}, but is {_value(manifest.d_model)}"
    if manifest.code_normalisation not in _NORMALISATIONS:
        known = ", ".join(_NORMALISATIONS)
        yield f"code_normalisation: must be one of {known}, but is {_value(manifest.code_normalisation)}"
    if manifest.reads not in _READS:
        yield f"reads: must be one of {', '.join(_READS)}, but is {_value(manifest.reads)}"
    if manifest.float32 not in _FLOAT32:
        yield f"float32: must be one of {', '.join(_FLOAT32[1:])} or empty, but is {_value(manifest.float32)}"
    if manifest.token_k is not None and not 1 <= manifest.token_k <= manifest.num_latents:
        yield f"token_k: must be 1 to num_latents {manifest.num_latents} or null, but is {_value(manifest.token_k)}"
    if manifest.threshold is not None and not math.isfinite(manifest.threshold):
        yield f"threshold: must be a finite number or null, but is {manifest.threshold}"
    if not all(math.isfinite(scale) and scale > 0 for scale in manifest.input_scale):
        yield f"input_scale: must be two positive, finite numbers, but is {_value(manifest.input_scale)}"
    if not all(0 <= count <= _UINT32 for count in manifest.class_counts.values()):
        yield f"class_counts: must be numbers from 0 to {_UINT32}, but are {_value(manifest.class_counts)}"
    yield from _wrong_edges(manifest.histogram_edges)


def _wrong_edges(edges: tuple[float, ...]) -> Iterator[str]:
    if not all(abs(edge) <= _LARGEST_FLOAT32 for edge in edges):  # also false of NaN
        yield f"histogram_edges: must be finite numbers, but are {_value(edges)}"
    elif any(later < earlier for earlier, later in itertools.pairwise(edges)):
        yield f"histogram_edges: must ascend, but are {_value(edges)}"


def _value(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a number of too many digits"
    return text if len(text) <= 80 else f"{text[:76]} …"


def _shown(sentences: list[str]) -> str:
    rest = len(sentences) - _MAX_SHOWN
    return "; ".join(sentences[:_MAX_SHOWN]) + (f"; and {rest} more fields" if rest > 0 else "")
