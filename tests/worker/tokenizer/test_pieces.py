"""Text of tokens for people, where a character is several tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.pieces import lone_pieces, text_pieces
from crosscope_worker.tokenizer.tokens import TextTokenizer

MIXED = "caf\u00e9 \u201cquoted\u201d \U0001f98a\U0001f98a \u4f60\u597d, \u00fcber \ufffd end"
"""Characters of two, three and four bytes, alone, in runs and after a space, and a U+FFFD that is really there."""


@pytest.fixture(scope="module")
def byte_fallback(tiny_pair: Pair) -> TextTokenizer:
    return TextTokenizer(tiny_pair.tokenizer)


@pytest.fixture(scope="module")
def byte_level() -> TextTokenizer:
    """GPT-2's kind; some of its tokens end within a character, because the merges are learned on bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["a \u201cb\u201d \u2018c\u2019 the \u00e9t\u00e9 "] * 20, trainer)
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


@pytest.fixture(params=["byte_fallback", "byte_level"])
def tokenise(request: pytest.FixtureRequest) -> TextTokenizer:
    return request.getfixturevalue(request.param)


def shown(tokenise: TextTokenizer, text: str) -> list[str]:
    return text_pieces(tokenise, tokenise.text(text).ids)


def test_joined_pieces_are_the_text(tokenise: TextTokenizer) -> None:
    assert "".join(shown(tokenise, MIXED)).removeprefix("<bos>") == MIXED


def test_a_character_stands_on_its_first_token(tokenise: TextTokenizer) -> None:
    ids = tokenise.text("\U0001f98a").ids
    pieces = [piece for piece in text_pieces(tokenise, ids) if piece != "<bos>"]
    assert pieces == ["\U0001f98a", "", "", ""]


def test_a_token_that_ends_within_a_character_keeps_what_is_its_own(byte_level: TextTokenizer) -> None:
    pieces = shown(byte_level, "\u4f60x")
    assert len(pieces) == 4
    assert pieces == ["\u4f60", "", "", "x"]
    joined = shown(byte_level, " \u201ca")  # " \xe2\x80" is one token of this vocabulary
    assert len(joined) < len(" \u201ca".encode())
    assert joined[0] == " \u201c"


def test_what_is_cut_within_a_character_is_unknown(tokenise: TextTokenizer) -> None:
    ids = tokenise.text("fox \U0001f98a").ids
    assert "".join(text_pieces(tokenise, ids[:-1])).removeprefix("<bos>") == "fox \ufffd\ufffd\ufffd"


def test_parts_of_characters_alone_are_their_bytes(tokenise: TextTokenizer) -> None:
    ids = tokenise.text("\U0001f98a").ids[-4:]
    assert lone_pieces(tokenise, ids) == ["<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>"]
    assert lone_pieces(tokenise, tokenise.text("e").ids[-1:]) == ["e"]


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_text_is_what_its_pieces_join_to(byte_level: TextTokenizer, text: str) -> None:
    assert "".join(shown(byte_level, text)) == text
