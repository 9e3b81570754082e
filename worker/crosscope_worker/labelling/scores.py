"""How well a label fits: balanced accuracy with its standard error (math §14). Knows no texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """Balanced accuracy of some judgements."""

    value: float
    se: float
    num: int
    """Number of texts that were judged."""

    def named(self, name: str) -> dict[str, float]:
        """As entries of a label's scores."""
        return {name: self.value, f"{name}_se": self.se, f"{name}_n": float(self.num)}


def balanced_accuracy(judged: Sequence[bool | None], truth: Sequence[bool]) -> Score | None:
    """Mean of the shares of true and of false texts that were judged rightly. None was not judged, and does not count.

    None where no true, or no false, text was judged. The error takes (k + 1) / (n + 2) for a share k / n, so that it is
    never 0.
    """
    shares: list[float] = []
    variance, num = 0.0, 0
    for side in (True, False):
        pairs = zip(judged, truth, strict=True)
        right = [said is side for said, is_true in pairs if is_true is side and said is not None]
        if not right:
            return None
        shares.append(sum(right) / len(right))
        smoothed = (sum(right) + 1) / (len(right) + 2)
        variance += smoothed * (1 - smoothed) / len(right)
        num += len(right)
    return Score(sum(shares) / 2, math.sqrt(variance) / 2, num)
