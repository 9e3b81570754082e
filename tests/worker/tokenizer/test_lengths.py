"""Texts that are too long are refused after a part of them, by every tokenizer, and no others are."""

import pytest
from fixtures_tokenizers import tokenizer_of
from tokenizers import Encoding

from crosscope_worker.tokenizer.control_tokens import ControlTokens
from crosscope_worker.tokenizer.lengths import TooLong, check_length
from crosscope_worker.tokenizer.tokens import TextTokenizer, Turn

KINDS = ("byte-level", "wordpiece", "unigram first", "characters", "bpe", "byte-fallback")
MIB = 1 << 20


class Counting(ControlTokens):
    """Counts the characters that it encodes."""

    num_characters = 0

    def encode(self, text: str, is_disguised: bool, add_special_tokens: bool = False) -> Encoding:
        self.num_characters += len(text)
        return super().encode(text, is_disguised, add_special_tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["the old river ", "zqx 7! ", "é漢🦊 "])
def test_a_hostile_text_costs_as_much_as_the_limit(kind: str, unit: str) -> None:
    control = Counting(tokenizer_of(kind, "bos"))
    with pytest.raises(TooLong, match="has at least 201 tokens, but may have 200; shorten it"):
        check_length(control, unit * (MIB // len(unit)), 200)
    assert control.num_characters <= 1 << 14, "one window tells"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["the old river ", " ", "unknownword" * 400 + " "])
def test_a_text_within_the_limit_is_never_refused(kind: str, unit: str) -> None:
    """Also where tokens are long, or a whole word is one unknown token."""
    tokenizer = TextTokenizer(tokenizer_of(kind, "bos"))
    text = "river" + unit * (20_000 // len(unit))
    most = len(tokenizer.text(text).ids)
    assert len(tokenizer.text(text, most=most).ids) == most
    assert len(tokenizer.conversation([Turn("user", text)], most=most + 40).ids) >= most


def test_conversations_are_counted_as_they_are_printed() -> None:
    tokenizer = TextTokenizer(tokenizer_of(KINDS[0], "bos"))
    turns = [Turn(role, "the old river " * 2000) for role in ("user", "assistant")]
    with pytest.raises(TooLong):
        tokenizer.conversation(turns, most=100)
