"""Both manifests: written and read again, and one rule for their schema versions."""

import json
from collections.abc import Callable

import pytest

from crosscope_proto.artefacts import SCHEMA_VERSION, CrosscoderManifest, PairManifest
from crosscope_proto.manifest import ManifestError, manifest_text, parse_manifest, parse_pair_manifest

PAIR = PairManifest("demo", "base", "chat", "chat", token_differences=("<a> is <b>",))
CROSSCODER = CrosscoderManifest(
    name="demo",
    version_id="v1",
    pair=PAIR,
    layer=2,
    d_model=(4, 6),
    num_latents=8,
    variant="l1",
    code_normalisation="crosscoder",
    threshold=None,
    input_scale=(1.0, 0.5),
    reads="both",
    float32="tf32",
    recipe={"kind": "crosscoder", "data": [{"name": "web"}]},
    norm_limits=(1.5, 2.5),
    warnings=("Of the texts …",),
)
BOTH = pytest.mark.parametrize(("parse", "manifest"), [(parse_manifest, CROSSCODER), (parse_pair_manifest, PAIR)])
Parse = Callable[[bytes], CrosscoderManifest | PairManifest]


@BOTH
def test_what_is_written_reads_back(parse: Parse, manifest: CrosscoderManifest | PairManifest) -> None:
    assert parse(manifest_text(manifest).encode()) == manifest


@BOTH
@pytest.mark.parametrize(
    ("version", "says"),
    [
        (SCHEMA_VERSION + 1, f"has schema version {SCHEMA_VERSION + 1}, but this program knows up to {SCHEMA_VERSION}"),
        *((wrong, "schema_version: must be a number from 1") for wrong in (0, -1, True, 1.0, "1", None)),
    ],
)
def test_schema_versions_that_are_not_read(
    parse: Parse, manifest: CrosscoderManifest | PairManifest, version: object, says: str
) -> None:
    document = json.loads(manifest_text(manifest)) | {"schema_version": version, "name": 3}
    with pytest.raises(ManifestError, match=f"^{says}"):
        parse(json.dumps(document).encode())


@BOTH
def test_a_manifest_that_names_no_schema_is_of_version_1(
    parse: Parse, manifest: CrosscoderManifest | PairManifest
) -> None:
    document = json.loads(manifest_text(manifest))
    del document["schema_version"]
    assert parse(json.dumps(document).encode()) == manifest


def test_a_pair_written_by_hand_needs_four_fields() -> None:
    by_hand = {"name": "demo", "base": "base", "chat": "chat", "tokenizer": "chat"}
    assert parse_pair_manifest(json.dumps(by_hand).encode()) == PairManifest(**by_hand)
    with pytest.raises(ManifestError, match=r"^'dytpe' is not a field of a pair; the fields are name, base"):
        parse_pair_manifest(json.dumps(by_hand | {"dytpe": "float32"}).encode())
    with pytest.raises(ManifestError, match=r"^base: Input should be a valid string, but is 3$"):
        parse_pair_manifest(json.dumps(by_hand | {"base": 3}).encode())
