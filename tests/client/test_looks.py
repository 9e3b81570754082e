"""Looks through the SDK and the command line, from the real server; latents of findings from a scripted worker."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import yaml
from fixtures_looks import write_look
from fixtures_snippets import run_snippet

from crosscope import Client, InvalidInput, NotFound, TokenRole
from crosscope.cli import run
from crosscope.cli.look_recipe import look_recipe
from crosscope_proto.recipe import parse_recipe
from crosscope_proto.v1 import latents_pb2
from tests.client.conftest import ScriptedLatents, running_server
from tests.client.scripted_effects import ScriptedEffects
from tests.client.test_documented import BLOCKS, ROOT, OneJob


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("looks")
    write_look(home, "one")
    write_look(
        home, "older", created_at=5.0, recommended_layer=None, layers=(), reason="No layer is recommended: none."
    )
    (home / "looks" / "torn").mkdir()
    with running_server(home) as running:
        yield running


@pytest.fixture
def cli(address: str, monkeypatch, capsys):
    monkeypatch.setenv("CROSSCOPE_ADDRESS", address)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_look_is_read_as_typed_results(address: str) -> None:
    with Client(address) as client:
        one, older, torn = client.looks()
        look = client.look("one")
        with pytest.raises(NotFound, match="there are older, one, torn"):
            client.look("two")
    assert (one.name, older.name, torn.name) == ("one", "older", "torn")
    assert "look again" in torn.broken
    assert older.recommended_layer is None
    assert (one.mean_kl.value, one.mean_kl.se, one.recipe["kind"]) == (2.0, 0.5, "look")
    assert look.recommended_layer == 2
    assert look.recipe_line == "layer: 2"
    assert [(each.layer, round(each.share_base.value, 2)) for each in look.layers][2] == (2, 0.71)
    strongest = look.findings[0]
    assert (strongest.piece, strongest.role, strongest.kl, strongest.text.place) == ("e", "user", 8.0, "a:3")
    assert [each.piece for each in strongest.chat] == ["Sorry", " I"]
    assert [each.place for each in look.conversations] == ["a:3", "a:1"]
    assert look.conversations[0].kl[1] == 8.0
    assert look.continuations[0].prompt.roles[1] is TokenRole.USER
    assert look.first[0].tokens_chat == (" help", " sorry")


def test_a_look_prints_well(address: str) -> None:
    with Client(address) as client:
        look = client.look("one")
    text = str(look)
    for part in ("what the streams carry, on 3 findings of 3 texts", "2 ←", "82% ± 1%", "Sorry 90%", "layer: 2"):
        assert part in text
    assert "2 texts of chat were left out" in text
    assert "1 more tokens differ as much" in text
    assert "not measured, logit_lens_base: it has none" in text
    (findings,) = [rows for title, _, rows in look.sections if title == "tokens that differ most"]
    assert [row[:3] for row in findings] == [("8", "1", "e"), ("2", "1", "b"), ("1", "1", "d")]
    page = look._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "KL 8 nats" in look.conversations[0]._repr_html_()
    frame = look.to_pandas()
    assert list(frame["kl"]) == [8.0, 2.0, 1.0]
    assert list(frame["chat_next"]) == ["Sorry"] * 3


def test_the_command_line_lists_and_shows_looks(cli) -> None:
    code, out, err = cli("look")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["look", "one", "older"]
    assert "torn is broken" in err
    code, out, _ = cli("look", "--show", "one")
    assert code == 0
    assert out.splitlines()[-1] == "layer: 2"
    code, out, _ = cli("look", "--show", "one", "--json")
    document = json.loads(out)
    assert document["findings"][0]["token_ids"] == [2, 3]
    assert document["layers"][2]["share_chat"]["value"] == pytest.approx(0.82)
    assert document["info"]["recommended_layer"] == 2
    assert cli("look", "p", "--show", "one")[0] == 2
    code, _, err = cli("look", "p")
    assert code == 2
    assert "give data" in err


def test_the_documented_calls_are_those_that_there_are(address: str, serve, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    with Client(address) as client, Client(serve(OneJob()).address) as jobs:
        names = {"client": SimpleNamespace(jobs=jobs.jobs, look=lambda _: client.look("one"))}
        [block] = [each for each in BLOCKS if "client.look(" in each]
        run_snippet(block, names)
    assert "layer: 2" in capsys.readouterr().out


class OfThePair(ScriptedLatents):
    """A crosscoder of the look's models, and one of others."""

    def GetCrosscoder(self, request: latents_pb2.GetCrosscoderRequest, context: grpc.ServicerContext):
        chat = "/models/chat" if request.crosscoder == "demo" else "/models/other"
        names = {"name": request.crosscoder, "pair": "p", "version_id": "v1"}
        card = latents_pb2.Crosscoder(**names, base_model="/models/base", chat_model=chat)
        return latents_pb2.GetCrosscoderResponse(crosscoder=card)


def test_findings_are_explained_by_a_crosscoder_of_the_pair(address: str, serve) -> None:
    effects = ScriptedEffects()
    with Client(address) as client:
        look = client.look("one")
    with Client(serve(OfThePair(), effects).address) as asking:
        explained = look.explain(asking.crosscoder("demo"), limit=2)
        with pytest.raises(InvalidInput, match="other models than the look 'one'"):
            look.explain(asking.crosscoder("other"))
    assert len(explained) == 2
    # The last question: the second finding, at the tokens as they were read.
    assert list(effects.last.prompt.token_ids.ids) == [2, 3, 4]
    assert list(effects.last.tokens) == [2]
    assert explained[0].finding is look.findings[0]
    assert [entry.latent for entry in explained[0].latents] == [9, 7, 8]
    assert explained.rows()[0][4:] == ("95% / 90%", "9: 88% / –, 7: −12% / 75%, 8: 25% / −25%")
    assert "do not add up" in str(explained)
    assert len(explained.to_pandas()) == 6


def test_a_recipe_is_made_of_a_pair_and_files(tmp_path: Path) -> None:
    (tmp_path / "Chats.jsonl").write_text('{"conversation": [{"role": "user", "content": "hi"}]}\n')
    (tmp_path / "web.jsonl").write_text('{"id": 1, "text": "a document"}\n')
    (tmp_path / "share.jsonl").write_text('{"conversations": [{"from": "human", "value": "hi"}]}\n')
    files = [str(tmp_path / name) for name in ("Chats.jsonl", "web.jsonl", "share.jsonl")]
    recipe = parse_recipe(yaml.safe_dump(look_recipe("demo", files, {})))
    chats, web, share = recipe.data
    assert (recipe.kind, recipe.name, recipe.pair.name) == ("look", "demo", "demo")
    assert (chats.name, chats.chat_column, chats.path) == ("chats", "conversation", files[0])
    assert web.text_column == "text"
    assert (share.chat_column, share.format) == ("conversations", "sharegpt")


def test_a_recipe_is_made_of_another_recipe() -> None:
    demo = str(Path(__file__).parents[2] / "recipes" / "demo.yaml")
    for recipe in (look_recipe(demo, (), {}), look_recipe("demo", (demo,), {})):
        parsed = parse_recipe(yaml.safe_dump(recipe))
        assert [each.name for each in parsed.data] == ["web", "chat"]
        assert parsed.tokens.max_length == 128
        assert parsed.name == "demo"
    own = str(Path(__file__).parents[2] / "recipes" / "demo-look.yaml")
    assert look_recipe(own, (), {})["max_tokens"] == 30000


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "first line is no JSON"),
        ("[1]", "first line is no JSON object"),
        ('{"a": 1}', r"there: a\); give --text-column"),
    ],
)
def test_files_without_texts_are_refused(tmp_path: Path, content: str, sentence: str) -> None:
    import click

    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(click.UsageError, match=sentence):
        look_recipe("demo", [str(tmp_path / "x.jsonl")], {})
    with pytest.raises(click.UsageError, match="there is no file"):
        look_recipe("demo", [str(tmp_path / "y.jsonl")], {})
    with pytest.raises(click.UsageError, match="neither the name of a pair nor"):
        look_recipe("De mo", [str(tmp_path / "x.jsonl")], {})
