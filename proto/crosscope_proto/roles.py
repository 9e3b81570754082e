"""What a token is for in its text, and the order of the two models. Knows nothing about tokenizers."""

from enum import IntEnum

BASE, CHAT = 0, 1
"""Indices on every `model` axis."""

MODEL_NAMES = ("base", "chat")
"""Names of the models, indexed like every `model` axis."""


class TokenRole(IntEnum):
    """What a token is for. The numbers are those of `crosscope.v1.TokenRole` and of sequences.parquet."""

    TEXT = 1
    BOS = 2
    HEADER = 3
    TURN_END = 4
    SYSTEM = 5
    USER = 6
    ASSISTANT = 7
    REASONING = 8
    TOOL = 9
    PAD = 10


class LeftOut(IntEnum):
    """Why the token policy left a token out. The numbers are those of `crosscope.v1.TokenLeftOut`."""

    KEPT = 0
    BOS = 1
    FIRST = 2
    NORM = 3
    PAD = 4


NUM_ROLES = 11
"""Length of arrays indexed by TokenRole; index 0 stays empty. In older files the length is 8."""

TEMPLATE_ROLES = frozenset({TokenRole.BOS, TokenRole.HEADER, TokenRole.TURN_END, TokenRole.PAD})
"""Roles of tokens that a chat template or tokenizer adds."""
