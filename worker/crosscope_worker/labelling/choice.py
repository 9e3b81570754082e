"""The choice of the latents that are labelled. Knows tables and no texts."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from crosscope_proto.artefacts import LatentClass
from crosscope_proto.label_specs import LatentChoice
from crosscope_proto.verdict import FIGURES, SpecificTo, Verdict, judged
from crosscope_worker.labelling.errors import LabelError


@dataclass(frozen=True)
class Chosen:
    """The latents that are labelled."""

    latents: tuple[int, ...]
    """In the order in which they are asked about."""
    num_left_out: int
    """Number of latents that meet the conditions and come after the last of them."""


def choose(latents: pa.Table, choice: LatentChoice) -> Chosen:
    """The latents that a recipe means, from a table of LATENT_COLUMNS.

    Raises LabelError for a latent that the dictionary does not have, and where none meets the conditions.
    """
    if choice.ids:
        if (last := max(choice.ids)) >= latents.num_rows:
            raise LabelError(
                f"latents.ids names latent {last}, but the dictionary has {latents.num_rows}, 0 to "
                f"{latents.num_rows - 1}"
            )
        return Chosen(choice.ids, 0)
    met = np.flatnonzero(_meets(latents, choice))
    if not len(met):
        said = [f"specific to {choice.specific_to}"] if choice.specific_to else []
        said += [f"of verdict {' or '.join(choice.verdicts)}"] if choice.verdicts else []
        said += [f"of class {' or '.join(choice.classes)}"] if choice.classes else []
        raise LabelError(f"no living latent is {' and '.join(said) or 'there'}; choose others with latents")
    column = choice.order_by.removeprefix("-")
    values = _column(latents, column)[met] * (-1 if choice.order_by.startswith("-") else 1)
    met = met[np.argsort(values, kind="stable")]  # NaN last
    return Chosen(tuple(met[: choice.limit].tolist()), max(0, len(met) - choice.limit))


def _meets(latents: pa.Table, choice: LatentChoice) -> np.ndarray:
    """[latent] whether it meets the conditions, and has fired."""
    figures = {name: _column(latents, name) for name in FIGURES if name != "latent_class"}
    classes = np.asarray(latents.column("latent_class").to_pylist())
    numbers = {str(each): number for number, each in enumerate(LatentClass, 1)}
    figures["latent_class"] = np.array([numbers.get(each, 0) for each in classes], np.float64)
    verdict, specific_to = judged(figures)
    met = figures["num_active"] > 0
    if choice.specific_to:
        met = met & (specific_to == 1 + list(SpecificTo).index(SpecificTo(choice.specific_to)))
    if choice.verdicts:
        met = met & np.isin(verdict, [1 + list(Verdict).index(Verdict(each)) for each in choice.verdicts])
    if choice.classes:
        met = met & np.isin(classes, choice.classes)
    return met


def _column(latents: pa.Table, name: str) -> np.ndarray:
    """[latent] float64; NaN in versions that lack the column."""
    if name not in latents.column_names:
        return np.full(latents.num_rows, np.nan)
    return latents.column(name).to_numpy(zero_copy_only=False).astype(np.float64)
