"""crosscoder.json read strictly: every field of its type and within its range, or a sentence about those that are not.

Server and worker read manifests through this one function. Knows nothing about where a manifest lies.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from crosscope_proto.artefacts import NAME_PATTERN, SCHEMA_VERSION, CrosscoderManifest
from crosscope_proto.dictionaries import Reads

MAX_BYTES = 1_048_576
"""A manifest travels whole in every list of crosscoders."""
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
_NORMALISATIONS = ("crosscoder", "sae", "mixed", "none", "decoupled")
_READS = get_args(Reads)
_READ_BY_VARIANT = {"diff_sae": "difference", "base_sae": "base", "chat_sae": "chat"}
"""What a crosscoder of a manifest without `reads` reads, by its variant; all others read both models."""
_MAX_SHOWN = 3


class ManifestError(ValueError):
    """A manifest that cannot be used; the message says which fields are wrong, what they hold and what they may."""


def parse_manifest(data: bytes) -> CrosscoderManifest:
    """The manifest in the bytes of crosscoder.json; fields of later versions are left out. Raises ManifestError.

    `version_id` may be empty: a crosscoder that was trained but not published has none.
    """
    if len(data) > MAX_BYTES:
        raise ManifestError(f"has {len(data)} bytes, but may have at most {MAX_BYTES}")
    _check_schema(data)
    try:
        manifest = _adapter().validate_json(data, strict=True)
    except ValidationError as error:
        raise ManifestError(_shown([_sentence(detail) for detail in error.errors(include_url=False)])) from error
    if not manifest.reads:
        manifest = replace(manifest, reads=_READ_BY_VARIANT.get(manifest.variant, "both"))
    if wrong := list(_out_of_range(manifest)):
        raise ManifestError(_shown(wrong))
    return manifest


@cache
def _adapter() -> TypeAdapter[CrosscoderManifest]:
    return TypeAdapter(CrosscoderManifest)


def _check_schema(data: bytes) -> None:
    """Asks for the schema's version first: in a later one every other field may mean something else."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"is not JSON: {str(error)[:200]}") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is not int or version < 1:
        raise ManifestError(f"is not a manifest: it has no schema_version of 1 to {SCHEMA_VERSION}")
    if version > SCHEMA_VERSION:
        raise ManifestError(
            f"has schema version {version}, but this program knows up to {SCHEMA_VERSION}; update the program"
        )


def _sentence(detail: object) -> str:
    assert isinstance(detail, dict)
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] in ("missing", "json_invalid"):
        return f"{path}: is missing" if path else str(detail["msg"])
    return f"{path}: {detail['msg']}, but is {_value(detail['input'])}"


def _out_of_range(manifest: CrosscoderManifest) -> Iterator[str]:
    """A sentence a field whose value has the right type and makes no sense."""
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
    return "; ".join(sentences[:_MAX_SHOWN]) + (f"; and {rest} fields more" if rest > 0 else "")
