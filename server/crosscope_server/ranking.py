"""Ranks the latents that a prompt fires. Knows nothing about where the code came from."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from crosscope_proto.roles import TEMPLATE_ROLES, LeftOut, TokenRole
from crosscope_server.encodings import Encoding
from crosscope_server.errors import InvalidRequest, Violation


class Rank(StrEnum):
    """How latents are ranked over the tokens of a prompt."""

    MAX = "max"
    SUM = "sum"
    COUNT = "count"
    SHARE_OF_MAX = "share_of_max"
    USELESSNESS = "uselessness"

    @property
    def column(self) -> str | None:
        """The column of the statistics table that it reads, if any."""
        return {Rank.SHARE_OF_MAX: "max", Rank.USELESSNESS: "base_uselessness_single"}.get(self)


@dataclass(frozen=True)
class TokenRange:
    """The tokens of a prompt that are ranked."""

    start: int = 0
    end: int | None = None
    """One past the last; None for the end."""
    skip_template: bool = False
    """Leave out BOS, role headers and turn ends, except the token at which the model decides how its answer begins."""
    include_left_out: bool = False
    """Also rank tokens that training left out."""


@dataclass(frozen=True)
class Ranked:
    """Latents by descending score, equal ones by id. Every array is [latent]."""

    latents: NDArray[np.uint32]
    scores: NDArray[np.float32]
    maxima: NDArray[np.float32]
    sums: NDArray[np.float32]
    counts: NDArray[np.uint32]
    peaks: NDArray[np.uint32]
    """Token with the largest activation, the first of equal ones."""
    num_latents: int
    """Latents that were ranked, before the cut."""
    num_left_out: int
    """Tokens that were not ranked because training left them out."""
    num_filtered: int
    """Latents that fire there and were not allowed."""


def rank_latents(
    encoding: Encoding,
    rank: Rank,
    limit: int,
    tokens: TokenRange,
    *,
    allowed: NDArray[np.bool_] | None = None,
    figures: NDArray[np.float32] | None = None,
) -> Ranked:
    """The `limit` strongest latents of a prompt.

    `allowed: [latent]` says which latents are ranked at all; the others are left out before the cut to `limit`.
    `figures: [latent]` is the column that the rank reads. A score of a latent whose figure is undefined is NaN, as is
    the share of one that never fired in the analysis; NaN comes last. Raises InvalidRequest if the token range does not
    lie in the prompt.
    """
    counted, num_left_out = _counted(encoding, tokens)
    token = np.repeat(np.arange(len(counted)), np.diff(encoding.row_starts.astype(np.int64)))
    keep = counted[token]
    num_filtered = 0
    if allowed is not None:
        num_filtered = len(np.unique(encoding.latents[keep & ~allowed[encoding.latents]]))
        keep &= allowed[encoding.latents]
    token, latent, value = token[keep], encoding.latents[keep], encoding.activations[keep]
    # By latent, its strongest token first, the earliest of equal ones.
    order = np.lexsort((token, -value, latent))
    token, latent, value = token[order], latent[order], value[order]
    first = np.flatnonzero(np.diff(latent, prepend=-1)) if len(latent) else np.zeros(0, np.int64)
    latents, maxima = latent[first], value[first]
    counts = np.diff(np.append(first, len(latent)))
    sums = np.add.reduceat(value.astype(np.float64), first) if len(first) else np.zeros(0)
    match rank:
        case Rank.MAX:
            scores = maxima.astype(np.float64)
        case Rank.SUM:
            scores = sums
        case Rank.COUNT:
            scores = counts.astype(np.float64)
        case Rank.SHARE_OF_MAX:
            own = _of_latents(figures, latents)
            scores = maxima / np.where(own > 0, own, np.nan)
        case Rank.USELESSNESS:
            scores = maxima * _of_latents(figures, latents)
    best = np.lexsort((latents, -scores))[:limit]
    return Ranked(
        latents=latents[best],
        scores=scores[best].astype(np.float32),
        maxima=maxima[best],
        sums=sums[best].astype(np.float32),
        counts=counts[best].astype(np.uint32),
        peaks=token[first][best].astype(np.uint32),
        num_latents=len(latents),
        num_left_out=num_left_out,
        num_filtered=num_filtered,
    )


def _of_latents(figures: NDArray[np.float32] | None, latents: NDArray[np.uint32]) -> NDArray[np.float64]:
    assert figures is not None, "this rank reads a column"
    return figures[latents].astype(np.float64)


def _counted(encoding: Encoding, tokens: TokenRange) -> tuple[NDArray[np.bool_], int]:
    """Whether each token is ranked, [pos], and how many are not, for the sole reason that training left them out."""
    num_tokens = len(encoding.tokens.ids)
    end = num_tokens if tokens.end is None else tokens.end
    if end > num_tokens:
        raise InvalidRequest([Violation("token_end", f"is {end}, but the prompt has {num_tokens} tokens")])
    if tokens.start >= end:
        sentence = f"is {tokens.start}, but must be less than token_end, {end}"
        raise InvalidRequest([Violation("token_start", sentence)])
    counted = np.zeros(num_tokens, bool)
    counted[tokens.start : end] = True
    if tokens.skip_template:
        counted &= ~_template(np.array(encoding.tokens.roles))
    if tokens.include_left_out or not encoding.tokens.left_out:
        return counted, 0
    trained = np.array(encoding.tokens.left_out) == LeftOut.KEPT
    return counted & trained, int(np.count_nonzero(counted & ~trained))


def _template(roles: NDArray[np.int_]) -> NDArray[np.bool_]:
    """Whether each token is one that the template adds: [pos], like `roles: [pos]`.

    The last token of a header before an answer, before reasoning or at the end does not count: at this token the model
    decides how its answer begins.
    """
    before_answer = np.append(np.isin(roles[1:], (TokenRole.ASSISTANT, TokenRole.REASONING)), True)
    return np.isin(roles, sorted(TEMPLATE_ROLES)) & ~((roles == TokenRole.HEADER) & before_answer)
