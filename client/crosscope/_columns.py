"""What the statistics table has and what it means, from the contract's one table of columns."""

from dataclasses import dataclass

from crosscope_proto.artefacts import LATENT_COLUMNS


@dataclass(frozen=True)
class ColumnFacts:
    """What a column of the statistics table means."""

    name: str
    meaning: str
    """A sentence; empty for a column that this version of the client does not know."""
    unit: str = ""
    source: str = ""
    """Where its formula stands."""
    low: float | None = None
    """The least value that it can have; None where nothing bounds it."""
    high: float | None = None
    """The largest value that it can have; None where nothing bounds it."""


def column_facts(name: str) -> ColumnFacts:
    """What the table says about a column."""
    if name.startswith("dataset_share_"):
        return ColumnFacts(name, f"share of activation mass on data set {name.removeprefix('dataset_share_')}")
    if name.startswith("role_share_"):
        return ColumnFacts(name, f"share of activation mass on tokens of role {name.removeprefix('role_share_')}")
    meanings = {column.name: column.doc for column in LATENT_COLUMNS}
    return ColumnFacts(name, meanings.get(name, ""))


def scalar_columns(*, numbers_only: bool = False) -> list[str]:
    """Names of the columns with one value a latent, in the order of the table; a class counts as a number."""
    scalars = [column for column in LATENT_COLUMNS if column.is_scalar]
    return [each.name for each in scalars if not numbers_only or each.type != "string" or each.name == "latent_class"]
