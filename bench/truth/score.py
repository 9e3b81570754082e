"""Scores of a trained crosscoder against planted latents.

Pure functions of decoder rows and of the columns that the analysis measured. Knows nothing about training.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from bench.truth.planted import Kind, Planted
from crosscope_proto.limits import (
    BASE_ONLY_BELOW,
    CHAT_ONLY_ABOVE,
    DIFFERENCE_RATIO,
    MAX_ACTIVATION_RATIO,
    MAX_NU_ERR,
    MAX_NU_REC,
)

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RECOVERED_COSINE = 0.9
"""Cosine from which a planted row counts as found."""
WEAK_WITHIN = 0.05
"""Tolerance within which a weak latent's nu_err equals the planted ratio."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A crosscoder's rows and the analysis's columns; arrays are [latent], NaN where undefined."""

    rows: Tensor
    """[latent, both]; [latent, d_model] of a dictionary of differences."""
    living: Bools
    rel_norm: Floats
    nu_err: Floats
    nu_rec: Floats
    mirror_nu_err: Floats
    beta_ratio: Floats
    """`beta_act_no_bias` of base divided by that of chat, along the chat row (math §4); from `beta_act` in a dictionary
    of differences."""
    is_supported: Bools
    """Whether the verdict on its class is "supported" (math §6)."""


@dataclass(frozen=True)
class Matches:
    """The nearest living latent of each planted latent."""

    latent: NDArray[np.int64]
    """[planted]."""
    cosine: Floats
    """[planted]; -1 where no latent lives."""


@dataclass(frozen=True)
class Labels:
    """The planted causes of the latents that relative norm calls chat-only, each [labelled] bool."""

    latent: NDArray[np.int64]
    """[labelled] id."""
    genuine: Bools
    """The chat row is that of a planted chat-only latent."""
    artefact: Bools
    """The chat row is that of a latent that base has as well."""


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """`[row of a, row of b]`; 0 for a row of zeros."""
    a, b = (torch.nn.functional.normalize(each.double(), dim=1) for each in (a, b))
    return a @ b.T


def best_matches(planted: Tensor, measured: Measured) -> Matches:
    """The living latent with the largest cosine, for `planted` rows of the same kind as the measured ones."""
    table = cosines(planted, measured.rows).numpy()
    table[:, ~measured.living] = -1.0
    latent = table.argmax(axis=1)
    return Matches(latent, table[np.arange(len(table)), latent])


def recovered(planted: Planted, matches: Matches, rows: Tensor) -> dict[str, float]:
    """The share of planted latents that were found: of all, per kind, of the rare and of the correlated ones.

    Latents without a row among `rows: [planted, width]`, like shared ones in a dictionary of differences, do not count.
    """
    findable = has_row(rows)
    groups = {"all": findable}
    groups |= {str(kind): findable & (planted.kind == kind) for kind in Kind}
    groups |= {"rare": findable & planted.rare.numpy(), "correlated": findable & (planted.partner >= 0).numpy()}
    found = matches.cosine >= RECOVERED_COSINE
    return {f"recovered_{name}": float(found[group].mean()) for name, group in groups.items() if group.any()}


def has_row(rows: Tensor) -> Bools:
    """[planted] bool: whether each of `rows: [planted, width]` is not zero. A shared latent's difference is zero."""
    return (rows.norm(dim=1) > 0).numpy()


def auroc(score: Floats, positive: Bools) -> float:
    """The probability that a positive scores higher than a negative; ties count half, NaN scores are left out.

    NaN without a positive or without a negative.
    """
    defined = np.isfinite(score)
    score, positive = score[defined], positive[defined]
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not (num_positive and num_negative):
        return float("nan")
    above = rankdata(score)[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def exclusive_aurocs(planted: Planted, matches: Matches, rows: Tensor, measured: Measured) -> dict[str, float]:
    """How well the nearest latents of the exclusive kinds stand out, found or not.

    By relative norm they compete with all other kinds. By nu, and by the ratio of activations, they compete with the
    kinds that both models have, because nu and the ratio mean nothing along a row that is nearly zero. Base-only
    latents are scored by the mirrored nu. Latents without a row among `rows: [planted, width]` have no nearest latent
    and do not count.
    """
    counted = has_row(rows)
    kind, latent = planted.kind[counted], matches.latent[counted]
    chat_only, base_only = kind == Kind.CHAT_ONLY, kind == Kind.BASE_ONLY
    rel_norm, ratio = measured.rel_norm[latent], measured.beta_ratio[latent]
    nu, mirror = measured.nu_err[latent], measured.mirror_nu_err[latent]
    return {
        "auroc_chat_only_rel_norm": auroc(rel_norm, chat_only),
        "auroc_base_only_rel_norm": auroc(-rel_norm, base_only),
        "auroc_chat_only_nu_err": auroc(-nu[~base_only], chat_only[~base_only]),
        "auroc_base_only_nu_err": auroc(-mirror[~chat_only], base_only[~chat_only]),
        "auroc_chat_only_ratio": auroc(-np.abs(ratio[~base_only]), chat_only[~base_only]),
    }


def chat_only_labels(planted: Planted, measured: Measured) -> Labels:
    """Judges every living latent with a relative norm above 0.9 by its chat row alone.

    A dictionary of differences has no relative norm; there the published criterion |beta_ratio| < 0.3 decides. A label
    that is neither genuine nor an artefact has a chat row that no planted latent has: a mixture.
    """
    width = planted.spec.d_model
    is_difference = measured.rows.shape[1] == width
    called = np.abs(measured.beta_ratio) < DIFFERENCE_RATIO if is_difference else measured.rel_norm > CHAT_ONLY_ABOVE
    latent = np.flatnonzero(measured.living & called)
    table = cosines(measured.rows[latent, -width:], planted.rows[:, width:]).numpy()
    nearest = table.argmax(axis=1)
    matched = table[np.arange(len(latent)), nearest] >= RECOVERED_COSINE
    chat_only = planted.kind[nearest] == Kind.CHAT_ONLY
    return Labels(latent, matched & chat_only, matched & ~chat_only)


def published_flag(measured: Measured) -> Bools:
    """Whether `nu_err > MAX_NU_ERR or nu_rec > MAX_NU_REC`, [latent]: the label is doubtful.

    Undefined nus raise no flag.
    """
    return (measured.nu_err > MAX_NU_ERR) | (measured.nu_rec > MAX_NU_REC)


def ratio_flag(measured: Measured) -> Bools:
    """Whether base's activation along the chat row is more than 0.15 of chat's, however it is explained, [latent]."""
    return measured.beta_ratio > MAX_ACTIVATION_RATIO


def label_counts(labels: Labels, measured: Measured) -> dict[str, float]:
    """The numbers of labels by planted cause, and of artefacts and genuine labels that each flag marks.

    `…_supported` are those whose verdict is "supported". A flag's numbers are NaN if none of its columns is defined,
    like the nus in a dictionary of differences.
    """
    counts = {
        "labels": len(labels.latent),
        "labels_genuine": labels.genuine.sum(),
        "labels_artefact": labels.artefact.sum(),
        "labels_mixture": (~labels.genuine & ~labels.artefact).sum(),
    }
    for name, flag, asked in (
        ("published", published_flag(measured), (measured.nu_err, measured.nu_rec)),
        ("ratio", ratio_flag(measured), (measured.beta_ratio,)),
    ):
        flagged, defined = flag[labels.latent], any(np.isfinite(each).any() for each in asked)
        counts[f"artefacts_flagged_{name}"] = (flagged & labels.artefact).sum() if defined else np.nan
        counts[f"genuine_flagged_{name}"] = (flagged & labels.genuine).sum() if defined else np.nan
    supported = measured.is_supported[labels.latent]
    counts["artefacts_supported"] = (supported & labels.artefact).sum()
    counts["genuine_supported"] = (supported & labels.genuine).sum()
    counts["mixtures_supported"] = (supported & ~labels.artefact & ~labels.genuine).sum()
    return {name: float(count) for name, count in counts.items()}


def weak_ratio(planted: Planted, matches: Matches, measured: Measured) -> dict[str, float]:
    """nu_err of the weak latents' nearest latents against the planted ratio; NaN if none is defined."""
    nu = measured.nu_err[matches.latent][planted.kind == Kind.WEAK]
    if len(nu) == 0:
        return {}
    if not np.isfinite(nu).any():
        return {"weak_nu_err_median": float("nan"), "weak_nu_err_right": float("nan")}
    right = np.abs(nu - planted.spec.weak_ratio) <= WEAK_WITHIN
    return {"weak_nu_err_median": float(np.median(nu)), "weak_nu_err_right": float(right.mean())}


def null_shares(measured: Measured) -> dict[str, float]:
    """The share of living latents that are called exclusive although both models are the same; NaN if none lives."""
    rel_norm = measured.rel_norm[measured.living]
    if len(rel_norm) == 0:
        return {"null_chat_only": float("nan"), "null_base_only": float("nan")}
    return {
        "null_chat_only": float((rel_norm > CHAT_ONLY_ABOVE).mean()),
        "null_base_only": float((rel_norm < BASE_ONLY_BELOW).mean()),
    }
