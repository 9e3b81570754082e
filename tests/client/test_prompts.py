import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosscope import InvalidInput
from crosscope._prompts import build_prompt, check_count, check_text


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"bytes", "decode them first"),
        (None, "NoneType was given"),
        (7, "int was given"),
        ("a\0b", "NUL character at position 1"),
        ("\0", "NUL character at position 0"),
        ("ab\ud800", r"lone surrogate U\+D800 at position 2"),
        ("\udfffé", r"lone surrogate U\+DFFF at position 0"),
    ],
)
def test_what_cannot_travel_is_refused(value: object, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        check_text(value, "text")
    assert caught.value.violations[0].field == "text"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_what_can_travel_passes_unchanged(text: str) -> None:
    assert check_text(text, "text") is text


@pytest.mark.parametrize("value", [-1, 2**32, 1.5, "7", True, None])
def test_counts_that_do_not_fit(value: object) -> None:
    with pytest.raises(InvalidInput, match="limit"):
        check_count(value, "limit")


def test_text_and_turns() -> None:
    assert build_prompt("hi", None).text == "hi"
    prompt = build_prompt(
        None, [{"role": "user", "content": ""}], add_generation_prompt=True, parse_control_tokens=True
    )
    assert [(turn.role, turn.content) for turn in prompt.conversation.turns] == [("user", "")]
    assert prompt.conversation.add_generation_prompt
    assert prompt.parse_control_tokens


@pytest.mark.parametrize(
    ("text", "turns", "field"),
    [
        (None, None, "prompt"),
        ("hi", [{"role": "user", "content": "hi"}], "prompt"),
        ("", None, "text"),
        (None, [], "turns"),
        (None, "hi", "turns"),
        (None, {"role": "user", "content": "hi"}, "turns"),
        (None, [{"role": "user"}], "turns[0]"),
        (None, [{"role": "user", "content": "hi", "weight": 1}], "turns[0]"),
        (None, [{"role": "user", "content": "hi"}, "hi"], "turns[1]"),
        (None, [{"role": "user", "content": None}], "turns[0].content"),
        (None, [{"role": "user", "content": "\ud83d"}], "turns[0].content"),
    ],
)
def test_prompts_that_are_none(text: str | None, turns: object, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        build_prompt(text, turns)  # pyright: ignore[reportArgumentType]
    assert [violation.field for violation in caught.value.violations] == [field]


def test_generation_prompt_needs_turns() -> None:
    with pytest.raises(InvalidInput, match="goes with turns"):
        build_prompt("hi", None, add_generation_prompt=True)


@pytest.mark.parametrize("flag", ["yes", 1, None])
def test_flags_are_true_or_false(flag: object) -> None:
    turns = [{"role": "user", "content": "hi"}]
    with pytest.raises(InvalidInput, match="parse_control_tokens: must be True or False"):
        build_prompt("hi", None, parse_control_tokens=flag)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidInput, match="add_generation_prompt: must be True or False"):
        build_prompt(None, turns, add_generation_prompt=flag)  # pyright: ignore[reportArgumentType]


def test_what_templates_read_beside_role_and_content() -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "é"}}}
    turns = [
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": "a fox", "name": "look", "tool_call_id": "a1"},
    ]
    conversation = build_prompt(None, turns, chat_template_kwargs={"tools": [call]}).conversation
    said, answer = conversation.turns
    assert (said.reasoning, json.loads(said.tool_calls_json)) == ("hm", [call])
    assert (answer.name, answer.tool_call_id) == ("look", "a1")
    assert json.loads(conversation.chat_template_kwargs_json) == {"tools": [call]}
    with pytest.raises(InvalidInput, match="must be what JSON can say"):
        build_prompt(None, turns, chat_template_kwargs={"tools": {1, 2}})
    with pytest.raises(InvalidInput, match="go with turns"):
        build_prompt("a", None, chat_template_kwargs={"tools": []})
