"""Which tokens of a text a recipe's token policy leaves out, as far as their roles and places tell.

Tokens with an outlying norm, which only activations tell, are for norms.py.
"""

import numpy as np

from crosscope_proto.roles import LeftOut, TokenRole
from crosscope_proto.specs import TokenPolicy


def policy_reasons(roles: np.ndarray, policy: TokenPolicy) -> np.ndarray:
    """Why the policy leaves out the tokens of a text: [pos] uint8, LeftOut; `roles: [pos]`. Padding always goes."""
    reasons = np.full(len(roles), LeftOut.KEPT, dtype=np.uint8)
    reasons[: policy.skip_first] = LeftOut.FIRST
    if policy.skip_bos:
        reasons[roles == TokenRole.BOS] = LeftOut.BOS
    reasons[roles == TokenRole.PAD] = LeftOut.PAD
    return reasons


def policy_positions(roles: np.ndarray, policy: TokenPolicy) -> np.ndarray:
    """Positions that the policy keeps, ascending."""
    return np.flatnonzero(policy_reasons(roles, policy) == LeftOut.KEPT)
