"""A version that is damaged is listed with the reason, answers DATA_LOSS, and takes nothing else with it."""

import asyncio
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures_artefacts import write_crosscoder
from fixtures_waiting import PATIENCE_S

from crosscope_proto import artefacts as layout
from crosscope_proto.artefacts import CrosscoderManifest, PairManifest
from crosscope_proto.column import Column
from crosscope_proto.columns import BEHAVIOUR_COLUMNS, EXAMPLE_COLUMNS, LATENT_COLUMNS, METRIC_COLUMNS, SEQUENCE_COLUMNS
from crosscope_proto.manifest import MAX_BYTES, ManifestError, parse_manifest
from crosscope_proto.v1 import latents_pb2
from crosscope_server.annotations.store import Annotations
from crosscope_server.catalogue import Catalogue
from crosscope_server.errors import BrokenArtefact
from crosscope_server.search.indices import Indices
from crosscope_server.search.searches import Searches
from crosscope_server.services.latents import LatentsService

pytestmark = pytest.mark.asyncio

FIELDS = [(field.name,) for field in dataclasses.fields(CrosscoderManifest)]
FIELDS += [("pair", field.name) for field in dataclasses.fields(PairManifest)]
MISSING = object()
VALUES: list[Any] = [
    *(MISSING, None, True, "x", "", "\ud800", "\0", 0, -3, 3.5, 10**20, 10**400, float("nan"), float("inf")),
    *([], [1], [1, 2, 3], ["a"], [-1, -1], [None, 1.0], [float("nan"), 1.0], [0.0, 0.0], [3.0, 2.0, 1.0], [1e300] * 25),
    *({}, {"a": "b"}, {"a": -1}, {"a": 2**32}, {"a": None}, {"a": float("nan")}, {"\ud800": 1}, [[]], {"a": {}}),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CrosscoderManifest]:
    """Two crosscoders, "whole" and "hurt"; tests restore what they damage."""
    folder = tmp_path_factory.mktemp("home")
    write_crosscoder(folder, "whole", 16, num_sequences=8)
    return folder, write_crosscoder(folder, "hurt", 16, num_sequences=8)


class Asked:
    """What a fresh server says about the crosscoder "hurt"."""

    def __init__(self, home: Path) -> None:
        catalogue = Catalogue(home)
        self._service = LatentsService(catalogue, Annotations(home), Searches(Indices(catalogue, home, 2**20)))

    async def listed(self) -> dict[str, latents_pb2.Crosscoder]:
        reply = await self._service.ListCrosscoders(latents_pb2.ListCrosscodersRequest(), None)  # pyright: ignore[reportArgumentType]
        reply = latents_pb2.ListCrosscodersResponse.FromString(reply.SerializeToString())
        return {message.name: message for message in reply.crosscoders}

    async def refusals(self, *only: str) -> dict[str, str]:
        """The sentence of every call that is refused, by its name. A bug is raised."""
        of: dict[str, Any] = {"crosscoder": "hurt"}
        calls = {
            "GetCrosscoder": latents_pb2.GetCrosscoderRequest(**of),
            "GetTrainingCurves": latents_pb2.GetTrainingCurvesRequest(**of),
            "ListLatents": latents_pb2.ListLatentsRequest(page_size=40, **of),
            "ListExamples": latents_pb2.ListExamplesRequest(page_size=40, **of),
        }
        refused: dict[str, str] = {}
        for name in only or calls:
            try:
                reply = await getattr(self._service, name)(calls[name], None)
                reply.SerializeToString()
            except BrokenArtefact as error:
                refused[name] = error.sentence
        return refused


def mutated(manifest: dict[str, Any], path: tuple[str, ...], value: Any) -> str:
    document = json.loads(json.dumps(manifest))
    place = document
    for part in path[:-1]:
        place = place[part]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(document)


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
async def test_any_value_of_any_field_is_read_or_named(home: tuple[Path, CrosscoderManifest], path: tuple[str, ...]):
    folder, manifest = home
    file = layout.version_folder(folder, "hurt", manifest.version_id) / layout.MANIFEST
    original = Path(file).read_text()
    try:
        for value in VALUES:
            Path(file).write_text(mutated(json.loads(original), path, value))
            asked = Asked(folder)
            listed = await asked.listed()
            assert set(listed) == {"whole", "hurt"}
            assert not listed["whole"].broken
            if reason := listed["hurt"].broken:
                assert await asked.refusals("GetCrosscoder") == {"GetCrosscoder": reason}
                assert reason.startswith(str(file)), reason
                assert listed["hurt"].version_id == manifest.version_id
            elif refused := await asked.refusals("GetCrosscoder", "ListLatents"):
                # What other files show to be wrong, the list cannot know.
                assert path in (("datasets",), ("histogram_edges",), ("num_latents",)), (value, refused)
                assert "latents.parquet" in refused["GetCrosscoder"]
    finally:
        Path(file).write_text(original)


async def test_a_manifest_that_is_none_at_all_is_named(home: tuple[Path, CrosscoderManifest]):
    folder, manifest = home
    file = Path(layout.version_folder(folder, "hurt", manifest.version_id) / layout.MANIFEST)
    original = file.read_bytes()
    broken = [
        b"",
        b"{",
        b"[1]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 5000,
        original[:-40],
        b" " * (MAX_BYTES + 1),
    ]
    try:
        for data in broken:
            file.write_bytes(data)
            message = (await Asked(folder).listed())["hurt"]
            assert message.broken.startswith(f"{file}: ")
            assert "publish the crosscoder again" in message.broken
        file.unlink()
        assert (await Asked(folder).listed())["hurt"].broken.startswith(f"{file} is missing")
    finally:
        file.write_bytes(original)
    assert not (await Asked(folder).listed())["hurt"].broken


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"created_at": "x"}, "created_at: Input should be a valid number, but is 'x'"),
        ({"created_at": 1e300}, "created_at: must be 0 to 253402300799, but is 1e+300"),
        ({"layer": -3}, "layer: must be 0 to 4294967295, but is -3"),
        ({"layer": True}, "layer: Input should be a valid integer, but is True"),
        ({"num_latents": 10**400}, "num_latents: must be 1 to 4294967295, but is 1000000"),
        ({"d_model": [64]}, "d_model.1: "),
        ({"input_scale": [float("nan"), 1.0]}, "input_scale: must be two positive, finite numbers, but is (nan, 1.0)"),
        ({"threshold": float("inf")}, "threshold: must be a finite number or null, but is inf"),
        ({"code_normalisation": "loud"}, "code_normalisation: must be one of crosscoder, sae"),
        ({"histogram_edges": [1.0, 0.0]}, "histogram_edges: must ascend"),
        ({"class_counts": {"dead": -1}}, "class_counts: must be numbers from 0"),
        ({"name": "other"}, "name is 'other', but its folder is called 'hurt'; make them equal"),
        ({"schema_version": 99}, "has schema version 99, but this program knows up to 1; update the program"),
        ({"num_latents": 41}, "latents.parquet has 40 rows, but crosscoder.json says 41 latents"),
        ({"datasets": ["a"]}, "the lists of dataset_shares have 2 values, but crosscoder.json needs 1"),
        ({"histogram_edges": [0.0, 1.0]}, "the lists of histogram have 24 values, but crosscoder.json needs 1"),
    ],
)
async def test_the_reason_names_the_field_its_value_and_what_it_may_be(tmp_path: Path, changes, says):
    manifest = write_crosscoder(tmp_path, "hurt", 40)
    file = Path(layout.version_folder(tmp_path, "hurt", manifest.version_id) / layout.MANIFEST)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert says in (await Asked(tmp_path).refusals())["GetCrosscoder"]


async def test_fields_of_later_versions_and_ones_that_have_defaults_do_not_matter(tmp_path: Path):
    manifest = write_crosscoder(tmp_path, "hurt", 40)
    file = Path(layout.version_folder(tmp_path, "hurt", manifest.version_id) / layout.MANIFEST)
    document = json.loads(file.read_text()) | {"later": {"x": [1]}}
    for name in ("skipped_texts", "uselessness", "job", "software"):
        del document[name]
    document["uselessness"] = {"pearson": float("nan")}
    file.write_text(json.dumps(document))
    assert not await Asked(tmp_path).refusals()
    assert parse_manifest(file.read_bytes()).num_latents == 40
    with pytest.raises(ManifestError, match="may have at most"):
        parse_manifest(b" " * (MAX_BYTES + 1))


async def test_folders_that_are_no_crosscoders_are_listed_with_the_reason(tmp_path: Path):
    write_crosscoder(tmp_path, "whole", 40)
    folder = tmp_path / "crosscoders"
    for name in ("A copy", "two", "three", "four"):
        (folder / name).mkdir()
    (folder / "A copy" / layout.CURRENT).write_text("x")
    (folder / "two" / layout.CURRENT).write_text("../../whole")
    (folder / "three" / layout.CURRENT).symlink_to("nowhere")
    (folder / "four" / layout.CURRENT).mkdir()
    (folder / "five").write_text("a file")
    listed = await Asked(tmp_path).listed()
    assert list(listed) == ["whole", "A copy", "four", "three", "two"]
    assert "rename the folder" in listed["A copy"].broken
    assert "does not hold a version id, but '../../whole'" in listed["two"].broken
    assert listed["three"].broken
    assert "cannot be read" in listed["four"].broken


async def test_a_pipe_or_a_device_in_a_files_place_lets_no_list_wait(tmp_path: Path):
    write_crosscoder(tmp_path, "whole", 40)
    folder = tmp_path / "crosscoders"
    (folder / "pipe").mkdir()
    os.mkfifo(folder / "pipe" / layout.CURRENT)
    for name in ("deep", "endless"):
        version = Path(layout.version_folder(tmp_path, name, "v1"))
        version.mkdir(parents=True)
        (folder / name / layout.CURRENT).write_text("v1")
    os.mkfifo(folder / "deep/versions/v1" / layout.MANIFEST)
    (folder / "endless/versions/v1" / layout.MANIFEST).symlink_to("/dev/zero")
    listed = await asyncio.wait_for(Asked(tmp_path).listed(), PATIENCE_S)
    assert list(listed) == ["whole", "deep", "endless", "pipe"]
    for name in ("deep", "endless", "pipe"):
        assert listed[name].broken.endswith("it is not a regular file")


def tables(manifest: CrosscoderManifest) -> Iterator[tuple[str, tuple[Column, ...], str]]:
    """Every table's name, its columns, and a call that reads it."""
    yield layout.LATENTS, LATENT_COLUMNS, "ListLatents"
    yield layout.SEQUENCES, SEQUENCE_COLUMNS, "ListExamples"
    yield layout.METRICS, METRIC_COLUMNS, "GetTrainingCurves"
    yield layout.BEHAVIOURS, BEHAVIOUR_COLUMNS, "GetCrosscoder"
    yield f"{layout.EXAMPLES}/{layout.example_part(0, manifest.num_latents)}", EXAMPLE_COLUMNS, "ListExamples"


def damaged(table: pa.Table, column: str) -> Iterator[tuple[str, pa.Table]]:
    """The table with one column gone, of another type, with an empty cell, and with text that is none."""
    index = table.schema.get_field_index(column)
    kind = table.schema.field(index).type
    yield "dropped", table.drop_columns([column])
    other = pa.array([b"\xff"] * table.num_rows, pa.binary())
    yield "retyped", table.set_column(index, column, other)
    values = table[column].to_pylist()
    yield "null", table.set_column(index, column, pa.array([None, *values[1:]], kind))
    if pa.types.is_list(kind):
        hollow = [[None, *values[0][1:]], *values[1:]]
        yield "null inside", table.set_column(index, column, pa.array(hollow, kind))
        yield (
            "longer",
            table.set_column(index, column, pa.array([[*(values[0] or []), *values[0][:1]], *values[1:]], kind)),
        )
        yield "shorter", table.set_column(index, column, pa.array([[], *values[1:]], kind))
    if kind == pa.string():
        yield "no UTF-8", table.set_column(index, column, other.view(pa.string()))
    if pa.types.is_integer(kind):
        largest = np.iinfo(kind.to_pandas_dtype()).max
        yield "largest", table.set_column(index, column, pa.array([*values[:-1], largest], kind))
    if pa.types.is_floating(kind):
        yield "nan", table.set_column(index, column, pa.array([float("nan")] * table.num_rows, kind))


async def test_any_damage_to_any_column_of_any_table_is_read_or_named(home: tuple[Path, CrosscoderManifest]):
    folder, manifest = home
    version = Path(layout.version_folder(folder, "hurt", manifest.version_id))
    for name, columns, call in tables(manifest):
        original = (version / name).read_bytes()
        table = pq.read_table(version / name)
        try:
            for column in columns:
                # Estimates are read alike: two of them are tried.
                if column.type == "float32" and name == layout.LATENTS and column.name not in ("max", "nu_err"):
                    continue
                for kind, other in damaged(table, column.name):
                    pq.write_table(other, version / name)
                    refused = await Asked(folder).refusals(call)
                    assert all(str(version) in reason for reason in refused.values()), (name, column.name, kind)
                    if kind in ("dropped", "retyped", "null", "null inside", "no UTF-8"):
                        expected = kind != "dropped" or column.absent is None
                        assert (call in refused) == expected, (name, column.name, kind)
        finally:
            (version / name).write_bytes(original)


async def test_bytes_that_changed_since_the_publication_are_told_by_their_checksum(tmp_path: Path):
    manifest = write_crosscoder(tmp_path, "hurt", 40)
    version = Path(layout.version_folder(tmp_path, "hurt", manifest.version_id))
    found = list(tables(manifest))
    hashes = {name: hashlib.sha256((version / name).read_bytes()).hexdigest() for name, _, _ in found}
    file = version / layout.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hashes": hashes}))
    assert not await Asked(tmp_path).refusals()
    rng = np.random.default_rng(0)
    for name, _, call in found:
        original = (version / name).read_bytes()
        for place in rng.integers(0, len(original), 5).tolist():
            flipped = bytearray(original)
            flipped[place] ^= 1 << int(rng.integers(8))
            (version / name).write_bytes(flipped)
            refused = await Asked(tmp_path).refusals()
            assert f"{version / name} has the SHA-256" in refused[call]
            assert "restore the file, or publish the crosscoder again" in refused[call]
        (version / name).unlink()
        assert f"{version / name} is missing" in (await Asked(tmp_path).refusals())[call]
        (version / name).write_bytes(original)
    assert not await Asked(tmp_path).refusals()
