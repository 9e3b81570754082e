import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosscope import InvalidInput, TokenRole, Tokens
from crosscope._prompts import build_any, build_prompt, check_count, check_text


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
def test_texts_that_cannot_be_sent_are_refused(value: object, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        check_text(value, "text")
    assert caught.value.violations[0].field == "text"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_texts_that_can_be_sent_pass_unchanged(text: str) -> None:
    assert check_text(text, "text") is text


@pytest.mark.parametrize("value", [-1, 2**32, 1.5, "7", True, None])
def test_counts_that_do_not_fit(value: object) -> None:
    with pytest.raises(InvalidInput, match="limit"):
        check_count(value, "limit")


def test_text_and_messages() -> None:
    assert build_prompt("hi").text == "hi"
    said = [{"role": "user", "content": ""}]
    prompt = build_prompt(None, said, add_generation_prompt=True, parse_control_tokens=True)
    assert [(turn.role, turn.content) for turn in prompt.conversation.turns] == [("user", "")]
    assert prompt.conversation.add_generation_prompt
    assert prompt.parse_control_tokens


HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({}, "prompt"),
        ({"text": "hi", "messages": HI}, "prompt"),
        ({"messages": HI, "turns": HI}, "prompt"),
        ({"text": ""}, "text"),
        ({"text": "hi", "stored_text": 0}, "prompt"),
        ({"stored_text": -1}, "stored_text"),
        ({"stored_text": "12"}, "stored_text"),
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": "2 17"}, "token_ids"),
        ({"token_ids": [2, -1]}, "token_ids[1]"),
        ({"token_ids": [2, 2**32]}, "token_ids[1]"),
        ({"token_ids": [2], "parse_control_tokens": True}, "parse_control_tokens"),
        ({"stored_text": 0, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"stored_text": 0, "chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
        *(
            ({word: value}, field.replace("messages", word))
            for word in ("messages", "turns")
            for value, field in [
                ([], "messages"),
                ("hi", "messages"),
                (HI[0], "messages"),
                ([{"role": "user"}], "messages[0]"),
                ([{"role": "user", "content": "hi", "weight": 1}], "messages[0]"),
                ([*HI, "hi"], "messages[1]"),
                ([{"role": "user", "content": None}], "messages[0].content"),
                ([{"role": "user", "content": "\ud83d"}], "messages[0].content"),
            ]
        ),
    ],
)
def test_refusals_name_the_argument_that_was_used(given: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        build_prompt(**({"text": None} | given))  # pyright: ignore[reportArgumentType]
    assert [violation.field for violation in caught.value.violations] == [field]


def test_tokens_bring_their_roles_and_ids_have_none() -> None:
    tokens = Tokens((2, 17), ("<bos>", "a"), (TokenRole.BOS, TokenRole.USER))
    sent = build_prompt(None, token_ids=tokens).token_ids
    assert (list(sent.ids), list(sent.roles)) == ([2, 17], [TokenRole.BOS, TokenRole.USER])
    sent = build_prompt(None, token_ids=range(3)).token_ids
    assert (list(sent.ids), list(sent.roles)) == ([0, 1, 2], [])


def test_one_prompt_of_many_is_told_by_its_type_or_its_name() -> None:
    flags = {"add_generation_prompt": True, "parse_control_tokens": True, "chat_template_kwargs": {"tools": []}}
    tokens = Tokens((2,), ("a",), (TokenRole.TEXT,))
    for prompt, same in (
        ("hi", build_prompt("hi", parse_control_tokens=True)),
        ({"text": "hi"}, build_prompt("hi", parse_control_tokens=True)),
        (HI, build_prompt(None, HI, **flags)),  # pyright: ignore[reportArgumentType]
        ({"messages": HI}, build_prompt(None, HI, **flags)),  # pyright: ignore[reportArgumentType]
        (tokens, build_prompt(None, token_ids=tokens)),
        ({"token_ids": [2, 17]}, build_prompt(None, token_ids=[2, 17])),
        ({"stored_text": 0}, build_prompt(None, stored_text=0)),
    ):
        assert build_any(prompt, **flags) == same  # pyright: ignore[reportArgumentType]
    for wrong in (7, {"stored": 1}, {"stored_text": 1, "text": "hi"}):
        with pytest.raises(InvalidInput, match="messages"):
            build_any(wrong)


def test_the_former_word_is_the_same_prompt() -> None:
    assert build_prompt(None, turns=HI) == build_prompt(None, messages=HI)


def test_generation_prompt_needs_messages() -> None:
    with pytest.raises(InvalidInput, match="goes with messages"):
        build_prompt("hi", add_generation_prompt=True)


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
    with pytest.raises(InvalidInput, match="go with messages"):
        build_prompt("a", None, chat_template_kwargs={"tools": []})
