"""Recipes: the YAML files that say what a job makes. This module parses and checks them; the worker runs them.

The parts of a recipe are in `specs` and `dictionaries`. Knows nothing about files, models or data.
"""

import dataclasses
import reprlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from crosscope_proto import dictionaries, specs
from crosscope_proto.dictionaries import VARIANTS, AnyDictionary, ChoosesK, Reads
from crosscope_proto.field_meanings import meanings
from crosscope_proto.label_specs import Explainer, LabelBudget, LabelExamples, LatentChoice
from crosscope_proto.recipe_yaml import YamlTextError, load_yaml
from crosscope_proto.specs import (
    STRICT,
    AnalysisSpec,
    CausalSpec,
    DataSpec,
    Day,
    Float32,
    LookTokens,
    Name,
    PairSpec,
    Positive,
    Seed,
    TemplateKwargs,
    TokenPolicy,
    TrainingSpec,
)

Layer = Annotated[int, Field(ge=0, lt=10_000)]
DemoCount = Annotated[int, Field(ge=1, le=10_000_000)]
"""The upper limit keeps the demo small: its texts lie in memory, and its models train for minutes."""
DEMO_TEXT_MEMORY = 4000
"""Bytes of memory that a text of the demo pair takes, as text and as two lists of ids. Measured on 3 000 texts."""
_DOCUMENT_DISK, _CONVERSATION_DISK = 135, 385
"""Bytes that they take in their files: 126 and 361 were measured on 1 500 each."""
_DEMO_VOCABULARY, _DEMO_WORDS_DISK = 1800, 280_000
"""Most entries of the demo's vocabulary; and bytes of its tokenizer in both folders, with probes and configurations."""

_SHORT = reprlib.Repr()
"""Shows a value by its beginning."""
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


class RecipeError(ValueError):
    """A recipe that cannot be run.

    `violations` holds tuples (field, sentence). The field is a dotted path such as "training.lr"; it is empty if the
    sentence is about the whole recipe.
    """

    def __init__(self, violations: list[tuple[str, str]]) -> None:
        self.violations = violations
        super().__init__("; ".join(f"{path}: {text}" if path else text for path, text in violations))


@dataclass(config=STRICT)
class CrosscoderRecipe:
    """Trains, measures and publishes a crosscoder."""

    kind: Literal["crosscoder"]
    name: Name
    """The crosscoder's name. Each job with this name publishes a new version of it."""
    pair: PairSpec
    """The two models."""
    layer: Layer
    """Index of the decoder layer whose output is read; 0 is the first layer."""
    data: Annotated[tuple[DataSpec, ...], Field(min_length=1, max_length=32)]
    """The data sets. Their texts take turns."""
    crosscoder: AnyDictionary
    """The dictionary. `variant` says which one it is, and so which fields it has."""
    tokens: TokenPolicy = TokenPolicy()
    """Which tokens are trained on and analysed."""
    training: TrainingSpec = TrainingSpec()
    """How the dictionary is trained."""
    analysis: AnalysisSpec = AnalysisSpec()
    """What is measured on held-out texts."""
    float32: Float32 | None = None
    """How float32 products are made on CUDA in training, in the analysis and for prompts: ieee, or tf32, which rounds
    operands to 10 bits of mantissa and is several times as fast; null: tf32. CPUs, and GPUs without TF32 units, take
    ieee. The manifest records what was taken."""
    chat_template_date: Day | None = None
    """The day that the chat template prints, YYYY-MM-DD; null: the day of the job's first attempt. It is recorded with
    the crosscoder, and prompts get the same day."""
    chat_template_kwargs: TemplateKwargs = Field(default_factory=dict)
    """Arguments that the chat template gets beside the messages: enable_thinking, tools, documents, …"""

    @model_validator(mode="after")
    def _k_start(self) -> Self:
        training, spec = self.training, self.crosscoder
        if training.k_start is not None:
            if not isinstance(spec, ChoosesK) or not training.sparsity_warmup_steps:
                raise ValueError("training.k_start needs training.sparsity_warmup_steps and crosscoder.k")
            if not spec.k <= training.k_start <= spec.num_choices:
                raise ValueError(
                    f"training.k_start {training.k_start} must lie between crosscoder.k {spec.k} and the "
                    f"{spec.num_choices} latents that it chooses from"
                )
        elif isinstance(spec, ChoosesK) and training.sparsity_warmup_steps:
            raise ValueError("training.sparsity_warmup_steps needs training.k_start where crosscoder.k is fixed")
        return self

    @model_validator(mode="after")
    def _length_is_known(self) -> Self:
        endless = [each.name for each in self.data if each.source == "hub" and each.max_tokens is None]
        if self.training.decay_share and self.training.max_steps is None and endless:
            raise ValueError(
                "training.decay_share needs to know where training ends: give training.max_steps, or max_tokens of "
                f"the data set {endless[0]!r}"
            )
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        _check_names(self.data)
        return self


@dataclass(config=STRICT)
class PublishedRecipe:
    """Measures and publishes a crosscoder that someone else trained."""

    kind: Literal["published"]
    name: Name
    """The name that the crosscoder gets here."""
    pair: PairSpec
    """The two models that the crosscoder was trained on."""
    layer: Layer
    """Index of the decoder layer whose output the crosscoder reads; 0 is the first layer."""
    path: Annotated[str, Field(min_length=1)]
    """Where its weights lie: a folder, a file, or a hub id. A relative path starts at the home folder. A hub id may
    name a folder inside the repository: owner/repository/folder (docs/published.md)."""
    data: Annotated[tuple[DataSpec, ...], Field(min_length=1, max_length=32)]
    """The data sets. Only their held-out texts are read."""
    revision: str | None = None
    """Hub revision of the crosscoder."""
    input_scale: tuple[Positive, Positive] | None = None
    """Factors on the activations of the base and of the chat model, for files that do not hold them."""
    swap: bool = False
    """Whether model 0 of the file is the chat model."""
    reads: Reads = "both"
    """What it was trained on. both: the activations of both models; difference: chat less base; base or chat: that
    model alone."""
    tokens: TokenPolicy = TokenPolicy()
    """Which tokens are analysed. Only every `held_out_every`-th text is read."""
    analysis: AnalysisSpec = AnalysisSpec()
    """What is measured."""
    float32: Float32 | None = None
    """As in a recipe of kind crosscoder, for the analysis and for prompts."""
    chat_template_date: Day | None = None
    """As in a recipe of kind crosscoder."""
    chat_template_kwargs: TemplateKwargs = Field(default_factory=dict)
    """As in a recipe of kind crosscoder."""

    @model_validator(mode="after")
    def _one_model_has_nothing_to_swap(self) -> Self:
        if self.swap and self.reads in ("base", "chat"):
            raise ValueError(f"swap exchanges two models, but reads says {self.reads} alone; leave swap out")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        _check_names(self.data)
        return self


def _check_names(data: tuple[DataSpec, ...]) -> None:
    names = [each.name for each in data]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two data sets have the name {twice[0]!r}")


@dataclass(config=STRICT)
class LookRecipe:
    """Shows where a pair's models differ, before any dictionary is trained."""

    kind: Literal["look"]
    name: Name
    """The look's name. Each job with this name replaces it."""
    pair: PairSpec
    """The two models."""
    data: Annotated[tuple[DataSpec, ...], Field(min_length=1, max_length=32)]
    """The data sets. Their texts take turns; all are read, not only those that a training would hold out."""
    tokens: LookTokens = LookTokens()
    """Which tokens are compared."""
    max_tokens: Annotated[int, Field(ge=1, le=50_000_000)] = 200_000
    """The comparison ends with the text in which this many tokens are compared."""
    num_findings: Annotated[int, Field(ge=1, le=1000)] = 200
    """Number of tokens that are kept, those that differ most."""
    findings_per_text: Annotated[int, Field(ge=1, le=1000)] = 3
    """At most this many of them are of one text. Of those whose last 16 tokens are the same, one is kept."""
    num_conversations: Annotated[int, Field(ge=1, le=100)] = 20
    """Number of texts that are kept, those with the largest mean."""
    every: Annotated[int, Field(ge=1, lt=10_000)] | None = None
    """The sweep measures every n-th layer, counted down from the last; null: so that there are at most 16."""
    sweep_tokens: Annotated[int, Field(ge=0, le=1000)] = 128
    """Number of findings on which the sweep is measured, the largest; 0: no sweep, and no layer is recommended."""
    num_prompts: Annotated[int, Field(ge=0, le=64)] = 8
    """Number of prompts that both models continue, those that differ most; 0: none."""
    max_new_tokens: Annotated[int, Field(ge=1, le=1024)] = 48
    """A continuation ends after this many tokens."""
    first_positions: Annotated[int, Field(ge=0, le=64)] = 5
    """Number of first positions of a text whose mean activation difference is shown; 0: none."""
    chat_template_date: Day | None = None
    """As in a recipe of kind crosscoder."""
    chat_template_kwargs: TemplateKwargs = Field(default_factory=dict)
    """As in a recipe of kind crosscoder."""

    @model_validator(mode="after")
    def _sweeps_findings(self) -> Self:
        if self.sweep_tokens > self.num_findings:
            raise ValueError(
                f"sweep_tokens {self.sweep_tokens} must be at most num_findings {self.num_findings}, on which the "
                "sweep is measured"
            )
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        _check_names(self.data)
        return self


@dataclass(config=STRICT)
class CausalRecipe:
    """Measures what latents of a published crosscoder do, and publishes the crosscoder again with these columns."""

    kind: Literal["causal"]
    name: Name
    """The crosscoder. Its pair, layer, data and token policy are those of the recipe that made it."""
    causal: CausalSpec = CausalSpec()
    """The latents, and on how much they are measured. Columns of an earlier measurement are replaced."""


@dataclass(config=STRICT)
class LabelRecipe:
    """Has a model write labels for latents of a published crosscoder, and scores each label (math §14)."""

    kind: Literal["label"]
    name: Name
    """The crosscoder."""
    explainer: Explainer
    """Who writes the labels."""
    version: Name | None = None
    """The version that is labelled; null: the current one. Words belong to its weights."""
    latents: LatentChoice = LatentChoice()
    """Which latents."""
    examples: LabelExamples = LabelExamples()
    """On what they are labelled and scored."""
    budget: LabelBudget = LabelBudget()
    """What it may cost."""


@dataclass(config=STRICT)
class DemoPairRecipe:
    """Trains the demo's pair of small Gemma 2 models on a generated world."""

    kind: Literal["demo-pair"]
    name: Name
    """The pair's name."""
    num_layers: Annotated[int, Field(ge=2, le=26)] = 4
    """Number of decoder layers of each model."""
    hidden_size: Annotated[int, Field(ge=16, le=1024, multiple_of=16)] = 64
    """Width of the residual stream."""
    base_steps: DemoCount = 1500
    """Training steps of the base model."""
    chat_steps: DemoCount = 700
    """Further steps that tune the base model to chat."""
    documents: DemoCount = 6000
    """Number of documents that are generated."""
    conversations: DemoCount = 4000
    """Number of conversations that are generated."""
    seed: Seed = 0
    """Seed of the world and of both trainings."""

    @property
    def memory_bytes(self) -> int:
        """Memory that its texts take, all of which lie there at once."""
        return (self.documents + self.conversations) * DEMO_TEXT_MEMORY

    @property
    def model_bytes(self) -> int:
        """What one of its models takes on the disk, in float32."""
        width, heads = self.hidden_size, max(2, self.hidden_size // 16)
        attention = 16 * width * (2 * heads + 2 * (heads // 2))
        return 4 * (width * (_DEMO_VOCABULARY + 1) + self.num_layers * (attention + 12 * width**2 + 4 * width))

    @property
    def text_bytes(self) -> int:
        """What its texts and its tokenizer take on the disk."""
        return self.documents * _DOCUMENT_DISK + self.conversations * _CONVERSATION_DISK + _DEMO_WORDS_DISK

    @property
    def disk_bytes(self) -> int:
        """What it takes on the disk at most: texts, both models, and a copy of the base model until it is published."""
        return self.text_bytes + 3 * self.model_bytes


Recipe = CrosscoderRecipe | PublishedRecipe | LookRecipe | CausalRecipe | LabelRecipe | DemoPairRecipe
_KINDS = ("crosscoder", "published", "look", "causal", "label", "demo-pair")
_UNIONS = ("str", "AdapterSpec", *VARIANTS)
"""Words that pydantic puts into the path of a field of a union; no recipe has them as keys."""
_MODULES = (specs, dictionaries, sys.modules[__name__])
"""Where the dataclasses of a recipe are."""
_ADAPTER: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="kind")])


def parse_recipe(text: str) -> Recipe:
    """The recipe of a YAML text.

    Raises RecipeError, which names every wrong field, what it holds and what it may hold.
    """
    try:
        document = load_yaml(text)
    except YamlTextError as error:
        raise RecipeError([("", str(error))]) from error
    if not isinstance(document, dict):
        raise RecipeError([("", "a recipe is a YAML mapping with the keys kind, name, …")])
    try:
        recipe = _ADAPTER.validate_python(document)
    except ValidationError as error:
        raise RecipeError([_violation(dict(detail)) for detail in error.errors()]) from error
    if converted := list(_converted(document, _ADAPTER.dump_python(recipe))):
        raise RecipeError(converted)
    return recipe


def _converted(given: object, made: object, path: str = "") -> Iterator[tuple[str, str]]:
    """The fields that were given true or false (in YAML also yes and no) and made a number of it."""
    if isinstance(given, bool) and not isinstance(made, bool):
        yield path, f"must be a number, but is {str(given).lower()}"
    elif isinstance(given, dict) and isinstance(made, dict):
        for name, value in given.items():
            yield from _converted(value, made.get(name, value), f"{path}.{name}" if path else str(name))
    elif isinstance(given, list) and isinstance(made, (list, tuple)):
        for i, (value, result) in enumerate(zip(given, made, strict=False)):
            yield from _converted(value, result, f"{path}.{i}")


def _violation(detail: dict[str, Any]) -> tuple[str, str]:
    location: tuple[str | int, ...] = detail["loc"]
    path = ".".join(str(part) for i, part in enumerate(location) if not _is_union_word(location, i))
    value = _SHORT.repr(detail.get("input"))
    text = str(detail["msg"]).removeprefix("Value error, ")
    known = {
        "unexpected_keyword_argument": "no such key; check its spelling",
        "extra_forbidden": "no such key; check its spelling",
        "missing": "must be given",
        "missing_argument": "must be given",
    }
    if (kind := str(detail["type"])) in known:
        return path, known[kind]
    return path, text if kind == "value_error" else f"{text}, but is {value}"


def _is_union_word(location: tuple[str | int, ...], at: int) -> bool:
    part = location[at]
    if at == 0:
        return part in _KINDS
    return part in _UNIONS or (location[at - 1] == "explainer" and part in ("endpoint", "chat"))


def recipe_dict(recipe: Recipe) -> dict[str, object]:
    """The recipe with every default written out, as plain JSON values."""
    return _ADAPTER.dump_python(recipe, mode="json")


def recipe_schema() -> dict[str, object]:
    """The JSON schema of recipes. A field's description is the docstring below it, its help in forms."""
    schema = _ADAPTER.json_schema()
    for name, part in schema["$defs"].items():
        made_of = next((vars(module).get(name) for module in _MODULES if name in vars(module)), None)
        if isinstance(made_of, type) and dataclasses.is_dataclass(made_of):
            said = meanings(made_of)
            for field, description in part["properties"].items():
                if field in said:
                    description["description"] = said[field]
    return schema
