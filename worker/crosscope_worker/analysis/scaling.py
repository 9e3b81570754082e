"""Latent scaling and its standard errors: coefficients of every latent, target, model and direction (math §4).

Knows only sums and decoder rows, no tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crosscope_proto.roles import BASE, CHAT, MODEL_NAMES
from crosscope_proto.scaling_columns import SCALING_DIRECTIONS, beta_column
from crosscope_worker.analysis.geometry import inner_products
from crosscope_worker.analysis.moments import ShardSums
from crosscope_worker.dictionary.crosscoder import Crosscoder

Floats = NDArray[np.float64]
Estimates = dict[str, Floats]
"""Values of columns by name, [latent]; NaN where undefined."""


@dataclass(frozen=True)
class Directions:
    """Inner products of decoder rows with each other and with the bias, float64."""

    squared_norm: Floats
    """[direction, latent] `‖v_j‖²`."""
    own: Floats
    """[direction, model, latent] `<D_j^m, v_j>`; NaN where the models' widths differ."""
    bias: Floats
    """[direction, model, latent] `<b_dec^m, v_j>`; NaN where the models' widths differ."""


def directions(crosscoder: Crosscoder) -> Directions:
    """The inner products of a crosscoder's decoder rows."""
    rows = [crosscoder.decoder(model) for model in (BASE, CHAT)]
    bias = [crosscoder.b_dec[crosscoder.model_slice(model)] for model in (BASE, CHAT)]
    own = np.full((2, 2, crosscoder.num_latents), np.nan)
    along = own.copy()
    for direction in (BASE, CHAT):
        for model in (BASE, CHAT):
            if crosscoder.d_model[direction] == crosscoder.d_model[model]:
                own[direction, model] = inner_products(rows[direction], rows[model]).cpu().numpy()
                along[direction, model] = inner_products(rows[direction], bias[model]).cpu().numpy()
    return Directions(np.stack([own[BASE, BASE], own[CHAT, CHAT]]), own, along)


def estimates(sums: ShardSums, rows: Directions) -> Estimates:
    """Frequency, mean, all betas, nus and beta_ratio from sums without a shard axis."""
    count = np.where(sums.count > 0, sums.count, np.nan)
    result = {"frequency": sums.count / sums.num_tokens, "mean": sums.scaled / count}
    squared = np.where(sums.count > 0, sums.code_squared, np.nan)
    for prefix, name in SCALING_DIRECTIONS.items():
        along = MODEL_NAMES.index(name)
        norm = np.where(rows.squared_norm[along] > 0, rows.squared_norm[along], np.nan)
        for model, model_name in enumerate(MODEL_NAMES):
            activation, error = sums.activation[along, model], sums.error[along, model]
            targets = {
                "act": activation / (squared * norm),
                "act_no_bias": (activation - sums.code * rows.bias[along, model]) / (squared * norm),
                "rec": (activation - error) / (squared * norm),
                "err": error / (squared * norm) + rows.own[along, model] * (sums.code_kept[model] / squared) / norm,
            }
            result |= {beta_column(prefix, target, model_name): beta for target, beta in targets.items()}
        other = MODEL_NAMES[1 - along]
        for target in ("err", "rec"):
            own = result[beta_column(prefix, target, name)]
            result[f"{prefix}nu_{target}"] = result[beta_column(prefix, target, other)] / np.where(
                own == 0, np.nan, own
            )
    base, chat = (result[beta_column("", "act", model)] for model in MODEL_NAMES)
    return result | {"beta_ratio": base / np.where(chat == 0, np.nan, chat)}


def jackknife(sums: ShardSums, estimator: Callable[[ShardSums], Estimates]) -> tuple[Estimates, Estimates]:
    """Estimates over all shards and their delete-one-shard standard errors.

    `se² = (g - 1)/g · sum_s (theta_(s) - mean theta_(s))²` over g shards. NaN if there is only one shard, or if an
    estimate without one of the shards is undefined, for instance for a latent that fired in one shard only.
    """
    total = sums.total()
    value = estimator(total)
    mean = {name: np.zeros_like(array) for name, array in value.items()}
    spread = {name: np.zeros_like(array) for name, array in value.items()}
    shards = sums.num_shards
    for shard in range(shards if shards > 1 else 0):
        for name, left_out in estimator(sums.without(shard, total)).items():
            delta = left_out - mean[name]
            mean[name] += delta / (shard + 1)
            spread[name] += delta * (left_out - mean[name])
    factor = (shards - 1) / shards if shards > 1 else np.nan
    return value, {name: np.sqrt(array * factor) for name, array in spread.items()}
