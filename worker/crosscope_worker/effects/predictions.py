"""Predictions of two models compared (math §9): log-probabilities over the ids that both have, and KL divergences.

Knows logits; does not know texts.
"""

import torch
from torch import Tensor

from crosscope_worker.models.places import PairError

MAX_OUTSIDE = 0.01
"""Most probability that a model may give to ids that the other lacks."""


def log_probabilities(logits: Tensor, num_shared: int) -> Tensor:
    """Log-probabilities [..., num_shared] float32 if the next token is one of the first `num_shared` ids.

    logits: [..., vocabulary] float32. Raises PairError if other ids have more than MAX_OUTSIDE of the probability.
    """
    if logits.shape[-1] == num_shared:
        return logits.log_softmax(dim=-1)
    shared = logits[..., :num_shared].log_softmax(dim=-1)
    log_mass = logits[..., 0] - shared[..., 0] - logits.logsumexp(dim=-1)
    if log_mass.numel() and (outside := 1 - float(log_mass.exp().min())) > MAX_OUTSIDE:
        raise PairError(
            f"a model gives {outside:.1%} of the probability to ids that the other model lacks (it has {num_shared} of "
            f"{logits.shape[-1]}), and at most {MAX_OUTSIDE:.0%} may be left out of a comparison; use models of one "
            "vocabulary"
        )
    return shared


def divergence(log_p: Tensor, log_q: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`KL(p ‖ q)` in nats, [...], of log-probabilities [..., vocabulary]; added up in `dtype`, by default theirs.

    Rounding can make it a little less than 0.
    """
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1, dtype=dtype)
