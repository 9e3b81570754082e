"""Which latents tell two sets of prompts apart. Knows nothing about gRPC."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from crosscope import _html, _tables
from crosscope._public import public
from crosscope._tables import number
from crosscope._types import Estimate

if TYPE_CHECKING:
    import pandas as pd

CONTRAST_HEADERS = ("latent", "AUC", "mean first", "mean second", "p")


@public
@dataclass(frozen=True)
class ContrastLatent:
    """One latent as a detector of the first set."""

    latent: int
    auc: Estimate
    """Probability that a prompt of the first set scores above one of the second, ties counting half."""
    mean_first: float
    """Mean score in the first set."""
    mean_second: float
    """Mean score in the second set."""
    p_value: float
    """(b + 1) / (n + 1): in b of n shuffled labellings the best latent of all reaches |AUC - 1/2| of this one."""


@public
@dataclass(frozen=True)
class ContrastPlace:
    """Latents scored at one place, most telling first."""

    place: str
    """"decision": the prompt's last token; "within": the largest activation on the prompt, without the template."""
    entries: tuple[ContrastLatent, ...]
    held_out_auc: Estimate
    """AUC of the latent that the other folds choose, on prompts that did not choose it."""
    shuffled_auc: float
    """Mean of the same over shuffled labels: what chance gives."""
    num_shuffles: int
    num_latents: int
    """Latents that fire on any prompt."""
    num_without_token: int = 0
    """Prompts without a token that is scored here, because training left such tokens out; they score 0."""

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[ContrastLatent]:
        return iter(self.entries)

    @property
    def heading(self) -> str:
        """What was found here, in a sentence."""
        held_out = f"held-out AUC {self.held_out_auc}, by chance {number(self.shuffled_auc)}"
        said = f"{self.place}: {held_out} ({self.num_shuffles} shuffles, {self.num_latents} latents)"
        count = self.num_without_token
        return said + (f"; {count} prompts have no token that is scored here" if count else "")

    def rows(self) -> list[tuple[str, ...]]:
        """Cells of every latent under CONTRAST_HEADERS."""
        return [
            (str(e.latent), str(e.auc), number(e.mean_first), number(e.mean_second), number(e.p_value)) for e in self
        ]


@public
@dataclass(frozen=True)
class Contrast:
    """The latents that tell two sets of prompts apart, at the decision token and within the prompts."""

    crosscoder: str
    version_id: str
    places: tuple[ContrastPlace, ...]
    num_first: int
    """Different prompts of the first set."""
    num_second: int
    num_repeats: int = 0
    """Prompts that their set has already, which are not counted."""

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[ContrastPlace]:
        return iter(self.places)

    def __getitem__(self, place: str) -> ContrastPlace:
        found = next((each for each in self.places if each.place == place), None)
        if found is None:
            raise KeyError(f"no place {place!r}; there are {', '.join(each.place for each in self.places)}")
        return found

    @property
    def heading(self) -> str:
        """How many prompts were compared."""
        said = f"{self.num_first} prompts against {self.num_second} in {self.crosscoder}"
        are = "1 repeat is" if self.num_repeats == 1 else f"{self.num_repeats} repeats are"
        return said + (f"; {are} not counted" if self.num_repeats else "")

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each place and latent; needs pandas."""
        import pandas as pd

        rows = [
            {"place": place.place, **vars(each), "auc": each.auc.value, "auc_se": each.auc.se}
            for place in self
            for each in place
        ]
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        lines = [self.heading]
        for place in self:
            lines += ["", place.heading, _tables.aligned(CONTRAST_HEADERS, place.rows()) if len(place) else "no latent"]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        tables = (_html.remarks([place.heading]) + _html.table(CONTRAST_HEADERS, place.rows()) for place in self)
        return _html.page(_html.remarks([self.heading]) + "".join(tables))
