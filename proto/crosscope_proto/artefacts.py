"""The layout of the artefact folder: names of files, schemas of tables, fields of manifests.

Pure names: nothing here touches a disk. The worker writes what this module describes, the server reads it.

    <home>/
      pairs/<name>/pair.json                        a PairManifest; the demo's models and texts lie beside it
      crosscoders/<name>/CURRENT                    the id of the current version, one line
      crosscoders/<name>/versions/<id>/
          crosscoder.json                           a CrosscoderManifest
          crosscoder.safetensors                    W_enc, b_enc, W_dec, b_dec, …
          metrics.parquet                           METRIC_COLUMNS, a row a logged step and figure
          behaviours.parquet                        BEHAVIOUR_COLUMNS; only where texts carry tagged behaviours
          latents.parquet                           LATENT_COLUMNS, a row a latent, by id
          sequences.parquet                         SEQUENCE_COLUMNS, each text once, by id
          examples/part-NN.parquet                  EXAMPLE_COLUMNS, sorted by (latent, dataset, group, quantile, rank)
      jobs/<id>/                                    recipe.yaml, first-day, checkpoints/, log.jsonl
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow

SCHEMA_VERSION = 1
NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,99}"
"""What names of pairs and crosscoders and ids of versions look like: safe as a folder and in a URL."""

CURRENT = "CURRENT"
MANIFEST = "crosscoder.json"
WEIGHTS = "crosscoder.safetensors"
METRICS = "metrics.parquet"
BEHAVIOURS = "behaviours.parquet"
LATENTS = "latents.parquet"
SEQUENCES = "sequences.parquet"
EXAMPLES = "examples"
PAIR_MANIFEST = "pair.json"
OWN_FOLDERS = ("queue", "cache", "logs")
"""Below the home: what the processes keep for themselves. No recipe reads it."""

EXAMPLE_PARTS = 16
"""Number of example files; latents are divided among them in contiguous, equal ranges."""
EXAMPLE_LATENTS_PER_ROW_GROUP = 16
"""Latents in one row group of an example file, so that one lookup reads one row group."""


def pair_folder(home: PurePath, name: str) -> PurePath:
    """Folder of a pair."""
    return home / "pairs" / name


def crosscoder_folder(home: PurePath, name: str) -> PurePath:
    """Folder of a crosscoder, which holds CURRENT and versions/."""
    return home / "crosscoders" / name


def version_folder(home: PurePath, name: str, version_id: str) -> PurePath:
    """Folder of one version of a crosscoder."""
    return crosscoder_folder(home, name) / "versions" / version_id


def job_folder(home: PurePath, job_id: str) -> PurePath:
    """Folder of a job."""
    return home / "jobs" / job_id


def latents_per_part(num_latents: int) -> int:
    """Latents in each example file, a whole number of row groups; the last file may hold fewer."""
    groups = -(-num_latents // EXAMPLE_LATENTS_PER_ROW_GROUP)
    return -(-groups // EXAMPLE_PARTS) * EXAMPLE_LATENTS_PER_ROW_GROUP


def example_part(latent: int, num_latents: int) -> str:
    """Name of the file below EXAMPLES that holds a latent's examples."""
    return f"part-{latent // latents_per_part(num_latents):02d}.parquet"


class LatentClass(StrEnum):
    """Classes of latents by relative norm (math §6)."""

    CHAT_ONLY = "chat_only"
    BASE_ONLY = "base_only"
    SHARED = "shared"
    OTHER = "other"
    DEAD = "dead"


class LatentPart(StrEnum):
    """Parts of a dictionary that training sets apart (math §2)."""

    BASE_EXCLUSIVE = "base_exclusive"
    """dfc: neither reads nor writes the chat model."""
    CHAT_EXCLUSIVE = "chat_exclusive"
    """dfc: neither reads nor writes the base model."""
    DELTA = "delta"
    """delta: has the budget of the difference."""
    DESIGNATED = "designated"
    """designated_shared: one decoder row for both models."""
    PREFIX_1 = "prefix_1"
    """matryoshka: the smallest prefix of latents; the others are what each larger prefix adds."""
    PREFIX_2 = "prefix_2"
    PREFIX_3 = "prefix_3"
    PREFIX_4 = "prefix_4"
    PREFIX_5 = "prefix_5"
    PREFIX_6 = "prefix_6"
    PREFIX_7 = "prefix_7"
    PREFIX_8 = "prefix_8"
    REST = "rest"
    """The latents that none of these are."""


class ExampleGroup(StrEnum):
    """Why an example was chosen."""

    TOP = "top"
    QUANTILE = "quantile"


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    type: str
    """An Arrow type: uint8, uint16, uint32, uint64, float16, float32, float64, string, or list<one of these>."""
    doc: str
    absent: float | str | None = None
    """What readers take where a version was published before the column existed; None: every version has it."""

    @property
    def is_scalar(self) -> bool:
        """Whether the column holds one value a row."""
        return not self.type.startswith("list<")


def arrow_schema(columns: tuple[Column, ...]) -> "pyarrow.Schema":
    """The Arrow schema of a table; needs pyarrow."""
    import pyarrow as pa

    scalars: dict[str, pa.DataType] = {
        "uint8": pa.uint8(),
        "uint16": pa.uint16(),
        "uint32": pa.uint32(),
        "uint64": pa.uint64(),
        "float16": pa.float16(),
        "float32": pa.float32(),
        "float64": pa.float64(),
        "string": pa.string(),
    }

    def arrow_type(name: str) -> pa.DataType:
        return pa.list_(scalars[name[5:-1]]) if name.startswith("list<") else scalars[name]

    return pa.schema([pa.field(column.name, arrow_type(column.type)) for column in columns])


def _estimate(name: str, doc: str, absent: float | None = None) -> tuple[Column, Column]:
    return (
        Column(name, "float32", f"{doc}; NaN where undefined", absent),
        Column(f"{name}_se", "float32", f"standard error of {name}, jackknife over shards", absent),
    )


SCALING_TARGETS = {
    "act": "the activation",
    "act_no_bias": "the activation without the decoder bias",
    "rec": "the reconstruction",
    "err": "the error with the latent's own contribution put back",
}
"""Targets of latent scaling (math §4)."""

SCALING_DIRECTIONS = {"": "chat", "mirror_": "base"}
"""Prefix of the scaling columns, and whose decoder row is the direction. The published choice has no prefix."""


NAN = float("nan")


def beta_column(prefix: str, target: str, model: str) -> str:
    """Name of a scaling coefficient's column, for instance "beta_err_base"."""
    return f"{prefix}beta_{target}_{model}"


def _scaling_columns() -> tuple[Column, ...]:
    columns: list[Column] = []
    for prefix, direction in SCALING_DIRECTIONS.items():
        for target, target_doc in SCALING_TARGETS.items():
            for model in ("base", "chat"):
                doc = f"beta of {target_doc} of the {model} model along the {direction} decoder row (math §4)"
                columns += _estimate(beta_column(prefix, target, model), doc)
        other = "base" if direction == "chat" else "chat"
        for ratio in ("err", "rec"):
            columns += _estimate(f"{prefix}nu_{ratio}", f"beta_{ratio}^{other} / beta_{ratio}^{direction} (math §4)")
    return tuple(columns)


LATENT_COLUMNS: tuple[Column, ...] = (
    Column("id", "uint32", "latent id"),
    Column("latent_class", "string", "a LatentClass (math §6)"),
    Column("part", "string", "a LatentPart: the part of the dictionary that it belongs to; empty without parts", ""),
    Column("norm_base", "float32", "norm of the base decoder row"),
    Column("norm_chat", "float32", "norm of the chat decoder row"),
    Column("rel_norm", "float32", "relative norm, 0 base only to 1 chat only (math §6)"),
    Column("cosine", "float32", "cosine between the two decoder rows; NaN if one is zero"),
    Column("num_active", "uint64", "tokens on which it fired"),
    *_estimate("frequency", "share of tokens on which it fired"),
    *_estimate("mean", "mean scaled activation where it fired"),
    Column("max", "float32", "largest scaled activation"),
    Column("repeat_share", "float32", "share of its active tokens that repeat an earlier text (math §4)", NAN),
    *_scaling_columns(),
    *_estimate("beta_ratio", "beta_act^base / beta_act^chat along the chat row, for difference dictionaries", NAN),
    Column("base_uselessness", "float32", "published recipe (math §5); NaN outside its set"),
    Column("base_uselessness_ls", "float32", "joint non-negative least squares (math §5); NaN outside its set"),
    Column("base_uselessness_single", "float32", "of this latent alone (math §5); NaN if it never fired"),
    Column("template_share", "float32", "share of activation mass on BOS, role headers and turn ends"),
    Column("role_shares", "list<float32>", "share of activation mass, indexed by TokenRole (8 values in older files)"),
    Column("dataset_shares", "list<float32>", "share of activation mass by data set, in the manifest's order"),
    Column("histogram", "list<uint32>", "active tokens by scaled activation, in the manifest's histogram_edges"),
    Column("top_tokens", "list<string>", "tokens at the peaks of the strongest examples, most frequent first"),
    Column("logit_tokens_base", "list<string>", "tokens that its base row raises most through the base unembedding"),
    Column("logit_tokens_chat", "list<string>", "tokens that its chat row raises most through the chat unembedding"),
    Column("neighbours", "list<uint32>", "nearest latents by cosine of concatenated decoder rows"),
    Column("neighbour_cosines", "list<float32>", "their cosines"),
    Column("coactive", "list<uint32>", "latents that fire on the same tokens most, by Jaccard index on a sample"),
    Column("coactive_indices", "list<float32>", "their Jaccard indices"),
)
"""latents.parquet. Activations are scaled (math §1)."""

SEQUENCE_COLUMNS: tuple[Column, ...] = (
    Column("id", "uint32", "row number"),
    Column("dataset", "string", "name of its data set"),
    Column("token_ids", "list<uint32>", "token ids, template tokens and BOS included"),
    Column("pieces", "list<string>", "the text of each token; joined, they are the text"),
    Column("roles", "list<uint8>", "TokenRole of each token"),
)
"""sequences.parquet."""

EXAMPLE_COLUMNS: tuple[Column, ...] = (
    Column("latent", "uint32", "latent id"),
    Column("dataset", "string", "name of the data set"),
    Column("group", "string", "an ExampleGroup"),
    Column("quantile", "uint8", "band of the sequence maximum, 0 the lowest; 0 in group top"),
    Column("rank", "uint32", "place within (latent, dataset, group, quantile), 0 first"),
    Column("sequence", "uint32", "id in sequences.parquet"),
    Column("max", "float32", "largest scaled activation in the sequence"),
    Column("positions", "list<uint16>", "token positions with an activation, ascending"),
    Column("values", "list<float32>", "their scaled activations; float16 in versions published before November 2026"),
    Column("repeats", "uint32", "further texts that it stands for, whose tokens around the peak are the same", 0),
)
"""examples/part-NN.parquet."""

METRIC_COLUMNS: tuple[Column, ...] = (
    Column("step", "uint64", "training step"),
    Column("name", "string", "figure, for instance fve_chat"),
    Column("value", "float32", "its value"),
)
"""metrics.parquet."""


BEHAVIOUR_COLUMNS: tuple[Column, ...] = (
    Column("behaviour", "string", "a tagged behaviour of the held-out conversations"),
    Column("place", "string", "decision: last token of the assistant's header before it; within: its own tokens"),
    Column("latent", "uint32", "the latent that separates it best by Youden's J over all thresholds"),
    Column("threshold", "float32", "scaled activation above which the latent says yes"),
    Column("recall", "float32", "share of the behaviour's occurrences on which it says yes"),
    Column("false_rate", "float32", "share of the other turns on which it says yes"),
    Column("num_positive", "uint32", "occurrences of the behaviour"),
    Column("num_negative", "uint32", "assistant turns without it"),
)
"""behaviours.parquet: for each tagged behaviour and place, the best single latent as its detector."""


@dataclass(frozen=True)
class PairManifest:
    """pair.json: two models that share a tokenizer."""

    name: str
    base: str
    """Hub id, absolute folder, or a folder relative to the manifest's own."""
    chat: str
    """The same for the chat model; where there is an `adapter`, for the model that it lies on."""
    tokenizer: str
    """Where the tokenizer and its chat template are loaded from."""
    dtype: str = "float32"
    revision_base: str | None = None
    revision_chat: str | None = None
    adapter: str | None = None
    """Hub id or folder of the LoRA adapter that makes `chat` the chat model."""
    adapter_revision: str | None = None
    adapter_base_given: bool = False
    """Whether somebody said that the adapter lies on `chat`, rather than that being the base model by default."""
    adapter_merged: bool = False
    """Whether the adapter is added into a copy of the weights that it changes."""
    token_names: str | None = None
    """"base" or "chat": the tokenizers may differ in the names of special tokens, and that model's count."""
    token_differences: tuple[str, ...] = ()
    """A sentence for every token that the two tokenizers name differently."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        # JSON has lists; manifests are keys, which must be hashable.
        object.__setattr__(self, "token_differences", tuple(self.token_differences))

    @property
    def chat_model(self) -> str:
        """What the chat model is, in words."""
        return self.chat if self.adapter is None else f"{self.chat} + {self.adapter}"


@dataclass(frozen=True)
class CrosscoderManifest:
    """crosscoder.json: what a crosscoder is, where it came from, and how good it is."""

    name: str
    version_id: str
    pair: PairManifest
    """With absolute folders or hub ids."""
    layer: int
    d_model: tuple[int, int]
    num_latents: int
    variant: str
    code_normalisation: str
    """"crosscoder", "sae", "mixed", "none" or "decoupled" (math §1)."""
    threshold: float | None
    """Inference keeps scaled activations above it; None where ReLU alone is the rule."""
    input_scale: tuple[float, float]
    """Activations of each model are multiplied by this before encoding; reconstructions are divided by it."""
    recipe: dict[str, object]
    datasets: tuple[str, ...] = ()
    training_tokens: int = 0
    """Tokens trained on, those of every epoch counted."""
    skipped_texts: int = 0
    """Texts that the tokenizer or template refused (DataSpec.skip_refused), those of every epoch counted."""
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)
    """The same by data set and reason."""
    texts: dict[str, dict[str, int]] = field(default_factory=dict)
    """What became of the texts that training and analysis read, by data set: read, cut, cut_tokens, lost_behaviours,
    without_tokens, stopped, retries; those of every epoch counted."""
    norm_limits: tuple[float, float] | None = None
    """Largest norm of an activation of each model that the token policy keeps (math §7); None: it keeps all."""
    norm_positions: tuple[int, ...] = ()
    """Positions of a text that it leaves out because their median norm is larger."""
    norm_left_out: int = 0
    """Tokens left out by norm, of every epoch of the training; of the analysis where there was no training here."""
    warnings: tuple[str, ...] = ()
    """Sentences about what was left out or is unusual, for people."""
    analysis_tokens: int = 0
    analysis_shards: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    class_counts: dict[str, int] = field(default_factory=dict)
    histogram_edges: tuple[float, ...] = ()
    uselessness: dict[str, float] = field(default_factory=dict)
    """How base uselessness was computed: steps, learning rate, start, floor, size of its set, agreement."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the tokenizer, of both models and of the weights."""
    software: dict[str, str] = field(default_factory=dict)
    reads: str = ""
    """What it reads and reconstructs: "both", "difference", "base" or "chat"; "" in files of before, which
    manifest.parse_manifest fills in."""
    token_k: int | None = None
    """Inference keeps so many of a token's largest scaled activations; None where a threshold or ReLU is the rule."""
    notes: tuple[str, ...] = ()
    """What was assumed, or left out, when someone else's crosscoder was read; a sentence each."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """Why something was not measured, by its name: for instance "logit_lens_chat"."""
    chat_template_date: str = ""
    """The day that the chat template printed, YYYY-MM-DD; "": that of each run, as earlier versions had it."""
    job: str = ""
    """Id of the job that published it, so that a job that is run again publishes nothing twice."""
    created_at: float = 0.0
    """Seconds since 1970."""
    schema_version: int = SCHEMA_VERSION
