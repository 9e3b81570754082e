"""Text of tokens as people read it, where one character is several tokens.

Decoded one by one, such tokens are U+FFFD each. Here they are joined: the token that begins the character has it as its
piece, and the tokens that go on with it have the empty piece. Knows the tokenizer's vocabulary and decoder, nothing
about roles or models.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crosscope_worker.tokenizer.tokens import TextTokenizer

UNKNOWN = "\ufffd"
"""What a decoder gives for bytes that are no character."""
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def text_pieces(tokenizer: "TextTokenizer", ids: "Sequence[int] | NDArray") -> list[str]:
    """The text of each token of one text; joined, they are the text.

    A character that several tokens share stands on the first of them, and the others have "". Bytes that are no
    character even together are U+FFFD.
    """
    numbers = [int(id_) for id_ in ids]
    pieces = tokenizer.pieces(numbers)
    if not any(UNKNOWN in piece for piece in pieces):
        return pieces
    for is_part, run in groupby(range(len(pieces)), key=lambda index: UNKNOWN in pieces[index]):
        indices = list(run)
        parts = [token_bytes(tokenizer, numbers[index], pieces[index]) for index in indices] if is_part else []
        known = [part for part in parts if part is not None]
        if known and len(known) == len(parts):
            for index, piece in zip(indices, _joined(known), strict=True):
                pieces[index] = piece
    return pieces


def lone_pieces(tokenizer: "TextTokenizer", ids: "Sequence[int] | NDArray") -> list[str]:
    """The text of tokens that stand alone, for instance at peaks; bytes that are no character are shown as <0xE2>."""
    numbers = [int(id_) for id_ in ids]
    return [_lone(tokenizer, id_, piece) for id_, piece in zip(numbers, tokenizer.pieces(numbers), strict=True)]


def token_bytes(tokenizer: "TextTokenizer", id_: int, piece: str) -> bytes | None:
    """The bytes of a token whose text alone is `piece`; None where the vocabulary does not tell."""
    if UNKNOWN not in piece:
        return piece.encode("utf-8", "surrogatepass")
    token = tokenizer.token(id_)
    if (byte := _BYTE.fullmatch(token)) is not None:
        return bytes([int(byte[1], 16)])
    if all(character in _BYTE_OF for character in token):
        found = bytes(_BYTE_OF[character] for character in token)
        return found if UNKNOWN in found.decode("utf-8", "replace") else None
    return None


def _lone(tokenizer: "TextTokenizer", id_: int, piece: str) -> str:
    part = token_bytes(tokenizer, id_, piece) if UNKNOWN in piece else None
    if part is None:
        return piece
    shown, at = "", 0
    while at < len(part):
        size = _character(part, at)
        shown += part[at : at + size].decode("utf-8") if size else f"<0x{part[at]:02X}>"
        at += max(size, 1)
    return shown


def _joined(parts: Sequence[bytes]) -> list[str]:
    """The pieces of tokens by their bytes; a character belongs to the token with its first byte."""
    whole = b"".join(parts)
    owners = [token for token, part in enumerate(parts) for _ in part]
    pieces = [""] * len(parts)
    at = 0
    while at < len(whole):
        size = _character(whole, at)
        pieces[owners[at]] += whole[at : at + size].decode("utf-8") if size else UNKNOWN
        at += max(size, 1)
    return pieces


def _character(text: bytes, at: int) -> int:
    """How many bytes the character that begins at `at` has; 0 where there is none."""
    for size in range(1, 5):
        try:
            text[at : at + size].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return size if at + size <= len(text) else 0
    return 0


def _byte_alphabet() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for (GPT-2, `bytes_to_unicode`)."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
