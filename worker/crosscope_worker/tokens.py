"""Texts and conversations to token ids, with the role of every token.

Does not know models, lengths that they can read, or where texts come from.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import jinja2
import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from crosscope_proto.roles import TokenRole

_CONTENT_ROLES = {"system": TokenRole.SYSTEM, "user": TokenRole.USER, "assistant": TokenRole.ASSISTANT}


class PromptError(ValueError):
    """A prompt that cannot be tokenised; the sentence says what to change."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """"system", "user" or "assistant"."""
    content: str


@dataclass(frozen=True, eq=False)
class TokenisedText:
    """A text as the models read it."""

    ids: np.ndarray
    """[pos] int64"""
    roles: np.ndarray
    """[pos] uint8, TokenRole"""
    content_spans: tuple[tuple[int, int], ...]
    """For each turn the first token of its content and one past the last; one span for a plain text."""
    offsets: np.ndarray
    """[pos, 2] int64: characters of the rendered text that each token covers."""
    content_origins: tuple[int, ...]
    """For each turn where its content's character 0 is, or would be had the template not stripped it."""

    def token_span(self, turn: int, start: int, end: int) -> tuple[int, int]:
        """First token that covers any of the characters `start` to `end` of a turn's content, and one past the last."""
        origin = self.content_origins[turn]
        first = int(np.searchsorted(self.offsets[:, 1], origin + start, side="right"))
        last = int(np.searchsorted(self.offsets[:, 0], origin + end, side="left"))
        low, high = self.content_spans[turn]
        first = min(max(first, low), high)
        return first, min(max(last, first), high)


@dataclass(frozen=True)
class _Segment:
    """A piece of a rendered conversation, all of one role."""

    text: str
    role: TokenRole
    turn: int | None = None


class TextTokenizer:
    """Tokenises with one tokenizer. Safe to call from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        backend = cast("Tokenizer", tokenizer.backend_tokenizer)
        # Own copies: whether control tokens are read is a state of the backend, not an argument.
        self._reading, self._literal = _copy(backend), _copy(backend)
        self._literal.encode_special_tokens = True
        control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or r"(?!)")
        self._bos = _front_token(tokenizer, self._reading)
        self._pieces: dict[int, str] = {}

    def text(self, text: str, parse_control_tokens: bool = False) -> TokenisedText:
        """Tokens of a plain text, BOS in front where the tokenizer puts one.

        Raises PromptError if there is no text.
        """
        if not text:
            raise PromptError("the text is empty; give at least one character")
        bos = self._bos
        if bos and parse_control_tokens:
            text = text.removeprefix(bos)
        front = [_Segment(bos, TokenRole.BOS)] if bos else []
        return self._tokenise([*front, _Segment(text, TokenRole.TEXT, turn=0)], [len(bos)], parse_control_tokens)

    def conversation(
        self, turns: Sequence[Turn], add_generation_prompt: bool = False, parse_control_tokens: bool = False
    ) -> TokenisedText:
        """Tokens of a conversation in the chat template.

        The ids are those of `apply_chat_template`, except that control tokens typed in a turn stay text unless
        `parse_control_tokens`. Raises PromptError that names the turn at fault.
        """
        _check_turns(turns)
        rendered = self._render(turns, add_generation_prompt)
        segments, origins = self._segments(turns, rendered)
        return self._tokenise(segments, origins, parse_control_tokens)

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
        return self._reading.id_to_token(id_) or ""

    def _piece(self, id_: int) -> str:
        # A decoder may strip the space in front of a text's first token, so the second of two is read.
        once = self._reading.decode([id_], skip_special_tokens=False)
        twice = self._reading.decode([id_, id_], skip_special_tokens=False)
        return twice[len(once) :]

    def _render(self, turns: Sequence[Turn], add_generation_prompt: bool) -> str:
        if not self._tokenizer.chat_template:
            raise PromptError("the pair's tokenizer has no chat template; send plain text instead of a conversation")
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except jinja2.TemplateError as error:
            raise PromptError(_refusal(turns, str(error))) from error
        assert isinstance(rendered, str)
        return rendered

    def _segments(self, turns: Sequence[Turn], rendered: str) -> tuple[list[_Segment], list[int]]:
        """The rendered text cut into template parts and contents, and the place of each content's character 0."""
        marks = [f"\ue000{index}\ue001" for index in range(len(turns))]
        marked = self._render([Turn(turn.role, mark) for turn, mark in zip(turns, marks, strict=True)], False)
        between = re.split("\ue000[0-9]+\ue001", marked)
        if len(between) != len(turns) + 1:
            index = next((i for i, mark in enumerate(marks) if marked.count(mark) != 1), 0)
            raise PromptError(f"the chat template does not print turn {index} ({turns[index].role}) exactly once")
        turn_end = between[-1]
        segments, origins, at = [], [], 0
        for index, turn in enumerate(turns):
            segments += self._template_part(between[index], turn_end if index else "")
            at += len(between[index])
            printed = _printed(turn.content, rendered, at, between[index + 1])
            if printed is None:
                raise PromptError(f"the chat template changes the text of turn {index} ({turn.role})")
            origins.append(at - turn.content.index(printed))
            segments.append(_Segment(printed, _CONTENT_ROLES[turn.role], index))
            at += len(printed)
        return segments + self._template_part(rendered[at:], turn_end), origins

    def _template_part(self, text: str, turn_end: str) -> list[_Segment]:
        """What a template prints between two contents: the end of one turn, then the header of the next."""
        bos = self._tokenizer.bos_token
        front = bos if not turn_end and isinstance(bos, str) and text.startswith(bos) else ""
        end = turn_end if text.startswith(turn_end) else ""
        parts = (front, TokenRole.BOS), (end, TokenRole.TURN_END), (text[len(front + end) :], TokenRole.HEADER)
        return [_Segment(part, role) for part, role in parts if part]

    def _tokenise(self, segments: list[_Segment], origins: list[int], parse_control_tokens: bool) -> TokenisedText:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        at = 0
        for text, literal in self._runs(segments, parse_control_tokens):
            encoding = _encode(self._literal if literal else self._reading, text)
            ids += encoding.ids
            offsets += [(at + start, at + end) for start, end in encoding.offsets]
            at += len(text)
        if not ids:
            raise PromptError("the text gives no token")
        spans = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        # A token that reaches over a border belongs to the side with its middle character.
        middle = np.maximum.accumulate(spans.sum(axis=1) // 2)
        ends = np.cumsum([len(segment.text) for segment in segments])
        segment_of = np.minimum(np.searchsorted(ends, middle, side="right"), len(segments) - 1)
        roles = np.array([segment.role for segment in segments], dtype=np.uint8)[segment_of]
        content_spans = tuple(
            (int(np.searchsorted(segment_of, index)), int(np.searchsorted(segment_of, index, side="right")))
            for index, segment in enumerate(segments)
            if segment.turn is not None
        )
        return TokenisedText(np.array(ids, dtype=np.int64), roles, content_spans, spans, tuple(origins))

    def _runs(self, segments: list[_Segment], parse_control_tokens: bool) -> list[tuple[str, bool]]:
        """Texts to encode one by one, and whether control tokens in them are text.

        One run wherever possible, because merges may reach over the borders of segments.
        """
        runs: list[tuple[str, bool]] = []
        for segment in segments:
            content = segment.turn is not None and not parse_control_tokens
            literal = content and self._control.search(segment.text) is not None
            if runs and not runs[-1][1] and not literal:
                runs[-1] = (runs[-1][0] + segment.text, False)
            else:
                runs.append((segment.text, literal))
        return runs


def _copy(backend: Tokenizer) -> Tokenizer:
    copied = copy.deepcopy(backend)
    copied.no_truncation()
    copied.no_padding()
    copied.encode_special_tokens = False
    return copied


def _front_token(tokenizer: PreTrainedTokenizerBase, backend: Tokenizer) -> str:
    """The BOS token if this tokenizer, or else its chat template, puts one in front; otherwise ""."""
    bos = tokenizer.bos_token
    if not isinstance(bos, str):
        return ""
    added = backend.encode("", add_special_tokens=True).ids
    template = tokenizer.chat_template
    printed = isinstance(template, str) and "bos_token" in template
    return bos if printed or tokenizer.bos_token_id in added[:1] else ""


def _encode(backend: Tokenizer, text: str):
    try:
        return backend.encode(text, add_special_tokens=False)
    except (TypeError, UnicodeEncodeError) as error:
        raise PromptError("the text holds a lone surrogate, which is no character; remove it") from error


def _check_turns(turns: Sequence[Turn]) -> None:
    if not turns:
        raise PromptError("the conversation is empty; give at least one turn")
    for index, turn in enumerate(turns):
        if turn.role not in _CONTENT_ROLES:
            raise PromptError(f"turn {index}: the role is {turn.role!r}; it must be system, user or assistant")
        if turn.role == "system" and index:
            twice = turns[0].role == "system"
            hint = "there is one already, turn 0" if twice else "a system turn comes first"
            raise PromptError(f"turn {index}: a system turn cannot stand here; {hint}")
        if not turn.content.strip():
            raise PromptError(f"turn {index} ({turn.role}) is empty; give it text or leave it out")


def _refusal(turns: Sequence[Turn], message: str) -> str:
    """A sentence for a template that raised an error of its own."""
    message = " ".join(message.split())
    if turns[0].role == "system" and "system" in message.lower():
        return f"turn 0: the chat template takes no system turn ({message}); put its text into the first user turn"
    roles = [turn.role for turn in turns if turn.role != "system"]
    first = len(turns) - len(roles)
    for index, role in enumerate(roles):
        expected = "assistant" if index % 2 else "user"
        if role != expected:
            return (
                f"turn {first + index}: the chat template refuses an {role} turn here ({message}); "
                f"turns must alternate, so this one must be {expected}"
            ).replace("an user", "a user")
    return f"the chat template refuses these turns: {message}"


def _printed(content: str, rendered: str, at: int, following: str) -> str | None:
    """A content as the template printed it, stripped or not."""
    for printed in (content, content.strip(), content.rstrip(), content.lstrip()):
        if rendered.startswith(printed + following, at):
            return printed
    return None
