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


def rank_latents(
    encoding: Encoding,
    rank: Rank,
    limit: int,
    tokens: TokenRange,
    *,
    frequency: NDArray[np.float32] | None = None,
    max_frequency: float | None = None,
    maximum: NDArray[np.float32] | None = None,
) -> Ranked:
    """The `limit` strongest latents of a prompt.

    `frequency` and `maximum` are columns of the statistics table: [latent]. Latents above max_frequency are left out
    before the cut to `limit`. The share of a latent that never fired in the analysis is NaN, and NaN comes last. Raises
    InvalidRequest if the token range does not lie in the prompt.
    """
    counted, num_left_out = _counted(encoding, tokens)
    token = np.repeat(np.arange(len(counted)), np.diff(encoding.row_starts.astype(np.int64)))
    keep = counted[token]
    if max_frequency is not None:
        assert frequency is not None, "max_frequency needs the frequencies"
        keep &= frequency[encoding.latents] <= max_frequency
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
            assert maximum is not None, "shares need the maxima"
            own = maximum[latents].astype(np.float64)
            scores = maxima / np.where(own > 0, own, np.nan)
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
    )


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
