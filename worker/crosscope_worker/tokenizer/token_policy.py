"""Finds the tokens of a text that a recipe's token policy leaves out by their roles and positions.

norms.py finds those with an outlying norm, which only activations tell.
"""

import numpy as np

from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_proto.specs import TokenPolicy


def policy_reasons(roles: np.ndarray, policy: TokenPolicy) -> np.ndarray:
    """Why the policy leaves out each token: [pos] uint8, LeftOut; `roles: [pos]`. Padding is always left out."""
    reasons = np.full(len(roles), LeftOut.KEPT, dtype=np.uint8)
    reasons[: policy.skip_first] = LeftOut.FIRST
    if policy.skip_bos:
        reasons[roles == TokenRole.BOS] = LeftOut.BOS
    reasons[roles == TokenRole.PAD] = LeftOut.PAD
    return reasons


def policy_positions(roles: np.ndarray, policy: TokenPolicy) -> np.ndarray:
    """Positions that the policy keeps, ascending."""
    return np.flatnonzero(policy_reasons(roles, policy) == LeftOut.KEPT)
