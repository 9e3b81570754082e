"""The columns of latent scaling: a coefficient for each target, model and direction, and their ratios (math §4)."""

from crosscope_proto.column import Column, with_error

SCALING_TARGETS = {
    "act": "activation",
    "act_no_bias": "activation_no_bias",
    "rec": "reconstruction",
    "err": "error",
}
"""Targets of latent scaling (math §4): the word in a column's name, and the field of the message LatentScaling."""

SCALING_DIRECTIONS = {"": "chat", "mirror_": "base"}
"""The prefix of a column's name, and the model whose decoder row is the direction. The published choice has none."""


def beta_column(prefix: str, target: str, model: str) -> str:
    """Name of a scaling coefficient's column, for instance "beta_err_base"."""
    return f"{prefix}beta_{target}_{model}"


_IN_WORDS = {
    "act": "activation",
    "act_no_bias": "activation without the decoder bias",
    "rec": "reconstruction",
    "err": "error with the latent's own contribution put back",
}
_HIGH_NU = {
    "err": ("ν error", "ν err", "the {} model has it too, and sparsity hid it"),
    "rec": ("ν reconstruction", "ν rec", "other latents carry it in the {} model"),
}


def _undefined(target: str, *, is_across: bool) -> str:
    """Where a coefficient is NaN. `is_across`: direction and target are of different models, of equal widths then."""
    where = ["where it never fired"]
    if target in ("rec", "err"):
        where.append("in a dictionary of differences")
    if is_across:
        where.append("where the models' widths differ")
    return ", or ".join(where)


def _beta(prefix: str, direction: str, target: str, model: str) -> Column:
    words = _IN_WORDS[target]
    return Column(
        beta_column(prefix, target, model),
        "float32",
        f"Coefficient of the {words}, in the {model} model, along the {direction} decoder row.",
        source="math §4",
        undefined=_undefined(target, is_across=model != direction),
        label=f"β of the {words}, {model} along {direction}",
        wire=f"{direction}_direction.{SCALING_TARGETS[target]}.{model}",
    )


def _nu(prefix: str, direction: str, target: str) -> Column:
    other = "base" if direction == "chat" else "chat"
    label, short, high = _HIGH_NU[target]
    return Column(
        f"{prefix}nu_{target}",
        "float32",
        f"Ratio of the coefficients of the {SCALING_TARGETS[target]} along the {direction} row, {other} over "
        f"{direction}; high: {high.format(other)}.",
        source="math §4",
        undefined=_undefined(target, is_across=True),
        label=f"{label} along base" if prefix else label,
        short="" if prefix else short,
        wire=f"{direction}_direction.nu_{target}",
    )


def _columns() -> tuple[Column, ...]:
    columns: list[Column] = []
    for prefix, direction in SCALING_DIRECTIONS.items():
        for target in SCALING_TARGETS:
            for model in ("base", "chat"):
                columns += with_error(_beta(prefix, direction, target, model))
        for target in ("err", "rec"):
            columns += with_error(_nu(prefix, direction, target))
    return tuple(columns)


SCALING_COLUMNS = _columns()
"""The coefficients of each direction, then its ratios; a standard error follows each."""
