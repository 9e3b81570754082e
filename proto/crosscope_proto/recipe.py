"""Recipes: the YAML files that say what a job makes. Parsed and checked here, run by the worker.

Their parts are in `specs` and `dictionaries`.
"""

import reprlib
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from crosscope_proto.dictionaries import VARIANTS, AnyDictionary, ChoosesK, Reads
from crosscope_proto.recipe_yaml import YamlTextError, load_yaml
from crosscope_proto.specs import (
    STRICT,
    AnalysisSpec,
    DataSpec,
    Day,
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
"""The demo's texts are made in memory, and its models are trained for minutes."""

_SHORT = reprlib.Repr()
"""Shows a value by its beginning."""
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


class RecipeError(ValueError):
    """A recipe that cannot be run.

    `violations` holds (field, sentence) pairs; the field is a dotted path such as "training.lr", empty for the whole.
    """

    def __init__(self, violations: list[tuple[str, str]]) -> None:
        self.violations = violations
        super().__init__("; ".join(f"{path}: {text}" if path else text for path, text in violations))


@dataclass(config=STRICT)
class CrosscoderRecipe:
    """Trains, measures and publishes a crosscoder."""

    kind: Literal["crosscoder"]
    name: Name
    """The crosscoder's name."""
    pair: PairSpec
    layer: Layer
    """Index of the decoder layer whose output is read."""
    data: Annotated[tuple[DataSpec, ...], Field(min_length=1, max_length=32)]
    crosscoder: AnyDictionary
    tokens: TokenPolicy = TokenPolicy()
    training: TrainingSpec = TrainingSpec()
    analysis: AnalysisSpec = AnalysisSpec()
    chat_template_date: Day | None = None
    """The day that a chat template prints, YYYY-MM-DD; null: the day of the job's first attempt. Recorded with the
    crosscoder, whose prompts have it too."""
    chat_template_kwargs: TemplateKwargs = Field(default_factory=dict)
    """What the chat template is told beside the turns: enable_thinking, tools, documents, …"""

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
    """The crosscoder's name here."""
    pair: PairSpec
    layer: Layer
    """Index of the decoder layer whose output the crosscoder reads."""
    path: Annotated[str, Field(min_length=1)]
    """Folder or file of its weights, a relative one below the home; or hub id, which may go on to a folder inside the
    repository (docs/published.md)."""
    data: Annotated[tuple[DataSpec, ...], Field(min_length=1, max_length=32)]
    revision: str | None = None
    """Hub revision of the crosscoder."""
    input_scale: tuple[Positive, Positive] | None = None
    """Factors on the base and the chat model's activations, for files that do not hold them."""
    swap: bool = False
    """Model 0 of the file is the chat model."""
    reads: Reads = "both"
    """What it was trained on: both models, or one stream of activations: chat less base, base alone or chat alone."""
    tokens: TokenPolicy = TokenPolicy()
    """Only held-out texts are read: every `held_out_every`-th."""
    analysis: AnalysisSpec = AnalysisSpec()
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
class DemoPairRecipe:
    """Trains the demo's pair of small Gemma 2 models on a generated world."""

    kind: Literal["demo-pair"]
    name: Name
    """The pair's name."""
    num_layers: Annotated[int, Field(ge=2, le=26)] = 4
    """Decoder layers."""
    hidden_size: Annotated[int, Field(ge=16, le=1024, multiple_of=16)] = 64
    """Residual-stream width."""
    base_steps: DemoCount = 1500
    """Training steps of the base model."""
    chat_steps: DemoCount = 700
    """Steps of chat-tuning."""
    documents: DemoCount = 6000
    """Generated documents."""
    conversations: DemoCount = 4000
    """Generated conversations."""
    seed: Seed = 0
    """Seed of the world and of both trainings."""


Recipe = CrosscoderRecipe | PublishedRecipe | DemoPairRecipe
_KINDS = ("crosscoder", "published", "demo-pair")
_UNIONS = ("str", "AdapterSpec", *VARIANTS)
"""What pydantic puts into the path of a field that may hold either."""
_ADAPTER: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="kind")])


def parse_recipe(text: str) -> Recipe:
    """Parses and checks a recipe.

    Raises RecipeError that names every field that is wrong, what it holds and what it may hold.
    """
    try:
        document = load_yaml(text)
    except YamlTextError as error:
        raise RecipeError([("", str(error))]) from error
    if not isinstance(document, dict):
        raise RecipeError([("", "a recipe is a YAML mapping with the keys kind, name, …")])
    try:
        return _ADAPTER.validate_python(document)
    except ValidationError as error:
        raise RecipeError([_violation(dict(detail)) for detail in error.errors()]) from error


def _violation(detail: dict[str, Any]) -> tuple[str, str]:
    location: tuple[str | int, ...] = detail["loc"]
    parts = (part for i, part in enumerate(location) if not (i == 0 and part in _KINDS) and part not in _UNIONS)
    path = ".".join(str(part) for part in parts)
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


def recipe_dict(recipe: Recipe) -> dict[str, object]:
    """The recipe with every default written out, as plain JSON values."""
    return _ADAPTER.dump_python(recipe, mode="json")


def recipe_schema() -> dict[str, object]:
    """The JSON schema of recipes."""
    return _ADAPTER.json_schema()
