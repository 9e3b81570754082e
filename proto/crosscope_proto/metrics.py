"""Figures that follow from several metrics of a crosscoder. Computes no metric."""

from collections.abc import Mapping


def inlier_fve(metrics: Mapping[str, float], model: str) -> float | None:
    """A model's headline FVE: over tokens without outlying norms (math §7). Older versions have the plain FVE only."""
    return metrics.get(f"fve_{model}_inliers", metrics.get(f"fve_{model}"))
