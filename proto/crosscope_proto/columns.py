"""The columns of every table on disk. Everything that any part says about a column comes from here.

`python -m crosscope_proto.columns` prints the columns of a latent as a table in Markdown. A new column of a latent is a
row of LATENT_COLUMNS and a function that computes it (docs/extending-column.md).
"""

from crosscope_proto.artefacts import LatentClass
from crosscope_proto.causal_columns import CAUSAL_COLUMNS
from crosscope_proto.column import Column, markdown, with_error
from crosscope_proto.scaling_columns import SCALING_COLUMNS
from crosscope_proto.verdict import SpecificTo, Verdict

NAN = float("nan")
_SHARE = {"unit": "share", "low": 0.0, "high": 1.0}
_SILENT = "where it never fired"


def _uselessness(name: str, how: str, label: str, short: str, *, undefined: str) -> Column:
    return Column(
        name,
        "float32",
        f"−ln of the scale at which its chat direction helps to rebuild base, {how}; high: useless to base.",
        unit="nats",
        source="math §5",
        undefined=undefined,
        label=label,
        short=short,
        is_floored=True,
    )


LATENT_COLUMNS: tuple[Column, ...] = (
    Column("id", "uint32", "Number of the latent, from 0.", low=0, label="latent"),
    Column(
        "latent_class",
        "string",
        "Class by relative norm, or by β ratio in a dictionary of differences; dead if it never fired.",
        source="math §6",
        categories=tuple(map(str, LatentClass)),
        label="class",
    ),
    Column(
        "part",
        "string",
        "Part of the dictionary that training set apart; empty in a dictionary without parts.",
        source="math §2",
        absent="",
        label="part",
    ),
    Column("norm_base", "float32", "Norm of its base decoder row.", source="math §6", low=0, label="norm in base"),
    Column("norm_chat", "float32", "Norm of its chat decoder row.", source="math §6", low=0, label="norm in chat"),
    Column(
        "rel_norm",
        "float32",
        "Relative norm of its decoder rows: 0 base only, ½ shared, 1 chat only.",
        source="math §6",
        low=0,
        high=1,
        undefined="in a dictionary of differences or of one model",
        label="relative norm",
        short="rel. norm",
    ),
    Column(
        "cosine",
        "float32",
        "Cosine between its two decoder rows.",
        source="math §6",
        low=-1,
        high=1,
        undefined="where a row is zero, or the models' widths differ",
        label="cosine of decoders",
        short="cosine",
    ),
    Column(
        "num_active",
        "uint64",
        "Tokens of the analysis on which it fired; with few, every estimate is rough.",
        unit="tokens",
        source="math §4",
        low=0,
        label="active tokens",
        short="active",
        is_log=True,
    ),
    Column(
        "num_texts",
        "float32",
        "Texts in which it fired, without tokens that repeat an earlier text; with few, it may be about them alone.",
        unit="texts",
        source="math §4",
        low=0,
        absent=NAN,
        label="active texts",
        short="texts",
        is_log=True,
        wire="more.num_texts",
    ),
    *with_error(
        Column(
            "frequency",
            "float32",
            "Share of the analysis's tokens on which it fired.",
            **_SHARE,
            source="math §4",
            label="firing frequency",
            short="frequency",
            is_log=True,
        )
    ),
    *with_error(
        Column(
            "mean",
            "float32",
            "Mean scaled activation where it fired.",
            unit="scaled activation",
            source="math §1",
            low=0,
            undefined=_SILENT,
            label="mean activation",
            short="mean",
        )
    ),
    Column(
        "max",
        "float32",
        "Largest scaled activation.",
        unit="scaled activation",
        source="math §1",
        low=0,
        label="max activation",
        short="max",
    ),
    Column(
        "repeat_share",
        "float32",
        "Share of its active tokens that repeat an earlier text.",
        **_SHARE,
        source="math §4",
        undefined=_SILENT,
        absent=NAN,
        label="repeat share",
        short="repeats",
    ),
    *SCALING_COLUMNS,
    *with_error(
        Column(
            "beta_ratio",
            "float32",
            "Ratio of the coefficients of the activation along the chat row, base over chat; near 0: only chat has it.",
            source="math §4",
            undefined=f"{_SILENT}, or where the models' widths differ",
            absent=NAN,
            label="β ratio",
            short="β ratio",
        )
    ),
    _uselessness(
        "base_uselessness",
        "by the published recipe, jointly over the chat-only latents",
        "base uselessness",
        "uselessness",
        undefined="outside the living chat-only latents, or in a dictionary of differences",
    ),
    _uselessness(
        "base_uselessness_ls",
        "by non-negative least squares, jointly over the chat-only latents",
        "base uselessness, least squares",
        "useless (ls)",
        undefined="outside the living chat-only latents, or in a dictionary of differences",
    ),
    _uselessness(
        "base_uselessness_single",
        "on its own",
        "base uselessness, alone",
        "useless alone",
        undefined=f"{_SILENT}, or in a dictionary of differences",
    ),
    *CAUSAL_COLUMNS,
    Column(
        "template_share",
        "float32",
        "Share of its activation on BOS, role headers and turn ends.",
        **_SHARE,
        source="math §4",
        undefined=_SILENT,
        label="template share",
        short="template",
    ),
    Column(
        "role_shares",
        "list<float32>",
        "Share of its activation on each token role, indexed by TokenRole; files of earlier versions have 8 values.",
        **_SHARE,
        undefined=_SILENT,
        axis="role",
        label="shares by role",
    ),
    Column(
        "dataset_shares",
        "list<float32>",
        "Share of its activation on each data set, in the manifest's order.",
        **_SHARE,
        undefined=_SILENT,
        axis="dataset",
        label="shares by data set",
    ),
    Column(
        "histogram",
        "list<uint32>",
        "Active tokens by scaled activation, in the bins of the manifest's histogram_edges.",
        unit="tokens",
        low=0,
        axis="bin",
        label="histogram of activations",
    ),
    Column(
        "top_tokens",
        "list<string>",
        "Tokens at the peaks of its strongest examples, most frequent first.",
        label="tokens at its peaks",
    ),
    Column(
        "peak_context",
        "list<string>",
        "The text around the peak of its strongest example: up to four tokens before it, the peak, up to four behind.",
        undefined=_SILENT,
        absent=(),
        axis="place",
        label="text around its peak",
    ),
    Column(
        "logit_tokens_base",
        "list<string>",
        "Tokens that its base decoder row raises most through the base unembedding.",
        source="math §6",
        label="tokens raised in base",
    ),
    Column(
        "logit_tokens_chat",
        "list<string>",
        "Tokens that its chat decoder row raises most through the chat unembedding.",
        source="math §6",
        label="tokens raised in chat",
    ),
    Column(
        "neighbours",
        "list<uint32>",
        "Nearest latents by cosine of both models' decoder rows side by side, nearest first.",
        source="math §6",
        label="nearest latents",
        wire="neighbours.latent",
    ),
    Column(
        "neighbour_cosines",
        "list<float32>",
        "Cosines of the nearest latents.",
        source="math §6",
        low=-1,
        high=1,
        label="cosines of the nearest latents",
        wire="neighbours.cosine",
    ),
    Column(
        "coactive",
        "list<uint32>",
        "Latents that fire on the same tokens most, by Jaccard index on a sample of the tokens.",
        label="latents that fire with it",
        wire="coactive.latent",
    ),
    Column(
        "coactive_indices",
        "list<float32>",
        "Jaccard indices of the latents that fire on the same tokens.",
        low=0,
        high=1,
        label="Jaccard indices of the latents that fire with it",
        wire="coactive.index",
    ),
)
"""Columns of latents.parquet. Activations are scaled (math §1)."""

DERIVED_COLUMNS: tuple[Column, ...] = (
    Column(
        "verdict",
        "string",
        "What the measurements say of the claim that its class makes; of class other, of what specific_to says.",
        source="math §6",
        categories=tuple(map(str, Verdict)),
        label="verdict",
        wire="verdict.verdict",
    ),
    Column(
        "specific_to",
        "string",
        "Model that it is specific to by its measurements, whatever its class; each: each model lacks the other's row.",
        source="math §6",
        undefined="where the measurements do not show it",
        categories=tuple(map(str, SpecificTo)),
        label="specific to",
        wire="verdict.specific_to",
    ),
    Column(
        "verdict_reasons",
        "list<string>",
        "Short phrases with the numbers that decided the verdict, then remarks.",
        source="math §6",
        label="reasons of the verdict",
        wire="verdict.reasons",
    ),
)
"""Columns that the server derives from LATENT_COLUMNS when it reads a version; no file has them."""

ALL_LATENT_COLUMNS: tuple[Column, ...] = (*LATENT_COLUMNS, *DERIVED_COLUMNS)
"""Every column of a latent, as the server answers with it."""

SEQUENCE_COLUMNS: tuple[Column, ...] = (
    Column("id", "uint32", "Row number."),
    Column("dataset", "string", "Name of its data set."),
    Column("token_ids", "list<uint32>", "Token ids, template tokens and BOS included."),
    Column("pieces", "list<string>", "The text of each token; joined, they are the text."),
    Column("roles", "list<uint8>", "TokenRole of each token."),
)
"""Columns of sequences.parquet."""

EXAMPLE_COLUMNS: tuple[Column, ...] = (
    Column("latent", "uint32", "Latent id."),
    Column("dataset", "string", "Name of the data set."),
    Column("group", "string", "An ExampleGroup."),
    Column("quantile", "uint8", "Band of the sequence maximum, 0 the lowest; 0 in the other groups."),
    Column("rank", "uint32", "Rank within (latent, dataset, group, quantile), 0 first."),
    Column("sequence", "uint32", "Id in sequences.parquet."),
    Column("max", "float32", "Largest scaled activation in the sequence."),
    Column(
        "positions",
        "list<uint16>",
        "Token positions with an activation, ascending; in group silent the token that peaks elsewhere, with value 0.",
    ),
    Column("values", "list<float32>", "Their scaled activations; float16 in versions from before November 2026."),
    Column("repeats", "uint32", "Number of further texts with the same tokens around the peak.", absent=0),
    Column("group_low", "float32", "Smallest maximum of the texts of its data set, group and band.", absent=0),
    Column("group_high", "float32", "Largest maximum of the texts of its data set, group and band.", absent=0),
    Column(
        "group_texts",
        "uint32",
        "Number of these texts, equal ones counted once: in group top all on which it fires, in group silent those "
        "found silent among the texts that were looked at; 0: not counted.",
        absent=0,
    ),
)
"""Columns of examples/part-NN.parquet."""

METRIC_COLUMNS: tuple[Column, ...] = (
    Column("step", "uint64", "Training step."),
    Column("name", "string", "Figure, for instance fve_chat."),
    Column("value", "float32", "Its value."),
)
"""Columns of metrics.parquet."""

BEHAVIOUR_COLUMNS: tuple[Column, ...] = (
    Column("behaviour", "string", "A tagged behaviour of the held-out conversations."),
    Column("place", "string", "decision: last token of the assistant's header before it; within: its own tokens."),
    Column("latent", "uint32", "The latent that separates it best by Youden's J over all thresholds."),
    Column("threshold", "float32", "Scaled activation above which the latent says yes."),
    Column("recall", "float32", "Share of the behaviour's occurrences on which it says yes."),
    Column("false_rate", "float32", "Share of the other turns on which it says yes."),
    Column("num_positive", "uint32", "Occurrences of the behaviour."),
    Column("num_negative", "uint32", "Assistant turns without it."),
)
"""Columns of behaviours.parquet: for each tagged behaviour and place, the latent that detects it best."""

if __name__ == "__main__":
    print(markdown(ALL_LATENT_COLUMNS), end="")  # noqa: T201
