"""The layout of the artefact folder: names of files and fields of manifests; columns.py has the columns of tables.

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
    """What the job that published it left out of its own data, or found unusual there; a sentence each, for people."""
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
    """What was assumed or left out when someone else's file was read; a sentence each. They belong to the dictionary:
    whoever loads it again has them too. Empty for one that was trained here."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """Why something was not measured, by its name: for instance "logit_lens_chat"."""
    chat_template_date: str = ""
    """The day that the chat template printed, YYYY-MM-DD; "": that of each run, as earlier versions had it."""
    job: str = ""
    """Id of the job that published it, so that a job that is run again publishes nothing twice."""
    created_at: float = 0.0
    """Seconds since 1970."""
    schema_version: int = SCHEMA_VERSION
