"""Ids are those of the tokenizer's own call and of `apply_chat_template`, for every kind of tokenizer."""

from typing import Any

import pytest
from fixtures_tokenizers import AROUND, CHATML, CONTROL, NAMES, TRIMMED, tokenizer_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from crosscope_proto.roles import TokenRole
from crosscope_worker.tokenizer.tokens import PromptError, TextTokenizer, TokenisedText, Turn

WORDS = ["About", " the", "fox", "\n", " ", "  ", "é", "▁", "12", "s", ">", "<s", "user", "\t", "\u00a0", "."]
texts = (
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=8)
    .map("".join)
    .filter(lambda text: not any(name in text for name in CONTROL))
)
typing = st.lists(st.sampled_from([*WORDS, *CONTROL]), min_size=1, max_size=8).map("".join)
few = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
kinds = pytest.mark.parametrize("kind", NAMES)
_made: dict[tuple[str, str, str], TextTokenizer] = {}


def made(kind: str, around: str, template: str = CHATML) -> tuple[TextTokenizer, PreTrainedTokenizerBase]:
    tokenizer = tokenizer_of(kind, around, template)
    key = kind, around, template
    if key not in _made:
        _made[key] = TextTokenizer(tokenizer)
    return _made[key], tokenizer


def ids_of(call: Any) -> list[int] | None:
    """None if no token is the text's own."""
    try:
        found: TokenisedText = call()
    except PromptError:
        return None
    return found.ids.tolist()


@kinds
def test_a_text_has_the_ids_of_the_tokenizers_own_call(kind: str) -> None:
    @few
    @given(texts, st.sampled_from([*AROUND]))
    def same(text: str, around: str) -> None:
        ours, tokenizer = made(kind, around)
        found = ids_of(lambda: ours.text(text))
        own = tokenizer(text)["input_ids"]
        assert found == own or (found is None and len(own) == len(tokenizer("")["input_ids"]))

    same()
    for around in AROUND:
        ours, tokenizer = made(kind, around)
        assert ours.text("About the fox").ids.tolist() == tokenizer("About the fox")["input_ids"]


@kinds
def test_a_conversation_has_the_ids_of_the_template(kind: str) -> None:
    @few
    @given(st.lists(texts.filter(str.strip), min_size=1, max_size=3), st.booleans(), st.sampled_from([CHATML, TRIMMED]))
    def same(contents: list[str], prompt: bool, template: str) -> None:
        ours, tokenizer = made(kind, "bos", template)
        turns = [Turn(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        own = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        found = ours.conversation(turns, prompt)
        assert found.ids.tolist() == own
        assert found.roles.tolist() == ours.conversation(turns, prompt, parse_control_tokens=True).roles.tolist()

    same()


@kinds
def test_typed_control_tokens_are_text_like_any_other(kind: str) -> None:
    """A typed name gives the tokens of a tokenizer without that control token."""
    ours, tokenizer = made(kind, "bos and eos")
    special = {tokenizer.convert_tokens_to_ids(name) for name in CONTROL if name != "<unk>"}
    frame = ours.conversation([Turn("user", "fox")])
    header = [int(id_) for id_ in frame.ids if int(id_) in special]

    @few
    @given(typing.filter(str.strip))
    def stays_text(text: str) -> None:
        found = ours.conversation([Turn("user", text)])
        assert [int(id_) for id_ in found.ids if int(id_) in special] == header
        assert (found.roles == TokenRole.BOS).sum() == (frame.roles == TokenRole.BOS).sum()
        low, high = found.content_spans[0]
        assert set(found.roles[low:high].tolist()) == {TokenRole.USER}
        if (plain := ids_of(lambda: ours.text(text))) is not None:
            assert sum(id_ in special for id_ in plain) == sum(id_ in special for id_ in ours.text("fox").ids.tolist())

    stays_text()


def test_spaces_beside_a_typed_control_token_are_those_of_the_text() -> None:
    ours, tokenizer = made("llama", "bos")
    pieces = tokenizer.convert_ids_to_tokens(ours.conversation([Turn("user", "fox <s>fox")]).ids.tolist())
    ((low, high),) = ours.conversation([Turn("user", "fox <s>fox")]).content_spans
    assert "".join(pieces[low:high]) == "fox▁<s>fox"


def test_what_a_tokenizer_puts_around_a_text_has_roles() -> None:
    ours, _ = made("unigram first", "bos and eos")
    found = ours.text("About the fox")
    assert found.roles[0] == TokenRole.BOS
    assert found.roles[-1] == TokenRole.TURN_END
    assert set(found.roles[1:-1].tolist()) == {TokenRole.TEXT}
    assert found.content_spans == ((1, len(found.ids) - 1),)
    assert found.token_span(0, 0, 5)[0] == 1


def test_a_bos_that_only_the_template_prints_stands_before_texts_too() -> None:
    ours, tokenizer = made("byte-fallback first", "nothing", TRIMMED)
    assert ours.text("About").ids.tolist() == [tokenizer.bos_token_id, *tokenizer("About")["input_ids"]]
    typed = ours.text("<s>About", parse_control_tokens=True)
    assert typed.ids.tolist() == tokenizer("<s>About")["input_ids"]
    ours, tokenizer = made("byte-fallback first", "bos")
    assert ours.text("<s>About", parse_control_tokens=True).ids.tolist() == tokenizer("<s>About")["input_ids"][1:]


def test_private_characters_cannot_stand_for_control_tokens() -> None:
    ours, tokenizer = made("unigram first", "bos")
    with pytest.raises(PromptError, match="private character"):
        ours.text("</s> " + "\U00100002" * 3)
    assert ours.text("\U00100002" * 3).ids.tolist() == tokenizer("\U00100002" * 3)["input_ids"]
