"""What is said about latents, as plain records. Know nothing about SQL or calls."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class What(StrEnum):
    """The things that can be said of a latent, besides the lists that it is in."""

    LABEL = "label"
    AUTOMATIC_LABEL = "automatic_label"
    NOTE = "note"
    STAR = "star"


@dataclass(frozen=True)
class Dictionary:
    """What words are about: the weights, and the name and the latents that they were published with."""

    weights: str
    """SHA-256 of the weights."""
    crosscoder: str
    num_latents: int


@dataclass(frozen=True)
class Said:
    """Something that was said."""

    text: str
    """Empty for a star."""
    author: str
    written_at: float
    """Seconds since 1970."""
    revision: int = 0
    """Number of the change that wrote it."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Of an automatic label: how well it fits."""


@dataclass(frozen=True)
class LatentWords:
    """All words about one latent."""

    latent: int
    said: Mapping[What, Said]
    lists: Mapping[str, int]
    """Its position in each list that it is in, by the list's name."""


@dataclass(frozen=True)
class ListInfo:
    """A list."""

    name: str
    num_latents: int
    author: str
    created_at: float


@dataclass(frozen=True)
class Change:
    """A change of one thing."""

    revision: int
    what: str
    """A What, or "list"."""
    list: str
    """The name that the list had then."""
    before: str | None
    after: str | None
    author: str
    changed_at: float


@dataclass(frozen=True)
class Conditions:
    """Which latents with words; all must hold."""

    text: str = ""
    """Part of a label or note; empty: any."""
    is_labelled: bool = False
    is_noted: bool = False
    is_starred: bool = False
    list: str = ""
    """Name of a list that it is in; empty: any."""


@dataclass(frozen=True)
class Totals:
    """Numbers of latents with words."""

    labelled: int = 0
    starred: int = 0
    noted: int = 0
    lists: int = 0
    """Number of lists."""

    def __str__(self) -> str:
        counts = ((self.labelled, "label"), (self.noted, "note"), (self.starred, "star"), (self.lists, "list"))
        named = [f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count]
        return " and ".join(filter(None, [", ".join(named[:-1]), *named[-1:]]))
