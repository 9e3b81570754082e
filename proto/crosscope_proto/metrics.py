"""What the metrics of a crosscoder say together. Computes none of them."""

from collections.abc import Mapping


def inlier_fve(metrics: Mapping[str, float], model: str) -> float | None:
    """The headline FVE of a model: without tokens of an outlying norm (math §7); the plain one in older versions."""
    return metrics.get(f"fve_{model}_inliers", metrics.get(f"fve_{model}"))
