"""The service Looks over looks on disk, whole and broken; and what a look says about a recipe's layer."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from fixtures_looks import write_look
from fixtures_server import run_front

from crosscope_proto.artefacts import PairManifest, look_folder
from crosscope_proto.looks import MANIFEST
from crosscope_proto.recipe import CrosscoderRecipe, parse_recipe
from crosscope_proto.v1 import looks_pb2, looks_pb2_grpc
from crosscope_server.errors import BrokenArtefact, NotFound
from crosscope_server.jobs.check import check
from crosscope_server.looks import Looks


@pytest.mark.asyncio
async def test_a_look_is_listed_and_read(tmp_path: Path) -> None:
    write_look(tmp_path, "one")
    (Path(look_folder(tmp_path, "torn"))).mkdir()
    async with run_front(home=tmp_path) as front:
        stub = looks_pb2_grpc.LooksStub(front.channel)
        one, torn = (await stub.ListLooks(looks_pb2.ListLooksRequest())).looks
        reply = await stub.GetLook(looks_pb2.GetLookRequest(name="one", max_findings=1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetLook(looks_pb2.GetLookRequest(name="two"))
    assert (one.name, one.recommended_layer, one.num_folded, one.pair) == ("one", 2, 1, "p")
    assert one.left_out == ["2 texts of chat were left out: 2 × empty"]
    assert torn.name == "torn"
    assert "look.json is missing; look again" in torn.broken
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "there are one, torn" in (caught.value.details() or "")
    assert [layer.layer for layer in reply.layers] == [0, 1, 2, 3]
    assert reply.num_findings == 3
    # The text of the third finding is neither among those that differ most nor asked for.
    assert [text.place for text in reply.texts] == ["a:1", "a:3"]
    (finding,) = reply.findings
    assert reply.texts[finding.text].tokens.pieces[finding.position] == "e"
    assert list(finding.chat.pieces) == ["Sorry", " I"]
    assert reply.continuations[0].chat_ended
    assert not reply.continuations[0].base_ended


def test_broken_looks_say_what_is_wrong(tmp_path: Path) -> None:
    write_look(tmp_path, "one")
    folder, looks = Path(look_folder(tmp_path, "one")), Looks(tmp_path)
    manifest = folder / MANIFEST
    whole = manifest.read_text()
    for change, sentence in (
        ({"name": "other"}, "its folder is called 'one'"),
        ({"layers": [7]}, "must be 0 to 3"),
        ({"num_tokens": "many"}, "num_tokens"),
        ({"schema_version": 99}, "update the program"),
    ):
        manifest.write_text(json.dumps(json.loads(whole) | change))
        with pytest.raises(BrokenArtefact, match=sentence):
            looks.open("one")
    manifest.write_text(whole)
    findings = folder / "findings.parquet"
    data = findings.read_bytes()
    findings.write_bytes(data[:-20])
    with pytest.raises(BrokenArtefact, match=r"findings\.parquet has the SHA-256 .* look again"):
        looks.open("one")
    findings.unlink()
    with pytest.raises(BrokenArtefact, match=r"findings\.parquet is missing; look again"):
        looks.open("one")
    with pytest.raises(NotFound):
        looks.open("../one")


RECIPE: dict[str, Any] = {
    "kind": "crosscoder",
    "name": "toy",
    "layer": 0,
    "data": [{"name": "web", "source": "jsonl", "path": "web.jsonl", "text_column": "text"}],
    "crosscoder": {"variant": "batch_topk", "num_latents": 64, "k": 4},
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the pair "p" of four layers, and a look at it."""
    folder = tmp_path / "pairs" / "p"
    for name in ("base", "chat"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"num_hidden_layers": 4, "hidden_size": 8}))
        (folder / name / "model.safetensors").write_bytes(b"")
    (folder / "pair.json").write_text(json.dumps({"name": "p", "base": "base", "chat": "chat", "tokenizer": "chat"}))
    places = {name: str(folder / name) for name in ("base", "chat")}
    write_look(tmp_path, "p", PairManifest("p", **places, tokenizer=places["chat"]))
    return tmp_path


def warnings_of(home: Path, layer: int, pair: object = None) -> list[str]:
    recipe = parse_recipe(json.dumps(RECIPE | {"layer": layer, "pair": pair or {"name": "p"}}))
    assert isinstance(recipe, CrosscoderRecipe)
    return [each for each in check(recipe, home).warnings if "look" in each]


def test_a_layer_that_carries_little_is_warned_of(home: Path) -> None:
    (warning,) = warnings_of(home, 0)
    assert "layer 0 carries little of what differs between the models: by the look 'p'" in warning
    assert "takes 3% ± 1% of the difference away" in warning
    assert "brings 12% ± 1% of it; at layer 2, which it recommends, 82% ± 1% and 71% ± 1%" in warning
    assert warnings_of(home, 2) == warnings_of(home, 3) == []
    folder = home / "pairs" / "p"
    same = {"name": "another-name", "base": str(folder / "base"), "chat": str(folder / "chat")}
    assert len(warnings_of(home, 1, same)) == 1


def test_a_look_of_other_models_says_nothing(home: Path) -> None:
    folder = home / "pairs" / "p"
    swapped = {"name": "p", "base": str(folder / "chat"), "chat": str(folder / "base")}
    assert warnings_of(home, 0, swapped) == []
    revised = {"name": "p", "base": "owner/base", "chat": "owner/chat", "revision_chat": "v2"}
    assert warnings_of(home, 0, revised) == []


def test_a_look_that_is_older_than_the_models_is_not_believed(home: Path) -> None:
    late = 10**10
    os.utime(home / "pairs" / "p" / "chat" / "model.safetensors", (late, late))
    assert warnings_of(home, 0) == [
        "the look 'p' is older than the pair's models, so it says nothing about layer: look again"
    ]


def test_the_nearest_swept_layer_is_named(home: Path) -> None:
    manifest = write_look(home, "p")
    places = {name: str(home / "pairs" / "p" / name) for name in ("base", "chat")}
    pair = replace(manifest.pair, **places)
    import pyarrow.parquet as pq

    layers = Path(look_folder(home, "p")) / "layers.parquet"
    table = pq.read_table(layers)
    pq.write_table(table.filter([False, True, True, True]), layers)
    hashes = {name: value for name, value in manifest.hashes.items() if name != "layers.parquet"}
    from crosscope_proto.manifest import manifest_text

    (Path(look_folder(home, "p")) / MANIFEST).write_text(manifest_text(replace(manifest, pair=pair, hashes=hashes)))
    assert "brings 30% ± 1% of it (of layer 1, the nearest that was swept)" in warnings_of(home, 0)[0]


def test_the_recipe_of_a_look_is_checked(home: Path) -> None:
    look = {"kind": "look", "name": "p", "pair": {"name": "p"}, "data": RECIPE["data"]}
    (home / "web.jsonl").write_text('{"text": "one text is enough"}\n')
    found = check(parse_recipe(json.dumps(look)), home)
    assert found.violations == []
    (home / "web.jsonl").write_text('{"body": "no text"}\n')
    assert [each.field for each in check(parse_recipe(json.dumps(look)), home).violations] == ["data.0.text_column"]
