"""The text of one answer as its tokens come, and when it ends. Knows no models."""

import codecs
from collections.abc import Collection

from crosscope_worker.effects.orders import EndReason
from crosscope_worker.tokenizer.pieces import UNKNOWN, token_bytes
from crosscope_worker.tokenizer.tokens import TextTokenizer


class Answer:
    """Turns new tokens into pieces of text and looks for ends."""

    def __init__(
        self, tokenizer: TextTokenizer, end_ids: Collection[int], stop: tuple[str, ...], max_tokens: int, room: int
    ) -> None:
        """`max_tokens` are wanted; after `room` tokens the models can read no more."""
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._stop = stop
        self._max_tokens = max_tokens
        self._room = room
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_open = False
        self.text = ""
        """What was said, without a turn's end and from a stop string on."""
        self.num_tokens = 0

    def take(self, id_: int) -> tuple[str, EndReason | None]:
        """The piece of the next token, and why the answer ends with it; None if it goes on."""
        self.num_tokens += 1
        if id_ in self._end_ids:
            piece = self._tokenizer.pieces([id_])[0]
            rest = self._closed()
            self.text += rest
            return rest + piece, EndReason.TURN_END
        piece = self._decoded(id_)
        reason = self._limit()
        if reason is not None:
            piece += self._closed()
        if self._said(piece):
            return piece, EndReason.STOP
        return piece, reason

    def _limit(self) -> EndReason | None:
        if self.num_tokens >= self._max_tokens:
            return EndReason.LENGTH
        return EndReason.CONTEXT if self.num_tokens >= self._room else None

    def _decoded(self, id_: int) -> str:
        piece = self._tokenizer.pieces([id_])[0]
        if not self._is_open and UNKNOWN not in piece:
            return piece
        part = token_bytes(self._tokenizer, id_, piece)
        if part is None:
            return self._closed() + piece
        said = self._bytes.decode(part)
        self._is_open = bool(self._bytes.getstate()[0])
        return said

    def _closed(self) -> str:
        """What stands for bytes that became no character."""
        rest = self._bytes.decode(b"", final=True) if self._is_open else ""
        self._is_open = False
        return rest

    def _said(self, piece: str) -> bool:
        """Adds a piece; whether a stop string came, which is then cut off."""
        known = len(self.text)
        self.text += piece
        found = [self.text.find(stop, max(0, known - len(stop) + 1)) for stop in self._stop] if piece else []
        found = [at for at in found if at >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)
