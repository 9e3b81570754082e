"""The prompt lab's prompt, on its way into URLs, calls and scripts."""

import ast
import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
from google.protobuf import json_format

from crosscope import Encoding, InvalidInput, Steer, TokenRole, Tokens, TopLatent, TopLatents, turns_from_text
from crosscope.app import differences, prompts, steering, text, two_prompts
from crosscope.app.prompts import LabPrompt, Turn
from crosscope_proto.v1 import prompts_pb2, types_pb2

HOSTILE = 'a "quote", \\ backslash,\n<script>, \u00e9 and {brace}'


@pytest.mark.parametrize(
    "prompt",
    [
        LabPrompt(),
        LabPrompt(text=HOSTILE),
        LabPrompt(turns=(Turn("system", "be brief"), Turn("user", HOSTILE)), add_generation_prompt=True),
        LabPrompt(
            turns=(Turn("developer", "be brief"), Turn("tool", "42")), template_options='{"enable_thinking": true}'
        ),
    ],
)
def test_prompt_survives_its_url(prompt: LabPrompt) -> None:
    params = {name: value for name, value in prompt.params().items() if value is not None}
    assert prompts.of_params(params) == prompt


@pytest.mark.parametrize("turns", ["[", "3", '"x"', '[["user"]]', '[["wizard","hi"]]', "[null]"])
def test_broken_turns_count_as_absent(turns: str) -> None:
    assert prompts.of_params({"turns": turns}) == LabPrompt()


def test_example_becomes_turns_without_template_tokens() -> None:
    header, end, user, assistant = TokenRole.HEADER, TokenRole.TURN_END, TokenRole.USER, TokenRole.ASSISTANT
    roles = (TokenRole.BOS, header, header, user, user, end, header, assistant, end, header)
    pieces = ("<bos>", "<s>", "user\n", "hello", " there", "<e>", "<s>", "hi", "<e>", "<s>")
    prompt = prompts.of_tokens(Tokens(tuple(range(10)), pieces, roles))
    assert prompt == LabPrompt(turns=(Turn("user", "hello there"), Turn("assistant", "hi")), add_generation_prompt=True)


def test_reasoning_stands_in_the_turn_that_it_was_printed_in() -> None:
    roles = (TokenRole.HEADER, TokenRole.REASONING, TokenRole.REASONING, TokenRole.ASSISTANT, TokenRole.TOOL)
    prompt = prompts.of_tokens(Tokens((0, 1, 2, 3, 4), ("<s>", "<think>so", "</think>\n", "yes", "42"), roles))
    assert prompt.turns == (Turn("assistant", "<think>so</think>\nyes"), Turn("tool", "42"))


def test_options_of_the_template_are_json_objects() -> None:
    prompt = LabPrompt(turns=(Turn("user", "hi"),), template_options='{"enable_thinking": false}')
    assert prompt.arguments()["chat_template_kwargs"] == {"enable_thinking": False}
    for wrong in ("{", "[1]", "3", "[" * 100_000):
        with pytest.raises(InvalidInput, match="template options"):
            replace(prompt, template_options=wrong).arguments()


def test_document_becomes_text() -> None:
    tokens = Tokens((0, 1, 2), ("<bos>", " a", " boat"), (TokenRole.BOS, TokenRole.TEXT, TokenRole.TEXT))
    assert prompts.of_tokens(tokens) == LabPrompt(text="a boat")


def test_script_is_python_and_says_the_same() -> None:
    prompt = LabPrompt(turns=(Turn("user", HOSTILE),))
    script = prompts.python_code(prompt, "localhost:50051", "demo", {"rank": "max", "limit": 5})
    calls = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)]
    top = next(call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "top_latents")
    given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in top.keywords}
    assert given == {**prompt.arguments(), "rank": "max", "limit": 5}


@pytest.mark.parametrize(
    "prompt",
    [
        LabPrompt(text=HOSTILE),
        LabPrompt(turns=(Turn("user", HOSTILE), Turn("assistant", "It's")), is_begun=True, template_options='{"a": 1}'),
    ],
)
def test_the_copied_command_sends_what_the_page_asks(prompt: LabPrompt) -> None:
    where = ["latent_class = chat_only", "verdict = supported"]
    ranking = {"rank": "share_of_max", "limit": 5, "skip_template_tokens": True, "max_frequency": 0.1, "where": where}
    command = shlex.split(prompts.grpcurl(prompts.request_json(prompt, "demo", {**ranking, "tokens": [1, 3]}), "h:1"))
    assert command[:3] == ["grpcurl", "-plaintext", "-d"]
    assert command[4:] == ["h:1", "crosscope.v1.Prompts/TopLatents"]
    request = json_format.Parse(command[3], prompts_pb2.TopLatentsRequest())
    given = prompt.arguments()
    turns = [{"role": t.role, "content": t.content} | ({"prefix": True} if t.prefix else {}) for t in _turns(request)]
    assert request.prompt.text == given.get("text", "")
    assert turns == given.get("messages", [])
    kwargs = request.prompt.conversation.chat_template_kwargs_json
    assert json.loads(kwargs or "{}") == given.get("chat_template_kwargs", {})
    assert (request.rank, request.limit, request.skip_template_tokens) == (prompts_pb2.RANK_SHARE_OF_MAX, 5, True)
    assert (request.max_frequency, request.token_start, request.token_end) == (0.1, 1, 3)
    assert [f"{each.column} = {each.text}" for each in request.filters] == where


def _turns(request: prompts_pb2.TopLatentsRequest) -> list[types_pb2.Turn]:
    return list(request.prompt.conversation.turns)


def test_a_begun_turn_is_gone_on_with() -> None:
    begun = LabPrompt(turns=(Turn("user", "hi"), Turn("assistant", "I am ")), is_begun=True)
    assert begun.arguments()["messages"][-1] == {"role": "assistant", "content": "I am ", "prefix": True}
    assert begun.to_answer() == begun
    assert begun.answered("here") == LabPrompt(turns=(Turn("user", "hi"), Turn("assistant", "I am here")))
    assert prompts.of_params({name: value for name, value in begun.params().items() if value}) == begun
    assert prompts.of_transcript(turns_from_text("<|im_start|>user\nhi<|im_end|><|im_start|>assistant\nI am ")) == begun
    assert prompts.second("User: a\nAssistant: b", begun).turns == (Turn("user", "a"), Turn("assistant", "b"))
    assert prompts.second("a", begun) == LabPrompt(turns=(Turn("user", "a"),))
    assert prompts.second("a", LabPrompt(text="x")) == LabPrompt(text="a")


def test_what_tells_two_prompts_apart_comes_by_the_size_of_the_difference() -> None:
    def top(*entries: tuple[int, float, float]) -> TopLatents:
        found = tuple(TopLatent(latent, most, most, total, 1, 0) for latent, most, total in entries)
        return TopLatents("demo", "v", "max", found, Tokens((), (), ()), len(found), False)

    first, second = top((3, 4.0, 5.0), (5, 1.0, 9.0)), top((5, 2.0, 2.0), (9, 3.5, 3.5))
    found = two_prompts.difference(first, second, "max")
    assert (found.ids.tolist(), (found.first - found.second).tolist()) == ([3, 9, 5], [4.0, -3.5, -1.0])
    assert two_prompts.difference(first, second, "sum").ids.tolist() == [5, 3, 9]


def test_tokens_are_coloured_by_the_latents_that_are_specific_to_chat() -> None:
    tokens = Tokens((1, 2, 3), ("a", "b", "c"), (TokenRole.TEXT,) * 3)
    rows, latents, values = np.array([0, 2, 2, 3]), np.array([0, 2, 1]), np.array([1.5, 2.0, 4.0], np.float32)
    code = Encoding("demo", "v", tokens, rows, latents, values, False, 1.0)
    chat, base, neither = 1.0, 2.0, 0.0  # numbers of the column specific_to
    assert differences.specificity(code, np.array([chat, base, neither])).tolist() == [1.5, 0.0, 0.0]
    assert differences.specificity(code, np.array([chat, chat, chat])).tolist() == [3.5, 0.0, 4.0]


def test_turns_are_replaced_appended_and_removed() -> None:
    one, two = Turn("user", "1"), Turn("assistant", "2")
    prompt = LabPrompt(turns=(one,)).with_turn(1, two)
    assert prompt.turns == (one, two)
    assert prompt.with_turn(0, None).turns == (two,)
    assert prompt.with_turn(1, one).turns == (one, one)


def test_turns_without_content_are_not_run_and_sentences_name_turns_as_the_page_does() -> None:
    prompt = LabPrompt(turns=(Turn("user", " "), Turn("user", "hi"), Turn("assistant", ""), Turn("user", "again")))
    assert [turn["content"] for turn in prompt.arguments()["messages"]] == ["hi", "again"]
    assert prompt.spoken == (1, 3)
    said = "turn 1: must be assistant; prompt.conversation.turns[0] is long; messages[1].content; turn 7"
    shown = "turn 4: must be assistant; turn 2 is long; turn 4.content; turn 7"
    assert prompts.as_on_page(said, prompt.spoken) == shown


def test_a_model_answers_what_the_assistant_has_not_answered() -> None:
    asked = LabPrompt(turns=(Turn("user", "hi"), Turn("user", "")))
    assert asked.to_answer().arguments()["add_generation_prompt"] is True
    answered = asked.answered("hello")
    assert answered.turns == (Turn("user", "hi"), Turn("assistant", "hello"))
    with pytest.raises(InvalidInput, match=r"turn 2.* is the assistant's already"):
        answered.to_answer()
    assert answered.question() == LabPrompt(turns=(Turn("user", "hi"),))
    assert LabPrompt(text="one").answered(" two") == LabPrompt(text="one two")
    assert LabPrompt(text="one").to_answer() == LabPrompt(text="one")


def test_a_change_is_edited_to_what_its_action_can_have() -> None:
    change = Steer(latent=7, add=4, row="other", reach="generated", roles=["user"])
    assert str(steering.altered(change, amount=2.5)) == "7 add 2.5 other generated user"
    assert str(steering.altered(change, action="scale")) == "7 scale 2 other generated user"
    assert str(steering.altered(change, action="transplant")) == "7 transplant generated user"
    assert str(steering.altered(change, latents=(1, 2))) == "1,2 add 4 other generated user"
    changes, problems = steering.read(["7 add 4", "7 fly 4"])
    assert [str(each) for each in changes] == ["7 add 4"]
    assert "fly" in problems[0]
    assert len(steering.arms([])) == 2
    assert [arm.name for arm in steering.arms(changes)][2:] == ["base, steered", "chat, steered"]
    for wrong in ("", "seven", "-1"):
        with pytest.raises(InvalidInput, match="no list of latents"):
            steering.latents_of(wrong)


def test_letters_that_run_to_the_left_do_not_turn_the_line_around() -> None:
    assert text.isolated("\u0633\u0644") == "\u2068\u0633\u0644\u2069"
    assert text.isolated("naïve") == "naïve"
