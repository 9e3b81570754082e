"""The parts of a recipe but the dictionary: pair, data, tokens, training, analysis. Checked here, one by one.

Knows nothing about torch or files: paths are strings. Every field changes what is made.
"""

import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    model_validator,
)
from pydantic.dataclasses import dataclass

from crosscope_proto.artefacts import NAME_PATTERN
from crosscope_proto.template_kwargs import check_template_kwargs

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$")]
MAX_COUNT = 10**12
"""Of steps, tokens, texts: far beyond any use, and far below where arithmetic on them overflows."""
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Natural = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

ALPACA_COLUMNS = {"instruction": True, "input": False, "output": True, "system": False, "history": False}
"""Columns of `format: alpaca`, and whether they must be there."""


TOKENIZER_WORDS = ("base", "chat")
"""Values of PairSpec.tokenizer that name one of the models instead of a place."""


@dataclass(config=STRICT)
class AdapterSpec:
    """A chat model that is a LoRA adapter on other weights (PEFT, safetensors files)."""

    adapter: Annotated[str, Field(min_length=1)]
    """Hub id or folder of the adapter."""
    base: str | None = None
    """Hub id or folder of the model that it was made for; unset: the pair's base, whose weights both models share."""
    revision: str | None = None
    """Hub revision of the adapter."""
    merged: bool = False
    """Add the adapter into a copy of the weights that it changes: faster to run, rounded to the pair's dtype."""


def _chat_kind(value: object) -> str:
    return "AdapterSpec" if isinstance(value, (dict, AdapterSpec)) else "str"


ChatModel = Annotated[
    Annotated[str, Tag("str")] | Annotated[AdapterSpec, Tag("AdapterSpec")], Discriminator(_chat_kind)
]


def _day(value: object) -> object:
    """YAML reads 2026-01-31 as a date of its own; a text is one too."""
    if isinstance(value, str):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"must be a day YYYY-MM-DD, but is {value[:40]!r}") from error
    if isinstance(value, datetime.datetime) or not isinstance(value, datetime.date | None):
        raise ValueError(f"must be a day YYYY-MM-DD, but is {str(value)[:40]}")
    return value


def _checked(kwargs: dict[str, Any]) -> dict[str, Any]:
    check_template_kwargs(kwargs)
    return kwargs


Day = Annotated[datetime.date, BeforeValidator(_day)]
TemplateKwargs = Annotated[dict[str, JsonValue], AfterValidator(_checked)]
"""Arguments of a chat template by name: enable_thinking, tools, documents, …"""


@dataclass(config=STRICT)
class PairSpec:
    """Two causal language models that share a tokenizer."""

    name: Name
    """The pair's name. With nothing else: a pair that exists already, below pairs/."""
    base: str | None = None
    """Hub id or folder of the base model."""
    chat: ChatModel | None = None
    """Hub id or folder of the chat model; or `{adapter: …}`, a LoRA adapter on the base model or another."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer with the chat template; unset: the chat model's. The words base and chat are
    that model's tokenizer, and allow the two to differ in the names of special tokens."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type that both models run in."""
    revision_base: str | None = None
    """Hub revision of the base model."""
    revision_chat: str | None = None
    """Hub revision of the chat model."""

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.base is None) != (self.chat is None):
            raise ValueError("base and chat must be given together, or neither for a pair that exists already")
        if self.base is None and (
            self.tokenizer or self.revision_base or self.revision_chat or self.dtype != "float32"
        ):
            raise ValueError(
                "a pair that exists already has its own tokenizer, dtype and revisions; give only its name"
            )
        if isinstance(self.chat, AdapterSpec) and self.chat.base is None and self.revision_chat is not None:
            raise ValueError(
                "revision_chat is the revision of the adapter's base, which is the pair's; give revision_base, or "
                "chat.revision for the adapter's own"
            )
        return self


@dataclass(config=STRICT)
class DataSpec:
    """One data set of documents or conversations."""

    name: Name
    """Its name in statistics and examples."""
    source: Literal["hub", "jsonl", "parquet", "text"]
    """Where it comes from; "text" is one document a line."""
    path: Annotated[str, Field(min_length=1)]
    """Hub id, or a file or glob. A relative one is looked up in the pair's folder, the home folder, and the folder from
    which the job was submitted. It must lie in a folder that the job worker may read (docs/operations.md)."""
    config: str | None = None
    """Configuration of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    text_column: str | None = None
    """Column with a document's text. Exactly one of text_column and chat_column, except for "text" and alpaca."""
    chat_column: str | None = None
    """Column with a conversation: a list of turns."""
    format: Literal["messages", "sharegpt", "alpaca", "openai"] = "messages"
    """Shape of a conversation. messages: objects with role and content, both texts. sharegpt: from (human, gpt, system,
    tool, function_call, observation) and value. openai: messages whose content may be a list of text parts. alpaca: no
    chat_column, but the columns instruction and output, and input, system and history where there are such."""
    role_key: str = "role"
    """Key of a turn's role in chat_column; of messages only."""
    content_key: str = "content"
    """Key of a turn's content in chat_column; of messages only."""
    behaviours_column: str | None = None
    """Column that tags behaviours in chat_column: a list of objects with turn (index), start and end (characters of
    that turn's content) and behaviour (a name). The analysis finds the latent that detects each best."""
    skip_refused: bool = False
    """Leave out texts that have another shape, or that the tokenizer or the chat template refuses (an empty turn, roles
    that do not alternate), and count them by reason in the manifest; off: such a text ends the job, named by file and
    line."""
    max_refused_share: Share = 0.5
    """skip_refused: the job ends, with the reasons, when more than this share of the set's texts is left out. Judged at
    the set's end, and while it is read from 100 refused texts on, then with three standard errors to spare. A set that
    gives no text ends it too."""
    max_tokens: Count | None = None
    """Stop after this many tokens of training; unset: the whole set."""

    @model_validator(mode="after")
    def _one_column(self) -> Self:
        if self.source != "hub" and (self.config is not None or self.split != "train"):
            raise ValueError("only a hub data set has a config and splits; name the files in path")
        if self.source == "text":
            if self.text_column or self.chat_column or self.format != "messages":
                raise ValueError("a text source has no columns: leave out text_column, chat_column and format")
        elif self.format == "alpaca":
            if self.text_column or self.chat_column:
                raise ValueError("alpaca has columns of its own: leave out text_column and chat_column")
        elif (self.text_column is None) == (self.chat_column is None):
            raise ValueError("exactly one of text_column and chat_column must be given")
        if self.behaviours_column and not self.has_chats:
            raise ValueError("behaviours_column needs chat_column")
        return self

    @model_validator(mode="after")
    def _format(self) -> Self:
        if self.format != "messages":
            if not self.has_chats:
                raise ValueError(f"format {self.format} is of conversations: give chat_column")
            if (self.role_key, self.content_key) != ("role", "content"):
                raise ValueError(f"{self.format} has keys of its own: leave out role_key and content_key")
        if self.max_refused_share != 0.5 and not self.skip_refused:
            raise ValueError("max_refused_share needs skip_refused: true; without it the first such text ends the job")
        return self

    @property
    def has_chats(self) -> bool:
        """Whether its texts are conversations."""
        return self.chat_column is not None or self.format == "alpaca"


@dataclass(config=STRICT)
class TokenPolicy:
    """Which tokens are trained on and analysed. Recorded with every crosscoder."""

    max_length: Annotated[int, Field(ge=2, le=8192)] = 1024
    """Texts are cut to this many tokens, or to what both models can read if that is less."""
    skip_bos: bool = True
    """Leave out BOS tokens, whose activation norm is an outlier, wherever they stand; to keep them takes
    max_norm_ratio: null too. Padding is always left out."""
    skip_first: Natural = 0
    """Leave out the first n tokens of every text, BOS counted."""
    max_norm_ratio: Positive | None = 10.0
    """Leave out tokens whose activation norm, in either model, is more than this many times the median norm, and early
    positions where the median norm itself is (attention sinks; math §7). Medians are those of the first 65 536 tokens
    or so that are read. null: keep all."""
    held_out_every: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 20
    """Every n-th text of each data set is never trained on and is what the analysis reads."""


@dataclass(config=STRICT)
class TrainingSpec:
    """How the dictionary is trained."""

    batch_size: Count = 2048
    """Tokens a step."""
    lr: Positive = 1e-4
    """Adam's learning rate."""
    warmup_steps: Natural = 1000
    """Steps over which the learning rate rises linearly."""
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Last share of the training over which the learning rate falls to zero; 0: constant. Needs a known length: of a
    hub data set, max_tokens, or else max_steps."""
    decay: Literal["linear", "cosine"] = "linear"
    """How it falls."""
    sparsity_warmup_steps: Natural = 0
    """Steps over which mu rises linearly from 0, or k falls linearly from k_start."""
    k_start: Count | None = None
    """Latents a token at the first step, from which k falls; needs sparsity_warmup_steps and a variant with k."""
    epochs: Count = 1
    """Passes over the training texts."""
    max_steps: Count | None = None
    """Stop after this many steps; unset: when the texts end."""
    buffer_tokens: Count = 131072
    """Tokens in the shuffle buffer."""
    normalise_inputs: bool = False
    """Scale each model's activations to a mean squared norm of d_model, measured on the first buffer."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type that products are made in. Weights, sums, losses and the optimiser are float32 either way; bfloat16
    pays on GPUs."""
    max_grad_norm: Positive | None = 1.0
    """Clip the gradient's norm; null: do not."""
    dead_after_tokens: Count = 10_000_000
    """A latent that has not fired for this many tokens is dead: the curves count it, and in variants with k
    and in jumprelu the auxiliary loss revives it."""
    aux_weight: Annotated[float, Field(ge=0)] = 1 / 32
    """Weight of the auxiliary loss that revives dead latents; for variants with k and jumprelu only."""
    seed: Seed = 0
    """Seed of the initial weights and of the shuffle buffer."""
    log_every: Count = 50
    """Steps between measurements."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints."""
    cache: bool = False
    """Keep the activations below activations/ in the home folder, for further epochs and trainings on the same data;
    off: run the models again. Takes 4 bytes a value: `tokens · (d_model base + d_model chat) · 4`."""


@dataclass(config=STRICT)
class AnalysisSpec:
    """What is measured on held-out texts."""

    max_tokens: Count = 1_000_000
    """Stop after this many tokens, divided evenly among the data sets."""
    num_shards: Annotated[int, Field(ge=2, le=1000)] = 20
    """Shards of the jackknife."""
    top_examples: Count = 20
    """Examples a latent and data set in group top."""
    quantiles: Annotated[int, Field(ge=1, le=256)] = 4
    """Bands of the sequence maximum."""
    examples_per_quantile: Natural = 5
    """Examples a latent, data set and band."""
    uselessness_steps: Count = 500
    """Steps of the published base-uselessness recipe."""
    uselessness_lr: Positive = 0.01
    """Its learning rate."""
    uselessness_start: float = 0.0
    """Its initial theta; the published runs used 0 and -10."""
    uselessness_floor: Positive = 1e-5
    """Smallest scalar of the least-squares score, so that its logarithm is finite."""
    spliced_tokens: Natural = 16_384
    """Held-out tokens on which both models run with reconstructions spliced in, for cross-entropy and KL recovered,
    and on which chat-specific latents are patched into the base model's activations; 0: not measured."""
