"""The parts of a recipe of kind label: which latents, who labels them, on how many examples, and what it may cost.

`Cost` is what a latent takes at most; the plan and the job count by it. Knows nothing about files or calls.
"""

import math
import re
from dataclasses import dataclass as plain
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, JsonValue, model_validator
from pydantic.dataclasses import dataclass

from crosscope_proto.columns import LATENT_COLUMNS
from crosscope_proto.specs import STRICT, Count, Natural, Seed

CHARACTERS_A_TOKEN = 4
"""By this a text's tokens are estimated where no tokenizer is at hand."""
INSTRUCTION_TOKENS = 400
"""Tokens that the instructions of a request take at most; tests hold it."""
MARK_TOKENS = 12
"""Tokens that marks, number and strength of an example take at most."""
ANSWER_TOKENS = 400
"""Tokens of an answer at most: some words of reasoning and the label."""
MAX_LABEL = 200
"""Characters of a label; Words.text of annotations.proto has the same."""
KEY_PATTERN = r"[A-Z][A-Z0-9_]{0,59}_API_KEY"
"""Names of environment variables that may hold a key. No other secret of the job worker has such a name."""

_NUMBERS = tuple(column.name for column in LATENT_COLUMNS if column.type.startswith(("float", "uint")))


def _order(value: str) -> str:
    if value.removeprefix("-") not in _NUMBERS:
        raise ValueError(f"there is no column {value.removeprefix('-')[:60]!r} with a number for each latent")
    return value


def checked_address(value: str) -> str:
    """The address of an endpoint, without a / at its end. Raises ValueError."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is no address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("must begin with http:// or https:// and a host, as in http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must hold no password, question mark or #; name the variable with the key in `key`")
    if ".." in parts.path.replace("%2e", ".").replace("%2E", ".").split("/"):
        raise ValueError("must hold no ..")
    if re.search(r"[\s\x00-\x1f\x7f]", value):
        raise ValueError("must hold no white space")
    return value.rstrip("/")


def _printable(value: str) -> str:
    if not value.isprintable() or not value.strip():
        raise ValueError("must be one line of characters that show")
    return value


@dataclass(config=STRICT)
class LatentChoice:
    """Latents that are labelled: those that `ids` names, or the first `limit` that meet all conditions."""

    ids: Annotated[tuple[Natural, ...], Field(max_length=10_000)] = ()
    """Numbers of the latents. Give them, or let the other fields choose."""
    specific_to: Literal["chat", "base", "each"] | None = "chat"
    """Only latents that are specific to this model by their measurements (math §6); null: whatever they are."""
    verdicts: tuple[Literal["supported", "weak", "contradicted", "too_few", "not_judged"], ...] = ("supported",)
    """Only latents with one of these verdicts; none: any verdict."""
    classes: tuple[Literal["chat_only", "base_only", "shared", "other"], ...] = ()
    """Only latents of one of these classes; none: any class."""
    order_by: Annotated[str, AfterValidator(_order)] = "-num_active"
    """The column with a number by which they are taken, with - in front for the largest first. Latents for which it is
    not defined come last."""
    limit: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Number of latents at most."""

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        others = (self.specific_to, self.verdicts, self.classes, self.order_by, self.limit)
        if self.ids and others != ("chat", ("supported",), (), "-num_active", 100):
            raise ValueError("ids names each latent, so leave the other fields out")
        if len(set(self.ids)) < len(self.ids):
            raise ValueError("ids names a latent twice; name each once")
        return self


@dataclass(config=STRICT)
class Endpoint:
    """A model behind an address that speaks OpenAI's chat format (`/chat/completions`)."""

    by: Literal["endpoint"]
    address: Annotated[str, Field(min_length=1, max_length=500), AfterValidator(checked_address)]
    """Where it answers, up to the version: http://127.0.0.1:8000/v1. On this machine, or one that the job worker may
    call (docs/operations.md)."""
    model: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]
    """Name of the model there. Its labels have this author."""
    key: Annotated[str, Field(pattern=f"^{KEY_PATTERN}$")] | None = None
    """Name of the environment variable of the job worker that holds the key; it ends in _API_KEY. null: no key is sent.
    The key itself stands in no recipe, log or message."""
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    """Latents that are labelled side by side."""
    timeout_s: Annotated[float, Field(ge=1, le=3600)] = 120.0
    """Seconds to wait for an answer."""
    retries: Annotated[int, Field(ge=0, le=20)] = 5
    """Further tries of a request that was answered by 408, 409, 425, 429 or 5xx, or not at all."""
    per_request: Annotated[int, Field(ge=1, le=50)] = 5
    """Texts that one request has judged."""
    body: Annotated[dict[str, JsonValue], Field(max_length=20)] = Field(default_factory=dict)
    """Further fields of every request; null leaves one out that is sent otherwise (temperature 0, max_tokens)."""

    @model_validator(mode="after")
    def _own_fields(self) -> Self:
        if own := [name for name in ("model", "messages", "stream", "n") if name in self.body]:
            raise ValueError(f"body may not set {own[0]}, which the job sets itself")
        return self


@dataclass(config=STRICT)
class ChatModel:
    """The pair's own chat model. It judges by which of the answers Yes and No it finds more probable."""

    by: Literal["chat"]

    @property
    def per_request(self) -> int:
        """Texts that one request has judged."""
        return 1


Explainer = Annotated[Endpoint | ChatModel, Field(discriminator="by")]


@dataclass(config=STRICT)
class LabelExamples:
    """Texts that the explainer sees, and those on which its label is scored. None is both."""

    shown: Annotated[int, Field(ge=1, le=100)] = 12
    """Texts on which the latent fires that are shown, half of them the strongest; at most half of those that there
    are."""
    held_out: Annotated[int, Field(ge=2, le=200)] = 20
    """Other texts on which it fires, at most, by which the label is scored; and as many on which it stays silent."""
    context: Annotated[int, Field(ge=2, le=256)] = 16
    """Tokens that are shown on each side of the peak."""
    seed: Seed = 0
    """Seed of the draws."""


@dataclass(config=STRICT)
class LabelBudget:
    """What a job may ask for, repeated requests included. One that would need more is refused before it asks."""

    requests: Count = 10_000
    """Number of requests."""
    tokens: Count = 5_000_000
    """Tokens of prompts and answers, as the endpoint counts them; where it does not, four characters a token."""


@plain(frozen=True)
class Cost:
    """What labelling takes, without repeated requests."""

    requests: int
    prompt_tokens: int
    answer_tokens: int
    """At most."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def tokens(self) -> int:
        """Tokens of prompts and answers."""
        return self.prompt_tokens + self.answer_tokens

    def __str__(self) -> str:
        return f"{self.requests} requests with about {self.prompt_tokens} tokens of prompts"


NOTHING = Cost(0, 0, 0)


def judged_answer_tokens(explainer: Endpoint | ChatModel) -> int:
    """Tokens of an answer that judges texts, at most."""
    return 1 if isinstance(explainer, ChatModel) else ANSWER_TOKENS


def judging_cost(explainer: Endpoint | ChatModel, characters: list[int]) -> Cost:
    """What it takes to have texts of these lengths judged."""
    requests = math.ceil(len(characters) / explainer.per_request)
    texts = sum(map(tokens_of, characters)) + len(characters) * MARK_TOKENS
    prompts = requests * (INSTRUCTION_TOKENS + tokens_of(MAX_LABEL)) + texts
    return Cost(requests, prompts, requests * judged_answer_tokens(explainer))


def explaining_cost(characters: list[int]) -> Cost:
    """What it takes to have a latent labelled by texts of these lengths."""
    texts = sum(map(tokens_of, characters)) + len(characters) * MARK_TOKENS
    return Cost(1, INSTRUCTION_TOKENS + texts, ANSWER_TOKENS)


def most_per_latent(explainer: Endpoint | ChatModel, examples: LabelExamples) -> Cost:
    """What a latent takes whose examples are as many and as long as they may be, four characters a token."""
    length = CHARACTERS_A_TOKEN * (2 * examples.context + 1)
    fuzzing = judging_cost(explainer, [length] * examples.held_out)
    detection = judging_cost(explainer, [length] * 2 * examples.held_out)
    return explaining_cost([length] * examples.shown) + detection + fuzzing


def tokens_of(characters: int) -> int:
    """About how many tokens a text of so many characters has."""
    return math.ceil(characters / CHARACTERS_A_TOKEN)
