"""The columns of latent scaling: a coefficient for each target, model and direction, and their ratios (math §4)."""

from crosscope_proto.column import Column, with_error

SCALING_TARGETS = {
    "act": "activation",
    "act_no_bias": "activation_no_bias",
    "rec": "reconstruction",
    "err": "error",
}
"""Targets of latent scaling (math §4), as columns name them, and the field of LatentScaling for each."""

SCALING_DIRECTIONS = {"": "chat", "mirror_": "base"}
"""Prefix of the scaling columns, and whose decoder row is the direction. The published choice has no prefix."""


def beta_column(prefix: str, target: str, model: str) -> str:
    """Name of a scaling coefficient's column, for instance "beta_err_base"."""
    return f"{prefix}beta_{target}_{model}"


_SILENT = "where it never fired"
_NO_ERROR = "where it never fired, and in a dictionary of differences"
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


def _beta(prefix: str, direction: str, target: str, model: str) -> Column:
    words = _IN_WORDS[target]
    return Column(
        beta_column(prefix, target, model),
        "float32",
        f"Coefficient of the {words}, in the {model} model, along the {direction} decoder row.",
        source="math §4",
        undefined=_SILENT if target.startswith("act") else _NO_ERROR,
        label=f"β of the {words}, {model} along {direction}",
        wire=f"{direction}_direction.{SCALING_TARGETS[target]}.{model}",
    )


def _nu(prefix: str, direction: str, target: str) -> Column:
    other = "base" if direction == "chat" else "chat"
    label, short, high = _HIGH_NU[target]
    return Column(
        f"{prefix}nu_{target}",
        "float32",
        f"Coefficient of the {SCALING_TARGETS[target]}, {other} over {direction} along the {direction} row; high: "
        f"{high.format(other)}.",
        source="math §4",
        undefined=_NO_ERROR,
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
