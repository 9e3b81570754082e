"""The choice of the latents whose causal effects are measured. Knows tables and no models."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from crosscope_proto.specs import CausalSpec
from crosscope_worker.analysis.errors import AnalysisError


@dataclass(frozen=True, eq=False)
class Choice:
    """The latents that are measured."""

    latents: Tensor
    """[chosen latent] int64, in the order of ids."""
    num_left_out: int
    """Number of latents that could have been chosen and came after the last that was."""
    reason: str = ""
    """Why none was chosen; empty otherwise."""


def choose_latents(latents: pa.Table, spec: CausalSpec) -> Choice:
    """The latents that a spec means, from a table of LATENT_COLUMNS.

    Raises AnalysisError for a latent that the dictionary does not have.
    """
    if spec.latents:
        if (last := max(spec.latents)) >= latents.num_rows:
            raise AnalysisError(
                f"analysis.causal.latents names latent {last}, but the dictionary has {latents.num_rows}, 0 to "
                f"{latents.num_rows - 1}"
            )
        return Choice(torch.tensor(sorted(spec.latents)), 0)
    order = _order(latents, spec)
    classes = np.asarray(latents.column("latent_class").to_pylist())
    chosen: list[int] = []
    left_out = 0
    for members in [classes == each for each in spec.classes] or [np.ones(len(classes), bool)]:
        candidates = np.flatnonzero(members & np.isfinite(order))
        candidates = candidates[np.argsort(order[candidates], kind="stable")]
        chosen += candidates[: spec.num_latents].tolist()
        left_out += max(0, len(candidates) - spec.num_latents)
    of = f" of class {' or '.join(spec.classes)}" if spec.classes else ""
    reason = "" if chosen else f"no living latent{of} has a {spec.top}; choose by another with analysis.causal.top"
    return Choice(torch.tensor(sorted(chosen), dtype=torch.int64), left_out, reason)


def _order(latents: pa.Table, spec: CausalSpec) -> np.ndarray:
    """[latent], smallest first; NaN for a latent that cannot be chosen."""

    def column(name: str) -> np.ndarray:
        return latents.column(name).to_numpy(zero_copy_only=False).astype(np.float64)

    is_estimate = spec.top in ("nu_err", "beta_ratio")
    values = np.abs(column(spec.top)) + 2 * column(f"{spec.top}_se") if is_estimate else -column(spec.top)
    return np.where(column("num_active") > 0, values, np.nan)
