"""Equal parts of the texts of a recipe, one for each stream of a training. Reads nothing."""

from dataclasses import dataclass

from crosscope_worker.ranks import parts


@dataclass(frozen=True)
class Part:
    """One of several parts: of each data set, every `of`-th text of the split from `index` on.

    Of a hub data set whose files can be dealt (hub_files.py), the texts of the split in every `of`-th file.
    """

    index: int = 0
    of: int = 1

    def has(self, number: int) -> bool:
        """Whether the text of this number, counted in its data set and split, belongs to it."""
        return number % self.of == self.index

    def share(self, number: int) -> int:
        """Its share of a number of things; shares differ by one at most."""
        part = parts(number, self.of)[self.index]
        return part.stop - part.start


WHOLE = Part()
