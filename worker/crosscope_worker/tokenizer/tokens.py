"""Texts and conversations to token ids, with the role of every token.

Does not know models, lengths that they can read, or where texts come from. chat_template.py prints
conversations, printed.py finds which of their characters are whose, and control_tokens.py encodes typed control tokens.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from crosscope_proto.roles import TokenRole
from crosscope_proto.template_kwargs import check_template_kwargs
from crosscope_worker.tokenizer.chat_template import ChatTemplate, TemplateRefusal, TemplateSettings, Turn, messages_of
from crosscope_worker.tokenizer.control_tokens import ControlTokens, PromptError
from crosscope_worker.tokenizer.lengths import check_length
from crosscope_worker.tokenizer.printed import THINKING, Printed, Saying, Sayings, character_roles, find_sayings
from crosscope_worker.tokenizer.refusals import check_printed, check_turns, not_found, refused

__all__ = ["PromptError", "TemplateSettings", "TextTokenizer", "TokenisedText", "Turn"]

_REASONING_MARKS = tuple(mark for marks in THINKING for mark in marks)
_SAMPLE = (Turn("user", "Why?"), Turn("assistant", "Because."))
"""Shows what a template prints after an assistant turn."""


@dataclass(frozen=True, eq=False)
class TokenisedText:
    """A text as the models read it."""

    ids: np.ndarray
    """[pos] int64"""
    roles: np.ndarray
    """[pos] uint8, TokenRole"""
    content_spans: tuple[tuple[int, int], ...]
    """For each turn the first token of its content, reasoning left out, and one past the last; one span for a plain
    text."""
    offsets: np.ndarray
    """[pos, 2] int64: characters of the rendered text that each token covers; none for tokens that are put around a
    plain text."""
    printed_at: tuple[np.ndarray, ...]
    """For each turn, [character of its content] int64: the rendered text's character that prints it; -1 for none."""
    dropped_reasoning: tuple[int, ...] = ()
    """Turns whose reasoning the template does not print, or prints in part."""

    def token_span(self, turn: int, start: int, end: int) -> tuple[int, int]:
        """First token that covers any of the characters `start` to `end` of a turn's content, and one past the last.

        An empty span at the content's first token if none of them is printed.
        """
        printed = self.printed_at[turn][start:end]
        printed = printed[printed >= 0]
        if not len(printed):
            return self.content_spans[turn][0], self.content_spans[turn][0]
        first = int(np.searchsorted(self.offsets[:, 1], printed.min(), side="right"))
        return first, max(first, int(np.searchsorted(self.offsets[:, 0], printed.max() + 1, side="left")))


class TextTokenizer:
    """Tokenises with one tokenizer and its chat template. Safe to call from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: TemplateSettings | None = None) -> None:
        self._tokenizer = tokenizer
        self._control = ControlTokens(tokenizer)
        self._template = ChatTemplate(tokenizer, settings or TemplateSettings())
        self._bos, self._pad = _control_id(tokenizer, "bos"), _control_id(tokenizer, "pad")
        self._eos = _control_id(tokenizer, "eos")
        own = {self._bos, self._eos, _control_id(tokenizer, "unk")}
        self._pad = None if self._pad in own else self._pad
        self._adds_bos = _template_alone_has_bos(tokenizer, self._control, self._bos)
        self._pieces: dict[int, str] = {}
        self._turn_ends: dict[str, str | None] = {}

    @property
    def template(self) -> ChatTemplate:
        """The chat template and its settings."""
        return self._template

    def with_settings(self, settings: TemplateSettings) -> Self:
        """The same tokenizer with other settings of its template; both share what is costly to make."""
        other = copy.copy(self)
        other._template = ChatTemplate(self._tokenizer, settings)
        other._turn_ends = {}
        return other

    def text(self, text: str, parse_control_tokens: bool = False, most: int | None = None) -> TokenisedText:
        """Tokens of a plain text, as the tokenizer's own call gives them, with all that it puts around a text.

        Three cases differ. Control tokens typed in the text stay text unless `parse_control_tokens`. A
        tokenizer whose own call adds no BOS while its chat template prints one gets it in front, so that documents
        begin as conversations do. A BOS that is typed in front, and parsed, is not doubled.
        Raises PromptError if there is no text, TooLong for many more than `most` tokens (lengths).
        """
        if not text:
            raise PromptError("the text is empty; give at least one character")
        check_length(self._control, text, most)
        typed = not parse_control_tokens and self._control.found_in(text)
        encoding = self._control.encode(self._control.disguise(text) if typed else text, typed, add_special_tokens=True)
        ids = np.array(encoding.ids, dtype=np.int64)
        around = np.array(encoding.special_tokens_mask, dtype=bool)
        spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        if around.all():
            raise PromptError("the text gives no token")
        inside = np.flatnonzero(~around)
        first, last = int(inside[0]), int(inside[-1])
        roles = np.full(len(ids), TokenRole.TEXT, np.uint8)
        roles[:first], roles[last + 1 :] = TokenRole.BOS, TokenRole.TURN_END
        spans[last + 1 :] = len(text)
        has_bos = first > 0 and ids[first - 1] == self._bos
        if has_bos and ids[first] == self._bos:
            ids, roles, spans = (np.delete(each, first - 1, axis=0) for each in (ids, roles, spans))
        elif self._adds_bos and ids[0] != self._bos:
            ids, roles = np.insert(ids, 0, self._bos or 0), np.insert(roles, 0, TokenRole.BOS)
            spans, first, last = np.insert(spans, 0, 0, axis=0), first + 1, last + 1
        roles = self._with_control_roles(ids, roles)
        return TokenisedText(ids, roles, (_span_of(roles == TokenRole.TEXT),), spans, (np.arange(len(text)),))

    def given(self, ids: Sequence[int], roles: Sequence[int] = (), num_readable: int | None = None) -> TokenisedText:
        """Tokens that are given by their ids; nothing is put around them.

        Without `roles`, BOS, padding and the end of a text get theirs by their ids, and everything else is text.
        `num_readable` is the number of ids that the models can read.
        Raises PromptError for an id that does not exist, and for roles that are not as many as the ids.
        """
        if not len(ids):
            raise PromptError("there are no token ids; give at least one")
        if len(roles) not in (0, len(ids)):
            raise PromptError(f"{len(ids)} token ids have {len(roles)} roles; give one role a token, or none")
        self._check_ids(ids, num_readable)
        numbers = np.array(ids, np.int64)
        if len(roles):
            known = np.array(roles, np.uint8)
        else:
            known = np.full(len(numbers), TokenRole.TEXT, np.uint8)
            known[numbers == (-1 if self._eos is None else self._eos)] = TokenRole.TURN_END
            known = self._with_control_roles(numbers, known)
        return TokenisedText(numbers, known, ((0, len(numbers)),), np.zeros((len(numbers), 2), np.int64), ())

    def continuation(self, text: str) -> np.ndarray:
        """Ids [pos] int64 of a text that goes on with another: nothing is put around it, and control tokens typed in it
        stay text.

        The two are tokenised apart, so a word that is cut between them is two tokens at least. Raises PromptError if
        there is no token.
        """
        typed = self._control.found_in(text)
        encoding = self._control.encode(self._control.disguise(text) if typed else text, typed)
        if not encoding.ids:
            raise PromptError(f"the continuation {text[:60]!r} gives no token")
        return np.array(encoding.ids, dtype=np.int64)

    def _check_ids(self, ids: Sequence[int], num_readable: int | None) -> None:
        vocabulary = self._control.reading
        for position, id_ in enumerate(ids):
            if vocabulary.id_to_token(id_) is None:
                limit = vocabulary.get_vocab_size(with_added_tokens=True)
                raise PromptError(f"token {position} has id {id_}, but the vocabulary has {limit} ids, from 0 on")
            if num_readable is not None and id_ >= num_readable:
                raise PromptError(f"token {position} has id {id_}, but the models read ids up to {num_readable - 1}")

    def conversation(
        self,
        turns: Sequence[Turn],
        add_generation_prompt: bool = False,
        parse_control_tokens: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        most: int | None = None,
    ) -> TokenisedText:
        """Tokens of a conversation in the chat template.

        The ids are those of `apply_chat_template`, except that control tokens typed in a turn or an argument stay text
        unless `parse_control_tokens`; `<think>` and `</think>` in an assistant turn are always read. `template_kwargs`
        override those of the settings. Raises PromptError that names the turn at fault, TooLong for many more than
        `most` tokens (lengths).
        """
        check_turns(turns)
        if turns[-1].prefix and add_generation_prompt:
            last = len(turns) - 1
            raise PromptError(f"turn {last} is a prefix, so it has its header; leave add_generation_prompt out")
        kwargs = {**self._template.settings.kwargs, **(template_kwargs or {})}
        try:
            check_template_kwargs(kwargs)
        except ValueError as error:
            raise PromptError(f"chat_template_kwargs: {error}") from error
        sayings = Sayings()
        messages = messages_of(turns, sayings)
        is_disguised = not parse_control_tokens and self._types_control_tokens(messages, kwargs)
        if is_disguised:
            sayings, kwargs = Sayings(), self._control.disguise(kwargs)
            messages = messages_of(turns, self._disguising(turns, sayings))
        try:
            printed = self._template.render(messages, add_generation_prompt, kwargs)
            check_length(self._control, printed, most)
            found = self._printed(printed, turns, sayings.all, add_generation_prompt, kwargs)
        except TemplateRefusal as error:
            raise PromptError(refused(turns, str(error))) from error
        if found is None:
            raise PromptError(not_found(turns, sayings.all, printed))
        dropped = check_printed(turns, sayings.all, found)
        turn_end = self._turn_end(found, kwargs)
        if turns[-1].prefix:
            found = found.up_to(next(each for each in reversed(sayings.all) if each.field == "content"))
        roles = character_roles(found, sayings.all, turns, turn_end)
        encoding = self._control.encode(found.text, is_disguised)
        return self._tokenised(encoding, found, roles, sayings.all, len(turns), dropped)

    def _types_control_tokens(self, messages: list[dict[str, Any]], kwargs: Mapping[str, Any]) -> bool:
        def texts(value: Any) -> bool:
            if isinstance(value, Mapping):
                return any(texts(each) for each in value.values())
            if isinstance(value, list | tuple):
                return any(texts(each) for each in value)
            return isinstance(value, str) and self._control.found_in(value)

        return texts(messages) or texts(kwargs)

    def _disguising(self, turns: Sequence[Turn], sayings: Sayings) -> Callable[[int, str, str], str]:
        def say(turn: int, field: str, text: str) -> str:
            kept = _REASONING_MARKS if turns[turn].role == "assistant" else ()
            return sayings(turn, field, self._control.disguise(text, kept))

        return say

    def _printed(
        self,
        printed: str,
        turns: Sequence[Turn],
        sayings: Sequence[Saying],
        add_generation_prompt: bool,
        kwargs: Mapping[str, Any],
    ) -> Printed | None:
        def render(texts: Sequence[str]) -> str:
            rest = iter(texts)
            messages = messages_of(turns, lambda *_: next(rest))
            return self._template.render(messages, add_generation_prompt, kwargs)

        return find_sayings(printed, sayings, self._template.source(kwargs), render)

    def _turn_end(self, found: Printed, kwargs: Mapping[str, Any]) -> str:
        """What the template prints after an assistant turn; if it cannot print the sample, after the last turn."""
        key = json.dumps(kwargs, sort_keys=True, default=str)
        if key not in self._turn_ends:
            if len(self._turn_ends) >= 64:
                self._turn_ends.clear()
            self._turn_ends[key] = self._sample_end(kwargs)
        known, said = self._turn_ends[key], np.flatnonzero(found.indices >= 0)
        if known is None:
            return found.text[int(said[-1]) + 1 :] if len(said) else ""
        return known

    @property
    def turn_end_ids(self) -> tuple[int, ...]:
        """The control token that the chat template prints right behind what an assistant says; empty for none."""
        kwargs = self._template.settings.kwargs
        key = json.dumps(kwargs, sort_keys=True, default=str)
        if key not in self._turn_ends:
            self._turn_ends[key] = self._sample_end(kwargs)
        ids = self._control.encode((self._turn_ends[key] or "").lstrip(), False).ids
        return tuple(ids[:1]) if ids and ids[0] in self._tokenizer.added_tokens_decoder else ()

    def _sample_end(self, kwargs: Mapping[str, Any]) -> str | None:
        sayings = Sayings()
        try:
            printed = self._template.render(messages_of(_SAMPLE, sayings), False, kwargs)
            found = self._printed(printed, _SAMPLE, sayings.all, False, kwargs)
        except TemplateRefusal:
            return None
        if found is None or not len(last := np.flatnonzero(found.indices == sayings.num_characters - 1)):
            return None
        return printed[int(last[-1]) + 1 :]

    def _tokenised(
        self,
        encoding: Encoding,
        found: Printed,
        character_roles: np.ndarray,
        sayings: Sequence[Saying],
        num_turns: int,
        dropped: tuple[int, ...],
    ) -> TokenisedText:
        if not encoding.ids:
            raise PromptError("the text gives no token")
        ids = np.array(encoding.ids, dtype=np.int64)
        spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        # A token that crosses a border belongs to the side of its middle character.
        middle = np.minimum(np.maximum.accumulate(spans.sum(axis=1) // 2), len(found.text) - 1)
        roles = self._with_control_roles(ids, character_roles[middle])
        contents = {saying.turn: saying for saying in sayings if saying.field == "content"}
        printed_at = tuple(_printed_at(found, contents[turn]) for turn in range(num_turns))
        content_spans: list[tuple[int, int]] = []
        for turn in range(num_turns):
            printed = printed_at[turn][printed_at[turn] >= 0]
            printed = printed[character_roles[printed] != TokenRole.REASONING]
            if len(printed):
                first = int(np.searchsorted(middle, printed.min()))
                content_spans.append((first, int(np.searchsorted(middle, printed.max(), side="right"))))
            else:
                behind = content_spans[-1][1] if content_spans else 0
                content_spans.append((behind, behind))
        return TokenisedText(ids, roles, tuple(content_spans), spans, printed_at, dropped)

    def _with_control_roles(self, ids: np.ndarray, roles: np.ndarray) -> np.ndarray:
        """`roles` with BOS and padding marked by their ids, which a name that is only text does not get."""
        roles = np.array(roles, np.uint8)
        for id_, role in ((self._bos, TokenRole.BOS), (self._pad, TokenRole.PAD)):
            if id_ is not None:
                roles[ids == id_] = role
        return roles

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The text of each token by itself; a part of a character is U+FFFD. `pieces.text_pieces` joins such parts."""
        known = self._pieces
        pieces: list[str] = []
        for id_ in map(int, ids):
            piece = known.get(id_)
            if piece is None:
                piece = known[id_] = self._piece(id_)
            pieces.append(piece)
        return pieces

    def token(self, id_: int) -> str:
        """A token as the vocabulary spells it, for instance "<0xE2>" or "âĢ"; "" where there is no such id."""
        return self._control.reading.id_to_token(id_) or ""

    def _piece(self, id_: int) -> str:
        # A decoder may strip the space in front of a text's first token, so the second of two is read.
        once = self._control.reading.decode([id_], skip_special_tokens=False)
        twice = self._control.reading.decode([id_, id_], skip_special_tokens=False)
        return twice[len(once) :]


def _control_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int | None:
    id_ = getattr(tokenizer, f"{name}_token_id", None)
    return id_ if isinstance(id_, int) else None


def _template_alone_has_bos(tokenizer: PreTrainedTokenizerBase, control: ControlTokens, bos: int | None) -> bool:
    """Whether the chat template prints a BOS while the tokenizer's own call adds none."""
    if bos is None:
        return False
    return "bos_token" in str(tokenizer.chat_template) and bos not in control.encode("", False, True).ids


def _span_of(flags: np.ndarray) -> tuple[int, int]:
    where = np.flatnonzero(flags)
    return (int(where[0]), int(where[-1]) + 1) if len(where) else (0, 0)


def _printed_at(found: Printed, saying: Saying) -> np.ndarray:
    """[character of the saying] int64: the printed character for it, the last one if there are several; -1 for none."""
    printed_at = np.full(len(saying.text), -1, np.int64)
    where = np.flatnonzero((found.indices >= saying.start) & (found.indices < saying.start + len(saying.text)))
    printed_at[found.indices[where] - saying.start] = where
    return printed_at
