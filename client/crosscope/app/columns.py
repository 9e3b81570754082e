"""The columns of the statistics table that the app draws and filters, with their names for people."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

CLASS_OF_NUMBER = ("", "chat_only", "base_only", "shared", "other", "dead")
"""Classes by the number with which an atlas column carries them."""


@dataclass(frozen=True)
class Axis:
    """How one column is shown."""

    name: str
    short: str
    """For the head of a table."""
    is_log: bool = False
    help: str = ""
    format: str = "%.3f"
    """Of a cell of a table, as printf has it."""


AXES = {
    "frequency": Axis(
        "firing frequency", "frequency", True, "Share of the analysis's tokens on which it fired.", "%.2e"
    ),
    "base_uselessness_single": Axis(
        "base uselessness, alone",
        "useless alone",
        help="−ln of the scale at which its chat direction helps the base model, on its own; high: useless to base.",
        format="%.2f",
    ),
    "base_uselessness": Axis(
        "base uselessness",
        "uselessness",
        help="The same by the published recipe, joint over the chat-only latents.",
        format="%.2f",
    ),
    "base_uselessness_ls": Axis(
        "base uselessness, least squares",
        "useless (ls)",
        help="The same by joint non-negative least squares over the chat-only latents.",
        format="%.2f",
    ),
    "rel_norm": Axis("relative norm", "rel. norm", help="Of its decoder rows: 0 base only, ½ shared, 1 chat only."),
    "nu_err": Axis("ν error", "ν err", help="High: the base model has it too, sparsity hid it."),
    "nu_rec": Axis("ν reconstruction", "ν rec", help="High: other latents carry it in the base model."),
    "beta_ratio": Axis(
        "β ratio",
        "β ratio",
        help="Activation coefficient of base over that of chat: 1 both use it alike, near 0 chat alone.",
    ),
    "cosine": Axis("cosine of decoders", "cosine", help="Cosine between its two decoder rows."),
    "num_active": Axis(
        "active tokens",
        "active",
        True,
        "Tokens of the analysis on which it fired; with few, all is rough.",
        "%d",
    ),
    "mean": Axis("mean activation", "mean", help="Mean scaled activation where it fired."),
    "max": Axis("max activation", "max", help="Largest scaled activation."),
    "template_share": Axis(
        "template share", "template", help="Share of its activation on BOS, role headers and turn ends."
    ),
    "repeat_share": Axis(
        "repeat share",
        "repeats",
        help="Share of its active tokens that repeat an earlier text.",
    ),
}
"""Columns that can be an axis or an order."""

ERRORS = {
    "nu_err_se": "± err",
    "nu_rec_se": "± rec",
    "beta_ratio_se": "± ratio",
    "frequency_se": "± frequency",
    "mean_se": "± mean",
}
"""Standard errors that stand beside their column, and their heads in tables."""
ERROR_HELP = "Standard error of the column to its left."

FLOORED = ("base_uselessness_single", "base_uselessness_ls")
"""Columns that are -ln of a scale that is cut off below (math §5): their largest value means "at least"."""

EVIDENCE = ("rel_norm", "base_uselessness_single", "nu_err", "nu_err_se", "nu_rec", "nu_rec_se", "num_active")
"""What a class is never shown without."""
DIFFERENCE_EVIDENCE = ("beta_ratio", "beta_ratio_se", "num_active")
"""The same in a dictionary of the models' difference, where relative norms and ν are undefined (math §2)."""

ATLAS_COLUMNS = (*AXES, *ERRORS, "latent_class")
"""What the app fetches once a version."""
CSV_COLUMNS = tuple(name for axis in AXES for name in (axis, f"{axis}_se") if name in AXES or name in ERRORS)
"""Columns of a downloaded table, under their own names, each followed by its standard error."""


def is_defined(columns: Mapping[str, np.ndarray], name: str) -> bool:
    """Whether any latent has a value of a column."""
    return bool(np.isfinite(columns[name]).any())


def is_difference(columns: Mapping[str, np.ndarray]) -> bool:
    """Whether latents are read by their β ratio, as those of a difference dictionary, which have no relative norm."""
    return is_defined(columns, "beta_ratio") and not is_defined(columns, "rel_norm")


def evidence(columns: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """What a class is never shown without in this dictionary."""
    return DIFFERENCE_EVIDENCE if is_difference(columns) else EVIDENCE
