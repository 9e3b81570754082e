"""Rows of the statistics table as crosscope.v1.Latent messages. Knows nothing about calls."""

import math
from typing import Any

from crosscope_proto.scaling_columns import SCALING_DIRECTIONS, beta_column
from crosscope_proto.v1 import latents_pb2

_PLAIN = (
    "id",
    "latent_class",
    "part",
    "norm_base",
    "norm_chat",
    "rel_norm",
    "cosine",
    "num_active",
    "max",
    "template_share",
)
_LISTS = (
    "role_shares",
    "dataset_shares",
    "histogram",
    "top_tokens",
    "logit_tokens_base",
    "logit_tokens_chat",
)
_OPTIONAL = ("base_uselessness", "base_uselessness_ls", "base_uselessness_single", "repeat_share")
_TARGETS = {"activation": "act", "activation_no_bias": "act_no_bias", "reconstruction": "rec", "error": "err"}

Rows = dict[str, list[Any]]


def latent_messages(rows: Rows) -> list[latents_pb2.Latent]:
    """A message a row; `rows` holds every column of latents.parquet, latent_class as its number."""
    return [_latent(rows, i) for i in range(len(rows["id"]))]


def _latent(rows: Rows, i: int) -> latents_pb2.Latent:
    values: dict[str, Any] = {name: rows[name][i] for name in _PLAIN + _LISTS}
    values |= {name: value for name in _OPTIONAL if not math.isnan(value := rows[name][i])}
    values |= {f"{of}_direction": _scaling(rows, i, prefix) for prefix, of in SCALING_DIRECTIONS.items()}
    neighbours = zip(rows["neighbours"][i], rows["neighbour_cosines"][i], strict=True)
    coactive = zip(rows["coactive"][i], rows["coactive_indices"][i], strict=True)
    return latents_pb2.Latent(
        **values,
        frequency=_estimate(rows, i, "frequency"),
        mean=_estimate(rows, i, "mean"),
        beta_ratio=_estimate(rows, i, "beta_ratio"),
        neighbours=[latents_pb2.Neighbour(latent=latent, cosine=cosine) for latent, cosine in neighbours],
        coactive=[latents_pb2.CoActive(latent=latent, index=index) for latent, index in coactive],
    )


def _estimate(rows: Rows, i: int, name: str) -> latents_pb2.Estimate:
    return latents_pb2.Estimate(value=rows[name][i], se=rows[f"{name}_se"][i])


def _scaling(rows: Rows, i: int, prefix: str) -> latents_pb2.LatentScaling:
    betas: dict[str, Any] = {
        field: latents_pb2.ModelEstimates(
            base=_estimate(rows, i, beta_column(prefix, target, "base")),
            chat=_estimate(rows, i, beta_column(prefix, target, "chat")),
        )
        for field, target in _TARGETS.items()
    }
    nu_err, nu_rec = (_estimate(rows, i, f"{prefix}nu_{target}") for target in ("err", "rec"))
    return latents_pb2.LatentScaling(**betas, nu_err=nu_err, nu_rec=nu_rec)
