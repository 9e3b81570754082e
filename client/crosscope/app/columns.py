"""The columns of the statistics table that the app draws, orders by and exports: those that have a short head.

Their names, meanings and formats stand in the contract's table (crosscope_proto.columns).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from crosscope_proto.column import Column
from crosscope_proto.columns import ALL_LATENT_COLUMNS, LATENT_COLUMNS
from crosscope_proto.verdict import SpecificTo, Verdict

SHOWN: Mapping[str, Column] = {column.name: column for column in LATENT_COLUMNS if column.short}
"""Columns of the app's tables, each followed by its standard error. A downloaded table has all of these."""
AXES: Mapping[str, Column] = {name: column for name, column in SHOWN.items() if not column.error_of}
"""Columns that can be an axis or an order."""
CLASS_OF_NUMBER = ("", *next(column.categories for column in LATENT_COLUMNS if column.name == "latent_class"))
"""Classes by their number in the column latent_class."""
VERDICT_OF_NUMBER = ("", *Verdict)
SPECIFIC_OF_NUMBER = ("", *SpecificTo)
"""Verdicts, and models that a latent may be specific to, by their numbers in the columns verdict and specific_to."""
LABELS: Mapping[str, str] = {column.name: column.label for column in ALL_LATENT_COLUMNS}

EVIDENCE = ("rel_norm", "base_uselessness_single", "nu_err", "nu_err_se", "nu_rec", "nu_rec_se", "num_active")
"""Columns that stand beside a class wherever it is shown."""
DIFFERENCE_EVIDENCE = ("beta_ratio", "beta_ratio_se", "num_active")
"""EVIDENCE of a dictionary of the models' difference, in which relative norms and ν are undefined (math §2)."""

ATLAS_COLUMNS = (*SHOWN, "latent_class", "verdict", "specific_to")
"""The columns that the app fetches, once a version."""


def complete(known: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ATLAS_COLUMNS, [latent] float32 each: those that an old server knows, and the others undefined throughout."""
    undefined = np.full_like(next(iter(known.values())), np.nan)
    return {name: known.get(name, undefined) for name in ATLAS_COLUMNS}


def texts(columns: Mapping[str, np.ndarray], name: str, names: Sequence[str], ids: np.ndarray) -> list[str]:
    """The texts of latents `ids` in a column of categories, whose numbers stand for `names`; "" where undefined."""
    return [names[int(number)] for number in np.nan_to_num(columns[name][ids])]


def is_defined(columns: Mapping[str, np.ndarray], name: str) -> bool:
    """Whether any latent has a value of a column."""
    return bool(np.isfinite(columns[name]).any())


def is_difference(columns: Mapping[str, np.ndarray]) -> bool:
    """Whether it is a difference dictionary, whose latents are read by their β ratio and have no relative norm."""
    return is_defined(columns, "beta_ratio") and not is_defined(columns, "rel_norm")


def evidence(columns: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Columns that stand beside a class wherever it is shown, in this dictionary."""
    return DIFFERENCE_EVIDENCE if is_difference(columns) else EVIDENCE
