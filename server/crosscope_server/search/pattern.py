"""What is searched for: a text or a regular expression, and where it matches.

Both are matched by RE2 through Arrow: in time linear in the texts, whatever the expression, without Python's lock.
Knows nothing about latents.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crosscope_server.errors import InvalidRequest, Violation

Ints = NDArray[np.int64]
_OPEN, _CLOSE = b"\xfe", b"\xff"
"""Bytes around a match. No text has them, because UTF-8 never does."""
_UNCHANGED = re.compile(r"[A-Za-z0-9 \x80-\U0010ffff]")
_ACCENTS = range(0x300, 0x370)


@dataclass(frozen=True)
class Spans:
    """Matches in some texts, in their order; arrays are [match]."""

    text: Ints
    """Index of the text."""
    start: Ints
    """Byte of the text at which it starts."""
    end: Ints
    """Byte behind it."""
    num_empty: int
    """Matches of no character, which are left out."""


@dataclass(frozen=True)
class Pattern:
    """A text or a regular expression."""

    text: str
    is_regex: bool = False
    match_case: bool = False

    @property
    def is_folded(self) -> bool:
        """Whether it is looked for in folded texts."""
        return not self.is_regex and not self.match_case

    @cached_property
    def _re2(self) -> str:
        if self.is_regex:
            return self.text if self.match_case else f"(?i:{self.text})"
        return quoted(fold(self.text) if self.is_folded else self.text)

    def check(self) -> None:
        """Raises InvalidRequest for a pattern that cannot be looked for."""
        if self.is_regex:
            self._check_regex()
        elif self.is_folded and not fold(self.text):
            sentence = "holds only accents, which a search leaves out unless match_case is set"
            raise InvalidRequest([Violation("text", sentence)])

    def _check_regex(self) -> None:
        try:
            # Alone first: in brackets of ours, "a)|(b" would be valid.
            is_found = pc.match_substring_regex(pa.array([""]), pattern=self.text)[0].as_py()
            pc.match_substring_regex(pa.array([""]), pattern=self._re2)
        except pa.ArrowInvalid as error:
            raise InvalidRequest([Violation("text", self._what_is_wrong(str(error)))]) from error
        if is_found:
            sentence = "matches the empty text, so it would be found everywhere; write + for *, say"
            raise InvalidRequest([Violation("text", f"the regular expression {sentence}")])

    def _what_is_wrong(self, message: str) -> str:
        """RE2's complaint, with the place of the part that it names."""
        reason = message.removeprefix("Invalid regular expression: ")
        kind, _, part = reason.partition(": ")
        at = self.text.find(part) if part and part != self.text else -1
        where = f" at character {at}" if at >= 0 else ""
        hint = "RE2 has neither look-around nor back references" if re.search(r"\(\?|\\\d", part) else ""
        hint = hint or "search for it as a text, or put \\ before a sign that stands for itself"
        return f"not a regular expression: {kind}{where}{f': {part[:60]}' if part else ''}; {hint}"

    def matches(self, texts: pa.Array) -> NDArray[np.bool_]:
        """Whether it is in each of some texts, folded ones if `is_folded`: [text]."""
        return np.asarray(pc.match_substring_regex(texts, pattern=self._re2).to_numpy(zero_copy_only=False), bool)

    def found_in(self, texts: pa.Array) -> NDArray[np.bool_]:
        """Whether it is in each of some texts as they are: [text]."""
        return self.matches(folded_array(texts) if self.is_folded else texts)

    def spans(self, texts: Any) -> Spans:
        """All matches in some texts (large_string), without overlaps; texts are folded ones if `is_folded`."""
        found = np.flatnonzero(self.matches(texts))
        taken: Any = texts.take(pa.array(found, pa.int64()))
        marked: Any = pc.replace_substring_regex(taken, pattern=self._re2, replacement=_OPEN + b"\\0" + _CLOSE)
        starts = byte_offsets(marked)
        written = np.frombuffer(marked.buffers()[2] or b"", np.uint8)[starts[0] : starts[-1]]
        opened, closed = (np.flatnonzero(written == sign[0]) for sign in (_OPEN, _CLOSE))
        text = np.searchsorted(starts - starts[0], opened, side="right") - 1
        # Each mark before a place has moved it by one byte.
        marks = 2 * (np.arange(len(opened)) - np.searchsorted(text, text))
        base = starts[text] - starts[0] + marks
        start, end = opened - base, closed - base - 1
        is_real = end > start
        return Spans(found[text[is_real]], start[is_real], end[is_real], int(np.count_nonzero(~is_real)))

    def cut(self, text: str) -> tuple[str, str, str] | None:
        """A text before its first match, the match, and the text behind; None where there is none."""
        kept = folded_with_places(text) if self.is_folded else None
        searched = text if kept is None else kept[0]
        spans = self.spans(pa.array([searched], pa.large_string()))
        if not len(spans.start):
            return None
        encoded = searched.encode()
        start, end = (len(encoded[: int(at[0])].decode()) for at in (spans.start, spans.end))
        if kept is not None:
            start, end = kept[1][start], kept[1][end - 1] + 1
            while end < len(text) and not fold(text[end]):
                end += 1  # accents of the last letter
        return text[:start], text[start:end], text[end:]


def fold(text: str) -> str:
    """A text without case, without the accents of U+0300 to U+036F, and in compatible forms.

    Each character is folded alone, so folded pieces join to the folded text.
    """
    return text.lower() if text.isascii() else "".join(map(_folded, text))


def folded_with_places(text: str) -> tuple[str, list[int]]:
    """A folded text, and for each of its characters the index in `text` of the one that it comes from."""
    parts = [_folded(character) for character in text]
    return "".join(parts), [i for i, part in enumerate(parts) for _ in part]


@lru_cache(1 << 14)
def _folded(character: str) -> str:
    parts = unicodedata.normalize("NFKD", character)
    kept = "".join(part for part in parts if ord(part) not in _ACCENTS)
    return unicodedata.normalize("NFC", kept).casefold()


def quoted(text: str) -> str:
    """A text as a regular expression of RE2 that matches it alone."""
    return "".join(each if _UNCHANGED.match(each) else f"\\x{{{ord(each):x}}}" for each in text)


def folded_array(texts: Any) -> Any:
    """Texts folded; each different one once."""
    encoded = texts.dictionary_encode()
    dictionary: Sequence[Any] = encoded.dictionary.to_pylist()
    return pa.array([fold(text) for text in dictionary], texts.type).take(encoded.indices)


def byte_offsets(texts: Any) -> Ints:
    """Bytes at which texts begin, and at last the end: [text + 1]."""
    kind = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    found = np.frombuffer(texts.buffers()[1] or b"", kind)[texts.offset : texts.offset + len(texts) + 1]
    return found.astype(np.int64) if len(found) else np.zeros(1, np.int64)
