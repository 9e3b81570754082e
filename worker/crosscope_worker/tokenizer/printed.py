"""Finds which characters of a printed conversation are whose.

The template prints the conversation a second time, with every said character replaced by a private one that tells its
index. Every other character is the template's own. So a template may strip, split, move or drop what it is given, or
print it as JSON. White space stays as it is, and so do names that the template itself looks for, such as `</think>`.

Knows nothing about tokens; roles here are those of characters.
"""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import jinja2
import numpy as np
from numpy.typing import NDArray

from crosscope_proto.roles import TokenRole
from crosscope_worker.tokenizer.chat_template import Turn
from crosscope_worker.tokenizer.control_tokens import PromptError

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_FIRST, _NUM_PRIVATE = 0xF0000, 0xFFFE
"""The private characters that stand for indices, those of one plane. After the last comes the first again."""
_TAGS = re.compile(r"<[^<>\s]{1,60}>|\[[^\[\]\s]{1,60}\]")
_ESCAPED = r'["\\\x00-\x1f\x7f-\x9f]'
THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""Marks around an assistant's reasoning."""
_OPENS = re.compile(r"(<think>|\[THINK\])\s*\Z")
_CLOSES = re.compile(r"\s*(</think>|\[/THINK\])\s*")
_CONTENT_ROLES = {
    "system": TokenRole.SYSTEM,
    "developer": TokenRole.SYSTEM,
    "user": TokenRole.USER,
    "assistant": TokenRole.ASSISTANT,
    "tool": TokenRole.TOOL,
}


@dataclass(frozen=True)
class Saying:
    """One text that a turn says."""

    turn: int
    field: str
    """"content", "reasoning", or "call" for a name or an argument of a tool call."""
    text: str
    start: int
    """Index of its first character among the characters of all sayings."""


class Sayings:
    """The texts of a conversation in the order in which a template is given them."""

    def __init__(self) -> None:
        self.all: list[Saying] = []
        self.num_characters = 0

    def __call__(self, turn: int, field: str, text: str) -> str:
        """Adds a text; returns it."""
        self.all.append(Saying(turn, field, text, self.num_characters))
        self.num_characters += len(text)
        return text


@dataclass(frozen=True, eq=False)
class Printed:
    """A printed conversation."""

    text: str
    indices: Ints
    """[character]: index, among the characters of all sayings, of the one that it prints; -1: it is the template's."""

    def up_to(self, saying: Saying) -> "Printed":
        """The same up to the last character of a saying, with white space at its end as it was said.

        Raises PromptError.
        """
        end = saying.start + len(saying.text)
        of_it = np.flatnonzero((self.indices >= saying.start) & (self.indices < end))
        if not len(of_it):
            raise PromptError(f"turn {saying.turn}: the chat template prints none of it, so it cannot be a prefix")
        last = int(of_it[-1])
        rest = np.arange(int(self.indices[last]) + 1, end)
        text = self.text[: last + 1] + saying.text[int(self.indices[last]) + 1 - saying.start :]
        return Printed(text, np.concatenate([self.indices[: last + 1], rest]))


def find_sayings(
    printed: str, sayings: Sequence[Saying], template: str, render: Callable[[Sequence[str]], str]
) -> Printed | None:
    """Finds the sayings in `printed`; None if the template changes texts beyond stripping, moving and dropping.

    `template` is its program; `render` prints the conversation with other texts in place of the sayings.
    """
    for tags_only, literal in ((True, False), (False, False), (False, True)):
        marks: list[_Mark] = []
        for saying in sayings:
            before = marks[-1].num_before + len(marks[-1].marked) if marks else 0
            marks.append(_Mark(saying, _looked_for(template, tags_only), literal, before))
        found = _compare(printed, render([mark.text for mark in marks]), marks)
        if found is not None:
            return found
    return None


@lru_cache(maxsize=64)
def _looked_for(template: str, tags_only: bool) -> re.Pattern[str]:
    """A pattern of what stays as it is in a text: tags that the template names, or all it names and JSON escapes."""
    if tags_only:
        return re.compile("|".join([r"\s", *_longest_first(set(_TAGS.findall(template)))]))
    literals = [value[1:-1] for _, kind, value in jinja2.Environment().lex(template) if kind == "string"]
    names = {literal.encode("ascii", "backslashreplace").decode("unicode-escape") for literal in literals}
    return re.compile("|".join([*_longest_first({name for name in names if len(name.strip()) > 1}), r"\s", _ESCAPED]))


def _longest_first(names: set[str]) -> list[str]:
    return [re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name))]


class _Mark:
    """A saying without white space at its ends, as private characters."""

    def __init__(self, saying: Saying, kept: re.Pattern[str], literal: bool, num_before: int) -> None:
        """`literal`: a saying that is nothing but `kept` stays as it is; else it is marked whole.

        `num_before`: private characters in the sayings before.
        """
        self.num_before = num_before
        self.saying = saying
        stripped = saying.text.strip() if saying.field != "call" else saying.text
        self.before = saying.text[: saying.text.find(stripped)] if stripped else ""
        self.after = saying.text[len(self.before) + len(stripped) :]
        self.start = saying.start + len(self.before)
        self.original = _codes(stripped)
        self.units = [match.span() for match in kept.finditer(stripped) if match[0]]
        is_kept = np.zeros(len(stripped), bool)
        for first, end in self.units:
            is_kept[first:end] = True
        self.is_literal = literal and bool(len(stripped)) and bool(is_kept.all())
        if is_kept.all() and not literal:
            is_kept = np.array([character.isspace() for character in stripped], bool)
            self.units = [(i, i + 1) for i in np.flatnonzero(is_kept).tolist()]
        self.marked = self.start + np.flatnonzero(~is_kept)
        codes = self.original.copy()
        codes[~is_kept] = _FIRST + (num_before + np.arange(len(self.marked))) % _NUM_PRIVATE
        self.text = _text(codes)


def _compare(printed: str, marked: str, marks: Sequence[_Mark]) -> Printed | None:
    """Indices of the characters of `printed`, from the same conversation printed with marks."""
    said = np.full(sum(len(mark.saying.text) for mark in marks), ord(" "), np.int64)
    owner = np.repeat(np.arange(len(marks)), [len(mark.saying.text) for mark in marks])
    for mark in marks:
        said[mark.start : mark.start + len(mark.original)] = mark.original
    seen = _codes(marked)
    at = np.flatnonzero((seen >= _FIRST) & (seen < _FIRST + _NUM_PRIVATE))
    known = np.concatenate([mark.marked for mark in marks])
    numbers = seen[at] - _FIRST
    if len(known) > _NUM_PRIVATE:
        numbers = numbers + _NUM_PRIVATE * np.cumsum(np.diff(numbers, prepend=numbers[:1]) < 0)
    if len(numbers) and numbers.max() >= len(known):
        return None
    indices = known[numbers]
    labels = np.full(len(seen), -1, np.int64)
    labels[at] = indices
    plain = seen.copy()
    plain[at] = said[indices]
    _fill(labels, plain, at, indices, said, owner, marks)
    if not all(_find_literal(labels, _text(plain), mark) for mark in marks if mark.is_literal):
        return None
    return _with_ends(printed, _text(plain), labels, marks)


def _fill(labels: Ints, seen: Ints, at: Ints, indices: Ints, said: Ints, owner: Ints, marks: Sequence[_Mark]) -> None:
    """Labels kept characters beside marked ones where they equal the saying's own."""
    gap, step = np.diff(at), np.diff(indices)
    same = owner[indices[1:]] == owner[indices[:-1]]
    between = np.flatnonzero(same & (gap == step) & (gap > 1))
    for length in np.unique(gap[between]).tolist():
        runs = between[gap[between] == length]
        inside = at[runs][:, None] + np.arange(1, length)
        those = indices[runs][:, None] + np.arange(1, length)
        whole = (seen[inside] == said[those]).all(axis=1)
        labels[inside[whole]] = those[whole]
    for i in np.flatnonzero(same & (gap > step) & (step > 1)).tolist():
        _fill_escaped(labels, seen, int(at[i]), int(at[i + 1]), said)
    broken = np.flatnonzero(~(same & (gap == step)))
    for i in [*broken.tolist(), len(at) - 1] if len(at) else []:
        _extend(labels, seen, int(at[i]), int(indices[i]), marks[int(owner[indices[i]])], 1)
    for i in [0, *(broken + 1).tolist()] if len(at) else []:
        _extend(labels, seen, int(at[i]), int(indices[i]), marks[int(owner[indices[i]])], -1)


def _extend(labels: Ints, seen: Ints, at: int, index: int, mark: _Mark, side: int) -> None:
    """Labels what is kept of a saying before (`side` -1) or after (1) a marked character, up to a name or its end."""
    units = dict(mark.units) if side > 0 else {end: first for first, end in mark.units}
    shift = at - (index - mark.start)  # from the saying's characters to the printed ones
    begun = edge = reached = at - shift + (side > 0)
    while (far := units.get(edge)) is not None:
        low, high = sorted((edge, far))
        there = slice(low + shift, high + shift)
        if low + shift < 0 or not np.array_equal(seen[there], mark.original[low:high]) or (labels[there] >= 0).any():
            break
        edge = far
        # White space before what the template has dropped is more likely the template's own.
        if edge in (0, len(mark.original)) or not chr(int(mark.original[low])).isspace():
            reached = edge
    low, high = sorted((begun, reached))
    labels[low + shift : high + shift] = mark.start + np.arange(low, high)
    low, high = (reached, len(mark.original)) if side > 0 else (0, reached)
    if low < high and (index - mark.start == reached - 1 if side > 0 else index - mark.start == reached):
        escaped = _escaped(mark.original[low:high])
        first = at + 1 if side > 0 else at - len(escaped)
        there = slice(max(first, 0), first + len(escaped))
        if np.array_equal(seen[there], escaped) and (labels[there] < 0).all():
            labels[there] = mark.start + np.minimum(low + np.arange(len(escaped)), high - 1)


def _find_literal(labels: Ints, plain: str, mark: _Mark) -> bool:
    """Labels a saying that is not marked, if it is printed only once. Returns whether it is."""
    text = _text(mark.original)
    starts = [match.start() for match in re.finditer(re.escape(text), plain)]
    free = [start for start in starts if (labels[start : start + len(text)] < 0).all()]
    if len(free) == 1:
        labels[free[0] : free[0] + len(text)] = mark.start + np.arange(len(text))
    return len(free) == 1


def _fill_escaped(labels: Ints, seen: Ints, left: int, right: int, said: Ints) -> None:
    """Labels the JSON form of the characters between two marked ones."""
    first, end = int(labels[left]) + 1, int(labels[right])
    if np.array_equal(_escaped(said[first:end]), seen[left + 1 : right]):
        labels[left + 1 : right] = np.minimum(first + np.arange(right - left - 1), end - 1)


def _with_ends(printed: str, plain: str, labels: Ints, marks: Sequence[_Mark]) -> Printed | None:
    """The printed conversation with the sayings' outer white space, which a template may print or not, labelled too."""
    first_at, last_at = {}, {}
    for mark in marks:
        if (mark.before or mark.after) and len(mark.original):
            where = np.flatnonzero((labels >= mark.start) & (labels < mark.start + len(mark.original)))
            if len(where):
                first_at[int(where[0])], last_at[int(where[-1]) + 1] = mark, mark
    cuts = sorted({*first_at, *last_at})
    at = cuts[0] if cuts else len(plain)
    result = [labels[:at]]
    if not printed.startswith(plain[:at]):
        return None
    for cut, following in itertools.pairwise([*cuts, len(plain)] if cuts else []):
        ended, begun, rest = last_at.get(cut), first_at.get(cut), plain[cut:following]
        after, before = ended.after if ended else "", begun.before if begun else ""
        for tail, head in itertools.product(_kept(after, str.rstrip), _kept(before, str.lstrip)):
            if printed.startswith(tail + head + rest, at):
                break
        else:
            return None
        if ended:
            behind = ended.start + len(ended.original)
            result.append(behind + np.minimum(np.arange(len(tail)), len(after) - 1))
        if begun:
            result.append(begun.start - 1 - np.minimum(np.arange(len(head)), len(before) - 1)[::-1])
        result.append(labels[cut:following])
        at += len(tail + head + rest)
    return Printed(printed, np.concatenate(result)) if at == len(printed) else None


def _kept(space: str, strip: Callable[[str, str], str]) -> list[str]:
    """What a template may print of white space at an end, most first."""
    escaped = json.dumps(space, ensure_ascii=False)[1:-1]
    return sorted({space, strip(space, "\n"), strip(space, " "), escaped, ""}, key=len, reverse=True)


def saying_roles(sayings: Sequence[Saying], turns: Sequence[Turn]) -> NDArray[np.uint8]:
    """The role of every character of all sayings."""
    roles: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
    for saying in sayings:
        role = TokenRole.REASONING if saying.field == "reasoning" else _CONTENT_ROLES[turns[saying.turn].role]
        own = np.full(len(saying.text), role, np.uint8)
        if saying.field == "content" and role == TokenRole.ASSISTANT:
            first, end = reasoning_span(saying.text)
            own[first:end] = TokenRole.REASONING
        roles.append(own)
    return np.concatenate(roles)


def reasoning_span(content: str) -> tuple[int, int]:
    """First character of the reasoning in an assistant's content with its marks, and one past the last."""
    for opens, closes in THINKING:
        if (end := content.rfind(closes)) >= 0:
            begun = content.find(opens)
            past = end + len(closes)
            return max(begun, 0), past + len(content[past:]) - len(content[past:].lstrip())
    return 0, 0


def character_roles(
    found: Printed, sayings: Sequence[Saying], turns: Sequence[Turn], turn_end: str
) -> NDArray[np.uint8]:
    """The role of each character of a printed conversation; `turn_end` is printed after an assistant turn."""
    roles = np.full(len(found.text), TokenRole.HEADER, np.uint8)
    is_said = found.indices >= 0
    roles[is_said] = saying_roles(sayings, turns)[found.indices[is_said]]
    owner = np.repeat(np.arange(len(sayings)), [len(saying.text) for saying in sayings])
    pattern = _end_pattern(turn_end)
    edges = np.flatnonzero(np.diff(is_said.astype(np.int8), prepend=1, append=1))
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        left = sayings[int(owner[found.indices[start - 1]])] if start else None
        right = sayings[int(owner[found.indices[end]])] if end < len(is_said) else None
        text = found.text[start:end]
        if start and roles[start - 1] == TokenRole.REASONING and (closes := _CLOSES.match(text)):
            roles[start : start + closes.end()] = TokenRole.REASONING
        if right and roles[end] == TokenRole.REASONING and (opens := _OPENS.search(text)):
            roles[start + opens.start() : end] = TokenRole.REASONING
        ends = [match.span() for match in pattern.finditer(text)] if turn_end.strip() else []
        if not turn_end.strip() and left and text.startswith(turn_end):
            ends = [(0, len(turn_end))]
        if left and left.field == "call":
            until = len(text) if right and right.turn == left.turn else ends[0][0] if ends else 0
            roles[start : start + until] = TokenRole.ASSISTANT
        for first, past in ends:
            roles[start + first : start + past] = TokenRole.TURN_END
    return roles


def _end_pattern(turn_end: str) -> re.Pattern[str]:
    core = turn_end.strip()
    before, _, after = turn_end.partition(core) if core else ("", "", "")
    return re.compile(f"(?:{re.escape(before)})?{re.escape(core)}(?:{re.escape(after)})?")


def _escaped(codes: Ints) -> Ints:
    """Characters as they stand in a JSON text."""
    return _codes(json.dumps(_text(codes), ensure_ascii=False)[1:-1])


def _codes(text: str) -> Ints:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)


def _text(codes: Ints) -> str:
    return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
