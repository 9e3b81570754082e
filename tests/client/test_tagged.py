import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from crosscope import InvalidInput, tagged_sets
from crosscope.cli import run

from .conftest import ScriptedLatents
from .scripted_effects import ScriptedEffects


def row(*said: str, tags: object = ()) -> dict[str, Any]:
    """A conversation, the user first, and its tags."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(said)]
    return {"messages": messages, "behaviours": tags}


def refusal(turn: int) -> dict[str, Any]:
    return {"behaviour": "refusal", "turn": turn, "start": 0, "end": 2}


def contents(prompts: tuple[list[dict[str, Any]], ...]) -> set[tuple[str, ...]]:
    return {tuple(message["content"] for message in prompt) for prompt in prompts}


ROWS = [
    row("harm", "no", "ok", "yes", tags=[refusal(1)]),
    row("hi", "hello", "bad", "never", tags=[refusal(3), {"behaviour": "greeting", "turn": 1}]),
    row("soup", "boil", tags=[]),
    row("tea", "brew", tags=["greeting"]),
    row("tea", "brew it", tags=None),
    row("harm", "sure"),
    row("alone"),
]


def test_prompts_end_where_the_answer_begins_or_ends(tmp_path: Path) -> None:
    sets = tagged_sets(ROWS, "refusal")
    assert contents(sets.first) == {("hi", "hello", "bad")}
    assert contents(sets.second) == {("soup",), ("tea",)}
    assert (sets.num_tagged, sets.num_untagged, sets.num_without_answer) == (2, 4, 1)
    assert (sets.num_shared, sets.num_repeats) == (1, 1), "harm is asked in both, tea twice"
    assert sets.add_generation_prompt
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in ROWS))
    assert tagged_sets(path, "refusal") == sets
    whole = tagged_sets(str(path), "refusal", upto="answer")
    assert contents(whole.first) == {("harm", "no"), ("hi", "hello", "bad", "never")}
    assert (whole.num_shared, whole.add_generation_prompt) == (0, False)
    said = "2 conversations with 'refusal', 4 without; 1 and 2 different prompts are compared; 1 are in both sets"
    assert str(sets).startswith(said)


def test_a_name_alone_is_about_the_last_answer() -> None:
    rows = [row("a", "b", "c", "d", tags=["kind"]), row("e", "f", tags=[])]
    assert contents(tagged_sets(rows, "kind").first) == {("a", "b", "c")}


def test_large_sets_are_drawn_by_seed() -> None:
    rows = [row(f"q{i}", "a", tags=["x"] if i % 2 else []) for i in range(60)]
    drawn = [tagged_sets(rows, "x", per_set=7, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert contents(drawn[0].first) != contents(drawn[2].first)
    assert [len(drawn[0].first), len(drawn[0].second), drawn[0].num_tagged] == [7, 7, 30]


def test_the_command_makes_sets_of_files_or_of_tags(serve, tmp_path: Path, monkeypatch, capsys) -> None:
    scripted = ScriptedEffects()
    monkeypatch.setenv("CROSSCOPE_ADDRESS", serve(ScriptedLatents(), scripted).address)
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in ROWS))
    tagged = ("contrast", "demo", "--data", str(data), "--tag", "refusal")
    assert run(list(tagged)) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("2 conversations with 'refusal', 4 without")
    assert "decision: held-out AUC 0.9" in captured.out
    asked: Any = scripted.last
    assert [turn.content for turn in asked.first[0].conversation.turns] == ["hi", "hello", "bad"]
    assert asked.first[0].conversation.add_generation_prompt
    assert run([*tagged, "--with-answer"]) == 0
    asked = scripted.last
    assert {each.conversation.turns[-1].content for each in asked.first} == {"no", "never"}
    assert not asked.first[0].conversation.add_generation_prompt
    for wrong in (tagged[:4], (*tagged, str(data), str(data)), (*tagged[:2], str(data)), tagged[:2]):
        assert run(list(wrong)) == 2
        assert "--data FILE and --tag TAG" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "tag", "says"),
    [
        (ROWS, "sarcasm", "no conversation has 'sarcasm'; tags are greeting, refusal"),
        ([{"text": "a"}], "x", "row 0: there is no messages or conversation or conversations; there are text"),
        ([{"messages": []}], "x", "row 0: there is no behaviours; there are messages"),
        ([{"messages": "hi", "behaviours": []}], "x", "row 0: messages must be a list of messages"),
        ([row("a", "b", tags=[{"behaviour": "x", "turn": 0}])], "x", "row 0: behaviours holds"),
        ([row("a", "b", tags=[{"behaviour": "x", "turn": 9}])], "x", "an assistant message"),
        ([row("a", "b", tags=[3])], "x", "needs a name"),
        ([["a"]], "x", "row 0: an object is needed, not list"),
    ],
)
def test_rows_that_cannot_be_read_are_named(rows: list[Mapping[str, Any]], tag: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        tagged_sets(rows, tag)


def test_files_and_arguments_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl").write_text('{"messages": [\n')
    with pytest.raises(InvalidInput, match="not JSON"):
        tagged_sets(tmp_path / "cut.jsonl", "x")
    with pytest.raises(InvalidInput, match="cannot be read: No such file"):
        tagged_sets(tmp_path / "none.jsonl", "x")
    with pytest.raises(InvalidInput, match="must be 1 to 500, but is 501"):
        tagged_sets(ROWS, "refusal", per_set=501)
    with pytest.raises(InvalidInput, match="neither decision nor answer"):
        tagged_sets(ROWS, "refusal", upto="end")  # pyright: ignore[reportArgumentType]
