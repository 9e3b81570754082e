"""Paired activations with known latents: a task for a crosscoder, with its solution.

A token's activations are `x^m = sum_j f_j D_j^m + noise` (math §1) with rows D and codes f that are drawn here. Knows
nothing about crosscoders, training or scores.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosscope_proto.roles import TokenRole
from crosscope_worker.data.harvest import Harvest
from crosscope_worker.data.texts import Text
from crosscope_worker.dictionary.sparse import SparseCode, decode_entries, flat_indices

BLOCK_TOKENS = 4096
"""Number of tokens drawn at a time."""
TEXT_TOKENS = 128
"""Length of held-out texts in tokens; the tokens are independent of each other."""
_DIRECTIONS, _TRAINING, _HELD_OUT = range(3)
"""Numbers of a seed's random streams."""
_TRAIT_EVERY, _RARE_AT, _CORRELATED_AT = 8, 3, 6
"""Of every eight latents of a kind, the fourth is rare and the seventh is correlated."""


class Kind(StrEnum):
    """How a planted latent's directions in the two models relate."""

    SHARED = "shared"
    """The same direction, equally strong."""
    ROTATED = "rotated"
    """Equally strong, at an angle."""
    WEAK = "weak"
    """The same direction, weaker in base: what L1 shrinks to chat-only."""
    BASE_ONLY = "base_only"
    CHAT_ONLY = "chat_only"


@dataclass(frozen=True)
class PlantedSpec:
    """The planted latents and their frequencies. The default is the reference: 256 latents, 8.5 active a token on
    average.
    """

    d_model: int = 64
    """Width of each model."""
    num_shared: int = 126
    num_rotated: int = 64
    num_weak: int = 16
    num_base_only: int = 25
    num_chat_only: int = 25
    rotation_cosine: float = 0.5
    """Cosine between the two directions of a rotated latent."""
    weak_ratio: float = 0.25
    """Strength in base of a weak latent, as a share of that in chat."""
    frequency: tuple[float, float] = (0.02, 0.05)
    """Range of the share of tokens on which a latent fires by itself, drawn uniformly."""
    rare_factor: float = 0.1
    """Factor by which the drawn frequency of a rare latent is multiplied."""
    follows: float = 0.5
    """Probability that a correlated latent fires because its partner, a shared latent, does."""
    strength: tuple[float, float] = (0.5, 1.5)
    """Range of the strength of a firing, drawn uniformly; directions have norm 1."""
    noise: float = 0.02
    """Standard deviation of each activation's noise, independent in the two models."""

    def __post_init__(self) -> None:
        if self.num_shared < 1:
            raise ValueError(f"num_shared is {self.num_shared}; correlated latents need a shared one, give at least 1")

    @property
    def num_latents(self) -> int:
        """All planted latents."""
        return self.num_shared + self.num_rotated + self.num_weak + self.num_base_only + self.num_chat_only


@dataclass(frozen=True, eq=False)
class Planted:
    """The planted latents, ordered by kind."""

    spec: PlantedSpec
    seed: int
    kind: np.ndarray
    """[planted] str, a Kind."""
    rows: Tensor
    """[planted, both] float32."""
    frequency: Tensor
    """[planted] share of tokens on which it fires by itself."""
    rare: Tensor
    """[planted] bool."""
    partner: Tensor
    """[planted] int64, the latent that it follows; -1 if it is not correlated."""

    def differences(self) -> Tensor:
        """[planted, d_model] chat's rows less base's; zero for shared latents, which a difference does not show."""
        base, chat = self.rows.split(self.spec.d_model, dim=1)
        return chat - base

    def draw(self, num_tokens: int, generator: torch.Generator) -> tuple[SparseCode, Tensor]:
        """The code and the activations `[token, both]` of independent tokens."""
        spec, num_latents = self.spec, len(self.rows)
        active = self._fire(num_tokens, generator)
        follower = self.partner >= 0
        token, index = active[:, self.partner[follower]].nonzero(as_tuple=True)
        led = torch.rand(len(token), generator=generator) < spec.follows
        active[token[led], follower.nonzero().squeeze(1)[index[led]]] = True
        flat = flat_indices(active)
        low, high = spec.strength
        values = low + (high - low) * torch.rand(len(flat), generator=generator)
        tokens = flat // num_latents
        code = SparseCode(tokens, flat - tokens * num_latents, values, num_tokens)
        noise = spec.noise * torch.randn(num_tokens, self.rows.shape[1], generator=generator)
        return code, decode_entries(code, self.rows) + noise

    def _fire(self, num_tokens: int, generator: torch.Generator) -> Tensor:
        """Which latents fire by themselves, [token, planted] bool.

        Few do. So candidates are drawn at the frequency of the most frequent latent, and each other latent keeps its
        share of its candidates.
        """
        most, num_cells = float(self.frequency.max()), num_tokens * len(self.rows)
        candidates = torch.tensor([-1])
        while candidates[-1] < num_cells:
            gaps = torch.empty(int(most * num_cells) + 64, dtype=torch.int64).geometric_(most, generator=generator)
            candidates = torch.cat([candidates, candidates[-1] + gaps.cumsum(0)])
        candidates = candidates[1:][candidates[1:] < num_cells]
        share = self.frequency[candidates % len(self.rows)] / most
        fired = candidates[torch.rand(len(candidates), generator=generator) < share]
        active = torch.zeros(num_cells, dtype=torch.bool)
        active[fired] = True
        return active.view(num_tokens, -1)

    def held_out(self, num_tokens: int) -> Iterator[Harvest]:
        """Harvests of whole texts for the analysis, about `num_tokens` tokens that training never sees."""
        for block in range(-(-num_tokens // BLOCK_TOKENS)):
            yield _as_harvest(self.draw(BLOCK_TOKENS, _generator(self.seed, _HELD_OUT, block))[1], block)


class PlantedSource:
    """An ActivationSource whose blocks are the same at every reading."""

    def __init__(self, planted: Planted, num_tokens: int) -> None:
        """Gives at least `num_tokens` tokens."""
        self._planted = planted
        self._num_blocks = -(-num_tokens // BLOCK_TOKENS)
        self._next = 0

    def blocks(self) -> Generator[Tensor]:
        """Yields `[token, both]` float32."""
        while self._next < self._num_blocks:
            generator = _generator(self._planted.seed, _TRAINING, self._next)
            self._next += 1
            yield self._planted.draw(BLOCK_TOKENS, generator)[1]

    def fraction(self) -> float:
        """Share of the blocks that were read."""
        return self._next / self._num_blocks

    def state(self) -> dict[str, Any]:
        """The next block."""
        return {"next": self._next}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a saved state."""
        self._next = state["next"]


def plant(spec: PlantedSpec, seed: int) -> Planted:
    """The latents of a seed."""
    counts = {
        Kind.SHARED: spec.num_shared,
        Kind.ROTATED: spec.num_rotated,
        Kind.WEAK: spec.num_weak,
        Kind.BASE_ONLY: spec.num_base_only,
        Kind.CHAT_ONLY: spec.num_chat_only,
    }
    kind = np.repeat([str(each) for each in counts], list(counts.values()))
    rank = torch.cat([torch.arange(count) for count in counts.values()]) % _TRAIT_EVERY
    rare, correlated = rank == _RARE_AT, rank == _CORRELATED_AT
    leaders = torch.from_numpy(kind == Kind.SHARED) & ~rare & ~correlated
    leaders = leaders.nonzero().squeeze(1)
    partner = torch.full((spec.num_latents,), -1, dtype=torch.int64)
    followers = correlated.nonzero().squeeze(1)
    partner[followers] = leaders[torch.arange(len(followers)) % len(leaders)]

    generator = _generator(seed, _DIRECTIONS, 0)
    low, high = spec.frequency
    frequency = low + (high - low) * torch.rand(spec.num_latents, generator=generator)
    frequency[rare] *= spec.rare_factor
    return Planted(spec, seed, kind, _rows(spec, kind, generator), frequency, rare, partner)


def _rows(spec: PlantedSpec, kind: np.ndarray, generator: torch.Generator) -> Tensor:
    """Random unit directions in chat; base's are the same, turned, weakened or absent; `[planted, both]`."""
    first, second = torch.randn(2, spec.num_latents, spec.d_model, generator=generator)
    chat = torch.nn.functional.normalize(first, dim=1)
    across = torch.nn.functional.normalize(second - torch.linalg.vecdot(second, chat)[:, None] * chat, dim=1)
    base = chat.clone()
    cosine = spec.rotation_cosine
    base[kind == Kind.ROTATED] = (cosine * chat + (1 - cosine**2) ** 0.5 * across)[kind == Kind.ROTATED]
    base[kind == Kind.WEAK] *= spec.weak_ratio
    base[kind == Kind.CHAT_ONLY] = 0
    chat[kind == Kind.BASE_ONLY] = 0
    return torch.cat([base, chat], dim=1)


def _as_harvest(x: Tensor, block: int) -> Harvest:
    """The tokens as texts. Every token has an id of its own, so that no text repeats another."""
    num_texts = len(x) // TEXT_TOKENS
    ids = block * len(x) + np.arange(num_texts * TEXT_TOKENS).reshape(num_texts, TEXT_TOKENS)
    roles = np.full(TEXT_TOKENS, TokenRole.TEXT, np.uint8)
    return Harvest(
        texts=[Text(0, own, roles) for own in ids],
        x=x,
        text=torch.arange(num_texts).repeat_interleave(TEXT_TOKENS),
        position=torch.arange(TEXT_TOKENS).repeat(num_texts),
        role=torch.full((len(x),), int(TokenRole.TEXT), dtype=torch.uint8),
        dataset=torch.zeros(len(x), dtype=torch.uint8),
    )


def _generator(seed: int, stream: int, block: int) -> torch.Generator:
    state = np.random.SeedSequence([seed, stream, block]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
