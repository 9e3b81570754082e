"""Copied conversations become turns, and nothing is left out without a word."""

import json

import pytest

from crosscope import InvalidInput, turns_from_text

TURNS = [{"role": "user", "content": "Why  so?\n"}, {"role": "assistant", "content": "Because User: said\nit."}]
LLAMA = "".join(f"<|start_header_id|>{t['role']}<|end_header_id|>\n\n{t['content']}<|eot_id|>" for t in TURNS)
CHATML = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in TURNS)
GEMMA = (
    CHATML.replace("<|im_start|>", "<start_of_turn>")
    .replace("<|im_end|>", "<end_of_turn>")
    .replace("assistant", "model")
)


@pytest.mark.parametrize(
    ("text", "style"),
    [
        (LLAMA, "Llama 3 headers"),
        (LLAMA.replace("<|eot_id|>", "<eot>"), "Llama 3 headers"),
        (CHATML, "ChatML"),
        (GEMMA, "Gemma's turns"),
        (json.dumps(TURNS), "JSON messages"),
        (json.dumps({"messages": TURNS}), "JSON messages"),
    ],
)
def test_every_format_gives_the_same_turns_to_the_letter(text: str, style: str) -> None:
    found = turns_from_text(text)
    assert (found.messages, found.format, found.add_generation_prompt, found.dropped) == (TURNS, style, False, ())


def test_lines_with_speakers() -> None:
    found = turns_from_text("Human: one\n\ntwo\nAssistant: three <eot>\nuser:\nfour\nAI:")
    assert [(turn["role"], turn["content"]) for turn in found.messages] == [
        ("user", "one\n\ntwo"),
        ("assistant", "three"),
        ("user", "four"),
    ]
    assert found.add_generation_prompt


def test_a_turn_of_the_assistant_without_an_end_goes_on_and_an_empty_one_is_its_header() -> None:
    begun = turns_from_text(CHATML.removesuffix("<|im_end|>\n"))
    assert begun.messages[-1] == {**TURNS[1], "prefix": True}
    asked = turns_from_text(GEMMA + "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n")
    assert (asked.add_generation_prompt, len(asked.messages)) == (True, 3)
    cut = turns_from_text("<|im_start|>user\nhi")
    assert (cut.messages, cut.dropped) == ([{"role": "user", "content": "hi"}], ("Turn 1 has no mark at its end.",))


def test_what_is_in_no_turn_is_said() -> None:
    found = turns_from_text("<|begin_of_text|>" + LLAMA + " and so on")
    assert found.messages == TURNS
    assert found.dropped == (
        "Left out before the first turn: “<|begin_of_text|>”.",
        "Left out behind turn 2: “and so on”.",
    )
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
    said = {"model": "m", "messages": [{"role": "user", "content": parts, "id": 7}]}
    found = turns_from_text(json.dumps(said))
    assert found.messages == [{"role": "user", "content": "ab"}]
    assert found.dropped == (
        "Left out beside the messages: model.",
        "Left out of turn 1: id.",
        "Left out 1 parts of turn 1 that are no text.",
    )
    shared = turns_from_text('{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}')
    assert [turn["role"] for turn in shared.messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("just a text", "no turns that can be recognised"),
        ("Dear reader,\nUser: is a word", "no turns that can be recognised"),
        ("<|im_start|>wizard\nhi<|im_end|>", "turn 1 has the role 'wizard'"),
        ('{"text": 1}', "without messages"),
        ('[{"role": "user", "content": 3}]', "content of turn 1 is int"),
        ("<start_of_turn>model\n", "header alone"),
        ("[1, 2]", "no list of"),
    ],
)
def test_what_holds_no_turns_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        turns_from_text(text)
