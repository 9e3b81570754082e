"""The latents that a rank holds of a dictionary, and where they stand among its rows (math §3)."""

from dataclasses import dataclass, field

from crosscope_worker.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Held:
    """A contiguous part of a dictionary's latents; row 0 of a rank's tensors is the first of them."""

    num_latents: int
    """Latents of the whole dictionary."""
    ranks: Ranks = ALONE
    latents: slice = field(init=False)
    """The latents held, among all."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "latents", self.ranks.share(self.num_latents))

    def __len__(self) -> int:
        return self.latents.stop - self.latents.start

    def rows(self, latents: slice) -> slice:
        """The rows of this rank that hold some of all latents; empty where it holds none of them."""
        first, last, _ = latents.indices(self.num_latents)
        start, stop = (min(max(edge - self.latents.start, 0), len(self)) for edge in (first, last))
        return slice(start, stop)
