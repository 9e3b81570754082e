"""Pieces of text, stop strings and draws, worked out by hand."""

from collections import Counter

import pytest
import torch

from crosscope_worker.effects.answer import Answer
from crosscope_worker.effects.orders import EndReason, SamplingSettings
from crosscope_worker.effects.sampling import draw, uniform
from crosscope_worker.models.pair import Pair
from crosscope_worker.tokenizer.tokens import TextTokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_pair: Pair) -> TextTokenizer:
    return TextTokenizer(tiny_pair.tokenizer)


def ids(tokenizer: TextTokenizer, *tokens: str) -> list[int]:
    control = tokenizer._tokenizer  # pyright: ignore[reportPrivateUsage]
    found = [control.convert_tokens_to_ids(token) for token in tokens]
    assert all(isinstance(each, int) for each in found)
    assert control.unk_token_id not in found
    return found  # pyright: ignore[reportReturnType]


def answered(
    tokenizer: TextTokenizer, tokens: list[int], *stop: str, most: int = 100, room: int = 100
) -> tuple[list[str], EndReason | None, str]:
    answer = Answer(tokenizer, {1}, stop, most, room)
    pieces: list[str] = []
    for token in tokens:
        piece, reason = answer.take(token)
        pieces.append(piece)
        if reason is not None:
            return pieces, reason, answer.text
    return pieces, None, answer.text


def test_bytes_come_with_the_token_that_completes_their_character(tokenizer: TextTokenizer) -> None:
    euro = ids(tokenizer, "<0xE2>", "<0x82>", "<0xAC>")
    word = ids(tokenizer, "the")
    assert answered(tokenizer, [*euro, *word])[0] == ["", "", "€", "the"]
    # A character that is cut off by a word, by the last token that may come, and by the end of the turn.
    assert answered(tokenizer, [*euro[:2], *word])[0] == ["", "", "\ufffdthe"]
    assert answered(tokenizer, euro[:2], most=2) == (["", "\ufffd"], EndReason.LENGTH, "\ufffd")
    assert answered(tokenizer, [euro[0], 1]) == (["", "\ufffd<eos>"], EndReason.TURN_END, "\ufffd")


def test_a_stop_string_is_found_across_tokens_and_cut_off(tokenizer: TextTokenizer) -> None:
    letters = ids(tokenizer, *"abcabd")
    assert answered(tokenizer, letters, "abd", "never") == (list("abcabd"), EndReason.STOP, "abc")
    assert answered(tokenizer, letters, "cab", "bca") == (list("abca"), EndReason.STOP, "a")
    assert answered(tokenizer, letters, "x") == (list("abcabd"), None, "abcabd")
    euro = ids(tokenizer, "a", "<0xE2>", "<0x82>", "<0xAC>")
    assert answered(tokenizer, euro, "€") == (["a", "", "", "€"], EndReason.STOP, "a")
    # The last token that may come, and a stop string in it.
    assert answered(tokenizer, letters, "abc", most=3)[1] is EndReason.STOP
    assert answered(tokenizer, letters, most=3, room=2)[1] is EndReason.CONTEXT


def test_draws_follow_the_probabilities_and_top_p_cuts_the_least_probable() -> None:
    logits = torch.tensor([0.5, 0.1, 0.3, 0.1]).log()
    many = 2000
    for top_p, expected in ((None, [0.5, 0.1, 0.3, 0.1]), (1.0, [0.5, 0.1, 0.3, 0.1]), (0.7, [0.625, 0, 0.375, 0])):
        settings = [SamplingSettings(temperature=1.0, top_p=top_p, seed=4)] * many
        drawn, _ = draw(logits.expand(many, -1), settings, [0] * many, list(range(many)))
        shares = Counter(drawn)
        for token, share in enumerate(expected):
            assert abs(shares[token] / many - share) < 4 * (0.25 / many) ** 0.5
            assert (shares[token] > 0) == (share > 0)


def test_one_number_picks_from_the_tokens_by_probability_ties_by_id() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.4, 0.1]]).log()
    for step in range(50):
        at = uniform(9, 2, step)
        expected = 1 if at < 0.4 else 2 if at < 0.8 else 0 if at < 0.9 else 3
        assert draw(logits, [SamplingSettings(temperature=1.0, seed=9)], [2], [step])[0] == [expected]
        # A temperature of one half squares the probabilities: .01, .16, .16, .01 of .34.
        expected = 1 if at < 16 / 34 else 2 if at < 32 / 34 else 0 if at < 33 / 34 else 3
        assert draw(logits, [SamplingSettings(temperature=0.5, seed=9)], [2], [step])[0] == [expected]


def test_log_probabilities_are_at_temperature_one_and_seeds_samples_and_steps_differ() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    ids, log_probabilities = draw(logits, [SamplingSettings(temperature=0.0)], [0], [0])
    assert ids == [1]
    assert log_probabilities == pytest.approx([3 - torch.tensor([1.0, 3.0, 2.0]).logsumexp(0).item()])
    assert len({uniform(seed, sample, step) for seed in (0, 2**64 - 1) for sample in (0, 1) for step in (0, 1)}) == 8
    assert uniform(5, 1, 3) == uniform(5, 1, 3)


def test_logits_that_are_no_numbers_give_a_token_all_the_same() -> None:
    logits = torch.full((1, 5), torch.nan)
    for temperature in (0.0, 1.0):
        ids, _ = draw(logits, [SamplingSettings(temperature=temperature, top_p=0.5)], [0], [0])
        assert 0 <= ids[0] < 5
