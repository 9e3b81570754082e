"""The columns of what a latent does: effects of taking it out of chat and of putting it into base (math §11)."""

from crosscope_proto.column import Column

NAN = float("nan")

CAUSAL_EFFECTS = {
    "ablation_gap": (
        "ablation effect",
        "Fall of KL(chat‖base) when it is ablated in chat, {}; below 0 the models move apart.",
    ),
    "transplant_gap": (
        "transplant effect",
        "Fall of KL(chat‖base) when its chat row replaces its base row in base, {}; below 0 the models move apart.",
    ),
    "ablation_moved": ("ablation distance", "KL(chat‖chat without it), {}."),
}
"""What is measured of a latent: label and meaning by the beginning of a column's name."""

CAUSAL_GROUPS = {
    "all": ("", "mean over predictions of assistant tokens"),
    "first9": (", first 9", "mean over predictions of the first nine tokens of each answer"),
    "template": (", template", "mean over predictions made at template tokens"),
}
"""Predictions over which a mean is taken: the end of a label, and what they are, by the end of a column's name."""

_SHORT = {"ablation_gap": "ablated", "transplant_gap": "transplanted", "ablation_moved": "moved"}
_SHORT_GROUP = {"all": "", "first9": " 9", "template": " tmpl"}
_UNMEASURED = "where it was not measured (analysis.causal)"


def causal_column(effect: str, group: str) -> str:
    """Name of an effect's column, for instance "ablation_gap_first9"."""
    return f"{effect}_{group}"


def _effect(effect: str, group: str) -> tuple[Column, Column]:
    """The column of an effect, and the column of its standard error."""
    (label, meaning), (ending, predictions) = CAUSAL_EFFECTS[effect], CAUSAL_GROUPS[group]
    name, label, short = causal_column(effect, group), f"{label}{ending}", f"{_SHORT[effect]}{_SHORT_GROUP[group]}"
    across = "; transplants also where the models' widths differ" if effect == "transplant_gap" else ""
    column = Column(
        name,
        "float32",
        meaning.format(predictions),
        unit="nats",
        source="math §11",
        undefined=f"{_UNMEASURED}{across}",
        absent=NAN,
        label=label,
        short=short,
        wire=f"more.{name}",
    )
    error = Column(
        f"{name}_se",
        "float32",
        f"Standard error of the {label}, over texts.",
        unit="nats",
        source="math §11",
        low=0.0,
        undefined=f"{_UNMEASURED}, or with fewer than two texts",
        absent=NAN,
        label=f"standard error of the {label}",
        short=f"± {short}",
        error_of=name,
        wire=f"more.{name}_se",
    )
    return column, error


def _number(name: str, meaning: str, undefined: str, **more: object) -> Column:
    return Column(
        name,
        "float32",
        meaning,
        source="math §11",
        undefined=undefined,
        absent=NAN,
        wire=f"more.{name}",
        **more,  # pyright: ignore[reportArgumentType]
    )


CAUSAL_COLUMNS: tuple[Column, ...] = (
    *(column for effect in CAUSAL_EFFECTS for group in CAUSAL_GROUPS for column in _effect(effect, group)),
    _number(
        "causal_texts",
        "Held-out texts on which its causal effects were run, those in which it fires; on all others they are 0.",
        _UNMEASURED,
        unit="texts",
        low=0,
        label="texts of the causal effects",
        short="causal texts",
        is_log=True,
    ),
    _number(
        "causal_equivalence",
        "Correlation between what ablating it does to the logits of base and of chat, where it fires; 1: the same.",
        f"{_UNMEASURED}, or where ablating it changes nothing in a model",
        low=-1,
        high=1,
        label="causal equivalence",
        short="equivalence",
    ),
    _number(
        "causal_equivalence_tokens",
        "Tokens at which the causal equivalence was measured.",
        _UNMEASURED,
        unit="tokens",
        low=0,
        label="tokens of the causal equivalence",
        short="equiv. tokens",
        is_log=True,
    ),
)
"""The columns, NaN for latents that were not chosen."""
