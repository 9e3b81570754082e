"""The parts of a recipe except the dictionary: pair, data, tokens, training, analysis. Each part checks itself.

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
"""Limit of steps, tokens and texts: far beyond any use, and far below the numbers at which arithmetic overflows."""
MAX_DEVICES = 4096
"""Limit of devices and of streams of texts."""
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Natural = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Float32 = Literal["ieee", "tf32"]
"""How products of float32 matrices are made: exactly as IEEE says, or rounded to TF32 (NVIDIA GPUs)."""

ALPACA_COLUMNS = {"instruction": True, "input": False, "output": True, "system": False, "history": False}
"""Columns of `format: alpaca`, and whether each must be there."""


TOKENIZER_WORDS = ("base", "chat")
"""Values of PairSpec.tokenizer that name one of the models; any other value is a hub id or a folder."""


@dataclass(config=STRICT)
class AdapterSpec:
    """A chat model that is a LoRA adapter on the weights of another model (PEFT, safetensors files)."""

    adapter: Annotated[str, Field(min_length=1)]
    """Hub id or folder of the adapter."""
    base: str | None = None
    """Hub id or folder of the model that the adapter was made for; null: the pair's base model. Then both models share
    its weights."""
    revision: str | None = None
    """Hub revision of the adapter."""
    merged: bool = False
    """Whether the adapter is added into a copy of the weights that it changes. This runs faster, takes more memory, and
    rounds the sum to the pair's dtype."""


def _chat_kind(value: object) -> str:
    return "AdapterSpec" if isinstance(value, (dict, AdapterSpec)) else "str"


ChatModel = Annotated[
    Annotated[str, Tag("str")] | Annotated[AdapterSpec, Tag("AdapterSpec")], Discriminator(_chat_kind)
]


def _day(value: object) -> object:
    """The day as a date. A text may hold it, or YAML may have read a date already."""
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


def _devices(value: object) -> object:
    """A number of devices as it is, or auto."""
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_DEVICES):
        return value
    raise ValueError(f"must be a number of devices from 1 to {MAX_DEVICES}, or auto, but is {str(value)[:40]!r}")


Day = Annotated[datetime.date, BeforeValidator(_day)]
Devices = Annotated[
    Annotated[int, Field(ge=1, le=MAX_DEVICES)] | Literal["auto"],
    BeforeValidator(_devices),
]
"""A number of devices; auto: all that there are."""
TemplateKwargs = Annotated[dict[str, JsonValue], AfterValidator(_checked)]
"""Arguments of a chat template by name: enable_thinking, tools, documents, …"""


@dataclass(config=STRICT)
class PairSpec:
    """Two causal language models that share a tokenizer."""

    name: Name
    """The pair's name. If no other field is given, a pair of this name must exist already, in the folder pairs/."""
    base: str | None = None
    """Hub id or folder of the base model."""
    chat: ChatModel | None = None
    """Hub id or folder of the chat model; or `{adapter: …}`, a LoRA adapter on the base model or on another model."""
    tokenizer: str | None = None
    """Hub id or folder of the tokenizer with the chat template; null: the chat model's. The word base or chat takes the
    tokenizer of that model, and allows the two tokenizers to name special tokens differently."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type in which both models run."""
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
    """The name of the data set in statistics and examples."""
    source: Literal["hub", "jsonl", "parquet", "text"]
    """Where the rows come from: the hub, or files. jsonl: a JSON object a line; parquet: Parquet files; text: a
    document a line."""
    path: Annotated[str, Field(min_length=1)]
    """Hub id, or a file, or a pattern of files such as data/*.jsonl. A relative path is looked up in the pair's folder,
    then in the home folder, then in the folder from which the job was submitted. It must lie in a folder that the job
    worker may read (docs/operations.md)."""
    config: str | None = None
    """Configuration of a hub data set; null: its default one."""
    split: str = "train"
    """Split of a hub data set."""
    text_column: str | None = None
    """Column that holds the text of a document. Give exactly one of text_column and chat_column; give neither for the
    source text and for the format alpaca."""
    chat_column: str | None = None
    """Column that holds a conversation: a list of messages."""
    format: Literal["messages", "sharegpt", "alpaca", "openai"] = "messages"
    """Shape of a conversation. messages: objects with role and content, both texts. sharegpt: objects with from (human,
    gpt, system, tool, function_call, observation) and value. openai: messages whose content may be a list of text
    parts. alpaca: no chat_column, but the columns instruction and output; the columns input, system and history are
    read if they exist."""
    role_key: str = "role"
    """Key of a message's role in chat_column; for the format messages only."""
    content_key: str = "content"
    """Key of a message's content in chat_column; for the format messages only."""
    behaviours_column: str | None = None
    """Column that tags behaviours in the conversation: a list of objects with turn (index of the message), start and
    end (characters of its content) and behaviour (a name). The analysis finds the latent that detects each behaviour
    best."""
    skip_refused: bool = False
    """What to do with a text that has another shape, or that the tokenizer or the chat template refuses (an empty
    message, roles that do not alternate). true: leave it out, and count it by reason in the manifest. false: end the
    job; the message names file and line."""
    max_refused_share: Share = 0.5
    """With skip_refused, the job ends if more than this share of the texts is refused. The message says the reasons.
    The share is judged at the end of the data set. From 100 refused texts on it is also judged during reading, with a
    margin of three standard errors. A data set of which no text is left ends the job too."""
    max_tokens: Count | None = None
    """Training reads at most this many tokens of the data set; null: all of it."""

    @model_validator(mode="after")
    def _one_column(self) -> Self:
        if self.source != "hub" and (self.config is not None or self.split != "train"):
            raise ValueError("only a hub data set has a config and a split; leave them out and name the files in path")
        if self.source == "text":
            if self.text_column or self.chat_column or self.format != "messages":
                raise ValueError("the source text has no columns: leave out text_column, chat_column and format")
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
                raise ValueError(f"format {self.format} is a shape of conversations: give chat_column")
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
    """Which tokens are trained on and analysed. The policy is recorded with every crosscoder."""

    max_length: Annotated[int, Field(ge=2, le=8192)] = 1024
    """A text is cut to this many tokens, or to the number that both models can read if that is less."""
    skip_bos: bool = True
    """Whether BOS tokens are left out, wherever they stand: their activation norm is an outlier. To keep them, set
    max_norm_ratio to null too. Padding is always left out."""
    skip_first: Natural = 0
    """Leave out this many tokens at the beginning of every text. A BOS token counts."""
    max_norm_ratio: Positive | None = 10.0
    """Leave out tokens whose activation norm, in either model, is more than this many times the median norm. Early
    positions whose own median norm is above that limit (attention sinks) are left out whole; math §7. The medians are
    those of the first 65 536 tokens or so that are read. null: keep all."""
    held_out_every: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 20
    """Every n-th text of each data set is held out: training never sees it, and the analysis reads only these."""


@dataclass(config=STRICT)
class LookTokens:
    """Which tokens a look compares. It reads no single layer, so no token is left out because of its norm."""

    max_length: Annotated[int, Field(ge=2, le=8192)] = 1024
    """A text is cut to this many tokens, or to the number that both models can read if that is less."""
    skip_bos: bool = True
    """Whether BOS tokens are left out, wherever they stand. Padding is always left out."""
    skip_first: Natural = 0
    """Leave out this many tokens at the beginning of every text. A BOS token counts."""

    @property
    def policy(self) -> TokenPolicy:
        """The same as a policy that holds no text out."""
        return TokenPolicy(self.max_length, self.skip_bos, self.skip_first, None)


@dataclass(config=STRICT)
class TrainingSpec:
    """How the dictionary is trained."""

    batch_size: Count = 2048
    """Tokens in a training step."""
    lr: Positive = 1e-4
    """Learning rate of Adam."""
    warmup_steps: Natural = 1000
    """Steps over which the learning rate rises linearly."""
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The learning rate falls to zero over this last share of the training; 0: it stays constant. The length of the
    training must be known: give max_steps, or max_tokens of each hub data set."""
    decay: Literal["linear", "cosine"] = "linear"
    """The curve along which the learning rate falls."""
    sparsity_warmup_steps: Natural = 0
    """Steps over which mu rises linearly from 0, or k falls linearly from k_start."""
    k_start: Count | None = None
    """Active latents a token at the first step; k falls from here. Needs sparsity_warmup_steps and a variant with k."""
    epochs: Count = 1
    """Number of passes over the training texts."""
    max_steps: Count | None = None
    """Training stops after this many steps; null: when the texts end."""
    buffer_tokens: Count = 131072
    """Tokens in the shuffle buffer, from which batches are drawn at random."""
    normalise_inputs: bool = False
    """Whether the activations of each model are scaled to a mean squared norm of d_model, measured on the first
    buffer."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the operands of matrix products. Weights, sums, losses and the optimiser are always float32.
    bfloat16 is faster on GPUs."""
    max_grad_norm: Positive | None = 1.0
    """The gradient is clipped to this norm; null: it is not clipped."""
    dead_after_tokens: Count = 10_000_000
    """A latent that has not fired for this many tokens is dead. The curves count dead latents. In variants with k, and
    in jumprelu, the auxiliary loss revives them."""
    aux_weight: Annotated[float, Field(ge=0)] = 1 / 32
    """Weight of the auxiliary loss that revives dead latents; for variants with k and jumprelu only."""
    seed: Seed = 0
    """Seed of the first weights and of the shuffle buffer."""
    log_every: Count = 50
    """Steps between two points of the training curves."""
    checkpoint_every: Count = 1000
    """Steps between two checkpoints. A crash costs at most this many steps."""
    cache: bool = False
    """Whether the activations are kept on disk, in activations/ of the home folder. Further epochs, and further
    trainings on the same data in as many streams, then read them and do not run the models again. They take `tokens ·
    (d_model base + d_model chat) · 4` bytes."""
    devices: Devices = 1
    """Number of devices that train together, each with a part of the latents and of the streams; auto: all that the job
    worker sees. Weights do not depend on it but for the order of sums. On the CPU it is a number of processes that
    share its cores. A training can go on with another number."""
    streams: Annotated[int, Field(ge=1, le=MAX_DEVICES)] | None = None
    """Number of streams that the texts are dealt to, of which each batch takes equal parts; null: the number of devices
    at the first start. A device reads whole streams, so those beyond the number of streams only help with latents.
    Batches depend on this number, not on the number of devices."""

    @model_validator(mode="after")
    def _a_token_of_each_stream(self) -> Self:
        if self.streams is not None and self.streams > self.batch_size:
            raise ValueError(
                f"streams {self.streams} must be at most batch_size {self.batch_size}: a batch takes at least one "
                "token of each stream"
            )
        if self.streams is None and self.devices != "auto" and self.devices > self.batch_size:
            raise ValueError(
                f"devices {self.devices} must be at most batch_size {self.batch_size}, or streams must be given: a "
                "batch takes at least one token of each stream, and there are as many streams as devices"
            )
        return self


@dataclass(config=STRICT)
class CausalSpec:
    """Latents whose causal effects are measured, and on how much (math §11)."""

    latents: Annotated[tuple[Natural, ...], Field(max_length=100_000)] = ()
    """Numbers of the latents. Give them, or let classes and top choose."""
    classes: tuple[Literal["chat_only", "base_only", "shared", "other"], ...] = ()
    """Classes of latents, each of which gives its first num_latents; none: the first num_latents of all."""
    top: Literal["nu_err", "rel_norm", "beta_ratio", "num_active"] = "nu_err"
    """What comes first. nu_err and beta_ratio: the smallest, two standard errors added; rel_norm and num_active: the
    largest. Latents that never fire, or for which it is not defined, are not chosen."""
    num_latents: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Number of latents that are chosen, of each class if classes are given."""
    tokens: Count = 16_384
    """Held-out tokens of the sample, texts of each data set in turn."""
    latent_tokens: Count = 8_192
    """Tokens run for one latent: once the texts in which it fires have this many, its sample ends there."""

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.latents and (self.classes or self.top != "nu_err" or self.num_latents != 100):
            raise ValueError("latents names each one, so leave out classes, top and num_latents")
        if len(set(self.latents)) < len(self.latents):
            raise ValueError("latents names a latent twice; name each once")
        return self


@dataclass(config=STRICT)
class AnalysisSpec:
    """What is measured on held-out texts."""

    max_tokens: Count = 1_000_000
    """The analysis reads at most this many tokens, in equal shares from the data sets."""
    num_shards: Annotated[int, Field(ge=2, le=1000)] = 20
    """Number of shards of the jackknife, from which standard errors come (math §4)."""
    parts: Annotated[int, Field(ge=1, le=1000)] | None = None
    """The texts are measured in this many parts of about equal size; null: one for every 2 million tokens. A part that
    was measured is not measured again by a retry, and a cluster measures parts side by side. The results do not depend
    on the number. A part has at least one window of about 65 000 tokens."""
    top_examples: Count = 20
    """For each latent and data set, this many of its strongest texts are kept as examples (group top)."""
    quantiles: Annotated[int, Field(ge=1, le=256)] = 4
    """Number of bands into which texts are divided by their largest activation (group quantile)."""
    examples_per_quantile: Natural = 5
    """For each latent, data set and band, this many texts are kept as examples."""
    silent_examples: Natural = 5
    """For each latent and data set, this many texts are kept as examples on which the latent stays silent although they
    have the token of its peaks (group silent)."""
    uselessness_steps: Count = 5000
    """Training steps of the published base uselessness, at most; it ends when every score has converged (math §5)."""
    uselessness_lr: Positive = 0.01
    """Learning rate of the published base uselessness."""
    uselessness_start: float = 0.0
    """First theta of the published base uselessness; the original runs used 0 and -10."""
    uselessness_floor: Positive = 1e-5
    """Smallest scalar of every base uselessness. It keeps the logarithm finite."""
    spliced_tokens: Natural = 16_384
    """Held-out tokens of the spliced figures and of the causal patch (math §7). On these tokens both models run with
    reconstructions in the place of their activations; 0: neither is measured."""
    causal: CausalSpec | None = None
    """Latents whose causal effects are measured (math §11); null: none. A recipe of kind causal measures them later."""
