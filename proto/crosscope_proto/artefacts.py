"""The layout of the artefact folder: names of files and fields of manifests. The columns of tables are in columns.py.

The worker writes what this module describes, and the server reads it. Knows names only and touches no disk.

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
      looks/<name>/                                 a look: look.json and its tables (looks.py)
      labels/<job>.json                             labels that a job made, until a server takes them in (labels.py)
      annotations.sqlite3                           what people say about latents; the server's own
      access/                                       who may call (access.py); audit.jsonl: who changed what
      search/<name>/<id>-<checksum>.arrow           the index of a version's examples; the server's own
      jobs/<id>/                                    recipe.yaml, first-day, checkpoints/, log.jsonl

With a store (crosscope_store), pairs/<name>/, looks/<name>/ and versions/<id>/ that are copies of something published
there hold .store.json, which says what; then files beside their manifest may not be here until they are needed.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePath

from crosscope_proto.access import AUDIT, AUDIT_KEPT, FOLDER

SCHEMA_VERSION = 1
NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,99}"
"""Pattern of the names of pairs and crosscoders and of version ids: safe as a folder's name and in a URL."""

CURRENT = "CURRENT"
MANIFEST = "crosscoder.json"
WEIGHTS = "crosscoder.safetensors"
METRICS = "metrics.parquet"
BEHAVIOURS = "behaviours.parquet"
LATENTS = "latents.parquet"
SEQUENCES = "sequences.parquet"
EXAMPLES = "examples"
PAIR_MANIFEST = "pair.json"
STORE_NOTE = ".store.json"
STORE_LOCK = "store.lock"
"""Locked by whoever puts a copy of what a store holds into the home, or removes one."""
SEARCH = "search"
JOB_LOG = "log.jsonl"
"""A job's own log: a JSON object a line, with at, attempt, event, and what the event says."""
ANNOTATIONS = "annotations.sqlite3"
"""People's labels, notes and lists, and those of programs."""
OWN_PATHS = (
    *("queue", "cache", "logs", SEARCH, ANNOTATIONS, f"{ANNOTATIONS}-wal", f"{ANNOTATIONS}-shm"),
    *(FOLDER, AUDIT, *(f"{AUDIT}.{number}" for number in range(1, AUDIT_KEPT + 1))),
)
"""What of the home belongs to the processes. No recipe reads it."""

REL_NORM_BINS = 20
"""Bins of the relative norm from 0 to 1 in a training's histogram; the middle, 1/2, is an edge."""
EXAMPLE_PARTS = 16
"""Number of example files; each has a contiguous range of latents, all of one size."""
EXAMPLE_LATENTS_PER_ROW_GROUP = 16
"""Latents in one row group of an example file. A look-up reads one row group."""


def pair_folder(home: PurePath, name: str) -> PurePath:
    """Folder of a pair."""
    return home / "pairs" / name


def crosscoder_folder(home: PurePath, name: str) -> PurePath:
    """Folder of a crosscoder, which holds CURRENT and versions/."""
    return home / "crosscoders" / name


def version_folder(home: PurePath, name: str, version_id: str) -> PurePath:
    """Folder of one version of a crosscoder."""
    return crosscoder_folder(home, name) / "versions" / version_id


def look_folder(home: PurePath, name: str) -> PurePath:
    """Folder of a look."""
    return home / "looks" / name


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
    """delta: has a budget of its own, k_delta."""
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
    """All other latents of a dictionary that has parts."""


class ExampleGroup(StrEnum):
    """Why an example was chosen."""

    TOP = "top"
    QUANTILE = "quantile"
    SILENT = "silent"
    """The latent does not fire on it, although the text has the token at which the latent peaks elsewhere."""


@dataclass(frozen=True)
class PairManifest:
    """pair.json: two models that share a tokenizer."""

    name: str
    base: str
    """Hub id, absolute folder, or a folder relative to the manifest's own."""
    chat: str
    """The same for the chat model; with an `adapter`, for the model that the adapter changes."""
    tokenizer: str
    """Where the tokenizer and its chat template are loaded from."""
    dtype: str = "float32"
    revision_base: str | None = None
    revision_chat: str | None = None
    adapter: str | None = None
    """Hub id or folder of the LoRA adapter that makes `chat` the chat model."""
    adapter_revision: str | None = None
    adapter_base_given: bool = False
    """Whether the recipe named the model that the adapter changes; if not, `chat` is the base model."""
    adapter_merged: bool = False
    """Whether the adapter is added into a copy of the weights that it changes."""
    token_names: str | None = None
    """"base" or "chat": the tokenizers may name special tokens differently, and the names of this model's are used."""
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
    """The two models, by absolute folders or hub ids."""
    layer: int
    d_model: tuple[int, int]
    num_latents: int
    variant: str
    code_normalisation: str
    """"crosscoder", "sae", "mixed", "none" or "decoupled" (math §1)."""
    threshold: float | None
    """Inference keeps scaled activations above this; None if all positive ones stay."""
    input_scale: tuple[float, float]
    """Factors on the activations of base and chat before encoding; reconstructions are divided by them."""
    recipe: dict[str, object]
    datasets: tuple[str, ...] = ()
    training_tokens: int = 0
    """Number of tokens trained on; a token counts in every epoch."""
    skipped_texts: int = 0
    """Number of texts that the tokenizer or template refused (DataSpec.skip_refused); a text counts in every epoch."""
    skipped: dict[str, dict[str, int]] = field(default_factory=dict)
    """The same by data set and reason."""
    texts: dict[str, dict[str, int]] = field(default_factory=dict)
    """What became of the texts that training and analysis read, by data set: read, cut, cut_tokens, lost_behaviours,
    without_tokens, stopped, retries. A text counts in every epoch."""
    norm_limits: tuple[float, float] | None = None
    """Largest activation norm in each model that the token policy keeps (math §7); None: it keeps all."""
    norm_positions: tuple[int, ...] = ()
    """Positions of a text that the token policy leaves out because their median norm is larger."""
    norm_left_out: int = 0
    """Number of tokens left out by norm in all epochs of the training; without a training, in the analysis."""
    warnings: tuple[str, ...] = ()
    """What the job left out of its data, or found unusual in it; sentences for people."""
    analysis_tokens: int = 0
    analysis_shards: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    class_counts: dict[str, int] = field(default_factory=dict)
    histogram_edges: tuple[float, ...] = ()
    uselessness: dict[str, float] = field(default_factory=dict)
    """How base uselessness was computed: steps, learning rate, start, floor, number of latents, agreement."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the tokenizer, of both models and of the weights."""
    software: dict[str, str] = field(default_factory=dict)
    reads: str = ""
    """What it reads and reconstructs: "both", "difference", "base" or "chat". Older files have "" or no such field;
    manifest.parse_manifest fills it in."""
    token_k: int | None = None
    """Inference keeps this many of a token's largest scaled activations; None if another rule holds."""
    notes: tuple[str, ...] = ()
    """What was assumed or left out when someone else's file was read; sentences. They stay with the dictionary whenever
    it is loaded. Empty for a dictionary that was trained here."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """Why a figure was not measured, by its name, for instance "logit_lens_chat"."""
    chat_template_date: str = ""
    """The day that the chat template printed, YYYY-MM-DD; "": it printed the day of each run, in older versions."""
    float32: str = ""
    """How float32 products were made in training and analysis: "ieee" or "tf32"; "" in older files: ieee."""
    job: str = ""
    """Id of the job that published it. By this a job that runs again finds that it has published already."""
    created_at: float = 0.0
    """Seconds since 1970."""
    schema_version: int = SCHEMA_VERSION

    @property
    def uselessness_floor(self) -> float:
        """Base uselessness at the smallest scale that was told apart, its largest value; infinite where unknown."""
        floor = self.uselessness.get("floor", 0.0)
        return -math.log(floor) if floor > 0 else math.inf

    @property
    def weights_id(self) -> str:
        """What tells these weights from all others: their SHA-256; of a version without one, the version's id."""
        return self.hashes.get(WEIGHTS) or f"version {self.version_id}"
