"""Roles, spans and refusals under templates that strip, split, move, drop and escape what is said."""

import datetime
import json
from itertools import groupby
from typing import Any

import fixtures_templates as templates
import pytest
from fixtures_tokenizers import tokenizer_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crosscope_proto.roles import TokenRole
from crosscope_worker.tokenizer.chat_template import messages_of
from crosscope_worker.tokenizer.tokens import PromptError, TemplateSettings, TextTokenizer, TokenisedText, Turn

BOS, H, E = TokenRole.BOS, TokenRole.HEADER, TokenRole.TURN_END
S, U, A, R, T = TokenRole.SYSTEM, TokenRole.USER, TokenRole.ASSISTANT, TokenRole.REASONING, TokenRole.TOOL


def tokenizer_with(template: str, settings: TemplateSettings | None = None) -> TextTokenizer:
    tokenizer = tokenizer_of("characters", "nothing", template)
    return TextTokenizer(tokenizer, settings)


def runs(tokenizer: TextTokenizer, text: TokenisedText) -> list[tuple[TokenRole, str]]:
    """(role, text) of each run of tokens of one role."""
    pairs = zip(text.roles.tolist(), tokenizer.pieces(text.ids), strict=True)
    return [(TokenRole(role), "".join(piece for _, piece in run)) for role, run in groupby(pairs, lambda pair: pair[0])]


def said(template: str, *turns: Turn, prompt: bool = False, **kwargs: Any) -> list[tuple[TokenRole, str]]:
    """Runs of a conversation, whose ids are checked against the template's."""
    tokenizer = tokenizer_with(template)
    found = tokenizer.conversation(turns, prompt, template_kwargs=kwargs)
    own = tokenizer_of("characters", "nothing", template).apply_chat_template(
        messages_of(turns, lambda _, __, text: text), add_generation_prompt=prompt, return_dict=False, **kwargs
    )
    assert found.ids.tolist() == own
    return runs(tokenizer, found)


ASK, ANSWER = Turn("user", " Why is it red?\n"), Turn("assistant", "It is a fox.")


def test_chatml() -> None:
    assert said(templates.CHATML, Turn("developer", "be kind"), ASK, ANSWER, Turn("system", "stop"), prompt=True) == [
        (H, "<|im_start|>developer\n"),
        (S, "be kind"),
        (E, "<|im_end|>\n"),
        (H, "<|im_start|>user\n"),
        (U, " Why is it red?\n"),
        (E, "<|im_end|>\n"),
        (H, "<|im_start|>assistant\n"),
        (A, "It is a fox."),
        (E, "<|im_end|>\n"),
        (H, "<|im_start|>system\n"),
        (S, "stop"),
        (E, "<|im_end|>\n"),
        (H, "<|im_start|>assistant\n"),
    ]


def test_gemma() -> None:
    assert said(templates.GEMMA, ASK, ANSWER)[:4] == [
        (BOS, "<s>"),
        (H, "<start_of_turn>user\n"),
        (U, "Why is it red?"),
        (E, "<end_of_turn>\n"),
    ]
    with pytest.raises(PromptError, match=r"turn 0: .*takes no system turn here \(No system role here\)"):
        said(templates.GEMMA, Turn("system", "a"), ASK)
    with pytest.raises(PromptError, match=r"turn 1: .*refuses a user turn here.*must be assistant"):
        said(templates.GEMMA, ASK, ASK)


def test_every_bos_that_llama_2_prints_has_its_role() -> None:
    assert said(templates.LLAMA_2, Turn("system", "be kind"), ASK, ANSWER, Turn("user", "the fox")) == [
        (BOS, "<s>"),
        (H, "[INST] <<SYS>>\n"),
        (S, "be kind"),
        (H, "\n<</SYS>>\n\n"),
        (U, " Why is it red?"),
        (H, " [/INST] "),
        (A, "It is a fox."),
        (E, " </s>"),
        (BOS, "<s>"),
        (H, "[INST] "),
        (U, "the fox"),
        (H, " [/INST]"),
    ]


def test_a_typed_bos_counts_only_if_it_is_parsed() -> None:
    tokenizer = tokenizer_with(templates.LLAMA_2)
    typed = [Turn("user", "one <s> fox")]
    assert (tokenizer.conversation(typed).roles == BOS).sum() == 1
    assert (tokenizer.conversation(typed, parse_control_tokens=True).roles == BOS).sum() == 2
    padded = tokenizer.text("a<pad>b", parse_control_tokens=True)
    assert runs(tokenizer, padded) == [
        (BOS, "<s>"),
        (TokenRole.TEXT, "a"),
        (TokenRole.PAD, "<pad>"),
        (TokenRole.TEXT, "b"),
    ]


TWO = [ASK, Turn("assistant", "<think>\nA fox?\n</think>\n\nIt is."), Turn("user", "No.")]


def test_qwen_3_drops_the_reasoning_of_earlier_turns() -> None:
    last = Turn("assistant", "<think>\nHmm.\n\nRed.\n</think>\n\nA fox.")
    expected = [
        (H, "<|im_start|>user\n"),
        (U, " Why is it red?\n"),
        (E, "<|im_end|>\n"),
        (H, "<|im_start|>assistant\n"),
        (A, "It is."),
        (E, "<|im_end|>\n"),
        (H, "<|im_start|>user\n"),
        (U, "No."),
        (E, "<|im_end|>\n"),
        (H, "<|im_start|>assistant\n"),
        (R, "<think>\nHmm.\n\nRed.\n</think>\n\n"),
        (A, "A fox."),
        (E, "<|im_end|>\n"),
    ]
    assert said(templates.QWEN_3, *TWO, last) == expected
    apart = Turn("assistant", "A fox.", reasoning="Hmm.\n\nRed.")
    assert said(templates.QWEN_3, *TWO, apart) == expected
    tokenizer = tokenizer_with(templates.QWEN_3)
    found = tokenizer.conversation([*TWO, last])
    assert found.dropped_reasoning == (1,)
    spans = ["".join(tokenizer.pieces(found.ids[low:high])) for low, high in found.content_spans]
    assert spans == [" Why is it red?\n", "It is.", "No.", "A fox."]
    low, high = found.token_span(3, last.content.index("fox"), len(last.content))
    assert "".join(tokenizer.pieces(found.ids[low:high])).strip() == "fox."
    low, high = found.token_span(3, last.content.index("Red"), last.content.index("\n</think>"))
    assert "".join(tokenizer.pieces(found.ids[low:high])).strip() == "Red."
    assert found.token_span(1, 0, 5) == (found.content_spans[1][0],) * 2


def test_qwen_3_without_thinking() -> None:
    assert said(templates.QWEN_3, ASK, prompt=True, enable_thinking=False)[-2:] == [
        (E, "<|im_end|>\n"),
        (H, "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ]
    # The template's own empty block is no reasoning.
    assert (R, "<think>\n\n</think>\n\n") not in said(templates.QWEN_3, ASK, ANSWER)


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": 'the "red" fox', "n": 3}}}


def test_qwen_3_with_tools() -> None:
    turns = [ASK, Turn("assistant", "", reasoning="Look.", tool_calls=(CALL,)), Turn("tool", "a fox\n{}"), ANSWER]
    tools = [{"type": "function", "function": {"name": "look", "description": "Looks </tools>."}}]
    found = said(templates.QWEN_3, *turns, tools=tools)
    assert found[0][0] == H
    assert found[1] == (E, "<|im_end|>\n")
    assert [run for run in found if run[0] in (R, A, T)] == [
        (R, "<think>\nLook.\n</think>\n\n"),
        (A, 'look", "arguments": {"at": "the \\"red\\" fox", "n": 3}}\n</tool_call>'),
        (T, "a fox\n{}"),
        (A, "It is a fox."),
    ]


def test_deepseek_drops_all_reasoning() -> None:
    last = Turn("assistant", "Hmm.\n</think>\n\nA fox.")
    user, assistant = "<|User|>", "<|Assistant|>"
    found = said(templates.DEEPSEEK_R1, Turn("system", "kind"), *TWO, last)
    assert found == [
        (BOS, "<s>"),
        (S, "kind"),
        (H, user),
        (U, " Why is it red?\n"),
        (H, f"{assistant}\n\n"),
        (A, "It is."),
        (E, "</s>"),
        (H, user),
        (U, "No."),
        (H, f"{assistant}\n\n"),
        (A, "A fox."),
        (E, "</s>"),
    ]
    assert tokenizer_with(templates.DEEPSEEK_R1).conversation([*TWO, last]).dropped_reasoning == (1, 3)
    assert said(templates.DEEPSEEK_R1, ASK, prompt=True)[-1] == (H, f"{assistant}<think>\n")


def test_tools_as_json() -> None:
    answer = Turn("tool", '\tIt says: "red\n\\o/"\n', name="look", tool_call_id="a1")
    calls = (CALL, {"function": {"name": "look", "arguments": '{"at": "it"}'}})
    both = 'look", "arguments": {"at": "the \\"red\\" fox", "n": 3}}, {"name": "look", "arguments": '
    both += '"{\\"at\\": \\"it\\"}"}]'
    found = said(templates.TOOLS, ASK, Turn("assistant", "", tool_calls=calls), answer, ANSWER)
    assert [run for run in found if run[0] in (A, T)] == [
        (A, both),
        (T, '\\tIt says: \\"red\\n\\\\o/\\"\\n'),
        (A, "It is a fox."),
    ]


@pytest.mark.parametrize(
    ("template", "turns", "says"),
    [
        (templates.SHOUTING, [ASK], r"changes the text of turn 0 \(user\): where it says 'hy is.*, it prints 'HY IS"),
        (templates.CUTTING, [ANSWER], r"turn 0 \(assistant\): it does not print 'x.'"),
        (templates.CUTTING, [ASK, ANSWER], r"turn 0 \(user\): where it says ' red\?', it prints"),
        (templates.SILENT, [Turn("system", "be kind"), ASK], r"turn 0 \(system\): it does not print 'be kind'"),
        (templates.CHATML, [ASK, Turn("assistant", "", tool_calls=(CALL,))], "not print the tool calls of turn 1"),
        (templates.CHATML, [Turn("user", "a", reasoning="b")], r"turn 0 \(user\) has reasoning, which only an assist"),
        (templates.CHATML, [Turn("user", "a", tool_calls=(CALL,))], "has tool calls, which only an assistant"),
        (templates.CHATML + "{{ messages[0].content.x.y }}", [ASK], "refuses these messages: .*has no attribute 'x'"),
    ],
)
def test_a_changed_text_says_how(template: str, turns: list[Turn], says: str) -> None:
    with pytest.raises(PromptError, match=says):
        said(template, *turns)


def test_white_space_may_be_replaced() -> None:
    found = said(templates.SPLITTING, Turn("user", "a\nb c"), ANSWER)
    assert [run for run in found if run[0] == U] == [(U, "a"), (U, "b c")]


def test_words_that_a_template_looks_for_are_found() -> None:
    for content in ("/no_think", "Look /no_think fox", "fox /no_think"):
        found = said(templates.SWITCHED, Turn("user", content), ANSWER)
        assert found[:2] == [(H, "user: (quick) "), (U, content)]


def test_control_tokens_typed_in_calls_and_arguments_stay_text() -> None:
    call = {"function": {"name": "look", "arguments": {"<|im_end|>": "<s>"}}}
    turns = [Turn("user", "a<|im_end|>"), Turn("assistant", "b", reasoning="<s>", tool_calls=(call,))]
    tools = [{"name": "<|im_start|>"}]
    tokenizer = tokenizer_with(templates.QWEN_3)
    found = tokenizer.conversation(turns, template_kwargs={"tools": tools})
    end = tokenizer_of("characters", "nothing").convert_tokens_to_ids("<|im_end|>")
    assert (found.ids == end).sum() == 3
    assert (found.roles == BOS).sum() == 0
    assert "".join(tokenizer.pieces(found.ids)).count("<|im_end|>") == 5


def test_reserved_arguments_are_refused() -> None:
    with pytest.raises(PromptError, match="'tokenize' cannot be given to a chat template"):
        tokenizer_with(templates.CHATML).conversation([ASK], template_kwargs={"tokenize": True})
    with pytest.raises(PromptError, match="'tools' must be a list of objects"):
        tokenizer_with(templates.CHATML).conversation([ASK], template_kwargs={"tools": "x"})


WORDS = ["fox", " ", "\n", "a", "user", "assistant", "<think>", "</think>", "<tool_response>", '"', "\\", "<s>", "\t"]
contents = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map("".join)
contents = contents.filter(lambda text: any(word in text for word in ("fox", "a", "\\")))
ALL = [templates.CHATML, templates.GEMMA, templates.LLAMA_2, templates.LLAMA_3, templates.QWEN_3, templates.TOOLS]


@settings(max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(contents, min_size=1, max_size=4), st.sampled_from(ALL), st.booleans())
def test_every_content_is_found_where_it_is_printed(texts: list[str], template: str, parse: bool) -> None:
    turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    tokenizer = tokenizer_with(template)
    try:
        found = tokenizer.conversation(turns, parse_control_tokens=parse)
    except PromptError:
        if any("think>" in text for text in texts[1::2]):  # Qwen drops what stands in front of such a mark
            return
        raise
    if parse:
        messages = messages_of(turns, lambda _, __, text: text)
        own = tokenizer_of("characters", "nothing", template)
        assert found.ids.tolist() == own.apply_chat_template(messages, return_dict=False)
    for turn, text in enumerate(texts):
        if "think>" not in text and "<tool_response>" not in text and not (template == templates.TOOLS and turn % 2):
            low, high = found.content_spans[turn]
            assert "".join(tokenizer.pieces(found.ids[low:high])).strip() == text.strip()


def test_long_conversations_are_found_too() -> None:
    """They have more characters than there are private ones, and more white space than that at an end."""
    turns = [Turn("user", "ab " * 40_000), Turn("assistant", "\n" * 70_000 + "c <s>" * 10), Turn("user", "d" * 70_000)]
    tokenizer = tokenizer_with(templates.CHATML)
    found = tokenizer.conversation(turns)
    assert [high - low for low, high in found.content_spans] == [len(turn.content) for turn in turns]


DAY = TemplateSettings(date="2026-03-05")


def test_the_day_is_fixed() -> None:
    asked = [Turn("user", "When?")]
    tokenizer = tokenizer_with(templates.LLAMA_3, DAY)
    text = "".join(tokenizer.pieces(tokenizer.conversation(asked).ids))
    assert "Today is 05 Mar 2026.\n" in text
    today = datetime.datetime.now().strftime("%d %b %Y")
    plain = tokenizer_with(templates.LLAMA_3)
    assert f"Today is {today}." in "".join(plain.pieces(plain.conversation(asked).ids))
    other = plain.with_settings(TemplateSettings(date="1999-12-31"))
    assert "Today is 31 Dec 1999." in "".join(other.pieces(other.conversation(asked).ids))
    assert tokenizer.template.reads_date
    assert not tokenizer_with(templates.CHATML, DAY).template.reads_date


def test_the_clock_speaks_as_strftime_does() -> None:
    formats = ["%A, %-d. %B %Y (%j) %H:%M:%S", "100%% %d%%d %%%d", "%y%m%d %e %I%p %G-W%V-%u", "no day", ""]
    template = "\n{% for f in formats %}\n  {{ strftime_now(f) }}|{% endfor %}" + templates.CHATML
    tokenizer = tokenizer_with(template, DAY)
    plain = tokenizer_with(template.replace("strftime_now(f)", "f"))
    midnight = datetime.datetime(2026, 3, 5)
    found = tokenizer.conversation([ASK], template_kwargs={"formats": formats})
    expected = plain.conversation([ASK], template_kwargs={"formats": [midnight.strftime(each) for each in formats]})
    assert found.ids.tolist() == expected.ids.tolist()


def test_a_stated_day_is_the_date_string_too() -> None:
    def printed(recipe: dict[str, Any]) -> str:
        tokenizer = tokenizer_with(templates.LLAMA_3_1, TemplateSettings.of_recipe(recipe, "2026-03-05"))
        return "".join(tokenizer.pieces(tokenizer.conversation([Turn("user", "When?")]).ids))

    assert "Today is 26 Jul 2024." in printed({}), "a template with a day of its own prints that"
    assert "Today is 05 Mar 2026." in printed({"chat_template_date": "2026-03-05"})
    told = {"chat_template_date": "2026-03-05", "chat_template_kwargs": {"date_string": "now"}}
    assert "Today is now." in printed(json.loads(json.dumps(told)))


@pytest.mark.parametrize("template", [templates.CHATML, templates.GEMMA, templates.LLAMA_3])
def test_a_turn_that_the_assistant_has_begun_ends_where_its_text_ends(template: str) -> None:
    tokenizer = tokenizer_with(template)
    whole = tokenizer.conversation([ASK, ANSWER])
    begun = tokenizer.conversation([ASK, Turn("assistant", "It is a fox. ", prefix=True)])
    assert runs(tokenizer, begun)[-1] == (A, "It is a fox. ")
    assert runs(tokenizer, begun)[:-1] == runs(tokenizer, whole)[:-2]
    assert begun.content_spans[-1][1] == len(begun.ids)


@pytest.mark.parametrize(
    ("turns", "prompt"),
    [
        ([Turn("user", "hi", prefix=True)], False),
        ([Turn("assistant", "hi", prefix=True), ASK], False),
        ([ASK, Turn("assistant", "", reasoning="hm", prefix=True)], False),
        ([ASK, Turn("assistant", "hi", prefix=True)], True),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(turns: list[Turn], prompt: bool) -> None:
    with pytest.raises(PromptError, match=r"turn \d .*prefix"):
        tokenizer_with(templates.CHATML).conversation(turns, prompt)
