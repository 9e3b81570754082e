"""Labels that a job has made, on their way to the words of a home: labels/<job>.json.

The worker writes such a file whole, and the server takes it in: it writes the labels among the words and removes the
file. Text in, text out; touches no disk.
"""

import json
from dataclasses import asdict
from pathlib import PurePath
from typing import Annotated

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from crosscope_proto.label_specs import MAX_LABEL
from crosscope_proto.specs import STRICT, Name

FOLDER = "labels"
"""Folder of the home in which labels wait until a server takes them in."""
SUFFIX = ".json"
MAX_BYTES = 1 << 24
SCORES = ("detection", "fuzzing")
"""Measures of a label (math §14). `scores` has each with `_se`, its standard error, and `_n`, the number of texts."""

_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Latent = Annotated[int, Field(ge=0, lt=2**32)]


def has_something_to_see(text: str) -> bool:
    """Whether a text has a character that shows, and none that breaks its line."""
    return text.isprintable() and any(not each.isspace() for each in text)


def _visible(text: str) -> str:
    if not has_something_to_see(text):
        raise ValueError("must be one line with something to see")
    return text


@dataclass(config=STRICT)
class MadeLabel:
    """A label that a program gave to a latent."""

    latent: _Latent
    text: Annotated[str, Field(max_length=MAX_LABEL), AfterValidator(_visible)]
    scores: dict[Annotated[str, Field(min_length=1, max_length=100)], _Finite] = Field(default_factory=dict)


@dataclass(config=STRICT)
class MadeLabels:
    """The labels of one job."""

    crosscoder: Name
    weights: Annotated[str, Field(min_length=1, max_length=100)]
    """CrosscoderManifest.weights_id of the version that was labelled."""
    num_latents: Annotated[int, Field(ge=1, lt=2**32)]
    author: Annotated[str, Field(max_length=100), AfterValidator(_visible)]
    """The model that made the labels."""
    job: Annotated[str, Field(min_length=1, max_length=100)]
    made_at: Annotated[float, Field(ge=0, le=253_402_300_799)]
    """Seconds since 1970."""
    labels: tuple[MadeLabel, ...] = ()
    unlabelled: dict[str, tuple[_Latent, ...]] = Field(default_factory=dict)
    """Latents that got no label, by reason."""
    notes: tuple[str, ...] = ()
    """What it took, and what was left out; sentences."""

    @property
    def name(self) -> str:
        """The crosscoder."""
        return self.crosscoder

    @property
    def summary(self) -> str:
        """How many latents got a label, and how many did not, by reason; a sentence."""
        none = sum(map(len, self.unlabelled.values()))
        reasons = ", ".join(f"{reason}: {len(latents)}" for reason, latents in self.unlabelled.items())
        return f"{len(self.labels)} of {len(self.labels) + none} latents labelled{f'; {reasons}' if none else ''}."


class LabelsError(ValueError):
    """A file of labels that cannot be used; the message says why."""


def labels_path(home: PurePath, job_id: str) -> PurePath:
    """Where the labels of a job wait."""
    return home / FOLDER / f"{job_id}{SUFFIX}"


_ADAPTER: TypeAdapter[MadeLabels] = TypeAdapter(MadeLabels)


def labels_text(made: MadeLabels) -> str:
    """The text of a file of labels."""
    return json.dumps(asdict(made), ensure_ascii=False, sort_keys=True)


def parse_labels(data: bytes) -> MadeLabels:
    """The labels in the bytes of a file. Raises LabelsError."""
    if len(data) > MAX_BYTES:
        raise LabelsError(f"has {len(data)} bytes, but may have at most {MAX_BYTES}")
    try:
        made = _ADAPTER.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise LabelsError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if wrong := [each.latent for each in made.labels if each.latent >= made.num_latents]:
        raise LabelsError(f"names latent {wrong[0]}, but the dictionary has {made.num_latents}")
    return made
