"""What is ordered from a decoder, and what it tells: plain data. Knows no models."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np

from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_worker.effects.interventions import Intervention
from crosscope_worker.tokenizer.tokens import TextTokenizer


class DoesNotFit(Exception):
    """An order that could never be met; the message has the numbers and the way out."""


class EndReason(StrEnum):
    """Why an answer ended."""

    TURN_END = "turn_end"
    STOP = "stop"
    LENGTH = "length"
    CONTEXT = "context"
    OUT_OF_MEMORY = "out_of_memory"


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn; see Sampling in effects.proto."""

    temperature: float = 0.0
    top_p: float | None = None
    seed: int = 0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    num_samples: int = 1


@dataclass(frozen=True)
class ArmOrder:
    """One way to continue the prompt."""

    model: int
    """BASE or CHAT."""
    interventions: tuple[Intervention, ...] = ()
    sampling: SamplingSettings = SamplingSettings()


@dataclass(frozen=True, eq=False)
class Order:
    """A prompt to be continued in several ways."""

    ids: np.ndarray
    """[pos] int64."""
    roles: np.ndarray
    """[pos] uint8, TokenRole."""
    arms: tuple[ArmOrder, ...]
    tokenizer: TextTokenizer
    """Gives the text of new tokens."""
    with_code: bool = False
    """Also the code of the prompt and of every new token."""


@dataclass(frozen=True, eq=False)
class TokenCode:
    """The sparse code of some tokens in compressed rows, strongest latent first within a token."""

    row_starts: np.ndarray
    """[token + 1] int64."""
    latents: np.ndarray
    """[entry] int64."""
    activations: np.ndarray
    """[entry] float32, scaled."""

    @classmethod
    def joined(cls, parts: "Sequence[TokenCode]") -> Self:
        """The code of all tokens of some parts, one part after the other."""
        sizes = np.concatenate([np.diff(part.row_starts) for part in parts])
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        latents, activations = ([getattr(part, name) for part in parts] for name in ("latents", "activations"))
        return cls(starts, np.concatenate(latents), np.concatenate(activations))


@dataclass(frozen=True, eq=False)
class Started:
    """The prompt was read."""

    order: Order
    left_out: np.ndarray | None
    """[pos] uint8, LeftOut: why training leaves such tokens out; None without a crosscoder. Outlying norms are those of
    both models where both ran to the layer, else those of the model that read the prompt first."""
    code: TokenCode | None
    """The prompt's code, if it was asked for."""


@dataclass(frozen=True, eq=False)
class Token:
    """A new token of one answer."""

    order: Order
    arm: int
    sample: int
    id: int
    piece: str
    """Its text. A character that several tokens share comes with the last of them."""
    log_probability: float
    """In the model as changed, at temperature 1."""
    role: TokenRole
    code: TokenCode | None
    """Of this token alone, if it was asked for; None for the last token of an answer, which no model has read."""
    left_out: LeftOut | None = None
    """Why training leaves out such tokens; None where there is no code."""


@dataclass(frozen=True, eq=False)
class Ended:
    """The end of one answer."""

    order: Order
    arm: int
    sample: int
    reason: EndReason
    text: str
    """The answer without a turn's end and from a stop string on."""
    num_tokens: int
    """New tokens, a turn's end among them."""
    num_changed: int
    """Tokens of the prompt and the answer at which an intervention changed something."""
    num_left_out: int
    """Tokens that interventions reached but left alone, because training left such tokens out."""


Event = Started | Token | Ended
_EVENT_BYTES, _CODE_BYTES = 300, 450
"""Memory of an event, and of a code besides its entries, as measured."""


def size_bytes(event: Event) -> int:
    """About the memory that an event takes."""
    if isinstance(event, Ended):
        return _EVENT_BYTES + len(event.text)
    if (code := event.code) is None:
        return _EVENT_BYTES
    return _EVENT_BYTES + _CODE_BYTES + code.row_starts.nbytes + code.latents.nbytes + code.activations.nbytes


def in_order(events: Sequence[Event]) -> list[Event]:
    """Events of one step and order: the start, then tokens by arm and sample, each sample's second behind all firsts,
    then ends.
    """
    seen: set[tuple[int, int]] = set()
    keyed: list[tuple[tuple[int, int, int], Event]] = []
    for event in events:
        if isinstance(event, Started):
            keyed.append(((0, 0, 0), event))
            continue
        place = event.arm, event.sample
        rank = 3 if isinstance(event, Ended) else 2 if place in seen else 1
        seen.add(place)
        keyed.append(((rank, *place), event))
    return [event for _, event in sorted(keyed, key=lambda each: each[0])]
