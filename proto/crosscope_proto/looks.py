"""A look at a pair: what its files hold. A look says where two models differ, before any dictionary is trained.

The worker writes what this module describes, and the server reads it. Knows names only and touches no disk.

    looks/<name>/
        look.json                 a LookManifest
        layers.parquet            LAYER_COLUMNS, a row a swept layer
        groups.parquet            GROUP_COLUMNS, a row a data set and a row a role
        texts.parquet             TEXT_COLUMNS, each text of a finding, and those that differ most, once
        findings.parquet          FINDING_COLUMNS, the tokens that differ most, by rank
        first.parquet             FIRST_COLUMNS, a row a data set, swept layer and first position
        continuations.parquet     CONTINUATION_COLUMNS, by rank
"""

from dataclasses import dataclass, field

from crosscope_proto.artefacts import SCHEMA_VERSION, PairManifest
from crosscope_proto.column import Column

MANIFEST = "look.json"
LITTLE = 0.5
"""A layer whose stream carries less than this share of the difference, in one direction at least, carries little."""
_SOURCE = "math §10"
_IDS = "list<uint32>"

LAYER_COLUMNS: tuple[Column, ...] = (
    Column("layer", "uint32", "Index of the decoder layer whose output is exchanged."),
    Column(
        "share_chat", "float32", "Share of KL(chat ‖ base) that goes with base's stream put into chat.", source=_SOURCE
    ),
    Column("share_chat_se", "float32", "Its standard error over texts; NaN with one text.", source=_SOURCE),
    Column(
        "share_base", "float32", "Share of KL(chat ‖ base) that goes with chat's stream put into base.", source=_SOURCE
    ),
    Column("share_base_se", "float32", "Its standard error over texts; NaN with one text.", source=_SOURCE),
)
"""Columns of layers.parquet."""

GROUP_COLUMNS: tuple[Column, ...] = (
    Column("kind", "string", "What the tokens have in common.", categories=("dataset", "role")),
    Column("name", "string", "Name of the data set, or of the role in small letters."),
    Column("num_tokens", "uint64", "Number of its tokens.", unit="tokens"),
    Column("num_texts", "uint64", "Number of texts that have such tokens.", unit="texts"),
    Column(
        "mean", "float64", "Mean KL(chat ‖ base) of the predictions made at them.", unit="nats", low=0.0, source=_SOURCE
    ),
    Column("mean_se", "float64", "Its standard error over texts; NaN with one text.", source=_SOURCE),
    Column(
        "share", "float64", "Their share of the sum of KL(chat ‖ base) over all tokens.", unit="share", source=_SOURCE
    ),
)
"""Columns of groups.parquet."""

TEXT_COLUMNS: tuple[Column, ...] = (
    Column("dataset", "string", "Name of its data set."),
    Column("place", "string", "File and line."),
    Column("rank", "uint32", "Rank by mean among the texts that differ most, 1 first; 0: it is here for a finding."),
    Column("num_tokens", "uint32", "Number of its tokens that are compared.", unit="tokens"),
    Column("mean", "float64", "Mean KL(chat ‖ base) over them.", unit="nats", low=0.0, source=_SOURCE),
    Column("sum", "float64", "The sum.", unit="nats", low=0.0, source=_SOURCE),
    Column("token_ids", _IDS, "Token ids, those that are not compared included."),
    Column("pieces", "list<string>", "The text of each token; joined, they are the text."),
    Column("roles", "list<uint8>", "TokenRole of each token."),
    Column(
        "kl",
        "list<float32>",
        "KL(chat ‖ base) of each token; NaN where it is not compared.",
        unit="nats",
        low=0.0,
        source=_SOURCE,
    ),
)
"""Columns of texts.parquet."""

_NEXT = tuple(
    column
    for model in ("base", "chat")
    for column in (
        Column(f"{model}_ids", _IDS, f"Ids of the next tokens that {model} finds most probable, best first."),
        Column(f"{model}_pieces", "list<string>", "Their texts."),
        Column(f"{model}_log_probabilities", "list<float32>", "Their log-probabilities, nats."),
    )
)
FINDING_COLUMNS: tuple[Column, ...] = (
    Column("text", "uint32", "Row of its text in texts.parquet."),
    Column("position", "uint32", "Its position there. The figures are about the prediction made at it."),
    Column("kl", "float32", "KL(chat ‖ base) of that prediction.", unit="nats", low=0.0, source=_SOURCE),
    *_NEXT,
)
"""Columns of findings.parquet."""

FIRST_COLUMNS: tuple[Column, ...] = (
    Column("dataset", "string", "Name of the data set."),
    Column("layer", "uint32", "Index of the decoder layer."),
    Column("position", "uint32", "Position in the text, from 0; BOS counts."),
    Column("num_texts", "uint64", "Number of texts that are as long.", unit="texts"),
    Column("norm", "float32", "Norm of the mean difference chat - base of the layer's output.", source=_SOURCE),
    Column("norm_base", "float32", "Norm of base's mean output there.", source=_SOURCE),
    Column("tokens_base", "list<string>", "The tokens that the difference raises most through base's head."),
    Column("tokens_chat", "list<string>", "The same through chat's head."),
)
"""Columns of first.parquet."""

CONTINUATION_COLUMNS: tuple[Column, ...] = (
    Column("dataset", "string", "Name of the data set."),
    Column("place", "string", "File and line of its conversation."),
    Column(
        "kl",
        "float64",
        "Sum of KL(chat ‖ base) over the predictions of the turn's first nine tokens.",
        unit="nats",
        low=0.0,
        source=_SOURCE,
    ),
    Column("token_ids", _IDS, "Token ids of the prompt."),
    Column("pieces", "list<string>", "The text of each token."),
    Column("roles", "list<uint8>", "TokenRole of each token."),
    Column("base_text", "string", "What base says, greedily."),
    Column("chat_text", "string", "What chat says, greedily."),
    Column("base_ended", "uint8", "1: base ended its turn; 0: max_new_tokens came."),
    Column("chat_ended", "uint8", "The same for chat."),
)
"""Columns of continuations.parquet."""

TABLES: dict[str, tuple[Column, ...]] = {
    "layers.parquet": LAYER_COLUMNS,
    "groups.parquet": GROUP_COLUMNS,
    "texts.parquet": TEXT_COLUMNS,
    "findings.parquet": FINDING_COLUMNS,
    "first.parquet": FIRST_COLUMNS,
    "continuations.parquet": CONTINUATION_COLUMNS,
}
"""The columns of every table of a look, by its file."""


@dataclass(frozen=True)
class LookManifest:
    """look.json: what was looked at, and what follows."""

    name: str
    pair: PairManifest
    """The two models, by absolute folders or hub ids."""
    hashes: dict[str, str]
    """SHA-256 of the tokenizer, of both models and of every table."""
    recipe: dict[str, object]
    num_layers: int
    """Decoder layers that both models have."""
    layers: tuple[int, ...]
    """The layers that were swept, ascending; none if they could not be."""
    datasets: tuple[str, ...]
    num_tokens: int
    """Number of tokens that were compared."""
    num_texts: int
    num_folded: int
    """Number of tokens that differ as much as the least finding, but were left out for others of their text, or with
    the same 16 tokens."""
    sweep_tokens: int
    """Number of findings on which the sweep was measured."""
    sweep_texts: int
    figures: dict[str, float]
    """mean_kl and its error mean_kl_se, median_kl, p99_kl, max_kl, sum_kl; share_top: share of the sum that lies in the
    largest hundredth of the tokens; share_findings: that lies in the findings; nats."""
    recommended_layer: int | None = None
    reason: str = ""
    """Why this layer, or why none."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """Why a part was not measured: "sweep", "first", "continuations", "logit_lens_chat" and so on."""
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)
    """Texts that were left out, by data set and reason."""
    texts: dict[str, dict[str, int]] = field(default_factory=dict)
    """What became of the texts, by data set, as in crosscoder.json."""
    warnings: tuple[str, ...] = ()
    chat_template_date: str = ""
    job: str = ""
    """Id of the job that made it."""
    created_at: float = 0.0
    """When the job began to load the models, in seconds since 1970. Later changes of the models are not in the look."""
    schema_version: int = SCHEMA_VERSION
